"""One load per key, whoever asks: threads, tasks, loops, and loaders that misbehave."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import memweir as mw

if TYPE_CHECKING:
    from collections.abc import Callable

RAW = np.arange(60_000, dtype=np.float32)


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


def waiting(cache: mw.PixelCache, key: str) -> int:
    return cache._flights.waiting(cache._key(key))


def test_eight_threads_and_eight_tasks_on_two_loops_load_once() -> None:
    cache = mw.PixelCache("4 MiB")
    loads = []
    gate = threading.Event()

    def load() -> np.ndarray[Any, Any]:
        loads.append(threading.get_ident())
        assert gate.wait(60)
        return RAW

    async def tasks() -> list[mw.Pixels]:
        return await asyncio.gather(*[cache.aget_or_load("k", load) for _ in range(4)])

    with ThreadPoolExecutor(10) as pool:
        threads = [pool.submit(cache.get_or_load, "k", load) for _ in range(8)]
        loops = [pool.submit(asyncio.run, tasks()) for _ in range(2)]
        wait_until(lambda: waiting(cache, "k") == 15)
        gate.set()
        answers = [f.result(60) for f in threads] + [p for f in loops for p in f.result(60)]
    assert len(loads) == 1
    assert len({id(pixels) for pixels in answers}) == 1
    assert np.array_equal(answers[0]["array"], RAW)
    assert cache.stats().joins == 15


def test_a_cancelled_leader_hands_over() -> None:
    cache = mw.PixelCache("4 MiB")
    loads = 0

    async def main() -> None:
        started, forever = asyncio.Event(), asyncio.Event()

        async def load() -> np.ndarray[Any, Any]:
            nonlocal loads
            loads += 1
            if loads == 1:
                started.set()
                await forever.wait()
            return RAW

        leader = asyncio.create_task(cache.aget_or_load("k", load, nbytes=RAW.nbytes))
        await started.wait()
        waiter = asyncio.create_task(cache.aget_or_load("k", load))
        while waiting(cache, "k") == 0:
            await asyncio.sleep(0)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        assert np.array_equal((await waiter)["array"], RAW)

    asyncio.run(main())
    assert loads == 2
    assert "k" in cache


def test_a_failure_is_nobodys_value() -> None:
    cache = mw.PixelCache("4 MiB")
    gate = threading.Event()

    def load() -> Any:
        assert gate.wait(60)
        raise OSError("no such image")

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(cache.get_or_load, "k", load, nbytes=1000) for _ in range(4)]
        wait_until(lambda: waiting(cache, "k") == 3)
        gate.set()
        errors = [call.exception(60) for call in calls]
    assert sorted(type(error).__name__ for error in errors) == ["LoadFailed"] * 3 + ["OSError"]
    assert all(isinstance(e.__cause__, OSError) for e in errors if isinstance(e, mw.LoadFailed))
    assert cache.stats().bytes < 64 << 10  # what was put aside is given back
    assert cache.get_or_load("k", lambda: RAW).kept


def test_a_load_that_asks_for_itself_is_an_error() -> None:
    cache = mw.PixelCache("4 MiB")

    def load() -> Any:
        return cache.get_or_load("k", load)["array"]

    with pytest.raises(RuntimeError, match="re-entered"):
        cache.get_or_load("k", load)

    async def aload() -> Any:
        return (await cache.aget_or_load("k", aload))["array"]

    with pytest.raises(RuntimeError, match="re-entered"):
        asyncio.run(cache.aget_or_load("k", aload))
    nested = cache.get_or_load("outer", lambda: cache.get_or_load("k", lambda: RAW)["array"])
    assert np.array_equal(nested["array"], RAW)


def test_clear_beats_a_load_in_progress() -> None:
    cache = mw.PixelCache("4 MiB")

    def load() -> np.ndarray[Any, Any]:
        cache.clear()
        return RAW

    pixels = cache.get_or_load("k", load, nbytes=RAW.nbytes)
    assert np.array_equal(pixels["array"], RAW)
    assert not pixels.kept
    assert "k" not in cache
    assert cache.get_or_load("k", lambda: RAW).kept


def test_loads_that_need_each_other_do_not_hang() -> None:
    cache = mw.PixelCache("4 MiB")
    both = threading.Barrier(2)

    def load(first: bool, other: str) -> np.ndarray[Any, Any]:
        if first:
            both.wait(60)
            return cache.get_or_load(other, lambda: load(False, other))["array"] + 1
        return RAW

    with ThreadPoolExecutor(2) as pool:
        a = pool.submit(cache.get_or_load, "a", lambda: load(True, "b"))
        b = pool.submit(cache.get_or_load, "b", lambda: load(True, "a"))
        a.result(60)
        b.result(60)


def test_a_reservation_never_waits() -> None:
    cache = mw.PixelCache("1 MiB", compact="off")
    inside = threading.Event()
    gate = threading.Event()

    def slow() -> np.ndarray[Any, Any]:
        inside.set()
        assert gate.wait(60)
        return np.zeros(800_000, np.uint8)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.get_or_load, "first", slow, nbytes=800_000)
        assert inside.wait(60)
        assert cache.stats().bytes >= 800_000  # put aside before the load
        second = cache.get_or_load("second", lambda: np.ones(700_000, np.uint8), nbytes=700_000)
        assert not second.kept
        gate.set()
        assert first.result(60).kept
    assert cache.stats().peak_bytes <= cache.budget
