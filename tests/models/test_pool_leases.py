"""Leases: what they keep, what is refused, and how they end."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

import memweir as mw
from flight_kit import Loop
from pool_kit import Gate, Model, World, in_thread, until, waiters


@pytest.fixture
def world() -> World:
    world = World()
    world.add("a")
    return world


def test_01_a_leased_model_is_never_yanked_and_goes_with_its_last_lease(world: World) -> None:
    with world.pool.lease("a") as model:
        report = in_thread(world.pool.unload, "a").result()
        assert not report
        (kept,) = report.deferred
        assert (kept.key, kept.reason) == ("a", "leased")
        assert f"{__file__}:" in kept.holders[0]
        assert world.state("a") == "draining"
        assert model.use() == "cpu"
    assert world.pool.tick().keys == ("a",)
    assert not model.alive
    assert world.state("a") == "absent"


def test_01b_a_deferred_unload_needs_nobody_to_look(world: World) -> None:
    pool = mw.ModelPool(idle=mw.Idle.never(), trim=int, collect=int)
    pool.add("a", Model)
    with pool.lease("a"):
        pool.unload("a")
    until(lambda: pool.status().models["a"].state == "absent")
    pool.close()


def test_02_one_users_end_is_not_anothers(world: World) -> None:
    first, second = world.pool.lease("a"), world.pool.lease("a")
    with first as model:
        with second as same:
            assert same is model
        assert first.model is model
        with pytest.raises(mw.Released):
            _ = second.model


def test_03_everything_that_was_made_has_an_owner_that_can_close_it(world: World) -> None:
    world.add("b")
    for key in "ab":
        world.use(key)
    report = world.pool.close()
    assert sorted(report.unload.keys) == ["a", "b"]
    assert all(adapter.disposed == 1 for adapter in world.adapters.values())


def test_04_a_shared_and_a_private_model_are_asked_for_by_different_names(world: World) -> None:
    with world.pool.lease("a") as shared, mw.loaded(Model) as own, mw.loaded(Model) as other:
        assert len({id(shared), id(own), id(other)}) == 3
    assert world.loads == {"a": 1}


def test_12_nothing_is_acquired_outside_the_guarded_block(world: World) -> None:
    lease = world.pool.lease("a")
    assert not lease.held
    assert world.loads == {}
    with pytest.raises(mw.Released, match="not entered"):
        _ = lease.model
    with lease:
        assert world.pool.status().models["a"].leases == 1


def test_14_a_handle_after_release_raises_a_typed_error(world: World) -> None:
    lease = world.pool.lease("a")
    with lease as model:
        assert lease.model is model
    with pytest.raises(mw.Released, match="over"):
        _ = lease.model
    with pytest.raises(mw.Released, match="used already"), lease:
        pass
    assert "over" in repr(lease)


def test_24_a_model_for_one_use_is_as_safe_as_a_lease() -> None:
    def use(model: Model) -> str:
        return model.use()

    once = mw.loaded(Model)
    assert once.run(use) == "cpu"
    assert once.report is not None
    assert once.report.released[0].verdict == "dead"
    with pytest.raises(mw.Released):
        once.run(use)


def test_52_abandoned_work_keeps_its_lease_until_its_thread_ends(world: World) -> None:
    began, go_on = threading.Event(), threading.Event()

    def work(model: Model) -> str:
        began.set()
        go_on.wait()
        return model.use()

    async def main() -> None:
        task = asyncio.create_task(world.pool.run("a", work))
        await asyncio.to_thread(began.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert world.pool.status().models["a"].leases == 1
        assert world.pool.release_abandoned() == ()
        go_on.set()
        while world.pool.status().models["a"].leases:
            await asyncio.sleep(0.001)

    asyncio.run(main())


def test_52b_a_bounded_wait_ends_visibly_and_stops_nothing() -> None:
    world, gate = World(), Gate()
    world.pool.add("slow", gate)
    with pytest.raises(mw.Busy), world.pool.lease("slow", timeout=0.02):
        pass
    gate.reached().set_result(Model(1))
    until(lambda: world.state("slow") == "loaded")
    world.use("slow")
    assert gate.began == 1


@pytest.mark.parametrize("bad", [float("nan"), -1.0, "1", True])
def test_a_wait_that_is_no_number_of_seconds_is_refused(world: World, bad: object) -> None:
    kind = ValueError if isinstance(bad, float) else TypeError
    for call in (
        lambda: world.pool.lease("a", timeout=bad),  # type: ignore[arg-type]
        lambda: world.pool.alease("a", timeout=bad),  # type: ignore[arg-type]
        lambda: world.pool.unload("a", deadline=bad),  # type: ignore[arg-type]
    ):
        with pytest.raises(kind, match="seconds"):
            call()
    assert world.state("a") == "absent"


class TestUnloadOfWhatIsLent:
    def test_may_be_refused(self, world: World) -> None:
        with world.pool.lease("a"):
            report = world.pool.unload("a", leased="refuse")
            assert [kept.key for kept in report.refused] == ["a"]
            assert world.state("a") == "loaded"
        assert world.passes == []

    def test_may_wait_for_the_last_lease(self, world: World) -> None:
        lease = world.pool.lease("a")
        with lease:
            waiting = in_thread(lambda: world.pool.unload("a", deadline=60))
            until(lambda: waiters(world.pool, "a") == 1)
            assert world.state("a") == "draining"
        assert waiting.result().keys == ("a",)

    def test_waits_no_longer_than_its_deadline_and_lends_again(self, world: World) -> None:
        with world.pool.lease("a"):
            report = in_thread(lambda: world.pool.unload("a", deadline=0.01)).result()
            assert [kept.reason for kept in report.refused] == ["leased"]
            assert in_thread(world.use, "a").result() == "cpu"

    def test_does_not_wait_for_the_callers_own_lease(self, world: World) -> None:
        with world.pool.lease("a"):
            report = world.pool.unload("a", leased="wait")
            assert [kept.reason for kept in report.refused] == ["leased by the caller itself"]

    def test_says_what_it_does_not_take(self, world: World) -> None:
        with pytest.raises(ValueError, match="leased"):
            world.pool.unload("a", leased="yank")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="deadline"):
            world.pool.unload("a", leased="refuse", deadline=1)


class TestANewLease:
    def test_waits_for_an_explicit_unload_and_loads_again(self, world: World) -> None:
        with world.pool.lease("a") as first:
            world.pool.unload("a")
            other = in_thread(lambda: world.pool.lease("a").__enter__())
            until(lambda: waiters(world.pool, "a") == 1)
            assert not other.done()
        world.pool.tick()
        assert other.result() is not first
        assert world.loads == {"a": 2}

    def test_joins_when_its_own_thread_holds_the_model_that_drains(self, world: World) -> None:
        with world.pool.lease("a") as model:
            world.pool.unload("a")
            with world.pool.lease("a") as again:
                assert again is model
        assert world.pool.tick().keys == ("a",)

    def test_joins_when_its_own_task_does(self, world: World) -> None:
        async def main() -> None:
            async with world.pool.alease("a") as model:
                world.pool.unload("a")
                async with world.pool.alease("a") as again:
                    assert again is model
                other = asyncio.create_task(world.pool.run("a", Model.use))
                await asyncio.sleep(0.01)
                assert not other.done()
            world.pool.tick()
            assert await other == "cpu"

        asyncio.run(main())
        assert world.loads == {"a": 2}

    def test_cancels_the_idle_clock(self) -> None:
        world = World()
        world.add("a", idle=mw.Idle(offload=None, unload=10))
        world.use("a")
        world.clock += 11
        lease = world.pool.lease("a")
        with lease:
            world.pool.tick()
            assert world.state("a") == "loaded"
        assert world.loads == {"a": 1}

    def test_does_not_block_the_loop_that_a_holder_needs(self, world: World) -> None:
        async def main() -> None:
            async with world.pool.alease("a"):
                world.pool.unload("a")

                async def other() -> None:
                    with world.pool.lease("a"):
                        pass

                with pytest.raises(mw.Busy, match="alease"):
                    await asyncio.create_task(other())

        asyncio.run(main())


class TestAbandonedLeases:
    def told(self, world: World) -> list[str]:
        world.pool.status()
        world.pool.status()
        return [event.reason for event in world.kinds("abandoned")]

    def test_of_a_thread_that_ended_are_told_of_once_and_kept(self, world: World) -> None:
        leases = []

        def take() -> None:
            lease = world.pool.lease("a")
            lease.__enter__()
            leases.append(lease)

        thread = threading.Thread(target=take, name="careless")
        thread.start()
        thread.join()
        del thread
        (reason,) = self.told(world)
        assert f"{__file__}:" in reason
        assert world.pool.unload("a", leased="refuse").refused
        assert len(world.pool.release_abandoned()) == 1
        assert world.pool.unload("a").keys == ("a",)
        leases[0].__exit__()

    def test_of_a_lease_that_was_dropped_are_found(self, world: World) -> None:
        model = world.pool.lease("a").__enter__()
        gc.collect()
        assert len(self.told(world)) == 1
        assert model.alive
        world.pool.release_abandoned()
        assert world.pool.status().models["a"].leases == 0

    def test_of_a_task_that_ended_are_found(self, world: World) -> None:
        leases = []

        async def main() -> None:
            leases.append(world.pool.alease("a"))
            await asyncio.create_task(leases[0].__aenter__())

        asyncio.run(main())
        assert len(self.told(world)) == 1

    def test_that_are_in_use_are_not_told_of(self, world: World) -> None:
        with world.pool.lease("a"):
            assert self.told(world) == []
            assert world.pool.release_abandoned() == ()

    def test_a_generator_that_is_collected_ends_its_lease(self, world: World) -> None:
        def use():  # type: ignore[no-untyped-def]
            with world.pool.lease("a") as model:
                yield model

        generator = use()
        next(generator)
        del generator
        assert world.pool.status().models["a"].leases == 0
        assert self.told(world) == []


def test_a_release_within_a_collection_at_any_moment_takes_no_lock(world: World) -> None:
    """A cycle with an open generator is collected wherever an object is made: in the middle of
    everything the pool does, too."""
    world.add("b", nbytes=1)

    def use():  # type: ignore[no-untyped-def]
        with world.pool.lease("a"):
            yield

    def litter() -> None:
        generator = use()
        next(generator)
        cycle: list[object] = [generator]
        cycle.append(cycle)

    world.use("a")
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(30):
            litter()
            world.pool.unload("b")
            world.use("b")
            world.pool.reclaim()
            world.pool.status()
            world.after(1)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert world.pool.status().models["a"].leases == 0


class TestForAsyncio:
    def test_a_cancelled_waiter_leaves_nothing_and_kills_nothing(self) -> None:
        world, gate, loop = World(), Gate(), Loop()
        world.pool.add("slow", gate)

        async def use() -> str:
            async with world.pool.alease("slow") as model:
                return str(model.use())

        try:
            leader = loop.start(use())
            verdict = gate.reached()
            waiter = loop.start(use())
            until(lambda: waiters(world.pool, "slow") == 2)
            for task in (leader, waiter):
                loop.cancel(task)
                assert isinstance(task.exception(), asyncio.CancelledError)
            verdict.set_result(Model(1))
            until(lambda: world.state("slow") == "loaded")
            assert world.pool.status().models["slow"].leases == 0
            assert loop.start(use()).result() == "cpu"
            assert gate.began == 1
        finally:
            loop.close()

    def test_tasks_of_two_loops_and_threads_share_one_load(self) -> None:
        world, gate, loops = World(), Gate(), [Loop(), Loop()]
        world.pool.add("slow", gate)
        try:
            calls = [loop.start(world.pool.run("slow", id)) for loop in loops for _ in range(20)]
            verdict = gate.reached()
            threads = [in_thread(lambda: id(_lent(world))) for _ in range(3)]
            until(lambda: waiters(world.pool, "slow") == 43)
            verdict.set_result(Model(1))
            assert len({call.result() for call in [*calls, *threads]}) == 1
            assert gate.began == 1
        finally:
            for loop in loops:
                loop.close()

    def test_a_loop_that_closed_while_waiting_is_no_ones_trouble(self) -> None:
        world, gate, loop = World(), Gate(), Loop()
        world.pool.add("slow", gate)
        loop.start(world.pool.run("slow", id))
        verdict = gate.reached()
        loop.stop()
        verdict.set_result(Model(1))
        until(lambda: world.state("slow") == "loaded")
        assert in_thread(world.use, "slow").result() == "cpu"
        loop.run()
        loop.close()


def _lent(world: World) -> Model:
    with world.pool.lease("slow") as model:
        assert isinstance(model, Model)
        return model


def test_a_lease_knows_its_key_and_place(world: World) -> None:
    world.add("card", device="cuda:3")
    with world.pool.lease("card") as model:
        assert model.use() == "cuda:3"
    lease = world.pool.lease("card")
    with lease:
        assert (lease.key, lease.device, lease.held) == ("card", "cuda:3", True)
    assert not lease.held


def test_working_bytes_are_reserved_for_as_long_as_the_lease() -> None:
    world = World(ram=100)
    world.add("a", 40)
    world.add("b", 40)
    world.use("b")
    with world.pool.lease("a", working_bytes=50):
        assert world.state("b") == "absent"
        assert world.pool.status().ram.reserved == 50
        with pytest.raises(mw.BudgetExceeded), world.pool.lease("a", working_bytes=50):
            pass
    assert world.pool.status().ram.reserved == 0
    assert world.pool.status().models["a"].leases == 0


def test_the_pool_does_not_outlive_its_user() -> None:
    pool = mw.ModelPool(idle=mw.Idle(unload=1000), trim=int, collect=int)
    pool.add("a", Model)
    with pool.lease("a") as model:
        pass
    dead = weakref.ref(model)
    before = threading.active_count()
    del pool, model
    gc.collect()
    assert dead() is None
    until(lambda: threading.active_count() < before)


def test_what_is_not_a_key_or_a_loader_is_refused() -> None:
    pool = mw.ModelPool()

    async def later() -> None: ...

    for key, load in ((1, object), ("a", None), ("a", later)):
        with pytest.raises(TypeError):
            pool.add(key, load)  # type: ignore[arg-type]
    pool.add("a", object)
    with pytest.raises(ValueError, match="already"):
        pool.add("a", object)
    with pytest.raises(KeyError, match="'b'"):
        pool.lease("b")
    with pytest.raises(TypeError, match="load="):
        pool.lease("a", pin=True)
    with pytest.raises(ValueError, match="adapter"):
        pool.add("c", object, adapter="magic")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="claim"):
        mw.ModelPool(arbiter=object())
    with pytest.raises(TypeError, match="Idle"):
        mw.ModelPool(idle=30)  # type: ignore[arg-type]
    assert [*pool] == ["a"]
    assert len(pool) == 1
    assert "a" in pool


def test_a_key_may_be_added_by_its_first_lease(world: World) -> None:
    for _ in range(2):
        with world.pool.lease("new", load=Model, nbytes=10, pin=True) as model:
            assert model.use() == "cpu"
    status = world.pool.status().models["new"]
    assert (status.loads, status.pinned) == (1, True)
