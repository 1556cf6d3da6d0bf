"""The idle clock: which models go down when, and what finalizers left word of.

One thread for a pool, from the first entry that needs it; it only looks and hands out work, each
batch to a thread of its own, and holds the pool weakly. With a clock that was given there is no
thread: :meth:`~memweir.ModelPool.tick` does the same for who calls it.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import weakref
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Any

from memweir.models import down
from memweir.models.entry import is_lost
from memweir.models.ladder import Rung

if TYPE_CHECKING:
    from queue import SimpleQueue

    from memweir.models.desk import Desk
    from memweir.models.entry import Entry
    from memweir.models.report import UnloadReport
    from memweir.models.turns import Turn

__all__ = ["Keeper", "collected", "ensure", "lower_due", "needs_keeper", "tell_lost", "window_of"]

_LONGEST = 3600.0
_LATER = 1.0


def needs_keeper(entry: Entry) -> bool:
    """Whether time alone may take it down."""
    return bool(entry.spec.idle.steps()) and not entry.spec.pin


class Keeper:
    """When to look at which entry."""

    def __init__(self, desk: Desk) -> None:
        mail = self._mail = desk.mail
        # Safe in a finalizer: it only leaves word that the pool is gone.
        self._desk = weakref.ref(desk, lambda _: mail.put(None))
        self._heap: list[tuple[float, int, Entry]] = []
        self._numbers = itertools.count()
        self._put_off: list[Entry] = []  # due, when no thread could be started

    def look(self, desk: Desk, entries: list[Any]) -> tuple[list[Entry], float | None]:
        """Entries that are due, of these and of all whose time has come; seconds until the next."""
        now = desk.clock()
        due: dict[Entry, None] = {}
        for entry in entries:
            entry.noticed = False
            tell_lost(desk, entry)
            if drains(desk, entry):
                due[entry] = None
            else:
                self._schedule(desk, entry, now, due)
        with suppress(IndexError):  # none is left: who calls `tick` takes from it, too
            while self._heap[0][0] <= now:
                at, _, entry = heapq.heappop(self._heap)
                if at == entry.due:
                    entry.due = math.inf
                    self._schedule(desk, entry, now, due)
        first = self._heap[:1]
        return list(due), (max(0.0, first[0][0] - now) if first else None)

    def _schedule(self, desk: Desk, entry: Entry, now: float, due: dict[Entry, None]) -> None:
        if entry.model is None or entry.loans or entry.bells or entry.turn is not None:
            return  # its next release, or the end of the turn, has it looked at again
        entry.window = window_of(entry)
        at = max(entry.idle_since + entry.window, entry.stays_until)
        if at <= now:
            due[entry] = None
        elif at < entry.due:
            entry.due = at
            heapq.heappush(self._heap, (at, next(self._numbers), entry))

    def start(self) -> None:
        """Starts the thread."""
        threading.Thread(
            target=_keep, args=(self, self._mail), name="memweir idle clock", daemon=True
        ).start()

    def step(self) -> float | None:
        """One look of the thread's; seconds until the next, ``None``: the pool is gone."""
        desk = self._desk()
        if desk is None or desk.mail is not self._mail:
            return None
        if desk.closed and not any(e.model is not None or e.turn for e in [*desk.entries.values()]):
            return None
        put_off, self._put_off = self._put_off, []
        due, pause = self.look(desk, [*put_off, *collected(self._mail)])
        if due:
            try:
                desk.start("lets go", lower_due, desk, due)
            except RuntimeError:  # no thread can be started now, perhaps for good: later
                self._put_off += due
                return _LATER
        return _LONGEST if pause is None else min(pause, _LONGEST)


def ensure(desk: Desk) -> None:
    """Makes sure that somebody looks at the clock, and at what finalizers leave word of."""
    if "keeper" in desk.keeper:
        return
    keeper = Keeper(desk)
    if desk.keeper.setdefault("keeper", keeper) is keeper and desk.threaded:
        try:
            keeper.start()
        except RuntimeError:  # no thread can be started any more: the process ends
            desk.keeper.pop("keeper", None)


def collected(mail: SimpleQueue[Any]) -> list[Any]:
    """What is in the mail, each once."""
    found: dict[Any, None] = {}
    with suppress(Empty):
        while True:
            entry = mail.get_nowait()
            if entry is not None:
                found[entry] = None
    return list(found)


def _keep(keeper: Keeper, mail: SimpleQueue[Any]) -> None:
    while True:
        pause = keeper.step()
        if pause is None:
            return
        try:
            entry = mail.get(timeout=pause)
        except Empty:
            continue
        mail.put(entry)  # for `collected`
        del entry


def window_of(entry: Entry) -> float:
    """Seconds after its last release at which the clock takes it a step down."""
    steps = () if entry.spec.pin else _steps(entry)
    return min((after for _, after in steps), default=math.inf)


def _steps(entry: Entry) -> list[tuple[Rung, float]]:
    """The rungs below the one where it is, on which it can rest, and when it goes there."""
    rungs = () if entry.adapter is None else entry.adapter.rungs
    return [
        (rung, after)
        for rung, after in entry.spec.idle.steps()
        if rung > entry.rung and (rung is Rung.GONE or rung in rungs)
    ]


def drains(desk: Desk, entry: Entry) -> bool:
    """Whether it waits to be let go, and nobody uses it any more."""
    seen = desk.claims.look(entry.slot)
    return seen is not None and seen.draining and not seen.holders and not entry.awaited


def lower_due(desk: Desk, entries: list[Entry]) -> UnloadReport:
    """Takes down those of the entries whose time has come, in one pass."""
    batch: list[tuple[Turn, Rung]] = []
    reasons: dict[str, None] = {}
    for entry in entries:
        turn = _due_turn(desk, entry)
        if turn is None:
            continue
        asked, to = turn[1:]
        reasons["unload" if asked else "idle"] = None
        batch.append((turn[0], to))
    if not batch:
        from memweir.models.report import UnloadReport

        return UnloadReport()
    return down.lower(desk, batch, " and ".join(reasons))


def _due_turn(desk: Desk, entry: Entry) -> tuple[Turn, bool, Rung] | None:
    """The turn to take it down, whether somebody asked for that, and how far."""
    asked = drains(desk, entry)
    if not asked and (entry.bells or entry.model is None):
        return None
    turn = entry.begin("unloading")
    if turn is None:
        return None
    if entry.model is None:
        entry.end(turn, False)
        return None
    if asked:
        return turn, True, Rung.GONE
    # Somebody may have used it since it was found due.
    elapsed = desk.clock() - entry.idle_since
    to = max((rung for rung, after in _steps(entry) if after <= elapsed), default=None)
    if to is None or entry.bells:
        entry.end(turn, entry.rung == entry.home)
        desk.notice(entry)
        return None
    return turn, False, to


def tell_lost(desk: Desk, entry: Entry) -> None:
    """Tells of leases whose holders are gone, once each."""
    for claim, loan in entry.loans.copy().items():
        if claim not in entry.warned and is_lost(loan):
            entry.warned.add(claim)
            desk.events.emit(
                "abandoned",
                entry.key,
                reason=f"a lease was dropped without being released: {loan.site}; "
                "it keeps the model until release_abandoned() is called",
                nbytes=entry.sizes.total,
            )
