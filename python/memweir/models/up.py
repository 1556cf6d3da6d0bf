"""Up: a model is loaded, or brought back to where it is used, by whoever has the turn."""

from __future__ import annotations

import importlib
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from memweir._flight import without_frames
from memweir.errors import BudgetExceeded, Busy, Refused, Released
from memweir.models import down, keeper, room, serial
from memweir.models.adapters.protocol import Sizes
from memweir.models.release import Doomed
from memweir.models.sizing import Meter, declared
from memweir.models.turns import within
from memweir.models.unpin import unpin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memweir.models.desk import Desk
    from memweir.models.entry import Entry
    from memweir.models.turns import Turn

__all__ = ["lift"]

FIRST, MOST = 0.5, 60.0
"""Seconds before a load that failed is tried again: the first time, and at most."""
THRASH, WITHIN = 3, 300.0
"""So many reloads of what had just gone, within so many seconds, are thrashing."""
GREW = NOISE = 1 << 20


def lift(desk: Desk, turn: Turn, owner: int | None, deadline: float | None = None) -> int | None:
    """Brings the model of a turn to where it is used, ends the turn, and takes a claim for `owner`.

    What the load raised passes through; those who waited for the turn get copies.
    """
    entry, up = turn.entry, False
    desk.opened(turn)
    try:
        with within(turn), _one_by_one(desk, entry, deadline):
            if entry.model is None or not _wake(desk, turn, deadline):
                _load(desk, turn, deadline)
        entry.failures, entry.retry_at, entry.error = 0, 0.0, None
        entry.idle_since = desk.clock()
        seen = desk.claims.look(entry.slot)
        if seen is None or seen.turn != turn.number:
            entry.clear()  # in a child that was forked by the load, whose turn it is not
            raise Released(f"the load of {entry.key!r} began in the parent of this process")
        entry.window = keeper.window_of(entry)
        up = True
    except Exception as error:
        with within(turn):  # who is told of it may ask for the model
            _failed(desk, turn, error)
        raise
    finally:
        claim: int | None = entry.end(turn, up, owner if up else None)
        after = turn.unload_after  # read when nobody can find the turn any more to say so
        if up and after:
            entry.go_with_the_last()
        desk.over(turn)
        if up and (after or keeper.needs_keeper(entry)):
            keeper.ensure(desk)
            desk.notice(entry)
    return claim


@contextmanager
def _one_by_one(desk: Desk, entry: Entry, deadline: float | None) -> Iterator[None]:
    """Loads that said they may not overlap run one after the other."""
    if not entry.spec.serial:
        yield
        return
    turn = serial.turn_of(desk.serial, deadline)
    try:
        yield
    finally:
        if turn is not None:
            desk.serial.end(turn, False)


def _load(desk: Desk, turn: Turn, deadline: float | None) -> None:
    entry = turn.entry
    parts, rest = room.wanted(desk, entry)
    turn.accounts = tuple(account for account, _ in parts)
    _ask(desk, entry)
    model: Any = None
    permit = meter = adapter = by = None
    known = entry.remembered, entry.peak
    began = desk.clock()
    try:
        permit = room.reserve(desk, entry, parts, rest=rest, deadline=deadline)
        meter = Meter(desk, entry)
        model = _made(desk, entry)
        fresh = entry.spec.adapter(model)
        fresh.adopt(model, entry.spec.device)
        adapter = entry.adapter = fresh
        sizes, by = _sized(entry, model, meter)
        _settle(desk, entry, permit, parts, sizes)
    except BaseException as error:
        unpin(error)  # what is left of the load hangs on its frames
        if by != "adapter":
            # What others took meanwhile may be in it, and would be a reason never to try again.
            entry.remembered, entry.peak = known
        if model is not None:
            finalizer = None if adapter is None else adapter.dispose
            doomed = Doomed(entry.key, model, finalizer, reason="failed load")
            model = adapter = entry.adapter = None
            desk.release([doomed])
        elif _grew(meter):
            desk.release.tidy()
        if permit is not None:
            desk.claims.free(permit)
        down.drop_grant(entry)
        raise
    entry.model, entry.permit, entry.sizes, entry.measured_by = model, permit, sizes, by
    entry.rung = entry.home = adapter.rungs[0]
    entry.spent = getattr(adapter, "spent", None)
    entry.load_seconds = desk.clock() - began
    entry.resident_since = desk.clock()
    _count(desk, entry)
    desk.events.emit(
        "transition",
        entry.key,
        reason="lease",
        before="absent",
        after=entry.rung.name.lower(),
        nbytes=sizes.total,
        seconds=entry.load_seconds,
        measured=meter.grown()[0]._asdict(),
    )


def _made(desk: Desk, entry: Entry) -> Any:
    """What the loader returns; while it finds no memory, the next model goes."""
    while True:
        try:
            return entry.spec.load()
        except Exception as error:
            if isinstance(error, ModuleNotFoundError):
                importlib.invalidate_caches()  # it may be installed by the next try
            where = _out_of_memory(error)
            if where is None:
                raise
            unpin(error)
            cause = without_frames(error)
        if not room.evict_next(desk, entry, device=where == "device"):
            parts, _ = room.wanted(desk, entry)
            why = f", since the {where} itself is out of memory"
            raise room.exceeded(desk, entry, parts, why) from cause


def _out_of_memory(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return "host"
    name = type(error).__name__
    try:
        text = str(error).lower()
    except Exception:
        text = ""
    if name == "OutOfMemoryError" or "out of memory" in text:
        return "host" if "defaultcpuallocator" in text else "device"
    return None


def _sized(entry: Entry, model: Any, meter: Meter) -> tuple[Sizes, str]:
    """What the model takes, who says so; remembers what its load took."""
    assert entry.adapter is not None
    grown, alone = meter.grown()
    counted = entry.adapter.nbytes(model)
    said = declared(entry.spec)
    if counted is not None:
        sizes, by = counted, "adapter"
    elif alone and grown.total and not _alike(grown, said):
        sizes, by = grown, "difference"
    elif said is not None:
        sizes, by = said, "declared"
    else:
        # Others took memory meanwhile: an upper bound, not to be relied on next time.
        return grown, "estimated"
    entry.remembered, entry.peak = sizes, None
    if alone and not _alike(grown, sizes):
        # What a load takes beside the model; not what the process did for itself meanwhile.
        most = (max(a, min(b, 2 * a)) for a, b in zip(sizes, grown, strict=True))
        entry.peak = Sizes(*most)
    return sizes, by


def _alike(grown: Sizes, said: Sizes | None) -> bool:
    """Whether a process grew by what was declared, but for what else it does meanwhile."""
    if said is None:
        return False
    near = (abs(a - b) <= max(NOISE, b // 50) for a, b in zip(grown, said, strict=True))
    return all(near)


def _settle(
    desk: Desk, entry: Entry, permit: int, parts: list[tuple[int, int]], sizes: Sizes
) -> None:
    """Puts what was measured in the place of what was promised."""
    exact = desk.parts(sizes, entry.spec.device)
    promised = dict(parts)
    over = {a: n - promised.get(a, 0) for a, n in exact if n > promised.get(a, 0)}
    short = desk.claims.settle(permit, exact)
    known = declared(entry.spec) is not None
    if over and (known or short):
        desk.events.emit(
            "over reserved", entry.key, reason="larger than was reserved", nbytes=sum(over.values())
        )
    while short:
        extra = None
        if not room.evict(desk, dict(short), entry, "larger than reserved"):
            # What is on its way out is waited for: the model is there already, so not in line.
            try:
                extra = room.reserve(desk, entry, _beside(desk, short), jump=True)
            except BudgetExceeded:
                raise room.exceeded(desk, entry, exact, " now that it is loaded") from None
        short = desk.claims.settle(permit, exact, extra)
        if short and extra is not None:
            desk.claims.free(extra)


def _beside(desk: Desk, short: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What has to be promised beside a permit that falls short by so much: what is free as well."""
    parts = []
    for account, nbytes in short:
        usage = desk.claims.usage(account)
        free = 0 if usage is None else usage.limit - usage.held - usage.promised
        parts.append((account, nbytes + max(0, free)))
    return parts


def _wake(desk: Desk, turn: Turn, deadline: float | None) -> bool:
    """Brings a resting model back. Where that fails it is let go: it may be half moved."""
    entry = turn.entry
    assert entry.adapter is not None
    assert entry.permit is not None
    device = entry.spec.device
    before, began = entry.rung, desk.clock()
    full = entry.remembered or entry.sizes
    now = dict(desk.parts(entry.sizes, device))
    more = [(a, max(0, n - now.get(a, 0))) for a, n in desk.parts(full, device)]
    turn.accounts = tuple(account for account, _ in more)
    _ask(desk, entry)
    extra = None
    try:
        extra = room.reserve(desk, entry, more, deadline=deadline)
        entry.adapter.move(entry.model, entry.home, device)
        sizes = entry.adapter.nbytes(entry.model) or full
        if desk.claims.settle(entry.permit, desk.parts(sizes, device), extra):
            raise room.exceeded(desk, entry, desk.parts(sizes, device), " on its way back")
    except (BudgetExceeded, Busy) as error:
        if extra is None:
            down.drop_grant(entry)
            raise  # it is where it was
        failed: BaseException = error
    except BaseException as error:
        failed = error
    else:
        entry.rung, entry.sizes = entry.home, sizes
        entry.resident_since = desk.clock()
        desk.events.emit(
            "transition",
            entry.key,
            reason="lease",
            before=before.name.lower(),
            after=entry.rung.name.lower(),
            nbytes=sizes.total,
            seconds=desk.clock() - began,
            measured=None,
        )
        return True
    if extra is not None:
        desk.claims.free(extra)
    unpin(failed)
    name, fatal = type(failed).__name__, not isinstance(failed, Exception)
    where = _out_of_memory(failed)
    desk.events.emit("half moved", entry.key, reason=f"{name} on the way up")
    if not fatal:
        failed = None  # type: ignore[assignment]
    down.discard(desk, [entry], f"{name} on the way up")
    if fatal:
        raise failed
    if where is not None:
        room.evict_next(desk, entry, device=where == "device")
    return False


def _ask(desk: Desk, entry: Entry) -> None:
    """The arbiter decides first who may use a device."""
    if desk.arbiter is not None and entry.spec.device is not None and entry.grant is None:
        entry.grant = desk.arbiter.claim(entry.key)


def _grew(meter: Meter | None) -> bool:
    return meter is not None and meter.grown()[0].total > GREW


def _count(desk: Desk, entry: Entry) -> None:
    desk.counters.loads += 1
    entry.loads += 1
    entry.reloads += entry.unloads > 0
    if entry.last_down is None:
        return  # it was asked to go
    now = desk.clock()
    if now - entry.last_down > max(10.0, 3 * entry.load_seconds):
        return
    entry.thrash = [at for at in entry.thrash if now - at < WITHIN] + [now]
    if len(entry.thrash) >= THRASH:
        desk.counters.thrash += 1
        desk.events.emit(
            "thrash",
            entry.key,
            reason=f"reloaded {len(entry.thrash)} times in {WITHIN:.0f} s just after it had gone: "
            "a longer idle window or a larger budget would keep it",
            seconds=entry.load_seconds,
        )
        entry.thrash = []


def _failed(desk: Desk, turn: Turn, error: Exception) -> None:
    entry = turn.entry
    desk.counters.failed += 1
    if isinstance(error, Busy):
        return  # its caller was in a hurry: another of those who wait tries again
    turn.error = entry.error = without_frames(error)
    desk.events.emit("failed", entry.key, reason=type(error).__name__)
    if isinstance(error, (BudgetExceeded, Refused, Released, ModuleNotFoundError)):
        return  # may be otherwise the next moment, and costs nothing to find out
    entry.failures += 1
    delay = min(MOST, FIRST * 2 ** min(entry.failures - 1, 16))
    entry.retry_at = desk.clock() + delay * random.uniform(0.75, 1.25)
