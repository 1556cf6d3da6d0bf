"""Asked to go: unload, offload, reclaim and the end of a pool. What is lent stays."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memweir.models import down, keeper, room
from memweir.models.entry import caller, is_lost, on_this_loop, ring_all
from memweir.models.ladder import Rung
from memweir.models.report import Kept, ShutdownReport, UnloadReport
from memweir.models.turns import PATROL, Turn, mine, waits_for
from memweir.models.waiting import let_go

if TYPE_CHECKING:
    from collections.abc import Iterable

    from memweir.models.desk import Desk
    from memweir.models.entry import Entry

__all__ = ["close", "offload", "reclaim", "release_abandoned", "unload"]


def unload(
    desk: Desk,
    entries: Iterable[Entry],
    leased: str,
    deadline: float | None,
    owner: Any = None,
) -> UnloadReport:
    """Lets models go, in one pass; what is lent goes later, or stays, as `leased` says."""
    owner = caller() if owner is None else owner
    try:
        return _unload(desk, entries, leased, deadline, owner)
    except KeyboardInterrupt:
        desk.interrupted(owner)
        raise


def _unload(
    desk: Desk, entries: Iterable[Entry], leased: str, deadline: float | None, owner: Any
) -> UnloadReport:
    asking = list(dict.fromkeys(entries))
    kept: dict[Entry, Kept] = {}
    batch: list[Turn] | None = None
    here = object()
    if leased == "wait":
        # All of them drain while the first is waited for.
        for entry in asking:
            entry.awaited[here] = None
            desk.claims.drain(entry.slot)
    try:
        while batch is None:
            for entry in asking:
                desk.asking[here] = owner, entry
                why = None if entry in kept else _unused(desk, entry, leased, deadline, owner)
                if why is not None:
                    kept[entry] = why
                    if entry.awaited.pop(here, entry) is None:
                        entry.stay()
            batch = _turns(desk, [entry for entry in asking if entry not in kept], leased)
    finally:
        desk.asking.pop(here, None)
        for entry in asking:
            if entry.awaited.pop(here, entry) is None:
                if batch is None:
                    entry.stay()
                desk.notice(entry)
    report = UnloadReport()
    if batch:
        report = down.lower(desk, [(turn, Rung.GONE) for turn in batch], "unload")
    if not kept:
        return report
    told = tuple(kept[entry] for entry in asking if entry in kept)
    return replace(report, deferred=told) if leased == "defer" else replace(report, refused=told)


def _turns(desk: Desk, entries: list[Entry], leased: str) -> list[Turn] | None:
    """The turns to let all of them go that are there; ``None`` where one was lent meanwhile.

    All or none: who has a lease that is waited for may ask for a model whose turn is taken.
    """
    batch: list[Turn] = []
    for entry in entries:
        turn = entry.begin("unloading")
        if turn is None:
            for taken in batch:
                taken.entry.end(taken, taken.entry.rung == taken.entry.home)
                if leased == "wait":
                    desk.claims.drain(taken.entry.slot)
            ring_all(desk.bells)
            return None
        if entry.model is None:
            entry.end(turn, False)
        else:
            batch.append(turn)
    return batch


def _unused(
    desk: Desk, entry: Entry, leased: str, deadline: float | None, owner: Any
) -> Kept | None:
    """Waits until nobody uses or changes it; or says why it stays."""
    bell = threading.Lock()
    bell.acquire()
    with entry.aboard(bell.release):
        while True:
            seen = desk.claims.look(entry.slot)
            if seen is None or (seen.turn is None and not seen.holders):
                return None
            turns = mine()
            changing = entry.turn
            if changing in turns or entry.blocked_by(turns, set()):
                return Kept(entry.key, "being changed by the caller")
            sites = entry.sites()
            if leased == "refuse" and (sites or changing is not None):
                return Kept(entry.key, "leased" if sites else "being changed", sites)
            if leased == "defer":
                kept = _deferred(desk, entry, changing, sites)
                if kept is not None:
                    return kept
                if entry.turn is None:
                    continue
            elif entry.held_by(owner):
                return Kept(entry.key, "leased by the caller itself", sites)
            elif desk.would_wait_for_itself(owner, entry):
                return Kept(entry.key, "leased by who waits for the caller", sites)
            elif changing is None and on_this_loop(entry):
                return Kept(entry.key, "leased by a task of the event loop that would wait", sites)
            left = PATROL if deadline is None else min(PATROL, deadline - time.monotonic())
            if left <= 0:
                return Kept(entry.key, "leased" if sites else "being changed", sites)
            if leased == "wait" and changing is None:
                desk.claims.drain(entry.slot)
            with waits_for(entry):
                bell.acquire(timeout=left)


def _deferred(
    desk: Desk, entry: Entry, changing: Turn | None, sites: tuple[str, ...]
) -> Kept | None:
    """Has an entry go with its last lease, or with the end of its load."""
    if changing is not None and changing.kind == "loading":
        changing.unload_after = True
        if entry.turn is not changing:
            return None
        keeper.ensure(desk)
        return Kept(entry.key, "being loaded")
    if changing is not None:
        return None  # it is on its way out: that is waited for
    keeper.ensure(desk)
    if entry.go_with_the_last():
        return Kept(entry.key, "leased", entry.sites() or sites)
    return None


_BELOW = {Rung.DEVICE: Rung.HOST, Rung.HOST: Rung.MAPPED}


def offload(desk: Desk, entries: Iterable[Entry]) -> tuple[str, ...]:
    """Brings models from where they are used a rung down; the keys of those that went."""
    batch = []
    for entry in dict.fromkeys(entries):
        start, to = entry.rung, _BELOW.get(entry.rung)
        if start is not entry.home or entry.adapter is None or to not in entry.adapter.rungs:
            continue
        turn = entry.begin("offloading")
        if turn is None:
            continue
        if to is not None and entry.rung is start and entry.model is not None:
            batch.append((turn, to))
        else:
            entry.end(turn, entry.rung == entry.home)
    if not batch:
        return ()
    down.lower(desk, batch, "offload", or_stay=True)
    return tuple(turn.entry.key for turn, to in batch if turn.entry.rung is to)


def reclaim(desk: Desk, nbytes: int | None, device: str | None) -> int:
    """Makes room from what nobody uses: a rung down first, then gone. Bytes that were let go."""
    account = desk.ram if device is None else desk.account(device)
    usage = desk.claims.usage(account)
    before = 0 if usage is None else usage.held
    need = before if nbytes is None else min(nbytes, before)

    def got() -> int:
        usage = desk.claims.usage(account)
        return before - (0 if usage is None else usage.held)

    _one_rung_down(desk, account, device, need)
    for entry in room.victims(desk, None):
        if got() >= need:
            break
        if dict(desk.parts(entry.sizes, entry.spec.device)).get(account, 0) > 0:
            turn = entry.begin("unloading")
            if turn is not None:
                down.lower(desk, [(turn, Rung.GONE)], "reclaimed")
    return max(0, got())


def _one_rung_down(desk: Desk, account: int, device: str | None, need: int) -> None:
    start, to = (Rung.DEVICE, Rung.HOST) if device is not None else (Rung.HOST, Rung.MAPPED)
    batch = []
    for entry in room.victims(desk, None):
        if need <= 0:
            break
        gives = dict(desk.parts(entry.sizes, entry.spec.device)).get(account, 0)
        rests = entry.adapter is not None and to in entry.adapter.rungs
        if entry.rung is not start or not rests or gives <= 0:
            continue
        turn = entry.begin("offloading")
        if turn is not None:
            need -= gives
            batch.append((turn, to))
    if batch:
        down.lower(desk, batch, "reclaimed")


def release_abandoned(desk: Desk) -> tuple[str, ...]:
    """Ends the leases whose holders are gone; where they were taken."""
    told = []
    for entry in desk.entries.copy().values():
        keeper.tell_lost(desk, entry)
        for claim, loan in entry.loans.copy().items():
            if is_lost(loan) and entry.loans.pop(claim, None) is not None:
                entry.warned.discard(claim)
                let_go(desk, entry, claim)
                told.append(f"{entry.key!r}, {loan.site}")
    return tuple(told)


def close(desk: Desk, deadline: float | None, owner: Any) -> ShutdownReport:
    """Lends nothing from now on, waits for what is lent, lets go, and says what is still in use."""
    began = time.monotonic()
    desk.closed = True
    entries = list(desk.entries.values())
    for entry in entries:
        if entry.turn is None:
            desk.claims.drain(entry.slot)
        entry.ring()  # who waits for a lease will not get one
    until = None if deadline is None else began + deadline
    report = unload(desk, entries, "wait", until, owner)
    in_use = report.refused
    for entry in entries:
        # What stays goes with its last lease: nobody is left to ask for it.
        turn = entry.turn
        if turn is not None and turn.kind == "loading":
            turn.unload_after = True
        entry.go_with_the_last()
    report = replace(report, refused=())
    if in_use:
        keeper.ensure(desk)
        for entry in entries:
            if entry.model is not None:
                desk.notice(entry)
    desk.mail.put(None)
    return ShutdownReport(report, in_use, report.errors, time.monotonic() - began)
