"""How often periodic callers may repeat a step, and how that slows when it brings little."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SLOWEST", "WIN", "Pace"]

WIN = 16 << 20
"""Bytes that make a step worth repeating, and a trim worth a line in the log."""
SLOWEST = 600.0
"""Seconds that an interval is doubled to at most."""
_DOUBLINGS = 32  # beyond any interval's end


class _Last(NamedTuple):
    done: float
    doublings: int


class Pace:
    """When each step was done last, and how often in a row it brought little for its callers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[object, _Last] = {}

    def too_soon(self, key: object, interval: float) -> str | None:
        """Why a step is not to be done again yet; ``None`` if it is."""
        last = self._last.get(key)
        if last is None:
            return None
        # Doubling stops at the slowest; what the caller asked for itself may be slower.
        wanted = max(interval, min(interval * 2.0**last.doublings, SLOWEST))
        since = self._clock() - last.done
        if since >= wanted:
            return None
        slowed = ", as it brought little" if wanted > interval else ""
        return f"done {since:.0f} s ago, to be repeated after {wanted:g} s{slowed}"

    def did(self, key: object, released: int | None, *, asked: bool) -> None:
        """Notes that a step was done; what was `asked` for explicitly may bring little."""
        last = self._last.get(key)
        doublings = 0 if last is None else last.doublings
        if released is not None and released >= WIN:
            doublings = 0
        elif not asked:
            doublings = min(doublings + 1, _DOUBLINGS)
        self._last[key] = _Last(self._clock(), doublings)
