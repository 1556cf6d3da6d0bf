"""How it ends: close, unload, and what is said of them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

import memweir as mw
from pool_kit import Model, World, in_thread, until, waiters


@pytest.fixture
def world() -> World:
    world = World()
    world.add("a")
    return world


class TestClose:
    def test_13_twice_is_once(self, world: World) -> None:
        world.use("a")
        assert world.pool.close().unload.keys == ("a",)
        passes = list(world.passes)
        again = world.pool.close()
        assert again.finished
        assert not again.unload
        assert world.passes == passes
        assert not world.pool.unload("a")

    def test_17_refuses_new_leases_drains_and_reports_what_is_in_use(self, world: World) -> None:
        world.add("b")
        lease = world.pool.lease("a")
        with lease:
            world.use("b")
            closing = in_thread(lambda: world.pool.close(deadline=0.3))
            until(lambda: world.pool.closed)
            with pytest.raises(mw.Released, match="closed"):
                in_thread(world.use, "b").result()
            report = closing.result()
            assert report.unload.keys == ("b",)
            assert [kept.key for kept in report.in_use] == ["a"]
            assert f"{__file__}:" in report.in_use[0].holders[0]
            assert lease.model.alive
        assert world.pool.tick().keys == ("a",)

    def test_17b_waits_for_leases_that_end_in_time(self, world: World) -> None:
        with world.pool.lease("a"):
            closing = in_thread(lambda: world.pool.close(deadline=60))
            until(lambda: waiters(world.pool, "a") == 1)
        assert closing.result().finished
        assert closing.result().unload.keys == ("a",)

    def test_wakes_those_who_wait(self, world: World) -> None:
        with world.pool.lease("a"):
            world.pool.unload("a")
            waiting = in_thread(world.use, "a")
            until(lambda: waiters(world.pool, "a") == 1)
            in_thread(lambda: world.pool.close(deadline=0)).result()
            assert isinstance(waiting.exception(), mw.Released)

    def test_from_a_listener_does_not_hang(self) -> None:
        reports: list[Any] = []

        def listener(event: mw.Event) -> None:
            if event.kind == "transition" and not reports:
                reports.append(None)
                reports[0] = world.pool.close(deadline=30)

        world = World(on_event=listener)
        world.add("a")
        world.add("b")
        world.use("a")
        assert world.pool.closed
        assert [kept.key for kept in reports[0].in_use] == ["a"]

    def test_from_a_finalizer_does_not_hang(self) -> None:
        world, reports = World(), []
        world.pool.add("a", Model, release=lambda _: reports.append(world.pool.close(deadline=30)))
        world.use("a")
        world.pool.unload("a")
        assert [kept.reason for kept in reports[0].in_use] == ["being changed by the caller"]

    def test_is_what_with_and_async_with_do(self) -> None:
        with World().pool as pool:
            pool.add("a", Model)
        assert pool.closed

        async def main() -> None:
            async with World().pool as pool:
                pool.add("a", Model)
                async with pool.alease("a") as model:
                    assert model.alive
                del model
            assert pool.closed

        asyncio.run(main())

    def test_of_a_loop_lets_its_tasks_end_their_leases(self, world: World) -> None:
        async def main() -> None:
            async def use() -> None:
                async with world.pool.alease("a"):
                    began.set()
                    await asyncio.sleep(0.02)

            began = asyncio.Event()
            task = asyncio.create_task(use())
            await began.wait()
            report = await world.pool.aclose(deadline=60)
            assert report.unload.keys == ("a",)
            await task

        asyncio.run(main())


def test_06_many_keys_are_one_pass_and_none_is_none(world: World) -> None:
    for key in ("x:1", "x:2", "y"):
        world.add(key)
        world.use(key)
    assert not world.pool.unload("a", "nobody")
    assert world.passes == []
    report = world.pool.unload("y", "nobody", "y", prefix="x:")
    assert report.keys == ("y", "x:1", "x:2")
    assert world.passes == ["gc", "trim"]


def test_07_the_order_of_a_release_is_fixed() -> None:
    world = World()
    world.pool.add("a", Model, release=lambda model: world.passes.append("finalizer"))
    world.use("a")
    world.pool.unload("a")
    assert world.passes == ["finalizer", "gc", "trim"]


def test_13_a_second_unload_finds_nothing(world: World) -> None:
    world.use("a")
    assert world.pool.unload("a")
    report = world.pool.unload("a")
    assert not report
    assert report.keys == ()
    assert world.passes == ["gc", "trim"]


def test_15_a_release_is_reported_and_told_in_one_line(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.use("a")
    with caplog.at_level(logging.INFO, "memweir.models"):
        report = world.pool.close().unload
    (released,) = report.released
    assert (released.key, released.reason, released.promised.host) == ("a", "unload", 1 << 20)
    assert [r for r in caplog.records if "released a" in r.getMessage()]


def test_16_errors_of_a_teardown_are_in_its_report(world: World) -> None:
    def release(model: object) -> None:
        raise OSError("stuck")

    world.pool.add("b", Model, release=release)
    world.use("a")
    world.use("b")
    report = world.pool.unload("b", "a")
    assert sorted(report.keys) == ["a", "b"]
    assert [error for error in report.errors if "stuck" in error]
    assert world.state("b") == "absent"


def test_16b_an_interrupt_passes_and_leaves_the_pool_whole(world: World) -> None:
    def release(model: object) -> None:
        raise KeyboardInterrupt

    world.pool.add("b", Model, release=release)
    world.use("b")
    with pytest.raises(KeyboardInterrupt):
        world.pool.unload("b")
    assert world.state("b") == "absent"
    assert world.pool._desk.active == {}
    world.use("b")


def test_19_a_model_that_somebody_kept_is_named_in_the_report(world: World) -> None:
    with world.pool.lease("a") as model:
        kept = model
    del model
    report = world.pool.unload("a")
    assert report.released[0].verdict == "alive"
    assert any("'kept'" in referrer for referrer in report.released[0].referrers)
    assert kept is not None
    del kept
    world.use("a")
    assert world.pool.unload("a").released[0].verdict == "dead"
