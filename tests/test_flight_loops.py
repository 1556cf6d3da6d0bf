"""Event loops that end, executors that are full, and waits that would never end."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from flight_kit import Loader, Loop, until
from memweir import _flight
from memweir._flight import Flights, current

KINDS = pytest.mark.parametrize("kind", ["sync", "coroutine"])


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(_flight, "_PATROL", 0.01)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(32) as pool:
        yield pool


@pytest.fixture
def loops():
    loops = [Loop(), Loop()]
    yield loops
    for loop in loops:
        loop.close()


def test_waiting_tasks_hold_no_threads(loops):
    flights, loader = Flights(), Loader()
    loops[0].loop.set_default_executor(ThreadPoolExecutor(1))
    leader = loops[1].start(flights.arun("key", loader.coroutine))
    verdict = loader.airborne()
    waiters = [loops[0].start(flights.arun("key", loader.sync)) for _ in range(64)]
    until(lambda: flights.waiting("key") == 64)
    assert loops[0].start(asyncio.to_thread(lambda: "free")).result() == "free"
    verdict.set_result(1)
    assert {f.result() for f in [leader, *waiters]} == {1}


def test_threads_that_wait_do_not_starve_a_task_of_its_own(loops):
    flights, loader, gate = Flights(), Loader(), threading.Event()
    loops[0].loop.set_default_executor(ThreadPoolExecutor(2))
    holds = [loops[0].start(asyncio.to_thread(gate.wait)) for _ in range(2)]
    threads = [loops[0].start(asyncio.to_thread(flights.run, "key", loader.sync)) for _ in range(2)]
    task = loops[0].start(flights.arun("key", loader.sync))  # whose thread is the next in line
    gate.set()
    verdict = loader.airborne()
    until(lambda: flights.waiting("key") == 2)
    verdict.set_result(1)
    assert [f.result() for f in [task, *threads]] == [1, 1, 1]
    assert [f.result() for f in holds] == [True, True]
    assert len(loader.loads) == 1


def test_a_task_without_a_thread_is_served_by_a_thread_that_comes_by(pool, loops):
    flights, loader, gate = Flights(), Loader(), threading.Event()
    loops[0].loop.set_default_executor(ThreadPoolExecutor(1))
    hold = loops[0].start(asyncio.to_thread(gate.wait))
    tasks = [loops[0].start(flights.arun("key", loader.sync)) for _ in range(3)]
    until(lambda: flights.waiting("key") == 3)
    thread = pool.submit(flights.run, "key", loader.sync)
    loader.airborne().set_result(1)
    assert [f.result() for f in [thread, *tasks]] == [1] * 4
    gate.set()
    assert hold.result()
    assert len(loader.loads) == 1


def test_a_task_cancelled_before_it_got_a_thread(loops):
    flights, loader, gate = Flights(), Loader(), threading.Event()
    loops[0].loop.set_default_executor(ThreadPoolExecutor(1))
    hold = loops[0].start(asyncio.to_thread(gate.wait))
    tasks = [loops[0].start(flights.arun("key", loader.sync)) for _ in range(3)]
    until(lambda: flights.waiting("key") == 3)
    loops[0].cancel(tasks[0])
    assert isinstance(tasks[0].exception(), asyncio.CancelledError)
    gate.set()
    loader.airborne().set_result(1)
    assert [tasks[1].result(), tasks[2].result(), hold.result()] == [1, 1, True]
    assert len(loader.loads) == 1


def test_a_task_asks_for_a_thread_again(pool, loops):
    flights, loader, gate = Flights(), Loader(), threading.Event()
    loops[0].loop.set_default_executor(ThreadPoolExecutor(1))
    hold = loops[0].start(asyncio.to_thread(gate.wait))
    task = loops[0].start(flights.arun("key", loader.sync))
    until(lambda: flights.waiting("key") == 1)
    thread = pool.submit(flights.run, "key", loader.sync)
    verdict = loader.airborne()
    gate.set()
    assert hold.result()
    loops[0].idle()  # the task got its thread and found another leading
    verdict.set_exception(KeyboardInterrupt())
    assert isinstance(thread.exception(), KeyboardInterrupt)
    loader.airborne(2).set_result(1)
    assert task.result() == 1


def test_an_executor_that_refuses_is_the_callers_error(loops):
    flights = Flights()
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    loops[0].loop.set_default_executor(executor)
    error = loops[0].start(flights.arun("key", int)).exception()
    assert isinstance(error, RuntimeError)
    assert flights._home == {}


def test_a_waiter_whose_loop_is_closed_strands_nobody(pool, loops):
    flights, loader = Flights(), Loader()
    leader = pool.submit(flights.run, "key", loader.sync)
    verdict = loader.airborne()
    lost = [loops[0].start(flights.arun("key", loader.sync)) for _ in range(2)]
    kept = [loops[1].start(flights.arun("key", loader.sync)) for _ in range(2)]
    kept += [pool.submit(flights.run, "key", loader.sync)]
    until(lambda: flights.waiting("key") == 5)
    loops[0].stop()
    loops[0].loop.close()
    verdict.set_result(1)
    assert [f.result() for f in [leader, *kept]] == [1] * 4
    abandon(lost)


def abandon(started):
    """Forgets tasks of a closed loop, without asyncio's complaint that they never ended."""
    for each in started:
        each.task._log_destroy_pending = False
        each.task = None
    gc.collect()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("end", ["stop", "close"])
def test_a_leader_whose_loop_ended_is_replaced(pool, loops, end):
    flights, loader = Flights(), Loader()
    leader = loops[0].start(flights.arun("key", loader.coroutine))
    loader.airborne()
    waiters = [pool.submit(flights.run, "key", loader.sync) for _ in range(2)]
    waiters += [loops[1].start(flights.arun("key", loader.sync))]
    until(lambda: flights.waiting("key") == 3)
    loops[0].stop()
    if end == "close":
        loops[0].loop.close()
    loader.airborne(2).set_result(1)
    assert [f.result() for f in waiters] == [1, 1, 1]
    assert len(loader.loads) == 2
    abandon([leader])


def test_a_loop_that_stopped_in_this_thread_is_not_waited_for():
    flights, loader = Flights(), Loader()

    async def begin():
        asyncio.get_running_loop().stop()
        return await flights.arun("key", loader.coroutine)

    loop = asyncio.new_event_loop()
    leader = loop.create_task(begin())
    loop.run_forever()
    assert flights.run("key", lambda: "shared") == "shared"
    assert flights._home == {}
    loader.airborne().set_result("its own")
    assert loop.run_until_complete(leader) == "its own"
    loop.close()


def test_a_worker_lands_although_its_loop_ended(pool, loops):
    flights, loader = Flights(), Loader()
    leader = loops[0].start(flights.arun("key", loader.sync))
    verdict = loader.airborne()
    waiter = pool.submit(flights.run, "key", loader.sync)
    until(lambda: flights.waiting("key") == 1)
    loops[0].stop()
    verdict.set_result(1)
    assert waiter.result() == 1
    loops[0].thread = threading.Thread(target=loops[0].loop.run_forever)
    loops[0].thread.start()
    assert leader.result() == 1
    assert len(loader.loads) == 1


@KINDS
def test_an_abandoned_task_leaves_nothing_behind(kind):
    flights, loader = Flights(), Loader()

    async def begin():
        asyncio.get_running_loop().stop()
        await flights.arun("key", getattr(loader, kind))

    loop = asyncio.new_event_loop()
    task = loop.create_task(begin())
    loop.run_forever()
    verdict = loader.airborne()
    loop.close()
    assert list(flights._home) == ["key"]
    loader.verdicts.clear()
    if kind == "sync":
        verdict.set_result(1)  # which the worker lands
    task._log_destroy_pending = False
    ref = weakref.ref(task)
    del loop, task, verdict
    until(lambda: [gc.collect(), ref()][1] is None)  # closes the coroutine
    assert flights._home == {}


@pytest.mark.parametrize("same_loop", [True, False])
@KINDS
def test_loads_that_wait_for_each_other_are_served(loops, kind, same_loop):
    flights, up = Flights(), []

    async def load(mine, others):
        async def outer():
            up.append(mine)
            while len(up) < 2:
                await asyncio.sleep(0)
            return await flights.arun(others, inner)

        def sync():
            up.append(mine)
            until(lambda: len(up) == 2)
            return flights.run(others, lambda: f"{others} within {mine}")

        async def inner():
            return f"{others} within {mine}"

        return await flights.arun(mine, sync if kind == "sync" else outer)

    a = loops[0].start(load("a", "b"))
    b = loops[not same_loop].start(load("b", "a"))
    assert {a.result(), b.result()} & {"b within a", "a within b"}
    assert flights._home == {}


def test_a_thread_does_not_wait_for_a_task_that_needs_it(loops):
    flights, loader = Flights(), Loader()
    leader = loops[0].start(flights.arun("key", loader.coroutine))
    verdict = loader.airborne()
    stale = []

    def alone():
        stale.append(current().stale)
        return "alone"

    async def blocking():
        return flights.run("key", alone)

    assert loops[0].start(blocking()).result() == "alone"
    assert stale == [True]
    verdict.set_result("shared")
    assert leader.result() == "shared"


def test_a_thread_waits_for_a_worker_of_its_own_loop(loops):
    flights, loader = Flights(), Loader()
    leader = loops[0].start(flights.arun("key", loader.sync))
    verdict = loader.airborne()

    async def blocking():
        threading.Thread(target=release).start()
        return flights.run("key", pytest.fail)

    def release():
        until(lambda: flights.waiting("key") == 1)
        verdict.set_result("shared")

    assert loops[0].start(blocking()).result() == "shared"
    assert leader.result() == "shared"


def test_a_circle_through_a_blocked_loop(pool, loops, impatient):
    """A thread blocks the loop that leads "b", for "a", whose load waits for "b"."""
    flights, loader = Flights(), Loader()
    b = loops[0].start(flights.arun("b", loader.coroutine))
    verdict = loader.airborne()
    gate = threading.Event()

    def load_a():
        gate.wait()
        return flights.run("b", pytest.fail)

    a = pool.submit(flights.run, "a", load_a)
    until(lambda: "a" in flights._home)

    async def blocking():
        gate.set()
        return flights.run("a", lambda: "alone")

    assert loops[0].start(blocking()).result() in ("alone", "b")
    verdict.set_result("b")
    assert [a.result(), b.result()] == ["b", "b"]
