"""Many callers, one trim: threads and tasks that come meanwhile share its report."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from trim_kit import LEVELS, MIB, World, names

from flight_kit import Loop, until


@pytest.fixture
def pool():
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture
def loops():
    loops = [Loop(), Loop()]
    yield loops
    for loop in loops:
        loop.close()


def joined(world, pool, loops, threads=8, tasks=8):
    """A trim that waits in its collection, and the callers that came there."""
    gate = world.gate("gc")
    first = pool.submit(world.trims.trim, "auto")
    world.at("gc")
    callers = [pool.submit(world.trims.trim, "auto") for _ in range(threads)]
    callers += [loops[i % 2].start(world.trims.atrim("auto")) for i in range(tasks)]
    until(lambda: world.trims.waiting == 1 + threads + tasks)
    return gate, first, callers


def test_eight_threads_and_eight_tasks_on_two_loops_share_one_trim(pool, loops):
    world = World()
    gate, first, callers = joined(world, pool, loops)
    assert not any(caller.done() for caller in callers)
    gate.open()
    report = first.result()
    assert all(caller.result() is report for caller in callers)
    assert report.joined == 16
    assert world.done == list(LEVELS)


def test_waiting_tasks_hold_no_executor_thread(loops):
    world = World()
    loops[0].loop.set_default_executor(ThreadPoolExecutor(1))
    gate = world.gate("gc")
    tasks = [loops[0].start(world.trims.atrim("auto")) for _ in range(8)]
    world.at("gc")
    assert loops[0].start(asyncio.to_thread(int)).result(10) == 0
    gate.open()
    assert {task.result().joined for task in tasks} == {7}


def test_the_loop_goes_on_while_a_trim_runs():
    world = World()
    gate = world.gate("gc")

    async def main():
        trim = asyncio.create_task(world.trims.atrim("auto"))
        turns = 0
        while not gate.entered:
            await asyncio.sleep(0)
            turns += 1
        for _ in range(100):
            await asyncio.sleep(0)
        assert not trim.done()
        gate.open()
        return (await trim), turns

    report, _ = asyncio.run(main())
    assert report.finished


def test_a_cancelled_task_leaves_and_the_trim_goes_on(pool, loops):
    world = World()
    gate, first, callers = joined(world, pool, loops, threads=1, tasks=2)
    loops[0].cancel(callers[1])
    with pytest.raises(asyncio.CancelledError):
        raise callers[1].exception()
    gate.open()
    assert first.result() is callers[0].result() is callers[2].result()
    assert first.result().joined == 3


def test_a_closed_loop_keeps_nobody_from_being_told(pool, loops):
    world = World()
    gate, first, callers = joined(world, pool, loops, threads=1, tasks=2)
    loops[0].stop()
    left = asyncio.all_tasks(loops[0].loop)
    loops[0].loop.close()
    gate.open()
    assert first.result() is callers[0].result() is callers[2].result()
    for task in left:  # what a closed loop leaves behind is nobody's business
        task._log_destroy_pending = False


def test_the_next_trim_is_one_of_its_own(pool):
    world = World()
    one, two = world.trims.trim("auto"), world.trims.trim("auto")
    assert one is not two
    assert world.done == [*LEVELS, *LEVELS]
    assert two.joined == 0


def test_a_deadline_gives_the_report_so_far_and_the_trim_goes_on(pool):
    world = World()
    world.brings = {"buffers": 5 * MIB}
    gate = world.gate("gc")
    caller = pool.submit(world.trims.trim, "auto", deadline=5)
    world.at("gc")
    assert not caller.done()
    world.now = 4.9
    waiting = pool.submit(world.trims.trim, "auto")
    until(lambda: world.trims.waiting == 2)
    assert not caller.done()
    world.now = 5
    report = caller.result()
    assert not report.finished
    assert report.running == "gc"
    assert names(report) == ["buffers", "hooks.one"]
    assert report.released == 5 * MIB
    assert "deadline" in report.note
    assert "unfinished: at gc" in str(report)
    gate.open()
    assert waiting.result().finished
    assert world.done == list(LEVELS)


def test_a_task_has_a_deadline_too():
    world = World()
    gate = world.gate("gc")

    async def main():
        trim = asyncio.create_task(world.trims.atrim("auto", deadline=5))
        while not gate.entered:
            await asyncio.sleep(0)
        world.now = 5
        return await trim

    report = asyncio.run(main())
    assert not report.finished
    assert report.running == "gc"
    gate.open()
    world.idle()
    assert world.done == list(LEVELS)


def test_a_deadline_of_zero_starts_a_trim_and_does_not_wait():
    world = World()
    gate = world.gate("buffers")
    report = world.trims.trim("auto", deadline=0)
    assert not report.finished
    gate.open()
    until(lambda: world.done == list(LEVELS))


def test_interrupting_a_caller_leaves_the_others_theirs(pool):
    """What ends a wait ends only that wait."""
    world = World()
    gate = world.gate("gc")

    class Interrupted(BaseException):
        pass

    def clock():
        if threading.current_thread().name == "interrupted" and world.trims.waiting:
            raise Interrupted
        return world.now

    trims = World(clock=clock, collect=world.collect).trims
    world.trims = trims
    seen = []

    def caller():
        try:
            trims.trim("auto", deadline=60)
        except Interrupted as error:
            seen.append(error)

    first = pool.submit(trims.trim, "auto")
    world.at("gc")
    thread = threading.Thread(target=caller, name="interrupted")
    thread.start()
    thread.join()
    assert seen
    gate.open()
    assert first.result().finished
