"""Budgets in bytes: reserved before, measured after, made by letting go what nobody uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import memweir as mw
from memweir.models.ladder import Rung
from pool_kit import Gate, Model, World, in_thread, until, waiters

CARD = "cuda:0"


def loaded(world: World) -> list[str]:
    return [key for key, model in world.pool.status().models.items() if model.rung != "gone"]


def test_41_a_budget_is_kept_in_bytes_by_letting_go() -> None:
    world = World(ram=100)
    for key, nbytes in (("a", 40), ("b", 40), ("c", 60)):
        world.add(key, nbytes)
        world.use(key)
        world.clock += 10
    assert loaded(world) == ["b", "c"]
    assert world.pool.status().ram.peak <= 100


def test_41b_each_device_has_its_own() -> None:
    world = World(device={"cuda:0": 100, "cuda:1": 50})
    world.add("a", 60, device="cuda:0", rungs=(Rung.DEVICE,))
    world.add("b", 50, device="cuda:1", rungs=(Rung.DEVICE,))
    world.add("c", 60, device="cuda:1", rungs=(Rung.DEVICE,))
    world.use("a")
    world.use("b")
    with pytest.raises(mw.BudgetExceeded, match="cuda:1"):
        world.use("c")
    assert loaded(world) == ["a", "b"]


def test_41c_nothing_that_can_be_let_go_is_an_error_that_names_the_holders() -> None:
    world = World(ram=100)
    world.add("a", 60)
    world.add("pinned", 30, pin=True)
    world.add("b", 60)
    world.use("pinned")
    with world.pool.lease("a"):
        with pytest.raises(mw.BudgetExceeded) as caught:
            world.use("b")
        said = str(caught.value)
        assert "'a' by thread 'MainThread'" in said
        assert f"{__file__}:" in said
        assert "'pinned' by a pin" in said
        assert loaded(world) == ["a", "pinned"]
    world.use("b")
    assert loaded(world) == ["pinned", "b"]


def test_41d_what_can_never_fit_lets_nothing_go() -> None:
    world = World(ram=100)
    world.add("a", 60)
    world.add("huge", 101)
    world.use("a")
    with pytest.raises(mw.BudgetExceeded, match="101 B"):
        world.use("huge")
    assert loaded(world) == ["a"]
    assert "huge" not in world.loads


def test_56_sizes_are_measured_at_load_and_remembered() -> None:
    world = World(ram=1000)
    adapter = world.add("a", 500, nbytes=None)
    world.use("a")
    status = world.pool.status()
    assert status.models["a"].sizes == mw.Sizes(host=500)
    assert status.models["a"].measured_by == "adapter"
    assert (status.ram.held, status.ram.peak) == (500, 1000)  # unknown: all that was left
    world.pool.unload("a")
    reserved: list[int] = []
    entry = world.pool._desk.entries["a"]
    load = entry.spec.load
    object.__setattr__(
        entry.spec,
        "load",
        lambda: reserved.append(world.pool.status().ram.reserved) or load(),
    )
    world.use("a")
    assert reserved == [500]
    assert adapter.disposed == 1


def test_56b_an_object_that_cannot_be_counted_is_measured_by_what_the_process_grew() -> None:
    world = World(ram=1000)

    def load() -> Any:
        world.anon += 300
        return object()

    world.pool.add("a", load)
    with world.pool.lease("a"):
        model = world.pool.status().models["a"]
        assert (model.sizes.host, model.measured_by) == (300, "difference")


def test_56c_and_not_when_others_ran_meanwhile() -> None:
    world, gate = World(), Gate()
    world.add("other")
    world.pool.add("a", gate)
    call = in_thread(lambda: world.pool.lease("a").__enter__())
    verdict = gate.reached()
    world.use("other")
    world.anon += 300
    verdict.set_result(object())
    call.result()
    model = world.pool.status().models["a"]
    assert model.measured_by == "estimated"
    assert world.pool._desk.entries["a"].remembered is None


def test_56d_reload_cost_and_recency_decide_who_goes() -> None:
    world = World(ram=100)

    def slow() -> None:
        world.clock += 30

    world.add("dear", 30, before=slow)
    world.add("cheap", 30)
    world.add("new", 60)
    for key in ("dear", "cheap"):
        world.use(key)
    world.clock += 10
    world.use("new")
    assert loaded(world) == ["dear", "new"]


def test_what_was_loaded_just_now_goes_last() -> None:
    world = World(ram=100, residence=5)
    world.add("old", 40, before=lambda: world.clock.__iadd__(100))
    world.add("young", 40)
    world.use("old")
    world.clock += 10
    world.use("young")
    world.add("next", 40)
    world.use("next")
    assert loaded(world) == ["young", "next"]


def test_the_least_that_is_enough_goes() -> None:
    world = World(ram=100)
    for key, nbytes in (("a", 10), ("b", 10), ("c", 80)):
        world.add(key, nbytes)
        world.use(key)
        world.clock += 1
    world.add("d", 70)
    world.use("d")
    assert loaded(world) == ["a", "b", "d"]


def test_a_device_makes_room_by_offloading_where_the_host_has_room() -> None:
    world = World(ram=50, device=100)
    for key in "ab":
        world.add(key, 50, device=CARD)
        world.use(key)
        world.clock += 1
    world.add("c", 100, device=CARD)
    world.use("c")
    status = world.pool.status()
    assert sorted(m.state for m in status.models.values()) == ["absent", "loaded", "offloaded"]
    assert (status.ram.held, status.devices[CARD].held) == (50, 100)
    assert status.ram.peak <= 50


def test_a_model_comes_back_to_its_device_within_the_budget() -> None:
    world = World(device=100)
    for key in "ab":
        world.add(key, 60, device=CARD)
    for _ in range(3):
        for key in "ab":
            assert world.use(key) == CARD
            world.clock += 60
    assert world.loads == {"a": 1, "b": 1}
    assert world.pool.status().devices[CARD].peak <= 100


def test_larger_than_reserved_is_told_and_makes_room_or_goes() -> None:
    world = World(ram=100)
    world.add("a", 30)
    world.add("liar", 40, takes=90)
    world.use("a")
    assert world.use("liar") == "cpu"
    assert world.kinds("over reserved")
    assert loaded(world) == ["liar"]
    world.pool.unload("liar")
    world.add("other liar", 40, takes=90)
    with world.pool.lease("a"):
        with pytest.raises(mw.BudgetExceeded, match="'a' by"):
            world.use("other liar")
        assert loaded(world) == ["a"]
        assert world.adapters["other liar"].disposed == 1
        assert world.pool.status().ram.held == 30
        with pytest.raises(mw.BudgetExceeded, match="90 B"):
            world.use("liar")
        assert world.loads["liar"] == 1  # what it took is known by now


def test_two_loads_of_unknown_size_wait_for_each_other() -> None:
    world, gate = World(ram=100), Gate()
    world.add("first", 40, nbytes=None, before=gate)
    world.add("second", 40, nbytes=None)
    first = in_thread(world.use, "first")
    verdict = gate.reached()
    second = in_thread(world.use, "second")
    until(lambda: world.pool._desk.waiting)
    assert "second" not in world.loads
    verdict.set_result(None)
    assert (first.result(), second.result()) == ("cpu", "cpu")
    assert world.pool.status().ram.peak <= 100


def test_who_came_first_for_bytes_is_served_first() -> None:
    world, gate = World(ram=100), Gate()
    world.add("now", 60, before=gate)
    world.add("big", 90)
    world.add("small", 10)

    def use(key: str) -> None:
        with world.pool.lease(key, timeout=60):
            pass

    now = in_thread(use, "now")
    verdict = gate.reached()
    big = in_thread(use, "big")
    until(lambda: len(world.pool._desk.waiting) == 1)
    small = in_thread(use, "small")
    until(lambda: len(world.pool._desk.waiting) == 2)
    assert world.loads == {}
    verdict.set_result(None)
    for call in (now, big, small):
        call.result()
    assert list(world.loads) == ["now", "big", "small"]


def test_a_load_that_asks_for_more_than_it_left_does_not_wait_for_itself() -> None:
    world = World(ram=100)
    world.add("inner", 50)
    world.add("outer", nbytes=None, before=lambda: world.use("inner"))
    with pytest.raises(mw.BudgetExceeded, match="'inner'"):
        world.use("outer")
    assert world.pool.status().ram.held == 0


def test_bytes_that_are_leaving_count_as_room() -> None:
    from threading import Event

    world, hang, entered = World(ram=100), Event(), Event()
    world.pool.add(
        "going", lambda: Model(60), nbytes=60, release=lambda _: (entered.set(), hang.wait())
    )
    world.add("other", 40)
    world.add("next", 60)
    world.use("going")
    world.use("other")
    unload = in_thread(world.pool.unload, "going")
    entered.wait()
    call = in_thread(world.use, "next")
    until(lambda: world.pool._desk.waiting)
    assert loaded(world) == ["other"]
    hang.set()
    unload.result()
    call.result()
    assert loaded(world) == ["other", "next"]


def test_declared_sizes_may_be_text_sizes_or_the_file(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(70))
    world = World(ram=100, device=100)
    reserved: dict[str, tuple[int, int]] = {}

    def add(key: str, nbytes: Any, device: str | None = None) -> None:
        def load() -> Model:
            status = world.pool.status()
            card = status.devices[CARD].reserved if device else 0
            reserved[key] = (status.ram.reserved, card)
            return Model()

        world.pool.add(key, load, nbytes=nbytes, device=device)
        world.use(key)
        world.pool.unload(key)

    add("text", "60 B")
    add("file", weights)
    add("folder", tmp_path)
    add("both", mw.Sizes(host=10, device=20), CARD)
    add("card", 30, CARD)
    assert reserved == {
        "text": (60, 0),
        "file": (70, 0),
        "folder": (70, 0),
        "both": (10, 20),
        "card": (0, 30),
    }
    add("missing", tmp_path / "nothing")
    assert reserved["missing"] == (100, 0)
    for wrong in ("much", -1, 1.5):
        with pytest.raises((TypeError, ValueError)):
            world.pool.add(f"wrong {wrong}", object, nbytes=wrong)  # type: ignore[arg-type]


class TestOutOfMemory:
    def test_in_a_load_lets_the_next_go_and_tries_again(self) -> None:
        world = World()
        for key in "ab":
            world.add(key, 50, device=CARD, rungs=(Rung.DEVICE,))
            world.use(key)
            world.clock += 1
        tries = iter([True, True, False])

        def full() -> None:
            if next(tries):
                raise RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")

        world.add("c", 50, device=CARD, before=full)
        world.use("c")
        assert loaded(world) == ["c"]
        assert world.pool.status().counts["evictions"] == 2

    def test_with_nothing_left_is_a_typed_error(self) -> None:
        def full() -> None:
            raise MemoryError

        world = World()
        world.add("a", 50)
        world.add("b", 50, before=full)
        with world.pool.lease("a"):
            with pytest.raises(mw.BudgetExceeded, match="out of memory") as caught:
                world.use("b")
            assert isinstance(caught.value.__cause__, MemoryError)
        assert world.state("b") == "failed"


class TestReclaim:
    def test_offloads_first_then_lets_go_and_never_what_is_lent_or_pinned(self) -> None:
        world = World()
        world.add("file", 30, rungs=(Rung.HOST, Rung.MAPPED))
        for key in ("lent", "idle"):
            world.add(key, 30)
        world.add("pinned", 30, pin=True)
        for key in ("file", "idle", "pinned"):
            world.use(key)
        with world.pool.lease("lent"):
            assert world.pool.reclaim(20) == 30
            assert world.state("file") == "mapped"
            assert world.state("idle") == "loaded"
            assert world.pool.reclaim("1 MiB") == 30
            assert loaded(world) == ["file", "lent", "pinned"] or world.state("idle") == "absent"
            assert {world.state("lent"), world.state("pinned")} == {"loaded"}
            assert world.pool.reclaim() == 0

    def test_of_a_device_moves_to_the_host(self) -> None:
        world = World()
        world.add("a", 30, device=CARD)
        world.use("a")
        assert world.pool.reclaim(device=CARD) == 30
        assert world.state("a") == "offloaded"


class TestArbiter:
    class Grants:
        def __init__(self) -> None:
            self.held: list[str] = []

        def claim(self, key: str) -> Any:
            if "no" in key:
                raise mw.Conflict("somebody else has it", holders=["chat"])
            self.held.append(key)
            grants = self

            class Grant:
                def release(self) -> None:
                    grants.held.remove(key)

            return Grant()

    def test_is_asked_before_a_load_to_a_device_and_told_when_it_left(self) -> None:
        grants = self.Grants()
        world = World(arbiter=grants)
        world.add("card", device=CARD)
        world.add("host")
        world.use("host")
        assert grants.held == []
        world.use("card")
        assert grants.held == ["card"]
        world.pool.offload("card")
        assert grants.held == []
        world.use("card")
        assert grants.held == ["card"]
        world.pool.unload("card")
        assert grants.held == []

    def test_may_refuse_and_is_asked_again_next_time(self) -> None:
        world = World(arbiter=self.Grants())
        world.add("no", device=CARD)
        for _ in range(2):
            with pytest.raises(mw.Conflict):
                world.use("no")
        assert world.loads == {}
        assert world.pool.status().devices.get(CARD, world.pool.status().ram).held == 0


def test_10_thrash_is_counted_and_said() -> None:
    world = World(ram=100)
    for key in "ab":
        world.add(key, 60)
    for _ in range(4):
        for key in "ab":
            world.use(key)
            world.clock += 1
    assert world.kinds("thrash")
    assert "budget" in world.kinds("thrash")[0].reason
    assert world.pool.status().counts["thrash"] >= 1
    assert world.pool.status().models["a"].reloads == 3


def test_10b_a_burst_within_the_window_reloads_nothing() -> None:
    world = World(idle=mw.Idle(offload=None, unload=30))
    world.add("a")
    for _ in range(100):
        world.use("a")
        world.after(29)
    assert world.loads == {"a": 1}
    assert world.pool.status().counts["thrash"] == 0


def test_with_a_deadline_the_end_of_a_lease_is_waited_for() -> None:
    world = World(ram=100)
    world.add("a", 60)
    world.add("b", 60)

    def use(timeout: float) -> str:
        with world.pool.lease("b", timeout=timeout) as model:
            return str(model.use())

    with world.pool.lease("a"):
        with pytest.raises(mw.Busy, match="'a' by"):
            use(0.1)
        waiting = in_thread(use, 60)
        until(lambda: world.pool._desk.waiting)
    assert waiting.result() == "cpu"


def test_waiters_of_bytes_leave_at_their_deadline() -> None:
    world, gate = World(ram=100), Gate()
    world.add("slow", 60, before=gate)
    world.add("next", 60)
    slow = in_thread(world.use, "slow")
    verdict = gate.reached()
    with pytest.raises(mw.Busy), world.pool.lease("next", timeout=0.02):
        pass
    until(lambda: waiters(world.pool, "next") == 0)
    verdict.set_result(None)
    slow.result()
    until(lambda: world.pool._desk.active == {})
    assert world.pool.status().ram.reserved == 0
