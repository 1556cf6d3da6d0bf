"""What goes wrong: loads that fail, hang, re-enter; ends in the middle of things."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest

import memweir as mw
from flight_kit import Loop
from memweir.models.ladder import Rung
from pool_kit import Gate, Model, World, in_thread, until, waiters


@pytest.fixture
def world() -> World:
    world = World()
    world.add("a")
    return world


def failing(*errors: BaseException) -> Any:
    """A loader that raises each in turn, then loads."""
    left = list(errors)

    def load() -> Model:
        if left:
            raise left.pop(0)
        return Model(1)

    return load


def test_11_a_failed_load_leaves_nothing_and_a_later_call_retries() -> None:
    world = World(ram=100)
    kept: list[Any] = []

    def load() -> Model:
        partial = Model(10)
        kept.append(weakref.ref(partial))
        if len(kept) == 1:
            raise OSError("the disk")
        return partial

    world.pool.add("a", load, nbytes=50)
    with pytest.raises(OSError, match="the disk") as caught:
        world.use("a")
    assert kept[0]() is None, "the error's frames keep what was half loaded"
    status = world.pool.status()
    assert (status.ram.held, status.ram.reserved) == (0, 0)
    model = status.models["a"]
    assert (model.state, model.failures, model.error) == ("failed", 1, "OSError: the disk")
    assert caught.value.__traceback__ is not None
    with pytest.raises(mw.LoadFailed) as again:
        world.use("a")
    assert isinstance(again.value.__cause__, OSError)
    assert len(kept) == 1
    world.clock += 1
    assert world.use("a") == "cpu"
    assert world.pool.status().models["a"].failures == 0


def test_11b_memory_that_a_failed_load_took_is_given_back() -> None:
    world = World()

    def load() -> None:
        world.anon += 100 << 20
        raise OSError("no")

    world.pool.add("a", load)
    with pytest.raises(OSError, match="no"):
        world.use("a")
    assert world.passes == ["gc", "trim"]


def test_11c_all_who_waited_get_the_error_each_their_own() -> None:
    world, gate = World(), Gate()
    world.pool.add("a", gate)
    calls = [in_thread(world.use, "a")]
    verdict = gate.reached()
    calls += [in_thread(world.use, "a") for _ in range(5)]
    until(lambda: waiters(world.pool, "a") == 6)
    verdict.set_exception(OSError("no"))
    errors = [call.exception() for call in calls]
    assert isinstance(errors[0], OSError)
    assert all(isinstance(error, mw.LoadFailed) for error in errors[1:])
    causes = [error.__cause__ for error in errors[1:] if error is not None]
    assert all(isinstance(cause, OSError) and cause.args == ("no",) for cause in causes)
    assert all(cause is not None and cause.__traceback__ is None for cause in causes)
    assert len({id(each) for each in [*errors, *causes]}) == 11
    assert gate.began == 1


def test_11d_the_wait_between_failures_grows_and_differs() -> None:
    waits = []
    for _ in range(8):
        world = World()
        world.pool.add("a", failing(*[OSError("no")] * 4))
        for _ in range(4):
            with pytest.raises(OSError, match="no"):
                world.use("a")
            wait = world.pool.status().models["a"].retry_after
            assert wait is not None
            waits.append(wait)
            world.clock += wait
    assert len(set(waits)) == len(waits)
    assert all(waits[n] < waits[n + 2] for n in range(0, len(waits), 4))


def test_22_a_missing_library_is_looked_for_again_at_once(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    world = World()

    def load() -> Model:
        import memweir_test_optional  # type: ignore[import-not-found]

        return Model(memweir_test_optional.SIZE)

    world.pool.add("a", load)
    with pytest.raises(ModuleNotFoundError):
        world.use("a")
    (tmp_path / "memweir_test_optional.py").write_text("SIZE = 7")
    assert world.use("a") == "cpu"


class TestLoaders:
    def test_that_return_none_are_refused_by_every_adapter(self) -> None:
        world = World()
        world.pool.add("none", lambda: None)
        with pytest.raises(mw.LoadFailed, match="None"):
            world.use("none")
        assert world.state("none") == "failed"

    def test_that_return_what_is_lent_already_are_refused(self) -> None:
        world, one = World(), Model(1)
        world.pool.add("a", lambda: one)
        world.pool.add("b", lambda: one)
        world.use("a")
        with pytest.raises(mw.LoadFailed, match="already"):
            world.use("b")
        with (
            pytest.raises(mw.LoadFailed, match="already"),
            World().pool.lease("c", load=lambda: one),
        ):
            pass
        assert world.use("a") == "cpu"
        world.pool.unload("a")
        world.clock += 10
        assert world.use("b") == "cpu"

    def test_that_hang_hold_up_nobody_else_and_no_deadline(self, world: World) -> None:
        gate = Gate()
        world.pool.add("hangs", gate)
        with pytest.raises(mw.Busy), world.pool.lease("hangs", timeout=0.01):
            pass
        assert world.use("a") == "cpu"
        assert world.state("hangs") == "loading"
        report = world.pool.close(deadline=0.01)
        assert [kept.key for kept in report.in_use] == ["hangs"]
        gate.reached().set_result(Model(1))
        until(lambda: world.pool._desk.active == {})
        world.pool.tick()
        assert world.state("hangs") == "absent"

    def test_that_ask_for_themselves_get_an_error(self) -> None:
        world = World()
        world.pool.add("a", lambda: world.use("a"))
        with pytest.raises(RuntimeError, match="wait for itself"):
            world.use("a")

    def test_that_ask_for_each_other_get_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("memweir.models.waiting.PATROL", 0.01)
        world, both = World(), threading.Barrier(2)

        def asks(other: str) -> Any:
            def load() -> Model:
                both.wait()
                world.use(other)
                return Model(1)

            return load

        world.pool.add("a", asks("b"))
        world.pool.add("b", asks("a"))
        calls = [in_thread(world.use, key) for key in "ab"]
        errors = [call.exception() for call in calls]
        assert any(isinstance(error, RuntimeError) for error in errors)
        assert world.pool._desk.active == {}

    def test_may_ask_for_another_key(self, world: World) -> None:
        world.pool.add("b", lambda: Model(len(world.use("a"))))
        assert world.use("b") == "cpu"

    def test_that_may_not_overlap_do_not(self) -> None:
        world, running, most = World(), [], []

        def load() -> Model:
            running.append(1)
            most.append(len(running))
            threading.Event().wait(0.002)
            running.pop()
            return Model(1)

        for n in range(6):
            world.pool.add(f"s{n}", load, serial=True)
        for call in [in_thread(world.use, f"s{n}") for n in range(6)]:
            call.result()
        assert set(most) == {1}

    def test_that_may_not_overlap_may_ask_for_each_other(self) -> None:
        world = World()
        world.pool.add("a", lambda: Model(1), serial=True)
        world.pool.add("b", lambda: Model(len(world.use("a"))), serial=True)
        assert world.use("b") == "cpu"

    def test_that_are_interrupted_hand_over(self) -> None:
        world, gate = World(), Gate()
        world.pool.add("a", gate)
        leader = in_thread(world.use, "a")
        verdict = gate.reached()
        waiter = in_thread(world.use, "a")
        until(lambda: waiters(world.pool, "a") == 2)
        verdict.set_exception(KeyboardInterrupt())
        assert isinstance(leader.exception(), KeyboardInterrupt)
        gate.reached(2).set_result(Model(1))
        assert waiter.result() == "cpu"

    def test_that_end_the_pool_get_told_and_do_not_hang(self, world: World) -> None:
        reports = []

        def load() -> Model:
            reports.append(world.pool.close(deadline=30))
            return Model(1)

        world.pool.add("b", load)
        world.use("a")
        assert world.use("b") == "cpu"
        (report,) = reports
        assert report.unload.keys == ("a",)
        assert [kept.key for kept in report.in_use] == ["b"]
        world.pool.tick()
        assert world.state("b") == "absent"


def test_37_and_38_different_keys_load_in_parallel_and_one_key_once() -> None:
    world, all_there = World(), threading.Barrier(4)
    loads: list[str] = []

    def loader(key: str) -> Any:
        def load() -> Model:
            loads.append(key)
            all_there.wait()
            return Model(1)

        return load

    for key in "abcd":
        world.pool.add(key, loader(key))
    calls = [in_thread(world.use, key) for key in "abcd" for _ in range(4)]
    assert {call.result() for call in calls} == {"cpu"}
    assert sorted(loads) == ["a", "b", "c", "d"]


def test_39_preload_is_explicit_off_the_loop_and_can_be_cancelled() -> None:
    world, gate = World(), Gate()
    world.pool.add("slow", gate)
    world.add("next")
    assert {model.state for model in world.pool.status().models.values()} == {"absent"}
    loop = Loop()
    try:
        task = loop.start(world.pool.apreload("slow", "next"))
        verdict = gate.reached()
        assert world.state("slow") == "loading"
        assert loop.start(asyncio.sleep(0, "free")).result() == "free"
        loop.cancel(task)
        assert isinstance(task.exception(), asyncio.CancelledError)
        verdict.set_result(Model(1))
        until(lambda: world.state("slow") == "loaded")
        assert world.state("next") == "absent"
    finally:
        loop.close()
    world.pool.preload("slow", "next")
    assert world.state("next") == "loaded"
    assert gate.began == 1


def test_20_what_does_nothing_costs_nothing() -> None:
    before = threading.active_count()
    loads: list[int] = []
    pool = mw.ModelPool(idle=mw.Idle(unload=1))
    pool.add("a", lambda: loads.append(1))
    pool.lease("a")
    pool.status()
    assert (loads, threading.active_count()) == ([], before)


def test_21_pools_are_plain_instances() -> None:
    one, other = World(), World()
    one.add("a")
    other.add("a")
    one.use("a")
    assert (one.state("a"), other.state("a")) == ("loaded", "absent")
    one.pool.close()
    assert other.use("a") == "cpu"


def test_29_the_steps_of_a_release_are_given_and_made_once_each(world: World) -> None:
    world.use("a")
    world.pool.unload("a")
    assert (world.passes.count("gc"), world.passes.count("trim")) == (1, 1)


def test_57_offload_and_unload_are_two_steps() -> None:
    world = World()
    world.add("a", device="cuda:0", idle=mw.Idle(offload=10, unload=100))
    world.add(
        "file", rungs=(Rung.HOST, Rung.MAPPED), idle=mw.Idle(offload=None, mapped=10, unload=100)
    )
    for key in ("a", "file"):
        world.use(key)
    world.after(11)
    assert (world.state("a"), world.state("file")) == ("offloaded", "mapped")
    assert world.passes == []
    world.after(100)
    assert (world.state("a"), world.state("file")) == ("absent", "absent")
    for key in ("a", "file"):
        world.use(key)
    assert world.loads == {"a": 2, "file": 2}


def test_08_the_window_is_timed_from_the_last_release_and_zero_is_at_once() -> None:
    world = World()
    world.add("soon", idle=mw.Idle(unload=10))
    world.add("now", idle=mw.Idle(offload=None, unload=0))
    world.add("never", idle=mw.Idle.never())
    for key in ("soon", "now", "never"):
        world.use(key)
    world.pool.tick()
    assert world.state("now") == "absent"
    world.after(9)
    world.use("soon")
    world.after(9)
    assert world.state("soon") == "loaded"
    world.after(1e9)
    assert (world.state("soon"), world.state("never")) == ("absent", "loaded")


def test_09_the_window_is_of_each_key_or_of_all() -> None:
    world = World(idle=mw.Idle(unload=5))
    world.add("all")
    world.add("own", idle=mw.Idle(unload=50))
    for key in ("all", "own"):
        world.use(key)
    world.after(6)
    assert (world.state("all"), world.state("own")) == ("absent", "loaded")


def test_a_clock_that_jumps_back_takes_nothing_away() -> None:
    world = World(idle=mw.Idle(unload=10))
    world.add("a")
    world.use("a")
    world.after(-500)
    assert world.state("a") == "loaded"
    idle = world.pool.status().models["a"].idle_seconds
    assert idle == 0.0
    world.use("a")
    world.after(11)
    assert world.state("a") == "absent"


def test_a_thousand_keys() -> None:
    world = World(ram=10_000, idle=mw.Idle(unload=10))
    for n in range(1000):
        world.add(f"k{n}", 100)
        world.use(f"k{n}")
        world.clock += 0.001
    assert world.pool.status().ram.held == 10_000
    world.after(20)
    assert world.pool.status().ram.held == 0
    assert world.passes.count("trim") == 901


def test_one_event_for_each_transition(world: World) -> None:
    world.use("a")
    world.pool.unload("a")
    moved = [(event.before, event.after, event.reason) for event in world.kinds("transition")]
    assert moved == [("absent", "host", "lease"), ("host", "absent", "unload")]
    assert [event.nbytes for event in world.told] == [1 << 20, 1 << 20]
    assert world.told[-1].measured is not None
    assert world.pool.events() == tuple(world.told)


def test_a_listener_that_fails_changes_nothing() -> None:
    def listener(event: mw.Event) -> None:
        raise OSError

    world = World(on_event=listener)
    world.add("a")
    assert world.use("a") == "cpu"


def test_a_pool_is_not_pickled() -> None:
    import pickle

    with pytest.raises(TypeError):
        pickle.dumps(World().pool)


def test_errors_that_are_kept_keep_no_model(world: World) -> None:
    def use() -> None:
        with world.pool.lease("a") as model:
            assert model
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        use()
    gc.collect()
    assert world.pool.status().models["a"].leases == 0
