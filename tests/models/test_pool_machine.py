"""Any order of leases, loads, failures, unloads, budgets and ticks, against a naive model.

The actors are real threads and tasks over a clock that stands. Each goes on until it loads, waits
or has what it wants; hypothesis picks who takes the next step, so that a run can be repeated.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import memweir as mw
from flight_kit import Loop
from memweir.models.ladder import Rung
from pool_kit import MIB, Clock, Model, Movable, until, waiters

KEYS = ["a", "b", "c"]
SIZES = {"a": 30 * MIB, "b": 50 * MIB, "c": 60 * MIB}
RAM = 100 * MIB
PICKS = st.integers(0, 59)


class Actor:
    """Somebody who wants a lease, has one, or was refused."""

    def __init__(self, key: str, kind: str) -> None:
        self.key = key
        self.kind = kind
        self.leave = threading.Event()
        self.done: Future[Any] = Future()
        self.task: Any = None
        self.model: Any = None


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.pool = mw.ModelPool(
            ram=RAM,
            idle=mw.Idle(offload=None, mapped=10, unload=100),
            residence=0.0,
            clock=self.clock,
            devices=lambda: None,
            collect=int,
            trim=int,
        )
        self.loop = Loop()
        self.gates: dict[str, list[Future[Any]]] = {key: [] for key in KEYS}
        self.alive: dict[str, Model] = {}
        self.actors: list[Actor] = []
        for key in KEYS:
            adapter = Movable(Rung.HOST, Rung.MAPPED)
            self.pool.add(key, self.loader(key), adapter=lambda a=adapter: a, nbytes=SIZES[key])
        # The model: where each key is, who holds it, who waits for it, and what was promised.
        self.at: dict[str, str] = dict.fromkeys(KEYS, "gone")  # loading, host, mapped
        self.holders: dict[str, list[Actor]] = {key: [] for key in KEYS}
        self.waiting: dict[str, list[Actor]] = {key: [] for key in KEYS}
        self.draining = dict.fromkeys(KEYS, False)
        self.since = dict.fromkeys(KEYS, 0.0)
        self.failures = dict.fromkeys(KEYS, 0)
        self.loads = dict.fromkeys(KEYS, 0)

    def loader(self, key: str) -> Any:
        def load() -> Model:
            verdict: Future[Any] = Future()
            self.gates[key].append(verdict)
            return verdict.result()  # type: ignore[no-any-return]

        return load

    def teardown(self) -> None:
        stop = threading.Event()

        def land_all() -> None:
            while not stop.wait(0.001):
                for key in KEYS:
                    for gate in self.gates[key]:
                        if not gate.done():
                            gate.set_result(Model(host=SIZES[key]))

        for actor in self.actors:
            actor.leave.set()
        lander = threading.Thread(target=land_all)
        lander.start()
        report = self.pool.close(deadline=20)
        until(lambda: all(actor.done.done() for actor in self.actors))
        stop.set()
        lander.join()
        assert report.finished, str(report)
        assert not report.errors
        status = self.pool.status()
        assert (status.ram.held, status.ram.reserved) == (0, 0)
        assert status.ram.peak <= RAM
        self.loop.stop()
        self.loop.loop.close()

    # What the actors do --------------------------------------------------------------------

    def start(self, key: str, kind: str) -> Actor:
        actor = Actor(key, kind)
        self.actors.append(actor)

        def thread() -> None:
            try:
                with self.pool.lease(key) as model:
                    actor.model = model
                    actor.leave.wait()
                    actor.model = None
                actor.done.set_result(None)
            except BaseException as error:
                actor.done.set_exception(error)

        async def task() -> None:
            async with self.pool.alease(key) as model:
                actor.model = model
                while not actor.leave.is_set():
                    await asyncio.sleep(0.0005)
                actor.model = None

        if kind == "thread":
            threading.Thread(target=thread).start()
        else:
            actor.done = actor.task = self.loop.start(task())
        return actor

    def has(self, actor: Actor) -> None:
        until(lambda: actor.model is not None or actor.done.done())
        assert actor.model is not None, actor.done.exception()
        assert actor.model.alive
        assert actor.model.place == "cpu"

    def leave(self, actor: Actor) -> None:
        actor.leave.set()
        assert actor.done.result() is None
        key = actor.key
        self.holders[key].remove(actor)
        self.since[key] = self.clock.now
        if not self.holders[key] and self.draining[key]:
            self.pool.tick()
            self.gone(key)
            self.draining[key] = False
            self.wake(key)

    def gone(self, key: str) -> None:
        self.at[key] = "gone"

    def wake(self, key: str) -> None:
        """Those who waited for an explicit unload load it again, one of them for all."""
        waiting = self.waiting[key]
        if waiting:
            self.begin(key, waiting)

    def room(self, key: str) -> bool:
        """What the pool does for room: lets go what nobody uses, if that is enough."""
        taken = {k: SIZES[k] for k in KEYS if k != key and self.at[k] in ("host", "loading")}
        free = RAM - sum(taken.values())
        idle = [k for k in taken if self.idle(k)]
        need = SIZES[key] - free
        if need <= 0:
            return True
        return sum(SIZES[k] for k in idle) >= need

    def idle(self, key: str) -> bool:
        return self.at[key] == "host" and not self.holders[key]

    def begin(self, key: str, actors: list[Actor]) -> None:
        """Somebody loads, or nobody can: what then happens to those who want it."""
        if self.room(key):
            until(
                lambda: (
                    self.loads[key] < len(self.gates[key])
                    or any(actor.done.done() for actor in actors)
                )
            )
            for actor in actors:
                assert not actor.done.done(), actor.done.exception()
            self.loads[key] += 1
            self.at[key] = "loading"
            self.waiting[key] = actors
            self.look_who_went(key)
            return
        if any(self.at[k] == "loading" for k in KEYS if k != key):
            raise AssertionError("not drawn: see the preconditions")
        for actor in actors:
            assert isinstance(actor.done.exception(), mw.BudgetExceeded)
        self.waiting[key] = []

    def look_who_went(self, but: str) -> None:
        """Who was let go for room is the pool's choice, within what it may choose."""
        for key in KEYS:
            there = key != but and self.at[key] == "host"
            if there and self.pool.status().models[key].rung == "gone":
                assert self.idle(key)
                self.gone(key)

    def land(self, key: str, error: Exception | None = None) -> None:
        gate = self.gates[key][-1]
        if error is None:
            self.alive[key] = Model(host=SIZES[key])
            gate.set_result(self.alive[key])
            for actor in self.waiting[key]:
                self.has(actor)
            self.at[key] = "host"
            self.holders[key], self.waiting[key] = self.waiting[key], []
            self.since[key] = self.clock.now
            self.failures[key] = 0
            if not self.holders[key]:
                until(lambda: self.settled(key))
        else:
            gate.set_exception(error)
            told = [actor.done.exception() for actor in self.waiting[key]]
            assert len({id(each) for each in told}) == len(told)
            for each in told:
                assert each is error or isinstance(each, mw.LoadFailed)
                assert each is error or isinstance(each.__cause__, type(error))
            until(lambda: self.pool.status().models[key].state == "failed")
            self.gone(key)
            self.failures[key] += 1
            assert self.pool.status().models[key].failures == self.failures[key]
            self.waiting[key] = []

    def settled(self, key: str) -> bool:
        """Whether what was loaded for somebody who left is nobody's."""
        slot = self.pool._desk.claims.look(self.pool._desk.entries[key].slot)
        return slot is not None and slot.open and not slot.holders

    def backs_off(self, key: str) -> bool:
        """Whether its load has just failed; for how long is drawn by the pool."""
        wait = self.pool.status().models[key].retry_after
        assert (wait is None) or self.failures[key]
        return wait is not None

    # Rules ---------------------------------------------------------------------------------

    def others_load(self, key: str) -> bool:
        return any(self.at[k] == "loading" for k in KEYS if k != key)

    @rule(key=st.sampled_from(KEYS), kind=st.sampled_from(["thread", "task"]))
    def lease(self, key: str, kind: str) -> None:
        if self.at[key] == "gone" and not self.room(key) and self.others_load(key):
            return  # it would wait for that load's bytes, and for whatever becomes of them
        if self.at[key] == "mapped" and not self.room(key):
            return
        if len(self.holders[key]) + len(self.waiting[key]) > 6:
            return
        backs_off = self.backs_off(key)
        actor = self.start(key, kind)
        if self.draining[key] or self.at[key] == "loading":
            self.waiting[key].append(actor)
            until(lambda: waiters(self.pool, key) == len(self.waiting[key]) or actor.done.done())
            assert not actor.done.done()
        elif self.at[key] == "gone":
            if backs_off:
                assert isinstance(actor.done.exception(), mw.LoadFailed)
                assert actor.done.exception().retry_after > 0  # type: ignore[union-attr,operator]
                return
            self.begin(key, [actor])
        else:
            self.has(actor)
            self.at[key] = "host"
            self.holders[key].append(actor)
            self.look_who_went(key)

    @rule(pick=PICKS)
    def release(self, pick: int) -> None:
        held = [actor for key in KEYS for actor in self.holders[key]]
        if held:
            actor = held[pick % len(held)]
            key = actor.key
            last = len(self.holders[key]) == 1 and self.draining[key] and self.waiting[key]
            if last and not self.room(key) and self.others_load(key):
                return
            self.leave(actor)

    @rule(pick=PICKS)
    def answer(self, pick: int) -> None:
        loading = [key for key in KEYS if self.at[key] == "loading"]
        if loading:
            self.land(loading[pick % len(loading)])

    @rule(pick=PICKS)
    def fail(self, pick: int) -> None:
        loading = [key for key in KEYS if self.at[key] == "loading"]
        if loading:
            self.land(loading[pick % len(loading)], OSError("no"))

    @rule(pick=PICKS)
    def cancel_a_waiter(self, pick: int) -> None:
        tasks = [a for key in KEYS for a in self.waiting[key] if a.kind == "task"]
        if not tasks:
            return
        actor = tasks[pick % len(tasks)]
        self.loop.cancel(actor.done)  # type: ignore[arg-type]
        assert isinstance(actor.done.exception(), asyncio.CancelledError)
        self.waiting[actor.key].remove(actor)

    @rule(key=st.sampled_from(KEYS))
    def unload(self, key: str) -> None:
        if self.at[key] == "loading" or self.draining[key]:
            return
        report = self.pool.unload(key)
        if self.at[key] == "gone":
            assert not report
            assert not report.deferred
        elif self.holders[key]:
            assert [kept.key for kept in report.deferred] == [key]
            assert len(report.deferred[0].holders) == len(self.holders[key])
            self.draining[key] = True
        else:
            assert report.keys == (key,)
            self.gone(key)

    @rule(key=st.sampled_from(KEYS))
    def refuse(self, key: str) -> None:
        report = self.pool.unload(key, leased="refuse")
        if self.holders[key] or self.at[key] == "loading":
            assert [kept.key for kept in report.refused] == [key]
        elif self.at[key] != "gone":
            assert report.keys == (key,)
            self.gone(key)

    @rule(seconds=st.sampled_from([1, 11, 101]))
    def time_passes(self, seconds: int) -> None:
        self.clock += seconds
        self.pool.tick()
        for key in KEYS:
            if self.idle(key) or self.at[key] == "mapped":
                idle = self.clock.now - self.since[key]
                if idle >= 100:
                    self.gone(key)
                elif idle >= 10:
                    self.at[key] = "mapped"

    @precondition(lambda self: not any(self.at[k] == "loading" for k in KEYS))
    @rule()
    def reclaim(self) -> None:
        self.pool.reclaim()
        for key in KEYS:
            if self.idle(key):
                self.at[key] = self.pool.status().models[key].rung
                assert self.at[key] in ("mapped", "gone")

    @invariant()
    def is_as_the_model_says(self) -> None:
        status = self.pool.status()
        assert status.ram.held + status.ram.reserved <= RAM
        assert status.ram.held == sum(SIZES[key] for key in KEYS if self.at[key] == "host")
        loading = sum(SIZES[key] for key in KEYS if self.at[key] == "loading")
        assert status.ram.reserved == loading
        for key in KEYS:
            model = status.models[key]
            assert model.leases == len(self.holders[key])
            place = {"loading": "gone"}.get(self.at[key], self.at[key])
            assert model.rung == place, (key, model, self.at[key])
            assert len(self.gates[key]) == self.loads[key]
            assert waiters(self.pool, key) >= len(self.waiting[key])
            if self.draining[key]:
                assert model.state == "draining"
            for actor in self.holders[key]:
                assert actor.model is self.alive[key]
                assert actor.model.alive


PoolMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestPoolMachine = PoolMachine.TestCase
