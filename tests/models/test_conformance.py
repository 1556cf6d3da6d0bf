"""What people rely on who offload encoders by hand: 25 behaviours, and the defects beside them.

A timeout of 0 that means "off" there is ``None`` here; 0 is at once.
"""

from __future__ import annotations

import json
import threading

import pytest

import memweir as mw
from memweir.models.ladder import Rung
from memweir.settings import Settings, use
from pool_kit import Gate, Model, World, in_thread, until, waiters

CARD = "cuda:0"


@pytest.fixture
def world() -> World:
    world = World()
    world.add("text", device=CARD, idle=mw.Idle(offload=30, unload=600))
    return world


def resident(world: World, key: str = "text") -> Model:
    model: Model = world.pool._desk.entries[key].model
    return model


def test_01_a_fresh_model_is_not_offloaded(world: World) -> None:
    world.use("text")
    assert world.state("text") == "loaded"


def test_02_offload_shows_in_the_state(world: World) -> None:
    world.use("text")
    assert world.pool.offload("text") == ("text",)
    assert world.state("text") == "offloaded"


def test_03_offload_moves_the_model_to_the_host(world: World) -> None:
    world.use("text")
    world.pool.offload("text")
    assert resident(world).place == "cpu"


def test_04_the_next_use_is_on_the_device_it_was_added_for() -> None:
    world = World()
    world.add("text", device="cuda:7")
    world.use("text")
    world.pool.offload("text")
    assert world.use("text") == "cuda:7"
    assert world.loads == {"text": 1}


def test_05_the_next_use_ends_the_offloaded_state(world: World) -> None:
    world.use("text")
    world.pool.offload("text")
    world.use("text")
    assert world.state("text") == "loaded"


def test_06_offload_of_a_model_on_the_host_does_nothing(world: World) -> None:
    world.add("cpu")
    world.use("cpu")
    assert world.pool.offload("cpu") == ()
    assert world.state("cpu") == "loaded"


def test_07_a_model_on_the_host_is_never_moved(world: World) -> None:
    world.add("cpu", idle=mw.Idle(offload=1, unload=None))
    world.use("cpu")
    world.pool.offload("cpu")
    world.after(100)
    assert resident(world, "cpu").moves == []


def test_08_a_second_offload_moves_nothing(world: World) -> None:
    world.use("text")
    assert world.pool.offload("text", "text") == ("text",)
    assert world.pool.offload("text") == ()
    assert resident(world).moves == ["cpu"]


def test_09_the_clock_offloads_what_was_not_used_for_long(world: World) -> None:
    world.use("text")
    world.pool.tick()
    world.after(100)
    assert world.state("text") == "offloaded"


def test_09b_and_so_does_the_thread_that_looks_at_a_real_clock() -> None:
    moved = threading.Event()
    pool = mw.ModelPool(
        idle=mw.Idle(offload=0.05, unload=None),
        trim=int,
        collect=int,
        on_event=lambda event: event.reason == "idle" and moved.set(),
    )
    from pool_kit import Movable

    pool.add("text", lambda: Model(device=1), device=CARD, adapter=Movable)
    with pool.lease("text"):
        pass
    moved.wait()
    until(lambda: pool.status().models["text"].state == "offloaded")
    pool.close()


def test_10_any_short_window_is_taken_as_it_is() -> None:
    assert mw.Idle(offload=0.05).offload == 0.05
    assert mw.Idle(offload=1e-9, unload=0).steps() == ((Rung.HOST, 1e-9), (Rung.GONE, 0.0))


def test_11_what_the_clock_offloaded_is_on_the_host(world: World) -> None:
    world.use("text")
    world.after(31)
    assert resident(world).place == "cpu"


def test_12_what_was_used_just_now_survives_many_looks(world: World) -> None:
    world.use("text")
    for _ in range(50):
        world.after(0.5)
    assert resident(world).moves == []


def test_13_use_again_and_again_keeps_it_on_the_device(world: World) -> None:
    for _ in range(50):
        world.use("text")
        world.after(29)
    assert resident(world).moves == []
    assert world.loads == {"text": 1}


def test_14_without_a_window_there_is_no_thread() -> None:
    before = threading.active_count()
    with mw.ModelPool(idle=mw.Idle.never(), trim=int, collect=int) as pool:
        pool.add("a", object)
        with pool.lease("a"):
            pass
        assert threading.active_count() == before
        assert "keeper" not in pool._desk.keeper


def test_15_a_pool_that_never_ran_can_be_closed() -> None:
    assert mw.ModelPool().close().finished


def test_16_each_use_starts_the_window_anew(world: World) -> None:
    seen = []
    for _ in range(3):
        world.clock += 1
        world.use("text")
        seen.append(world.pool._desk.entries["text"].idle_since)
    assert seen == sorted(set(seen))


def test_17_one_key_is_one_object(world: World) -> None:
    with world.pool.lease("text") as one, world.pool.lease("text") as other:
        assert one is other


def test_18_one_key_is_built_once(world: World) -> None:
    for _ in range(5):
        world.use("text")
    assert world.loads == {"text": 1}


def test_19_another_key_is_another_object(world: World) -> None:
    world.add("image", device=CARD)
    with world.pool.lease("text") as one, world.pool.lease("image") as other:
        assert one is not other


def test_20_after_an_unload_it_is_built_again(world: World) -> None:
    world.use("text")
    assert world.pool.unload("text").keys == ("text",)
    world.use("text")
    assert world.loads == {"text": 2}


def test_21_an_object_that_knows_nothing_of_devices_is_lent_too() -> None:
    world = World()
    world.pool.add("tokens", lambda: ["a", "b"], idle=mw.Idle(offload=1, unload=None))
    with world.pool.lease("tokens") as tokens:
        assert tokens == ["a", "b"]
    world.after(10)
    assert world.pool.offload("tokens") == ()
    assert world.state("tokens") == "loaded"


def test_22_the_window_is_30_seconds_where_nobody_says() -> None:
    use(Settings())
    try:
        assert mw.Idle() == mw.Idle(offload=30.0, mapped=None, unload=600.0)
        use(Settings(low_memory=True))
        assert mw.Idle() == mw.Idle(offload=0.0, mapped=None, unload=0.0)
    finally:
        use(None)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf")])
def test_23_a_negative_window_is_refused(wrong: float) -> None:
    for name in ("offload", "mapped", "unload"):
        with pytest.raises(ValueError, match=name):
            mw.Idle(**{name: wrong})
    with pytest.raises(TypeError):
        mw.Idle(offload="30")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="idle_offload"):
        Settings(idle_offload=wrong)


def test_24_a_saved_configuration_holds_the_window() -> None:
    assert json.loads(json.dumps(Settings(idle_offload=12.5).as_dict()))["idle_offload"] == 12.5


def test_25_and_it_is_read_back() -> None:
    saved = json.dumps(Settings(idle_offload=12.5, idle_unload=None).said())
    try:
        use(Settings.from_dict(json.loads(saved)))
        assert mw.Idle() == mw.Idle(offload=12.5, unload=None)
    finally:
        use(None)


class TestDefectsThatAreNotHere:
    def test_a_busy_model_does_not_hold_up_another(self, world: World) -> None:
        """Head of line: the clock waits for no lease, and neither do look-ups."""
        world.add("other", device=CARD)
        with world.pool.lease("text"):
            world.after(100)
            assert in_thread(world.use, "other").result() == CARD
            assert world.state("text") == "loaded"

    def test_a_load_does_not_hold_up_another(self) -> None:
        world, gate = World(), Gate()
        world.pool.add("slow", gate)
        world.add("fast")
        slow = in_thread(world.use, "slow")
        verdict = gate.reached()
        assert world.use("fast") == "cpu"
        verdict.set_result(Model(1))
        slow.result()

    def test_a_finalizer_that_hangs_holds_up_no_other(self, world: World) -> None:
        hang, entered = threading.Event(), threading.Event()

        def release(model: object) -> None:
            entered.set()
            hang.wait()

        world.pool.add("hangs", Model, release=release)
        with world.pool.lease("hangs"):
            pass
        unload = in_thread(world.pool.unload, "hangs")
        entered.wait()
        assert world.use("text") == CARD
        world.after(31)
        assert world.state("text") == "offloaded"
        hang.set()
        assert unload.result().keys == ("hangs",)

    def test_the_window_starts_when_a_long_use_ends(self, world: World) -> None:
        with world.pool.lease("text"):
            world.after(1000)
        world.pool.tick()
        world.after(29)
        assert world.state("text") == "loaded"
        world.after(2)
        assert world.state("text") == "offloaded"

    def test_close_in_the_middle_of_a_use_takes_nothing_away(self, world: World) -> None:
        with world.pool.lease("text") as model:
            report = in_thread(world.pool.close, 0).result()
            assert [kept.key for kept in report.in_use] == ["text"]
            assert model.use() == CARD
        world.pool.tick()
        assert not model.alive

    def test_no_memory_on_the_way_back_makes_room_and_tries_again(self) -> None:
        world = World()
        world.add("text", device=CARD)
        world.add("big", device=CARD)
        world.use("text")
        world.pool.offload("text")
        world.use("big")
        world.adapters["text"].fail.append(RuntimeError("CUDA error: out of memory"))
        assert world.use("text") == CARD
        assert world.state("big") in ("absent", "offloaded")
        assert world.state("text") == "loaded"
        assert world.loads["text"] == 2  # the half-moved one was not lent again

    def test_a_half_moved_model_is_never_lent(self, world: World) -> None:
        world.use("text")
        model = resident(world)
        world.adapters["text"].fail.append(OSError("the bus"))
        assert world.pool.offload("text") == ()
        assert model.place == "between"
        assert not model.alive
        assert world.use("text") == CARD
        assert world.loads == {"text": 2}
        assert world.kinds("half moved")

    def test_two_devices_are_two_keys(self, world: World) -> None:
        for device in ("cuda:0", "cuda:1"):
            world.add(mw.model_key("clip", device=device), device=device)
        keys = [mw.model_key("clip", device=device) for device in ("cuda:0", "cuda:1")]
        assert [world.use(key) for key in keys] == ["cuda:0", "cuda:1"]

    def test_an_unload_returns_the_bytes_to_the_budget(self, world: World) -> None:
        world.use("text")
        assert world.pool.status().devices[CARD].held > 0
        world.pool.unload("text")
        assert world.pool.status().devices[CARD].held == 0

    def test_a_pool_that_ended_revives_nothing(self, world: World) -> None:
        world.use("text")
        world.pool.close()
        world.after(1000)
        with pytest.raises(mw.Released):
            world.use("text")
        assert world.loads == {"text": 1}


def test_waiters_are_counted_where_the_tests_look() -> None:
    world, gate = World(), Gate()
    world.pool.add("slow", gate)
    first = in_thread(world.use, "slow")
    verdict = gate.reached()
    second = in_thread(world.use, "slow")
    until(lambda: waiters(world.pool, "slow") == 2)
    verdict.set_result(Model(1))
    assert first.result() == second.result()
    assert gate.began == 1
