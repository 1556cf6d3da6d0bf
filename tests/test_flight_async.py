"""Single flight where asyncio tasks, on several event loops, meet threads."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from flight_kit import Loader, Loop, until
from memweir._flight import Flights, is_async
from memweir.errors import Busy, LoadFailed


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


KINDS = pytest.mark.parametrize("kind", ["sync", "coroutine"])


@pytest.mark.parametrize("leads", ["thread", "sync", "coroutine"])
def test_threads_and_tasks_on_two_loops_share_one_load(pool, loops, leads):
    flights, loader, answer = Flights(), Loader(), object()
    if leads == "thread":
        leader = pool.submit(flights.run, "key", loader.sync)
    else:
        leader = loops[0].start(flights.arun("key", getattr(loader, leads)))
    verdict = loader.airborne()
    callers = [leader] + [pool.submit(flights.run, "key", loader.sync) for _ in range(8)]
    for loop in loops:
        callers += [loop.start(flights.arun("key", loader.sync)) for _ in range(2)]
        callers += [loop.start(flights.arun("key", loader.coroutine)) for _ in range(2)]
    until(lambda: flights.waiting("key") == 16)
    verdict.set_result(answer)
    assert all(f.result() is answer for f in callers)
    assert (len(loader.loads), flights.joins, flights._home) == (1, 16, {})


def test_a_cold_key_and_sixteen_callers_at_once(pool, loops):
    flights, together, loads = Flights(), threading.Barrier(16), []

    def load():
        loads.append(1)
        until(lambda: flights.waiting("key") == 15)
        return object()

    async def task():
        await asyncio.get_running_loop().run_in_executor(pool, together.wait)
        return await flights.arun("key", load)

    def thread():
        together.wait()
        return flights.run("key", load)

    callers = [pool.submit(thread) for _ in range(8)]
    callers += [loop.start(task()) for loop in loops for _ in range(4)]
    assert len({id(f.result()) for f in callers}) == 1
    assert len(loads) == 1


@KINDS
def test_a_failure_reaches_everyone(pool, loops, kind):
    flights, loader, error = Flights(), Loader(), ValueError("bad")
    leader = loops[0].start(flights.arun("key", getattr(loader, kind)))
    verdict = loader.airborne()
    waiters = [pool.submit(flights.run, "key", loader.sync)]
    waiters += [loop.start(flights.arun("key", loader.sync)) for loop in loops]
    until(lambda: flights.waiting("key") == 3)
    verdict.set_exception(error)
    assert leader.exception() is error
    for waiter in waiters:
        assert isinstance(waiter.exception(), LoadFailed)
        assert isinstance(waiter.exception().__cause__, ValueError)
    assert loops[1].start(flights.arun("key", lambda: 1)).result() == 1


@KINDS
def test_a_cancelled_leader_hands_over(pool, loops, kind):
    flights, loader, answer = Flights(), Loader(), object()
    leader = loops[0].start(flights.arun("key", getattr(loader, kind)))
    first = loader.airborne()
    waiters = [pool.submit(flights.run, "key", loader.sync) for _ in range(2)]
    waiters += [loop.start(flights.arun("key", loader.sync)) for loop in loops]
    waiters += [loop.start(flights.arun("key", loader.coroutine)) for loop in loops]
    until(lambda: flights.waiting("key") == 6)
    loops[0].cancel(leader)
    assert isinstance(leader.exception(), asyncio.CancelledError)
    second = loader.airborne(2)
    assert [load.stale for load in loader.loads] == [True, False]
    # The thread of a cancelled task runs on; what it brings is dropped.
    if kind == "sync":
        first.set_result("late")
    second.set_result(answer)
    assert all(f.result() is answer for f in waiters)
    assert len(loader.loads) == 2


@KINDS
def test_a_cancelled_leader_without_waiters_leaves_nothing_behind(loops, kind):
    flights, loader = Flights(), Loader()
    leader = loops[0].start(flights.arun("key", getattr(loader, kind)))
    first = loader.airborne()
    loops[0].cancel(leader)
    assert isinstance(leader.exception(), asyncio.CancelledError)
    assert flights._home == {}
    assert flights.run("key", lambda: 2) == 2
    first.set_result(1) if kind == "sync" else None


def test_the_late_error_of_a_cancelled_leader_bothers_nobody(loops):
    flights, loader, complaints = Flights(), Loader(), []
    loops[0].loop.set_exception_handler(lambda _, context: complaints.append(context))
    leader = loops[0].start(flights.arun("key", loader.sync))
    verdict = loader.airborne()
    loops[0].cancel(leader)
    assert isinstance(leader.exception(), asyncio.CancelledError)
    verdict.set_exception(ValueError("late"))
    leader.task = None
    loops[0].idle()
    gc.collect()
    loops[0].idle()
    assert complaints == []


@KINDS
def test_a_leader_that_leaves_hands_over(loops, kind):
    flights, loader = Flights(), Loader()
    leader = loops[0].start(flights.arun("key", getattr(loader, kind)))
    first = loader.airborne()
    waiter = loops[1].start(flights.arun("key", getattr(loader, kind)))
    until(lambda: flights.waiting("key") == 1)
    first.set_exception(GeneratorExit())
    assert isinstance(leader.exception(), GeneratorExit)
    loader.airborne(2).set_result(1)
    assert waiter.result() == 1


def test_everyone_cancelled_leaves_nothing_behind(loops):
    flights, loader = Flights(), Loader()

    async def crowd():
        async with asyncio.TaskGroup() as group:
            for kind in (loader.coroutine, loader.sync) * 4:
                group.create_task(flights.arun("key", kind))
            while flights.waiting("key") < 7:
                await asyncio.sleep(0)
            raise ZeroDivisionError

    assert isinstance(loops[0].start(crowd()).exception(), ExceptionGroup)
    assert flights._home == {}
    assert len(loader.loads) == 1


def test_a_cancelled_waiter_cancels_nothing_else(pool, loops):
    flights, loader = Flights(), Loader()
    leader = pool.submit(flights.run, "key", loader.sync)
    verdict = loader.airborne()
    waiters = [loop.start(flights.arun("key", loader.sync)) for loop in loops]
    until(lambda: flights.waiting("key") == 2)
    loops[0].cancel(waiters[0])
    assert isinstance(waiters[0].exception(), asyncio.CancelledError)
    assert flights.waiting("key") == 1
    verdict.set_result(1)
    assert [leader.result(), waiters[1].result()] == [1, 1]
    assert len(loader.loads) == 1


def test_a_timeout_is_the_waiters_own(pool, loops):
    flights, loader = Flights(), Loader()
    leader = loops[0].start(flights.arun("key", loader.coroutine, timeout=0))
    verdict = loader.airborne()
    for timeout in (0, 0.001):
        waiter = loops[1].start(flights.arun("key", loader.sync, timeout=timeout))
        assert isinstance(waiter.exception(), Busy)
    verdict.set_result(1)
    assert leader.result() == 1


@KINDS
def test_check_sees_what_was_stored_before_the_flight(loops, kind):
    flights, loader = Flights(), Loader()
    call = flights.arun("key", getattr(loader, kind), check=lambda: "stored")
    assert loops[0].start(call).result() == "stored"
    assert loader.loads == []


def test_a_load_cannot_ask_for_its_own_key(loops):
    flights = Flights()

    async def in_task():
        return await flights.arun("key", in_task)

    def in_worker():
        return flights.run("key", int)

    async def in_thread_of_task():
        return await asyncio.to_thread(flights.run, "key", int)

    async def in_child():
        return await asyncio.create_task(flights.arun("key", int))

    for load in (in_task, in_worker, in_thread_of_task, in_child):
        error = loops[0].start(flights.arun("key", load)).exception()
        assert isinstance(error, RuntimeError)
        assert "re-entered" in str(error)
    assert flights._home == {}


def test_a_task_that_outlives_its_load_may_ask_for_the_key(loops):
    flights, gate = Flights(), asyncio.Event()
    later = []

    async def again():
        await gate.wait()
        return await flights.arun("key", lambda: "again")

    async def load():
        later.append(asyncio.create_task(again()))
        return "first"

    async def both():
        first = await flights.arun("key", load)
        gate.set()
        return first, await later[0]

    assert loops[0].start(both()).result() == ("first", "again")


def test_stop_iteration_does_not_hang_a_task(loops):
    def load():
        raise StopIteration("end")

    error = loops[0].start(Flights().arun("key", load)).exception()
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__cause__, StopIteration)


class Weights:
    pass


@KINDS
def test_a_failed_flight_pins_no_locals(loops, kind):
    flights, gate, refs = Flights(), threading.Event(), []

    def sync():
        weights = Weights()
        refs.append(weakref.ref(weights))
        gate.wait()
        raise ValueError("no")

    async def coroutine():
        weights = Weights()
        refs.append(weakref.ref(weights))
        await asyncio.to_thread(gate.wait)
        raise ValueError("no")

    async def lead(load):
        mine = Weights()
        refs.append(weakref.ref(mine))
        try:
            await flights.arun("key", load)
        except ValueError:
            return True

    gc.collect()
    gc.disable()  # what only a collection frees was pinned
    try:
        leader = loops[0].start(lead(sync if kind == "sync" else coroutine))
        until(lambda: len(refs) == 2)
        waiter = loops[1].start(flights.arun("key", sync))
        until(lambda: flights.waiting("key") == 1)
        gate.set()
        assert leader.result()
        assert isinstance(waiter.exception(), LoadFailed)
        leader.task = waiter.task = None
        until(lambda: not flights._home)
        for loop in loops:
            loop.idle()
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


def test_a_load_sees_the_context_of_its_caller(loops):
    flights, var = Flights(), contextvars.ContextVar("var")

    async def caller():
        var.set("seen")
        return await flights.arun("key", var.get)

    assert loops[0].start(caller()).result() == "seen"


def test_bump_fences_flights_off(pool, loops):
    flights, loader = Flights(), Loader()
    old = loops[0].start(flights.arun("key", loader.coroutine))
    first = loader.airborne()
    flights.bump()
    new = loops[1].start(flights.arun("key", loader.sync))
    second = loader.airborne(2)
    assert [load.stale for load in loader.loads] == [True, False]
    second.set_result("new")
    first.set_result("old")
    assert (old.result(), new.result()) == ("old", "new")


def test_what_counts_as_async():
    async def function():
        pass

    class Callable:
        async def __call__(self):
            pass

    assert is_async(function)
    assert is_async(functools.partial(function))
    assert is_async(Callable())
    assert not is_async(dict)
