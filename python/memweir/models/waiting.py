"""How threads and tasks come to a lease: at once, by making the model ready, or by waiting.

Who finds nobody at work takes the turn and loads. The others hang up a bell and look again whenever
it rings, and once a second anyway. A task never holds a thread to wait, and a load that runs for a
task goes on when the task is cancelled: what it loads stays for the next one.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

from memweir._flight import without_frames
from memweir.errors import BudgetExceeded, Busy, LoadFailed, Released
from memweir.models import down, keeper, room, up
from memweir.models.entry import on_this_loop, ring_all
from memweir.models.ladder import Rung
from memweir.models.turns import PATROL, Turn, mine, waits_for

if TYPE_CHECKING:
    from memweir.models.desk import Desk
    from memweir.models.entry import Entry

__all__ = ["arrive", "asynchronous_arrive", "give_up", "let_go", "renew"]


def arrive(desk: Desk, entry: Entry, owner: Any, timeout: float | None) -> int:
    """A claim on the model, loaded if need be, for a thread."""
    if timeout is not None:
        return _arrive_in_time(desk, entry, owner, timeout)
    with _Visit(desk, entry, owner, None) as visit:
        while True:
            found = visit.look()
            if isinstance(found, Turn):
                found = up.lift(desk, found, id(owner))
            if found is not None:
                return found
            visit.wait(blocking=True)


def _arrive_in_time(desk: Desk, entry: Entry, owner: Any, timeout: float) -> int:
    """The same with a deadline: the load runs in a thread of its own, which nothing can stop."""
    with _Visit(desk, entry, owner, time.monotonic() + timeout) as visit:
        while True:
            found = visit.look()
            if isinstance(found, Turn):
                visit.send(found)
            elif found is not None:
                return found
            visit.wait(blocking=True)


async def asynchronous_arrive(desk: Desk, entry: Entry, owner: Any, timeout: float | None) -> int:
    """The same for a task."""
    import asyncio

    deadline = None if timeout is None else time.monotonic() + timeout
    loop, bell = asyncio.get_running_loop(), asyncio.Event()

    def ring() -> None:
        loop.call_soon_threadsafe(bell.set)

    with _Visit(desk, entry, owner, deadline, ring) as visit:
        while True:
            bell.clear()
            found = visit.look()
            if isinstance(found, Turn):
                visit.send(found)
            elif found is not None:
                return found
            timer = loop.call_later(visit.pause(blocking=False), bell.set)
            try:
                with waits_for(entry):
                    await bell.wait()
            finally:
                timer.cancel()


class _Visit:
    """One caller's way to a lease."""

    def __init__(
        self,
        desk: Desk,
        entry: Entry,
        owner: Any,
        deadline: float | None,
        ring: Any = None,
    ) -> None:
        self.desk = desk
        self.entry = entry
        self.owner = owner
        self.deadline = deadline
        self._bell = threading.Lock()
        self._bell.acquire()
        self._ring = self._bell.release if ring is None else ring
        self._turn: Turn | None = None  # another's that is waited for
        self._fate: dict[None, Any] | None = None  # what became of the load that was sent off

    def __enter__(self) -> _Visit:
        self.desk.asking[self] = self.owner, self.entry
        self.entry.bells[self._ring] = None
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()
        if self._fate is not None:
            # Nobody comes for what the load brings: it gives the claim back by itself.
            left = self._fate.setdefault(None, self)
            if isinstance(left, int) and exc[0] is not None:
                let_go(self.desk, self.entry, left)
        if self.desk.closed or not self.entry.loans:
            self.desk.notice(self.entry)

    def leave(self) -> None:
        """Wants to be woken no more."""
        self.entry.bells.pop(self._ring, None)
        self.desk.asking.pop(self, None)

    def look(self) -> Turn | int | None:
        """A claim, or the turn to make the model ready, or nothing: then it is to be waited for."""
        desk, entry = self.desk, self.entry
        if self._fate is not None:
            outcome = self._fate.get(None)
            if outcome is None:
                return None
            self._fate = None
            if isinstance(outcome, int):
                return outcome
            raise outcome
        joins = entry.held_by(self.owner)
        if desk.closed and not joins:
            raise self._closed()
        claim = desk.claims.hold(entry.slot, id(self.owner), joins)
        if claim is None and not joins and desk.would_wait_for_itself(self.owner, entry):
            # It goes when those who have it let go, and they wait for what this one has.
            claim = desk.claims.hold(entry.slot, id(self.owner), True)
        if claim is not None:
            return claim
        turn = self._turn
        if turn is not None and turn.over and turn.error is not None and not self._mends(turn):
            raise _told(entry, turn.error)
        self._turn = entry.turn
        if self._turn is not None:
            return None
        seen = desk.claims.look(entry.slot)
        if seen is None or seen.open or seen.turn is not None:
            return None  # it drains, or somebody has just begun
        _check_back_off(desk, entry)
        begun = entry.begin("loading")
        if begun is not None and desk.closed and not joins:
            # It was closed since, perhaps without having seen this turn.
            entry.end(begun, entry.rung is entry.home is not Rung.GONE)
            raise self._closed()
        return begun

    def _mends(self, turn: Turn) -> bool:
        """Whether another's load found no room where this one has the time to wait for some."""
        return self.deadline is not None and isinstance(turn.error, BudgetExceeded)

    def _closed(self) -> Released:
        return Released(f"the pool {self.desk.name!r} is closed and lends nothing")

    def send(self, turn: Turn) -> None:
        """Has a thread of its own take the turn."""
        fate: dict[None, Any] = {}
        begun: dict[None, bool] = {}
        self._fate = fate
        desk, owner, deadline = self.desk, id(self.owner), self.deadline

        def work() -> None:
            if not begun.setdefault(None, True):
                return
            turn.thread = threading.get_ident()
            try:
                claim: Any = up.lift(desk, turn, owner, deadline)
            except BaseException as error:
                claim = error
            if fate.setdefault(None, claim) is not claim and isinstance(claim, int):
                let_go(desk, turn.entry, claim)
            turn.entry.ring()

        try:
            desk.start(f"loads {turn.entry.key}", work)
        except BaseException:
            # An interrupt may come when the thread runs already: then the turn is its own.
            if not begun.setdefault(None, False):
                self._fate = None
                turn.entry.end(turn, False)
            raise

    def pause(self, *, blocking: bool) -> float:
        """Seconds until the next look by itself. Raises where waiting cannot help."""
        if self._fate is None:
            turns = mine()
            if turns and self.entry.blocked_by(turns, set()):
                chain = " → ".join(repr(turn.entry.key) for turn in turns)
                raise RuntimeError(
                    f"{self.entry.key!r} is asked for while {chain} is being changed, which would "
                    "wait for itself: a load re-entered itself, or loads ask for each other"
                )
            if blocking:
                self._check_loop()
        if self.deadline is None:
            return PATROL
        left = self.deadline - time.monotonic()
        if left <= 0:
            self._late()
        return min(left, PATROL)

    def _late(self) -> NoReturn:
        turn = self.entry.turn
        if turn is not None and turn in self.desk.waiting:
            told = f"no room in time; held: {room.holders(self.desk, self.entry)}"
        else:
            told = "not ready in time; nothing was cancelled"
        raise Busy(f"{self.entry.key!r}: {told}")

    def wait(self, *, blocking: bool) -> None:
        """Until something changed, or it is time to look."""
        left = self.pause(blocking=blocking)
        with waits_for(self.entry):
            self._bell.acquire(timeout=left)

    def _check_loop(self) -> None:
        """Refuses to block an event loop that a holder needs to let go."""
        if self.entry.turn is None and on_this_loop(self.entry):
            raise Busy(
                f"{self.entry.key!r} drains, and a task of this event loop has it: use alease"
            )


def let_go(desk: Desk, entry: Entry, claim: int) -> None:
    """Ends a claim. Takes no lock and runs no user's code: it may be called by a finalizer."""
    entry.idle_since = desk.clock()
    end = desk.claims.release(entry.slot, claim)
    if end is None or end[0]:
        return
    if end[1] or entry.due > entry.idle_since + entry.window:
        desk.notice(entry)
    if entry.bells:
        entry.ring()
    ring_all(desk.bells)


def give_up(desk: Desk, entry: Entry, claim: int) -> None:
    """Ends a claim on a model that its user has ended: from now on nobody gets that one."""
    desk.claims.drain(entry.slot)  # the claim is held: it cannot be another model by now
    keeper.ensure(desk)
    let_go(desk, entry, claim)


def renew(desk: Desk, entry: Entry) -> None:
    """Lets go a model that nobody gets any more, unless others do so, or have it still."""
    turn = entry.begin("unloading")
    if turn is None:
        return  # who comes for another waits for them
    if entry.model is None or entry.spent is None or not entry.spent(entry.model):
        entry.end(turn, entry.model is not None and entry.rung is entry.home)
        return
    down.lower(desk, [(turn, Rung.GONE)], "ended by its user")


def _check_back_off(desk: Desk, entry: Entry) -> None:
    error = entry.error
    wait = entry.retry_at - desk.clock()
    if error is None or wait <= 0:
        return
    told = _told(entry, error)
    told.retry_after = wait
    raise told


def _told(entry: Entry, error: BaseException) -> LoadFailed | Any:
    """An error of this caller's own: one that is shared would keep the frames of all of them."""
    copy = without_frames(error)
    if isinstance(error, (BudgetExceeded, Busy, Released)):
        return copy
    told = LoadFailed(f"the load of {entry.key!r} failed with {type(error).__qualname__}")
    told.__cause__ = copy
    return told
