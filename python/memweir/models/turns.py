"""Turns: one change of one model, by one thread; and who waits for whom.

A wait that cannot end is not begun: a load that asks for its own key, loads that wait for each
other in a circle, a finalizer that wants back what it is called to let go.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Turn", "Waited", "mine", "waits_for", "within"]

PATROL = 1.0
"""Seconds between a waiter's own looks, should nobody wake it."""


class Waited(Protocol):
    """What a turn may wait for."""

    def blocked_by(self, mine: tuple[Turn, ...], seen: set[Turn]) -> bool: ...


class Turn:
    """A change in progress."""

    __slots__ = (
        "accounts",
        "entry",
        "error",
        "kind",
        "number",
        "over",
        "thread",
        "unload_after",
        "waits",
    )

    def __init__(self, entry: Any, number: int, kind: str) -> None:
        self.entry = entry
        self.number = number
        self.kind = kind  # "loading", "unloading", "offloading"
        self.over = False
        self.thread = threading.get_ident()  # which one is to end it
        self.unload_after = False  # whether the model is to go when this load is done
        self.error: BaseException | None = None  # for those who waited, without frames
        self.waits: list[Waited] = []  # what the code that it runs waits for
        self.accounts: tuple[int, ...] = ()  # of which it takes or gives back bytes

    def blocked_by(self, mine: tuple[Turn, ...], seen: set[Turn]) -> bool:
        """:meth:`leads_to`, for what waits for a turn rather than for a model."""
        return self.leads_to(mine, seen)

    def leads_to(self, mine: tuple[Turn, ...], seen: set[Turn]) -> bool:
        """Whether this cannot end before one of `mine` does."""
        if self in mine:
            return True
        if self in seen:
            return False
        seen.add(self)
        return any(waited.blocked_by(mine, seen) for waited in self.waits.copy())


_turns: ContextVar[tuple[Turn, ...]] = ContextVar("memweir_turns", default=())


def mine() -> tuple[Turn, ...]:
    """The turns that this code is part of, through the threads and tasks of its context."""
    return tuple(turn for turn in _turns.get() if not turn.over)


@contextmanager
def within(*turns: Turn) -> Iterator[None]:
    """Runs code as part of turns."""
    token = _turns.set((*_turns.get(), *turns))
    try:
        yield
    finally:
        _turns.reset(token)


@contextmanager
def waits_for(what: Waited) -> Iterator[tuple[Turn, ...]]:
    """Says that the turns of this code wait for something, as long as they do; gives them."""
    turns = mine()
    for turn in turns:
        turn.waits.append(what)
    try:
        yield turns
    finally:
        for turn in turns:
            turn.waits.remove(what)
