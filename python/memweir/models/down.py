"""Down: models that nobody uses are brought to a lower rung, or let go, one pass for a batch."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from memweir.errors import Busy, Refused
from memweir.models.ladder import Rung
from memweir.models.release import Doomed
from memweir.models.turns import within
from memweir.models.unpin import unpin

if TYPE_CHECKING:
    from memweir.models.desk import Desk
    from memweir.models.entry import Entry
    from memweir.models.report import UnloadReport
    from memweir.models.turns import Turn

__all__ = ["discard", "drop_grant", "lower"]

AGAIN = 5.0
"""Seconds before a rung down that was refused is tried again."""


def lower(
    desk: Desk, batch: list[tuple[Turn, Rung]], reason: str, *, or_stay: bool = False
) -> UnloadReport:
    """Brings each model to its rung. The turns are this call's, and over when it returns.

    Where a lower rung has no room the model goes, or with `or_stay` remains where it is.
    """
    for turn, _ in batch:
        desk.opened(turn)
        turn.accounts = tuple(a for a, _ in desk.parts(turn.entry.sizes, turn.entry.spec.device))
    interrupt: BaseException | None = None
    try:
        with within(*(turn for turn, _ in batch)):
            gone = []
            for turn, to in batch:
                try:
                    stays = to is not Rung.GONE and _moved(desk, turn.entry, to, reason, or_stay)
                except BaseException as error:
                    # It was meant for the process, and leaves a model between two rungs.
                    unpin(error)
                    interrupt, stays = error, False
                if not stays:
                    gone.append(turn.entry)
            report = discard(desk, gone, reason)
            if interrupt is not None:
                raise interrupt
            return report
    finally:
        for turn, to in batch:
            turn.entry.end(turn, turn.entry.rung is turn.entry.home is not Rung.GONE)
            desk.over(turn)
            if to is not Rung.GONE and turn.entry.model is not None:
                desk.notice(turn.entry)  # the next step of its ladder


def _moved(desk: Desk, entry: Entry, to: Rung, reason: str, or_stay: bool) -> bool:
    """Whether it may be kept. A model that is between two rungs is not to be lent again."""
    assert entry.adapter is not None
    before, began = entry.rung, desk.clock()
    was = entry.sizes
    # Both places have it while it moves.
    more = was.device if before is Rung.DEVICE and to is Rung.HOST else 0
    extra, _, _ = desk.claims.reserve([(desk.ram, more)], jump=True)
    if extra is None:
        return or_stay
    try:
        entry.adapter.move(entry.model, to, entry.spec.device)
        sizes = entry.adapter.nbytes(entry.model)
    except (Busy, Refused) as error:
        desk.claims.free(extra)
        entry.stays_until = desk.clock() + AGAIN
        desk.events.emit("refused", entry.key, reason=f"{to.name.lower()}: {error}")
        return True
    except BaseException as error:
        desk.claims.free(extra)
        desk.events.emit("half moved", entry.key, reason=f"{type(error).__name__} on the way down")
        if isinstance(error, Exception):
            return False
        raise
    sizes = was if sizes is None else sizes
    exact = desk.parts(sizes, entry.spec.device)
    if entry.permit is None or desk.claims.settle(entry.permit, exact, extra):
        desk.claims.free(extra)
        desk.events.emit("over reserved", entry.key, reason="larger on the lower rung")
        return False
    entry.rung, entry.sizes = to, sizes
    drop_grant(entry)
    desk.counters.offloads += 1
    desk.events.emit(
        "transition",
        entry.key,
        reason=reason,
        before=before.name.lower(),
        after=to.name.lower(),
        nbytes=was.total,
        seconds=desk.clock() - began,
        measured={"device": was.device - entry.sizes.device, "host": was.host - entry.sizes.host},
    )
    return True


def discard(desk: Desk, entries: list[Entry], reason: str) -> UnloadReport:
    """Lets models go, all in one pass; their entries are empty before it begins."""
    batch, left = [], []
    report = None
    try:
        for entry in entries:
            permit = entry.permit
            if permit is not None:
                desk.claims.leaving(permit)
            left.append((entry, permit, entry.rung, entry.sizes))
            batch.append(_doomed(entry, reason))
            entry.clear()
            entry.unloads += 1
            entry.last_down = desk.clock() if reason != "unload" else None
        desk.counters.unloads += len(entries)
        report = desk.release(batch)
        return report
    finally:
        for entry, permit, rung, sizes in left:
            if permit is not None:
                desk.claims.free(permit)
            drop_grant(entry)
            desk.events.emit(
                "transition",
                entry.key,
                reason=reason,
                before=rung.name.lower(),
                after="absent",
                nbytes=sizes.total,
                seconds=0.0 if report is None else report.seconds,
                measured=None if report is None else report.returned._asdict(),
            )


def _doomed(entry: Entry, reason: str) -> Doomed:
    finalizer = None if entry.adapter is None else entry.adapter.dispose
    return Doomed(entry.key, entry.model, finalizer, entry.sizes, reason, entry.rung)


def drop_grant(entry: Entry) -> None:
    """Gives back what the arbiter gave, by whatever way back it has."""
    grant, entry.grant = entry.grant, None
    if grant is None:
        return
    for name in ("release", "close"):
        give = getattr(grant, name, None)
        if callable(give):
            with suppress(Exception):
                give()
            return
    leave = getattr(grant, "__exit__", None)
    if callable(leave):
        with suppress(Exception):
            leave(*sys.exc_info())
