"""Windows between two steps, and waits that would never end."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

import memweir as mw
from memweir.models import down, keeper, status
from pool_kit import Gate, Model, World, in_thread, until, waiters


@pytest.fixture
def world() -> World:
    world = World()
    world.add("a")
    world.add("b")
    return world


def is_clean(pool: mw.ModelPool) -> bool:
    """Nobody holds, changes, waits for or was promised anything."""
    desk = pool._desk
    slots = [desk.claims.look(entry.slot) for entry in desk.entries.values()]
    budgets = [pool.status().ram, *pool.status().devices.values()]
    return (
        not any(slot.holders or slot.turn for slot in slots)
        and not any(entry.loans or entry.bells or entry.turn for entry in desk.entries.values())
        and not any(budget.reserved for budget in budgets)
        and not (desk.active or desk.waiting or desk.bells)
    )


def test_who_is_told_of_a_failure_may_ask_for_the_model() -> None:
    said: list[Any] = []

    def listener(event: mw.Event) -> None:
        if event.kind == "failed":
            try:
                world.pool.lease("bad", timeout=None).__enter__()
            except Exception as error:
                said.append(error)

    def load() -> Model:
        raise OSError("no")

    world = World(on_event=listener)
    world.pool.add("bad", load)
    with pytest.raises(OSError, match="no"):
        world.use("bad")
    assert [type(error) for error in said] == [RuntimeError]
    assert is_clean(world.pool)


def test_what_runs_in_a_worker_may_raise_stop_iteration(world: World) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await world.pool.run("a", lambda model: next(iter(())))

    asyncio.run(main())
    assert is_clean(world.pool)


def test_a_model_that_an_interrupt_left_between_two_rungs_is_not_lent_again() -> None:
    world = World(ram=100, device=100)
    world.add("a", 40, device="cuda:0").fail = [KeyboardInterrupt()]
    world.use("a")
    with pytest.raises(KeyboardInterrupt):
        world.pool.offload("a")
    assert world.state("a") == "absent"
    assert is_clean(world.pool)
    assert world.use("a") == "cuda:0"


def test_a_pool_that_is_closed_while_somebody_looks_loads_nothing() -> None:
    world = World()
    world.add("a")
    clock, closing = world.pool._desk.clock, [True]

    def closes() -> float:
        # Asked for after it was found open, and before the load is begun.
        if closing and not world.pool.closed:
            closing.clear()
            world.pool.close()
        return clock()

    world.pool._desk.clock = closes
    with pytest.raises(mw.Released), world.pool.lease("a"):
        pass
    assert world.loads == {}
    assert is_clean(world.pool)


def test_a_state_is_told_whatever_happens_meanwhile(world: World) -> None:
    world.use("a")
    desk = world.pool._desk

    def look(slot: int) -> Any:
        seen = desk.claims.look(slot)
        # After the model was seen to be there, and before its rung is read.
        loop.append(slot)
        return seen

    class Entry:
        turn = error = None
        slot = desk.entries["a"].slot
        home = mw.models.ladder.Rung.HOST  # type: ignore[attr-defined]
        model = object()
        rung = mw.models.ladder.Rung.GONE  # type: ignore[attr-defined]

    loop: list[int] = []
    fake = SimpleNamespace(claims=SimpleNamespace(look=look))
    assert status.state_of(fake, Entry()) == "absent"  # type: ignore[arg-type]
    assert loop


def test_an_error_that_has_no_text_or_a_secret_one_does_not_break_a_status() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    world = World()
    errors: list[Exception] = [Mute(), OSError("https://user:hunter2secret@example.com/x")]

    def load() -> Model:
        raise errors.pop(0)

    world.pool.add("a", load)
    for _ in range(2):
        with pytest.raises((Mute, OSError)):
            world.use("a")
        told = world.pool.status().models["a"].error
        assert told is not None
        assert "hunter2secret" not in told
        world.clock += 100


def test_what_others_took_while_a_model_was_loaded_is_no_reason_never_to_try_again() -> None:
    world = World(ram=100 << 20)
    grows = [200 << 20, 10 << 20]

    def load() -> Any:
        world.anon += grows.pop(0)
        return object.__new__(type("Plain", (), {}))

    world.pool.add("a", load)
    with pytest.raises(mw.BudgetExceeded), world.pool.lease("a"):
        pass
    with world.pool.lease("a"):
        pass
    assert world.pool.status().models["a"].sizes.host == 10 << 20
    assert is_clean(world.pool)


def test_an_unload_that_comes_as_a_load_ends_is_of_that_load(world: World) -> None:
    entry, reports = world.pool._desk.entries["a"], []
    claims = entry.claims

    class Claims:
        def __getattr__(self, name: str) -> Any:
            return getattr(claims, name)

        def end(self, *given: Any) -> Any:
            if not reports:
                reports.append(None)
                reports.append(world.pool.unload("a"))
            return claims.end(*given)

    entry.claims = Claims()
    world.use("a")
    assert [kept.key for kept in reports[1].deferred] == ["a"]
    world.pool.tick()
    assert world.state("a") == "absent"
    world.use("a")  # nobody asked for the end of this one
    world.pool.tick()
    assert world.state("a") == "loaded"


class TestWorkingBytes:
    def test_their_end_wakes_who_waits_for_bytes_though_the_model_stays_lent(self) -> None:
        world, rung = World(ram=100), []
        world.add("a", 40)
        with world.pool.lease("a"):
            with world.pool.lease("a", working_bytes=50):
                world.pool._desk.bells[lambda: rung.append(world.pool.status().ram.reserved)] = None
            assert rung
            assert rung[0] == 0
            world.pool._desk.bells.clear()

    def test_do_not_wait_behind_who_waits_for_the_lease(self) -> None:
        world = World(ram=100)
        world.add("a", 40)
        world.add("b", 80)
        done = []
        with world.pool.lease("a"):
            waiting = in_thread(lambda: world.pool.lease("b", timeout=30).__enter__())
            until(lambda: world.pool._desk.waiting)
            with world.pool.lease("a", working_bytes=10):
                done.append(waiting.done())
        assert done == [False]
        assert waiting.result().use() == "cpu"

    def test_have_the_time_of_the_lease(self) -> None:
        world = World(ram=100)
        world.add("a", 10)
        world.add("b", 80)
        lent = world.pool.lease("b")
        lent.__enter__()
        with pytest.raises(mw.Busy), world.pool.lease("a", timeout=0.01, working_bytes=50):
            pass
        waits = in_thread(
            lambda: world.pool.lease("a", timeout=30, working_bytes=50).__enter__().use()
        )
        until(lambda: world.pool._desk.bells)
        lent.__exit__()
        assert waits.result() == "cpu"

    def test_are_waited_for_without_the_loop(self) -> None:
        world = World(ram=100)
        world.add("a", 10)
        world.add("b", 80)

        async def main() -> None:
            async with world.pool.alease("b"):
                task = asyncio.create_task(self.uses(world))
                while not world.pool._desk.bells:
                    await asyncio.sleep(0.001)
                gone = asyncio.create_task(self.uses(world))
                while len(world.pool._desk.bells) < 2:
                    await asyncio.sleep(0.001)
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
            await task
            while not is_clean(world.pool):
                await asyncio.sleep(0.001)

        asyncio.run(main())

    async def uses(self, world: World) -> None:
        async with world.pool.alease("a", timeout=30, working_bytes=50) as model:
            assert model.use() == "cpu"


def test_who_has_time_to_wait_for_room_is_not_told_that_another_had_none() -> None:
    gate = Gate()

    class Arbiter:
        def claim(self, key: str) -> None:
            if key == "b":
                gate()

    world = World(device=100, arbiter=Arbiter())
    world.add("a", 80, device="cuda:0")
    world.add("b", 80, device="cuda:0")
    lent = world.pool.lease("a")
    lent.__enter__()
    hurried = in_thread(world.use, "b")  # waits for nobody's lease
    verdict = gate.reached()
    patient = in_thread(lambda: world.pool.lease("b", timeout=60).__enter__().use())
    until(lambda: any(getattr(visit, "_turn", None) for visit in [*world.pool._desk.asking]))
    verdict.set_result(None)
    with pytest.raises(mw.BudgetExceeded):
        hurried.result()
    until(lambda: gate.began == 2 or patient.done())
    assert not patient.done()
    gate.reached(2).set_result(None)
    until(lambda: world.pool._desk.waiting)
    lent.__exit__()
    assert patient.result() == "cuda:0"


def test_an_interrupt_while_a_thread_is_started_begins_no_second_load(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    world.pool.add("c", gate)
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "memweir loads c":
            monkeypatch.undo()
            gate.reached()
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        world.pool.lease("c", timeout=30).__enter__()
    assert world.state("c") == "loading"
    call = in_thread(world.use, "c")
    until(lambda: waiters(world.pool, "c") == 1)
    gate.reached().set_result(Model(1))
    assert call.result() == "cpu"
    assert gate.began == 1
    until(lambda: is_clean(world.pool))


def test_the_idle_clock_goes_on_when_a_thread_could_not_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeper, "_LATER", 0.001)
    start, refused = threading.Thread.start, []

    def refuses(thread: threading.Thread) -> None:
        if thread.name == "memweir lets go" and len(refused) < 3:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuses)
    with mw.ModelPool(idle=mw.Idle(unload=0), collect=int, trim=int) as pool:
        pool.add("a", lambda: Model(1))
        with pool.lease("a"):
            pass
        until(lambda: pool.status().models["a"].state == "absent")
    assert len(refused) == 3


def test_a_tick_beside_the_thread_of_the_clock_leaves_it_awake() -> None:
    """What a tick takes from the mail, the thread would sleep past."""
    pool = mw.ModelPool(collect=int, trim=int)
    desk = pool._desk
    pool.tick()  # the thread is there
    until(desk.mail.empty)
    seen: list[Any] = []
    clock = desk.keeper["keeper"]
    look = clock.look
    clock.look = lambda *given: seen.append(threading.current_thread().name) or look(*given)
    pool.tick()
    until(lambda: "memweir idle clock" in seen)
    pool.close()


def test_a_batch_that_is_about_to_go_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world, gate = World(ram=100), Gate()
    world.add("a", 60)
    world.add("b", 60)
    world.use("a")
    lower = down.lower

    def later(*given: Any, **named: Any) -> Any:
        gate()
        return lower(*given, **named)

    monkeypatch.setattr("memweir.models.leaving.down.lower", later)
    unload = in_thread(world.pool.unload, "a")
    verdict = gate.reached()
    use = in_thread(world.use, "b")
    until(lambda: use.done() or world.pool._desk.bells)
    monkeypatch.undo()
    verdict.set_result(None)
    assert unload.result().keys == ("a",)
    assert use.result() == "cpu"


class TestWaitsThatWouldNeverEnd:
    def test_leases_in_opposite_orders_while_both_models_are_to_go(self, world: World) -> None:
        inside, go = threading.Barrier(3), threading.Event()

        def nested(first: str, second: str) -> str:
            with world.pool.lease(first):
                inside.wait()
                go.wait()
                return world.use(second)

        calls = [in_thread(nested, "a", "b"), in_thread(nested, "b", "a")]
        inside.wait()
        assert len(world.pool.unload("a", "b").deferred) == 2
        go.set()

        def done() -> bool:
            world.pool.tick()
            return all(call.done() for call in calls)

        until(done)
        assert [call.result() for call in calls] == ["cpu", "cpu"]
        assert is_clean(world.pool)

    def test_an_unload_that_waits_has_no_turn_that_a_holder_may_ask_for(self, world: World) -> None:
        world.use("a")
        with world.pool.lease("b"):
            unload = in_thread(lambda: world.pool.unload("a", "b", leased="wait"))
            until(lambda: waiters(world.pool, "b"))
            assert world.use("a") == "cpu"
        assert set(unload.result().keys) == {"a", "b"}
        assert is_clean(world.pool)

    def test_two_who_hold_what_the_other_wants_to_go(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("memweir.models.leaving.PATROL", 0.01)
        inside = threading.Barrier(2)

        def crossed(mine: str, other: str) -> mw.UnloadReport:
            with world.pool.lease(mine):
                inside.wait()
                return world.pool.unload(other, leased="wait")

        calls = [in_thread(crossed, "a", "b"), in_thread(crossed, "b", "a")]
        reports = [call.result() for call in calls]
        assert any(report.refused for report in reports)
        assert is_clean(world.pool)

    def test_a_thread_that_has_a_lease_and_runs_a_loop(self, world: World) -> None:
        async def main() -> str:
            async with world.pool.alease("a") as model:
                report = world.pool.unload("a", leased="wait")
                assert [kept.key for kept in report.refused] == ["a"]
                return model.use()

        with world.pool.lease("a"):
            world.pool.unload("a")
            assert asyncio.run(main()) == "cpu"
        world.pool.tick()
        assert world.state("a") == "absent"

    def test_an_unload_that_would_block_the_loop_of_a_holder(self, world: World) -> None:
        async def holds(there: asyncio.Event, go: asyncio.Event) -> None:
            async with world.pool.alease("a"):
                there.set()
                await go.wait()

        async def main() -> mw.UnloadReport:
            there, go = asyncio.Event(), asyncio.Event()
            task = asyncio.create_task(holds(there, go))
            await there.wait()
            report = world.pool.unload("a", leased="wait")
            go.set()
            await task
            return report

        assert [kept.key for kept in asyncio.run(main()).refused] == ["a"]


def test_who_gives_up_waiting_takes_back_no_promise_to_others(world: World) -> None:
    with world.pool.lease("a"):
        assert [kept.key for kept in world.pool.unload("a").deferred] == ["a"]
        assert [kept.key for kept in world.pool.unload("a", deadline=0).refused] == ["a"]
        assert in_thread(lambda: world.pool.unload("a", deadline=0)).result().refused
    world.pool.tick()
    assert world.state("a") == "absent"
    with world.pool.lease("a"):
        assert in_thread(lambda: world.pool.unload("a", deadline=0)).result().refused
    world.pool.tick()
    assert world.state("a") == "loaded"


def test_a_key_that_is_there_already_leaves_nothing_in_the_table(world: World) -> None:
    claims = world.pool._desk.claims
    before = claims.slot()
    with pytest.raises(ValueError, match="already"):
        world.pool.add("a", lambda: Model(1))
    made = range(before + 1, claims.slot())
    assert len(made) == 1
    assert [claims.look(slot) for slot in made] == [None]


def test_a_load_that_took_more_waits_for_what_is_on_its_way_out() -> None:
    world, gate = World(ram=100), Gate()
    old = world.add("old", 60)
    old.dispose = lambda model: gate()  # type: ignore[method-assign]
    world.use("old")
    leaving = in_thread(world.pool.unload, "old")
    leaves = gate.reached()
    world.add("new", 30, takes=50)
    using = in_thread(world.use, "new")
    until(lambda: world.pool._desk.bells or using.done())
    leaves.set_result(None)
    assert using.result() == "cpu"
    leaving.result()
    assert len(world.kinds("over reserved")) == 1
    assert is_clean(world.pool)
