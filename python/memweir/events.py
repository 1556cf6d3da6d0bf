"""What happened: one record for everything in memweir that acts by itself."""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Event", "Events"]

_LOUD = frozenset({"abandoned", "thrash", "over reserved", "half moved"})


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was done, to what, why, and what came of it.

    ``kind`` is ``"transition"`` where ``subject`` went from state ``before`` to ``after``; other
    kinds are named after what happened. ``nbytes`` is what it is about, ``seconds`` what it took,
    ``measured`` what the system's counters said where they were read.
    """

    source: str
    kind: str
    subject: str
    reason: str = ""
    before: str | None = None
    after: str | None = None
    nbytes: int = 0
    seconds: float = 0.0
    measured: Mapping[str, int | None] | None = None
    at: float = field(default_factory=time.time)

    def __str__(self) -> str:
        moved = "" if self.before is None else f" {self.before} → {self.after}"
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.source}: {self.kind} {self.subject!r}{moved}{why}, {self.seconds:.3f} s"


class Events:
    """The latest events of one source, and who wants to know of them.

    A listener is called in whichever thread acted, with no lock held; what it raises is dropped.
    """

    __slots__ = ("_latest", "_listener", "_logger", "_source")

    def __init__(
        self, source: str, logger: str, listener: Callable[[Event], object] | None = None
    ) -> None:
        self._source = source
        self._logger = logger
        self._listener = listener
        self._latest: deque[Event] = deque(maxlen=256)

    def emit(self, kind: str, subject: str, **said: Any) -> None:
        """Records an event and tells of it."""
        event = Event(self._source, kind, subject, **said)
        self._latest.append(event)
        try:
            self._log(event)
            if self._listener is not None:
                self._listener(event)
        except Exception:
            pass  # what happened has happened

    def latest(self) -> tuple[Event, ...]:
        """The newest 256, oldest first."""
        return tuple(self._latest)

    def _log(self, event: Event) -> None:
        # Where nobody imported logging nobody listens.
        get_logger = getattr(sys.modules.get("logging"), "getLogger", None)
        if get_logger is not None:
            logger = get_logger(self._logger)
            (logger.warning if event.kind in _LOUD else logger.debug)("%s", event)
