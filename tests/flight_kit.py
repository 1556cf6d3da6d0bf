"""Loads that stay in the air until they are told what to do, and event loops in threads."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from memweir._flight import Flights, Load, current

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import ThreadPoolExecutor


def until(condition: Callable[[], object]) -> None:
    """Waits for what is certain to come; the hang guard ends it otherwise."""
    while not condition():
        time.sleep(0.0005)


class Loader:
    """A load, sync or async, that flies until its verdict is in."""

    def __init__(self) -> None:
        self.loads: list[Load | None] = []
        self.verdicts: list[Future[Any]] = []

    def sync(self) -> Any:
        return self._begin().result()

    async def coroutine(self) -> Any:
        return await asyncio.wrap_future(self._begin())

    def _begin(self) -> Future[Any]:
        verdict: Future[Any] = Future()
        self.verdicts.append(verdict)
        self.loads.append(current())
        return verdict

    def airborne(self, n: int = 1) -> Future[Any]:
        """The verdict to be given to the n-th load, once that flies."""
        until(lambda: len(self.loads) == n)
        return self.verdicts[-1]


def crew(
    pool: ThreadPoolExecutor, flights: Flights, loader: Loader, n: int, key: object = "key"
) -> tuple[Future[Any], list[Future[Any]]]:
    """A leader in the air and n - 1 waiters, each in a thread."""
    loads = len(loader.loads)
    leader = pool.submit(flights.run, key, loader.sync)
    loader.airborne(loads + 1)
    waiters = [pool.submit(flights.run, key, loader.sync) for _ in range(n - 1)]
    until(lambda: flights.waiting(key) == n - 1)
    return leader, waiters


class Started(Future[Any]):
    """The result of a task, for any thread."""

    task: asyncio.Task[Any] | None = None


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.run()

    def run(self) -> None:
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Started:
        started = Started()

        def start() -> None:
            started.task = self.loop.create_task(coroutine)
            started.task.add_done_callback(settle)

        def settle(task: asyncio.Task[Any]) -> None:
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None:
                started.set_result(task.result())
            else:
                started.set_exception(error)

        self.loop.call_soon_threadsafe(start)
        until(lambda: started.task)
        return started

    def cancel(self, started: Started) -> None:
        assert started.task is not None
        self.loop.call_soon_threadsafe(started.task.cancel)

    def idle(self) -> None:
        """Lets the loop and its workers let go of what they just ran."""
        self.start(asyncio.to_thread(int)).result()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def close(self) -> None:
        if not self.loop.is_closed():
            if self.thread.is_alive():
                self.start(self.loop.shutdown_default_executor()).result()
                self.stop()
            self.loop.close()
