"""Sixteen threads over one pool, and what must hold whatever their order is.

Each schedule is drawn from a seed: who leases, unloads, offloads, reclaims or is cancelled, and
which loads fail. One load per key at a time, nothing moved or let go while it is used, no budget
exceeded, and nothing left at the end.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import memweir as mw
from memweir.models.ladder import Rung

from .harness import Table

THREADS = 16
BUDGET = 100
DEVICE = "cuda:0"


class Model:
    """Weights of so many bytes, wherever they are."""

    def __init__(self, host: int = 0, device: int = 0) -> None:
        self.host = host
        self.device = device
        self.users = 0
        self.alive = True

    def use(self) -> None:
        assert self.alive, "used after it was let go"


class Movable:
    """An adapter of models that may rest on a device or on the host."""

    name = "movable"

    def __init__(self, *rungs: Rung) -> None:
        self.rungs = rungs

    def adopt(self, model: Any, device: str | None) -> None: ...

    def nbytes(self, model: Any) -> mw.Sizes:
        return mw.Sizes(model.host, model.device)

    def move(self, model: Any, to: Rung, device: str | None) -> None:
        total = model.host + model.device
        model.host, model.device = (0, total) if to is Rung.DEVICE else (total, 0)

    def dispose(self, model: Any) -> None:
        assert model.alive, "let go twice"
        model.alive = False


class Watched:
    """Loads that know how many of them run for a key, and models whether they are used."""

    def __init__(self, pool: mw.ModelPool) -> None:
        self.pool = pool
        self.loading: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.errors: list[str] = []
        self.alive: dict[int, Model] = {}
        self.operations = 0

    def add(self, key: str, nbytes: int, device: str | None, fails: float, seed: int) -> None:
        dice = random.Random(seed)

        def load() -> Model:
            with self.lock:
                self.loading[key] += 1
                if self.loading[key] != 1:
                    self.errors.append(f"{key} is loaded twice at a time")
                failing = dice.random() < fails
            try:
                for _ in range(dice.randrange(3)):
                    threading.Event().wait(0)
                if failing:
                    raise OSError("no")
                model = Model(device=nbytes) if device else Model(host=nbytes)
                with self.lock:
                    self.alive[id(model)] = model
                return model
            finally:
                with self.lock:
                    self.loading[key] -= 1

        watched = self

        class Adapter(Movable):
            def move(self, model: Any, to: Rung, device: str | None) -> None:
                watched.unused(key, model, "moved")
                super().move(model, to, device)

            def dispose(self, model: Any) -> None:
                watched.unused(key, model, "let go")
                super().dispose(model)
                with watched.lock:
                    del watched.alive[id(model)]

        rungs = (Rung.DEVICE, Rung.HOST) if device else (Rung.HOST,)
        self.pool.add(key, load, device=device, adapter=lambda: Adapter(*rungs), nbytes=nbytes)

    def unused(self, key: str, model: Any, what: str) -> None:
        if model.users:
            self.errors.append(f"{key} is {what} while it is used")

    def use(self, model: Any) -> None:
        with self.lock:
            model.users += 1
        for _ in range(3):
            model.use()
        with self.lock:
            model.users -= 1


def schedule(seed: int, steps: int, threads: int = THREADS) -> Watched:
    """One race: every thread takes so many steps, drawn from the seed."""
    dice = random.Random(seed)
    pool = mw.ModelPool(
        ram=BUDGET,
        device=BUDGET,
        idle=mw.Idle(offload=0.0, unload=0.002) if seed % 3 == 0 else mw.Idle.never(),
        residence=0.0,
        collect=int,
        trim=int,
        devices=lambda: None,
    )
    watched = Watched(pool)
    keys = [f"k{n}" for n in range(6)]
    for n, key in enumerate(keys):
        fails = 0.1 if n == 5 else 0.0
        device = DEVICE if n % 2 else None
        watched.add(key, dice.randrange(10, 45), device, fails, seed + n)
    start = threading.Barrier(threads)

    def work(number: int) -> None:
        mine = random.Random(f"{seed} {number}")
        start.wait()
        try:
            if number % 4 == 3:
                asyncio.run(_tasks(watched, mine, keys, steps))
            else:
                for _ in range(steps):
                    _step(watched, mine, keys)
        except BaseException as error:
            watched.errors.append(f"thread {number}: {type(error).__name__}: {error}")

    crew = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    watched.operations = steps * threads
    _check(watched)
    return watched


def until(condition: Callable[[], object]) -> None:
    """Waits for what is certain to come."""
    while not condition():
        time.sleep(0.0005)


def main() -> None:
    """At least 20 000 operations."""
    logging.disable()  # thrashing, and models that a thread still names, are told of
    table = Table(
        "Sixteen threads over one pool of two budgets; every line is 4 schedules that hold",
        ("operations", "loads", "evictions", "offloads", "unloads", "seconds"),
        (12, 10, 10, 10, 10, 10),
    )
    for number in range(5):
        began = time.perf_counter()
        done = [schedule(100 * number + n, steps=80) for n in range(4)]
        counts = Counter[str]()
        for watched in done:
            counts.update(watched.pool.status().counts)
        table.row(
            str(sum(watched.operations for watched in done)),
            *(str(counts[name]) for name in ("loads", "evictions", "offloads", "unloads")),
            f"{time.perf_counter() - began:.1f}",
        )


EXPECTED = (mw.LoadFailed, mw.BudgetExceeded, mw.Busy, OSError)


def _step(watched: Watched, dice: random.Random, keys: list[str]) -> None:
    pool, key = watched.pool, dice.choice(keys)
    match dice.randrange(20):
        case 0:
            pool.unload(key)
        case 1:
            pool.unload(*dice.sample(keys, 3))
        case 2:
            pool.offload(*keys)
        case 3:
            pool.unload(key, leased="refuse")
        case 4:
            pool.reclaim(dice.randrange(BUDGET), device=dice.choice([None, DEVICE]))
        case 5:
            pool.status()
        case 6:
            pool.unload(key, deadline=0.01)
        case n:
            try:
                with pool.lease(key, timeout=5 if n % 2 else None) as model:
                    watched.use(model)
                    if n == 7:
                        with pool.lease(key) as again:
                            assert again is model
            except EXPECTED:
                pass
    usage = pool.status()
    for budget in (usage.ram, *usage.devices.values()):
        if budget.held + budget.reserved > BUDGET:
            watched.errors.append("a budget is exceeded")


async def _tasks(watched: Watched, dice: random.Random, keys: list[str], steps: int) -> None:
    pool = watched.pool

    async def one(key: str, cancel: bool) -> None:
        async def use() -> None:
            try:
                async with pool.alease(key) as model:
                    watched.use(model)
                    await asyncio.sleep(0)
            except EXPECTED:
                pass

        task = asyncio.create_task(use())
        if cancel:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    done = 0
    while done < steps:
        n = min(4, steps - done)
        await asyncio.gather(*(one(dice.choice(keys), dice.random() < 0.2) for _ in range(n)))
        done += n


def _check(watched: Watched) -> None:
    pool = watched.pool
    report = pool.close(deadline=60)
    assert report.finished, str(report)
    assert not report.errors, report.errors
    status = pool.status()
    for budget in (status.ram, *status.devices.values()):
        assert budget.peak <= BUDGET
        assert (budget.held, budget.reserved, budget.leaving) == (0, 0, 0)
    for key, model in status.models.items():
        assert model.leases == 0, key
        slot = pool._desk.claims.look(pool._desk.entries[key].slot)
        assert slot is not None
        assert (slot.holders, slot.turn, slot.open) == ([], None, False)
        assert pool._desk.entries[key].bells == {}
    assert watched.alive == {}, "models that nobody let go"
    until(lambda: pool._desk.active == {})
    assert pool._desk.waiting == {}
    assert watched.errors == [], watched.errors[:5]
