"""What a pool holds at one moment, in plain numbers and words."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from memweir.models.adapters.protocol import Sizes
from memweir.process._aside import describe
from memweir.sizes import format_size

if TYPE_CHECKING:
    from memweir.models.desk import Desk
    from memweir.models.entry import Entry

__all__ = ["BudgetStatus", "ModelStatus", "PoolStatus", "state_of", "status_of"]


class BudgetStatus(NamedTuple):
    """Bytes of one place: ``limit`` (``None``: no budget), what is ``reserved`` for loads in
    flight, what is ``held``, what of that is ``leaving``, and the ``peak`` of both together.
    """

    limit: int | None
    reserved: int
    held: int
    leaving: int
    peak: int


class ModelStatus(NamedTuple):
    """One key of a pool.

    ``state`` is ``"absent"``, ``"loading"``, ``"loaded"``, ``"offloaded"``, ``"mapped"``,
    ``"unloading"``, ``"draining"`` (lent, and to go with its last lease) or ``"failed"`` (absent,
    and why is in ``error``). ``measured_by`` says who counted ``sizes``: the ``"adapter"``, the
    ``"difference"`` of the process's memory while nothing else ran, what was ``"declared"``, or
    ``"estimated"`` from that difference although others ran.
    """

    key: str
    state: str
    rung: str
    device: str | None
    adapter: str | None
    sizes: Sizes
    measured_by: str | None
    leases: int
    holders: tuple[str, ...]
    idle_seconds: float | None
    load_seconds: float
    loads: int
    reloads: int
    unloads: int
    pinned: bool
    failures: int
    retry_after: float | None
    error: str | None


class PoolStatus(NamedTuple):
    """A pool at one moment. ``counts`` are since it was made."""

    name: str
    closed: bool
    ram: BudgetStatus
    devices: dict[str, BudgetStatus]
    models: dict[str, ModelStatus]
    counts: dict[str, int]

    def __str__(self) -> str:
        there = [m for m in self.models.values() if m.rung != "gone"]
        lent = sum(m.leases for m in there)
        limit = "no budget" if self.ram.limit is None else format_size(self.ram.limit)
        return (
            f"{self.name}: {len(there)} of {len(self.models)} models loaded, {lent} leases, "
            f"{format_size(self.ram.held)} of {limit}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as plain data."""
        models = {
            key: {**model._asdict(), "sizes": model.sizes._asdict(), "holders": [*model.holders]}
            for key, model in self.models.items()
        }
        devices = {name: budget._asdict() for name, budget in self.devices.items()}
        return {**self._asdict(), "ram": self.ram._asdict(), "devices": devices, "models": models}


def status_of(desk: Desk) -> PoolStatus:
    """What is there."""
    return PoolStatus(
        desk.name,
        desk.closed,
        _budget(desk, desk.ram),
        {name: _budget(desk, account) for name, account in desk.devices.copy().items()},
        {key: _model(desk, entry) for key, entry in desk.entries.copy().items()},
        asdict(desk.counters),
    )


def state_of(desk: Desk, entry: Entry) -> str:
    """The word for where an entry is."""
    turn = entry.turn
    if turn is not None:
        return turn.kind
    seen = desk.claims.look(entry.slot)
    if entry.model is None:
        return "failed" if entry.error is not None else "absent"
    if seen is not None and seen.draining:
        return "draining"
    if entry.rung == entry.home:
        return "loaded"
    # Where it went since it was looked at, it is there no more.
    return {"HOST": "offloaded", "MAPPED": "mapped"}.get(entry.rung.name, "absent")


def _model(desk: Desk, entry: Entry) -> ModelStatus:
    loans = entry.sites()
    now = desk.clock()
    there = entry.model is not None
    wait = entry.retry_at - now
    return ModelStatus(
        key=entry.key,
        state=state_of(desk, entry),
        rung=entry.rung.name.lower(),
        device=entry.spec.device,
        adapter=None if entry.adapter is None else entry.adapter.name,
        sizes=entry.sizes,
        measured_by=entry.measured_by,
        leases=len(loans),
        holders=loans,
        idle_seconds=max(0.0, now - entry.idle_since) if there and not loans else None,
        load_seconds=entry.load_seconds,
        loads=entry.loads,
        reloads=entry.reloads,
        unloads=entry.unloads,
        pinned=entry.spec.pin,
        failures=entry.failures,
        retry_after=wait if wait > 0 else None,
        error=None if (error := entry.error) is None else describe(error),
    )


def _budget(desk: Desk, account: int) -> BudgetStatus:
    usage = desk.claims.usage(account)
    if usage is None:
        return BudgetStatus(None, 0, 0, 0, 0)
    limit = None if usage.limit >= _NO_LIMIT else usage.limit
    return BudgetStatus(limit, usage.promised, usage.held, usage.leaving, usage.peak)


_NO_LIMIT = (1 << 63) - 1
