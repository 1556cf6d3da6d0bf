"""The seam between a pool and a kind of model.

A pool decides when something happens to a model; an adapter knows how. It has no opinion about
leases, budgets and clocks, and the pool none about tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from memweir.models.ladder import Rung

__all__ = ["NOTHING", "Adapter", "Sizes"]


class Sizes(NamedTuple):
    """Bytes of a model by where they are.

    ``host`` is anonymous memory of the process, ``device`` memory of accelerators, and ``file``
    pages of mapped files, which the system may drop by itself.
    """

    host: int = 0
    device: int = 0
    file: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.host + self.device + self.file

    def __add__(self, other: object) -> Sizes:
        """Sizes of two models together: not one tuple behind the other."""
        if not isinstance(other, Sizes):
            return NotImplemented
        return Sizes(*(a + b for a, b in zip(self, other, strict=True)))


NOTHING = Sizes()


class Adapter(Protocol):
    """How one model is taken in, counted, moved and let go; one instance for each key of a pool.

    Nothing here is called under a lock, and no two calls for one key run at a time.
    """

    name: str
    """How it is called in a status: ``"opaque"``."""

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Where its model can rest, beside gone; known once it has adopted one."""

    def adopt(self, model: Any, device: str | None) -> None:
        """Takes over what a loader returned: refuses what is none, and places it.

        Raises ``LoadFailed`` or ``UnsupportedType``; the model is then nobody's.
        """

    def nbytes(self, model: Any) -> Sizes | None:
        """What the model takes, counted; ``None`` where it cannot be counted."""

    def move(self, model: Any, to: Rung, device: str | None) -> None:
        """Brings the model to another of its rungs.

        On the way down ``Refused`` or ``Busy`` says that it is where it was, and may be lent.
        """

    def dispose(self, model: Any) -> None:
        """Lets the model go: what it needs beside losing its last reference."""
