"""Periodic trims: what they leave out, and how they slow down when they bring little."""

from __future__ import annotations

import gc

import pytest
from trim_kit import MIB, Gate, World, names, skipped

from flight_kit import until
from memweir.process._pace import SLOWEST, WIN

ALL = ["buffers", "hooks.one", "allocator", "arenas"]


def periodic(world, interval=30.0, level="auto"):
    before = len(world.done)
    report = world.trims.trim(level, min_interval=interval)
    return report, world.done[before:]


def rich(world):
    world.brings = dict.fromkeys(ALL, WIN)
    return world


def test_steps_done_too_recently_are_left_out_with_the_reason():
    world = rich(World())
    assert periodic(world)[1] == ALL
    world.now += 29
    report, done = periodic(world)
    assert done == []
    assert "done 29 s ago, to be repeated after 30 s" in skipped(report)["arenas"]
    assert report.finished
    world.now += 1
    assert periodic(world)[1] == ALL


def test_an_explicit_trim_is_never_left_without_effect():
    world = World()
    for _ in range(3):
        before = len(world.done)
        assert skipped(world.trims.trim("auto")) == {}
        assert len(world.done) == before + 5


def test_an_explicit_trim_counts_as_done():
    world = rich(World())
    world.trims.trim("auto")
    assert periodic(world)[1] == []


def test_what_brings_little_is_done_half_as_often_up_to_ten_minutes():
    world = rich(World())
    world.brings["arenas"] = WIN - 1
    waits, last, end = [], 0.0, 7200
    while world.now < end:
        if "arenas" in periodic(world)[1]:
            waits.append(world.now - last)
            last = world.now
        world.now += 10
    assert waits[1:6] == [60, 120, 240, 480, SLOWEST]
    assert set(waits[5:]) == {SLOWEST}
    assert world.done.count("allocator") > 200


def test_one_that_brings_more_is_done_as_often_as_asked_again():
    world = World()
    periodic(world)
    world.now += 30
    assert periodic(world)[1] == []
    world.brings["arenas"] = WIN
    world.now += 30
    assert "arenas" in periodic(world)[1]
    world.now += 30
    assert periodic(world)[1] == ["arenas"]


def test_an_explicit_trim_that_brings_little_is_not_held_against_a_step():
    world = World()
    for _ in range(5):
        world.trims.trim("auto")
    world.now += 30
    assert periodic(world)[1] == ALL


def test_an_interval_above_the_slowest_stays():
    world = World()
    periodic(world, 1000)
    world.now += 999
    assert periodic(world, 1000)[1] == []
    world.now += 1
    assert periodic(world, 1000)[1] == ALL


def test_zero_is_as_often_as_one_likes():
    world = World()
    assert periodic(world, 0)[1] == periodic(world, 0)[1] == ALL


def test_unknown_bytes_slow_a_step_like_few():
    world = World(memory=lambda full: None)
    periodic(world)
    world.now += 30
    assert periodic(world)[1] == []


def test_a_periodic_trim_collects_only_where_its_level_says_so():
    world = World()
    report, done = periodic(world)
    assert "gc" not in done
    assert "no full collection" in skipped(report)["gc"]
    assert periodic(world, level="gc")[1] == ["gc"]
    assert "gc" not in skipped(periodic(World(), level="hooks")[0])


def test_50_periodic_trims_are_limited_single_off_the_loop_and_force_no_collection(caplog):
    caplog.set_level("INFO", "memweir")
    collected = []
    world = rich(World(collect=lambda: collected.append(gc) or 0))
    world.gates["arenas"] = Gate()
    world.gates["arenas"].open(10)
    for _ in range(10):
        periodic(world)
        world.now += 5
    assert world.done.count("arenas") == 2  # limited
    assert collected == []
    # Each trim logs after it has told its caller, so that the next may be there before.
    until(lambda: len(caplog.records) >= 2)
    world.idle()
    assert [record.name for record in caplog.records] == ["memweir.trim"] * 2  # only real wins
    assert all("released" in record.getMessage() for record in caplog.records)


def test_an_explicit_caller_who_joins_a_periodic_trim_gets_what_that_left_out():
    from concurrent.futures import ThreadPoolExecutor

    world = World()
    gate = world.gate("allocator")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(world.trims.trim, "auto", min_interval=30)
        world.at("allocator")
        second = pool.submit(world.trims.trim, "auto")
        while world.trims.waiting != 2:
            pass
        gate.open(2)
        assert "gc" in skipped(first.result())
        assert first.result().joined == 1
        assert skipped(second.result()) == {}
    assert world.done.count("allocator") == 2
    assert names(second.result())[2] == "gc"
    assert world.anon == 1000 * MIB


@pytest.mark.parametrize("late", ["allocator", "arenas"])
def test_who_joins_with_a_deeper_level_deepens_the_trim(late):
    from concurrent.futures import ThreadPoolExecutor

    world = World()
    gate = world.gate("gc")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(world.trims.trim, "gc")
        world.at("gc")
        second = pool.submit(world.trims.trim, late)
        while world.trims.waiting != 2:
            pass
        gate.open()
        assert first.result() is second.result()
    assert world.done[-1] == late
    assert world.done.count("gc") == 1
