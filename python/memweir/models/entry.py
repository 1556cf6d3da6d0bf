"""What a pool knows about one key: how it is loaded, where it is, who holds it, who changes it."""

from __future__ import annotations

import math
import sys
import threading
import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from memweir.models.adapters.protocol import Sizes
from memweir.models.ladder import Rung
from memweir.models.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType

    from memweir._core import Claims
    from memweir.models.adapters.protocol import Adapter
    from memweir.models.ladder import Idle

__all__ = ["Entry", "Loan", "Spec", "caller", "is_lost", "on_this_loop", "ring_all"]


@dataclass(frozen=True, slots=True)
class Spec:
    """How a key's model is made and kept, as it was added."""

    key: str
    load: Callable[[], Any]
    device: str | None
    nbytes: Any  # Sizes, or a path whose size is looked up when it is loaded
    idle: Idle
    pin: bool
    serial: bool
    adapter: Callable[[Any], Adapter]  # the one for a model


class Loan(NamedTuple):
    """One lease that was given out: to whom, and where it was taken."""

    owner: weakref.ref[Any]
    code: CodeType | None
    line: int
    lease: weakref.ref[Any] | None

    @property
    def site(self) -> str:
        """Where it was taken, and by whom."""
        where = f"{self.code.co_filename}:{self.line}" if self.code is not None else "?"
        return f"{_name(self.owner())} at {where}"


class Entry:
    """One key of a pool.

    Who has the turn (:class:`~memweir.models.turns.Turn`) changes the model, its rung and sizes;
    the others read them. Whether the model may be used is up to its slot in the table of claims.
    """

    __slots__ = (
        "__weakref__",
        "adapter",
        "awaited",
        "bells",
        "claims",
        "deferred",
        "due",
        "error",
        "failures",
        "grant",
        "home",
        "idle_since",
        "last_down",
        "load_seconds",
        "loads",
        "loans",
        "measured_by",
        "model",
        "noticed",
        "peak",
        "permit",
        "reloads",
        "remembered",
        "resident_since",
        "retry_at",
        "rung",
        "sizes",
        "slot",
        "spec",
        "spent",
        "stays_until",
        "thrash",
        "turn",
        "unloads",
        "warned",
        "window",
    )

    def __init__(self, spec: Spec, claims: Claims) -> None:
        self.spec = spec
        self.claims = claims
        self.slot = claims.slot()
        self.turn: Turn | None = None
        self.bells: dict[Callable[[], object], None] = {}  # one for each who waits for a change
        self.awaited: dict[object, None] = {}  # who waits to let it go, and needs no help
        self.deferred = -1  # the epoch of its slot that ends with its last lease, as was promised
        self.loans: dict[int, Loan] = {}  # by claim
        self.warned: set[int] = set()  # claims that were told of as abandoned
        self.remembered: Sizes | None = None  # what the model took
        self.peak: Sizes | None = None  # and what its load took, where that was more
        self.load_seconds = 0.0
        self.loads = self.reloads = self.unloads = self.failures = 0
        self.thrash: list[float] = []  # when it was reloaded soon after it had gone
        self.last_down: float | None = None
        self.retry_at = 0.0
        self.error: BaseException | None = None  # why the last load failed, without frames
        self.due = math.inf  # when the idle clock will look at it by itself
        self.window = math.inf  # seconds from its last release to its next step down
        self.noticed = False  # whether it is in the mail
        self.grant: Any = None  # what the arbiter gave
        self.idle_since = self.resident_since = 0.0
        self.adapter: Adapter | None = None
        self.home = Rung.GONE
        self.clear()

    def clear(self) -> None:
        """Nothing is here."""
        self.model: Any = None
        self.spent: Callable[[Any], bool] | None = None  # whether its user has ended it
        self.stays_until = -math.inf  # a rung down was refused: not before this
        self.rung = Rung.GONE
        self.sizes = Sizes()
        self.measured_by: str | None = None
        self.permit: int | None = None

    @property
    def key(self) -> str:
        return self.spec.key

    def begin(self, kind: str) -> Turn | None:
        """The turn to change the model, if nobody uses it and nobody else changes it."""
        turn, took = Turn(self, 0, kind), list[int | None]()
        try:
            # One step for an interrupt: it is taken and noted, or neither.
            took.extend(map(self.claims.begin, (self.slot,)))
            if took[0] is None:
                return None
            turn.number = took[0]
            self.turn = turn
        finally:
            if took and took[0] is not None and self.turn is not turn:
                self.claims.end(self.slot, took[0], self.whole)
        return turn

    @property
    def whole(self) -> bool:
        """Whether a model is here, and where it is used."""
        return self.model is not None and self.rung is self.home

    def end(self, turn: Turn, opened: bool, owner: int | None = None) -> int | None:
        """Ends a turn; with an owner, the result is a claim of theirs."""
        claim = self.claims.end(self.slot, turn.number, opened, owner)
        turn.over = True
        if self.turn is turn:  # not another's, who has begun since
            self.turn = None
        self.ring()
        return claim

    def ring(self) -> None:
        """Wakes who waits for a change. Takes no lock: it may run in a finalizer."""
        ring_all(self.bells)

    @contextmanager
    def aboard(self, ring: Callable[[], object]) -> Iterator[None]:
        """Has `ring` called on every change: hang it up, look, then wait."""
        self.bells[ring] = None
        try:
            yield
        finally:
            self.bells.pop(ring, None)

    def blocked_by(self, mine: tuple[Turn, ...], seen: set[Turn]) -> bool:
        """Whether its turn cannot end before one of `mine` does."""
        turn = self.turn
        return turn is not None and turn.leads_to(mine, seen)

    def held_by(self, owner: Any) -> bool:
        """Whether this thread or task has a lease already."""
        return any(loan.owner() is owner for loan in self.loans.copy().values())

    def go_with_the_last(self) -> int:
        """Has it go when nobody uses it any more, whoever gives up waiting for that."""
        seen = self.claims.look(self.slot)
        self.deferred = -1 if seen is None else seen.epoch
        return self.claims.drain(self.slot)

    def stay(self) -> None:
        """Lends it again, unless it goes for another's sake."""
        seen = self.claims.look(self.slot)
        if seen is not None and seen.epoch != self.deferred and not self.awaited:
            self.claims.drain(self.slot, False)

    def sites(self) -> tuple[str, ...]:
        """Where its leases were taken."""
        return tuple(loan.site for loan in self.loans.copy().values())


def ring_all(bells: dict[Callable[[], object], None]) -> None:
    """Rings each."""
    for ring in list(bells):
        with suppress(RuntimeError):  # it rings already, or its loop is closed
            ring()


def caller() -> Any:
    """The task that runs this code, or the thread where there is none."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        loop = asyncio._get_running_loop()
        if loop is not None:
            task = asyncio.current_task(loop)
            if task is not None:
                return task
    return threading.current_thread()


def on_this_loop(entry: Entry) -> bool:
    """Whether a task has it whose event loop is the one that this thread runs."""
    loop = getattr(caller(), "get_loop", lambda: None)()
    holders = (loan.owner() for loan in entry.loans.copy().values())
    return loop is not None and any(
        getattr(holder, "get_loop", lambda: None)() is loop for holder in holders
    )


def is_lost(loan: Loan) -> bool:
    """Whether nobody is left who could end the lease."""
    if loan.lease is not None and loan.lease() is None:
        return True
    owner = loan.owner()
    if owner is None:
        return True
    if isinstance(owner, threading.Thread):
        return not owner.is_alive()
    return bool(owner.done())


def _name(owner: Any) -> str:
    if owner is None:
        return "somebody who is gone"
    name = owner.name if isinstance(owner, threading.Thread) else owner.get_name()
    kind = "thread" if isinstance(owner, threading.Thread) else "task"
    return f"{kind} {name!r}"
