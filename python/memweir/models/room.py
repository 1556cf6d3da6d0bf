"""Bytes for what is about to be loaded: promised before they are taken, made by letting go.

What nobody uses goes: first what is cheap to have again and was not used for long. What is being
loaded or on its way out is waited for, in the order of those who came. Where neither helps, it does
not fit.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from memweir.errors import BudgetExceeded, Busy
from memweir.models import down
from memweir.models.adapters.protocol import Sizes
from memweir.models.entry import ring_all
from memweir.models.ladder import Rung
from memweir.models.sizing import declared
from memweir.models.turns import PATROL, mine, waits_for
from memweir.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from memweir.models.desk import Desk
    from memweir.models.entry import Entry
    from memweir.models.turns import Turn

__all__ = ["evict", "evict_next", "exceeded", "holders", "reserve", "victims", "wanted"]

Parts = list[tuple[int, int]]


class _Line:
    """The line for bytes: who is in it waits for whoever takes or gives back bytes."""

    def __init__(self, desk: Desk, accounts: Iterable[int]) -> None:
        self.desk = desk
        self.accounts = frozenset(accounts)

    def look(self) -> tuple[list[Turn], list[Turn]]:
        """Changes in progress that may make room, and those that stand in line themselves."""
        standing = self.desk.waiting.copy()
        turns = [t for t in [*self.desk.active] if not self.accounts.isdisjoint(t.accounts)]
        for entry in self.desk.entries.copy().values():
            turn = entry.turn  # of those that are about to let go as well
            if turn is None or turn in turns or turn.kind == "loading" or entry.permit is None:
                continue
            if not self.accounts.isdisjoint(_accounts(self.desk, entry)):
                turns.append(turn)
        return [t for t in turns if t not in standing], [t for t in turns if t in standing]

    def blocked_by(self, mine: tuple[Turn, ...], seen: set[Turn]) -> bool:
        ahead, _ = self.look()
        return bool(ahead) and all(turn.leads_to(mine, set(seen)) for turn in ahead)


def wanted(desk: Desk, entry: Entry) -> tuple[Parts, bool]:
    """What a load has to be promised, and whether that is everything that is left."""
    device = entry.spec.device
    known = [s for s in (declared(entry.spec), entry.remembered) if s is not None]
    if known:
        parts = desk.parts(Sizes(*map(max, zip(*known, strict=True))), device)
        return parts if entry.peak is None else _with_peak(desk, parts, entry), False
    account = desk.ram if device is None else desk.account(device)
    return [(account, 1)], True


def _with_peak(desk: Desk, parts: Parts, entry: Entry) -> Parts:
    """What its load took beside it as well, which is no reason never to try again."""
    assert entry.peak is not None
    peak = dict(desk.parts(entry.peak, entry.spec.device))
    found = []
    for account, nbytes in parts:
        usage = desk.claims.usage(account)
        limit = peak[account] if usage is None else usage.limit
        found.append((account, max(nbytes, min(peak[account], limit))))
    return found


def reserve(
    desk: Desk,
    entry: Entry,
    parts: Parts,
    *,
    rest: bool = False,
    deadline: float | None = None,
    jump: bool = False,
) -> int:
    """A permit for bytes; lets go what nobody uses, and waits for what is coming.

    With `jump` not behind those in the line, who may wait for the caller. With a deadline the end
    of leases is waited for, too. Raises :class:`~memweir.BudgetExceeded` where nothing of that
    helps, :class:`~memweir.Busy` when the deadline comes first.
    """
    accounts = [account for account, _ in parts]
    line = _Line(desk, accounts)
    turns = mine()
    # Who waits within a load may wait for himself: bytes in hand give the right to go first.
    nested = sum(turn.entry is not entry for turn in turns) > 0
    ticket: int | None = None
    bell = threading.Lock()
    bell.acquire()
    ring = bell.release
    try:
        while True:
            # Looked at first: who ends after this look has rung the bell.
            bell.acquire(blocking=False)
            ahead, standing = line.look()
            permit, short, behind = desk.claims.reserve(
                parts, rest=rest, ticket=ticket, jump=nested or jump
            )
            if permit is not None:
                return permit
            _check_possible(desk, entry, parts)
            if short and evict(desk, dict(short), entry, "evicted"):
                continue
            if ticket is None:
                ticket = desk.claims.queue(accounts)
                desk.bells[ring] = None
                desk.waiting.update(dict.fromkeys(turns))
                continue
            helps = _helps(turns, ahead + standing if behind and not jump else ahead)
            if not helps and (deadline is None or not _lent(desk, entry, parts)):
                if bell.acquire(blocking=False):
                    continue
                raise exceeded(desk, entry, parts)
            left = PATROL if deadline is None else min(PATROL, deadline - time.monotonic())
            if left <= 0:
                raise Busy(f"no room for {entry.key!r} in time; held: {holders(desk, entry)}")
            with waits_for(line):
                bell.acquire(timeout=left)
    finally:
        desk.bells.pop(ring, None)
        if ticket is not None:
            desk.claims.leave(ticket)
            for turn in turns:
                desk.waiting.pop(turn, None)
            ring_all(desk.bells)


def _helps(turns: tuple[Turn, ...], ahead: list[Turn]) -> bool:
    """Whether somebody will make room, or leave the line, who does not wait for this."""
    return any(turn not in turns and not turn.leads_to(turns, set()) for turn in ahead)


def _lent(desk: Desk, entry: Entry, parts: Parts) -> bool:
    """Whether the end of a lease may make room."""
    accounts = {account for account, _ in parts}
    return any(
        not other.spec.pin
        and not accounts.isdisjoint(_accounts(desk, other))
        and (other.loans or other.bells or _held(desk, other))
        for other in desk.entries.copy().values()
        if other is not entry
    )


def _held(desk: Desk, entry: Entry) -> bool:
    seen = desk.claims.look(entry.slot)
    return seen is not None and bool(seen.holders)


def _accounts(desk: Desk, entry: Entry) -> list[int]:
    return [a for a, n in desk.parts(entry.sizes, entry.spec.device) if n > 0]


def _check_possible(desk: Desk, entry: Entry, parts: Parts) -> None:
    for account, nbytes in parts:
        usage = desk.claims.usage(account)
        if usage is not None and nbytes > usage.limit:
            raise exceeded(desk, entry, parts)


def exceeded(desk: Desk, entry: Entry, parts: Parts, why: str = "") -> BudgetExceeded:
    """The error that says what did not fit, into what, and who has the rest."""
    told = []
    for account, nbytes in parts:
        usage = desk.claims.usage(account)
        if usage is None or usage.held + usage.promised + nbytes <= usage.limit:
            continue
        taken = usage.held + usage.promised
        told.append(
            f"{format_size(nbytes)} on {_place(desk, account)}, where {format_size(taken)} of "
            f"{format_size(usage.limit)} are taken"
        )
    return BudgetExceeded(
        f"{entry.key!r} does not fit{why}: it needs {' and '.join(told) or 'more than there is'}; "
        f"held: {holders(desk, entry)}"
    )


def holders(desk: Desk, entry: Entry) -> str:
    """Who has what another could have."""
    told = [
        f"{other.key!r} by {', '.join(other.sites()) or ('a pin' if other.spec.pin else 'nobody')}"
        for other in desk.entries.copy().values()
        if other is not entry and other.permit is not None
    ]
    return "; ".join(told) or "nothing that can be let go"


def _place(desk: Desk, account: int) -> str:
    if account == desk.ram:
        return "the host"
    return next((name for name, a in desk.devices.copy().items() if a == account), "a device")


def evict(desk: Desk, short: Mapping[int, int], entry: Entry | None, reason: str) -> bool:
    """Lets go the least of what nobody uses that makes up for what is short.

    What is on its way out already counts. Whether anything was let go.
    """
    need = {}
    for account, nbytes in short.items():
        usage = desk.claims.usage(account)
        coming = 0 if usage is None else usage.leaving
        if nbytes > coming:
            need[account] = nbytes - coming
    if not need:
        return False
    chosen: list[Entry] = []
    left = dict(need)
    for victim in victims(desk, entry):
        gives = dict(desk.parts(victim.sizes, victim.spec.device))
        if not any(left.get(account, 0) > 0 and n > 0 for account, n in gives.items()):
            continue
        chosen.append(victim)
        for account, nbytes in gives.items():
            if account in left:
                left[account] -= nbytes
        if all(n <= 0 for n in left.values()):
            return _go(desk, _least(desk, chosen, need), need, reason)
    return False  # all of them together are not enough, so none of them goes


def _least(desk: Desk, chosen: list[Entry], need: dict[int, int]) -> list[Entry]:
    """Without those that a later, larger one made needless."""
    kept = list(chosen)
    for victim in chosen:
        rest = [other for other in kept if other is not victim]
        gives = [dict(desk.parts(other.sizes, other.spec.device)) for other in rest]
        if all(sum(g.get(account, 0) for g in gives) >= n for account, n in need.items()):
            kept = rest
    return kept


def victims(desk: Desk, entry: Entry | None) -> list[Entry]:
    """What nobody uses, the one to go first at the front."""
    now = desk.clock()
    found = [
        other
        for other in desk.entries.copy().values()
        if other is not entry
        and other.model is not None
        and other.permit is not None
        and not other.spec.pin
        and not other.loans
        and not other.bells
        and other.turn is None
    ]

    def worth(other: Entry) -> tuple[bool, float]:
        # Those that came just now go last: they have hardly been used.
        young = now - other.resident_since < desk.residence
        return young, other.load_seconds / (1.0 + max(0.0, now - other.idle_since))

    return sorted(found, key=worth)


def _go(desk: Desk, victims: list[Entry], need: dict[int, int], reason: str) -> bool:
    batch: list[tuple[Turn, Rung]] = []
    for victim in victims:
        turn = victim.begin("unloading")
        if turn is None:
            continue
        turn.accounts = tuple(account for account, _ in desk.parts(victim.sizes, None))
        to = Rung.GONE
        if desk.ram not in need and victim.rung is Rung.DEVICE and _rests(victim, Rung.HOST):
            to = Rung.HOST
        batch.append((turn, to))
    if not batch:
        return False
    desk.counters.evictions += len(batch)
    down.lower(desk, batch, reason)
    return True


def _rests(entry: Entry, rung: Rung) -> bool:
    return entry.adapter is not None and rung in entry.adapter.rungs


def evict_next(desk: Desk, entry: Entry, *, device: bool) -> bool:
    """After the system itself had no room: lets the next one go; whether there was one."""
    account = desk.account(entry.spec.device) if device and entry.spec.device else desk.ram
    for victim in victims(desk, entry):
        if dict(desk.parts(victim.sizes, victim.spec.device)).get(account, 0) > 0:
            return _go(desk, [victim], {account: 1}, "out of memory")
    return False
