"""Where a model can be, and when one that nobody uses goes further down."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

from memweir.settings import current

__all__ = ["Idle", "Rung"]


class Rung(IntEnum):
    """Where the weights of a model are, from the most to the least expensive."""

    DEVICE = 0
    """In the memory of an accelerator."""
    HOST = 1
    """In anonymous memory of the process."""
    MAPPED = 2
    """In a mapped file of which nothing need be resident."""
    GONE = 3
    """Nowhere: the next lease loads it."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Seconds after its last release at which a model goes down; ``None`` is never, 0 at once.

    ``offload`` takes it from the device into memory, ``mapped`` leaves of a mapped file what the
    system can drop, ``unload`` lets it go. Each is timed from the last release; a rung on which a
    kind of model cannot rest is passed over. What is not said is :class:`~memweir.Settings`'.
    """

    offload: float | None = field(default_factory=lambda: current().idle_offload)
    mapped: float | None = None
    unload: float | None = field(default_factory=lambda: current().idle_unload)

    def __post_init__(self) -> None:
        for name in self.__slots__:
            seconds = getattr(self, name)
            if seconds is None:
                continue
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                raise TypeError(f"{name} is None or seconds, not {type(seconds).__name__}")
            if not 0 <= seconds < math.inf:
                raise ValueError(
                    f"{name} is None (never) or seconds from 0 (at once) on: {seconds}"
                )

    @classmethod
    def never(cls) -> Idle:
        """A model that stays where it is until somebody asks or its place is needed."""
        return cls(None, None, None)

    def steps(self) -> tuple[tuple[Rung, float], ...]:
        """The rungs it goes to and when, downwards; those that it never goes to left out."""
        windows = ((Rung.HOST, self.offload), (Rung.MAPPED, self.mapped), (Rung.GONE, self.unload))
        return tuple((rung, float(after)) for rung, after in windows if after is not None)
