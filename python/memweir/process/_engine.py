"""One trim at a time for threads and event loops: who begins one, who joins, and who waits."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memweir._seconds import seconds
from memweir.process._aside import Aside, spawn
from memweir.process._pace import WIN, Pace
from memweir.process._report import TrimReport, signed
from memweir.process._run import GC, LEVELS, Caller, Run, Want

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Means", "Trims"]

GRACE = 1.0
"""Seconds that the end of the process waits for a trim to break off."""


@dataclass(frozen=True, slots=True)
class Means:
    """What a trim works with, each part replaceable.

    `memory` reads a record with ``anon`` (all of it, or what is cheap); `heap_job` starts what the
    allocator is to do: release, sweep; `start` starts a daemon thread. Waits look up every `patrol`
    seconds.
    """

    memory: Callable[[bool], Any]
    buffers: Callable[[], int]
    hooks: Callable[[], Iterable[Any]]
    heap_job: Callable[[bool, bool], Any]
    allocator: Callable[[], Any]
    patience: float
    collect: Callable[[], int] = gc.collect
    clock: Callable[[], float] = time.monotonic
    start: Callable[[Callable[[], None], str], None] = spawn
    patrol: float = 0.05


class Trims:
    """Trims by the same means, one at a time. Who comes while one runs joins it."""

    def __init__(self, means: Means) -> None:
        self.closing = False
        self.epoch = object()
        self.pace = Pace(means.clock)
        self.aside = Aside(
            start=means.start, clock=means.clock, patience=means.patience, patrol=means.patrol
        )
        self._means = means
        self._local = threading.local()
        # Only a hint: it may fall behind, and the runs lead from each to the next.
        self._head = Run(self, means)
        _all.add(self)

    def trim(
        self,
        level: str,
        *,
        min_interval: float | None = None,
        deadline: float | None = None,
        collected: bool = False,
    ) -> TrimReport:
        """One trim for this caller and all who come meanwhile.

        Who has `collected` just now wants all but that.
        """
        want, until = self._asked(level, min_interval, deadline)
        if collected:
            want = want._replace(collects=False)
        if (nothing := self._nothing()) is not None:
            return nothing
        bell = threading.Lock()
        bell.acquire()
        me = Caller(want, bell.release)
        while True:
            run, since = self._board(me), self._means.clock()
            while (report := run.report) is None:
                pause = self._pause(run, until)
                if isinstance(pause, TrimReport):
                    return pause
                # A finalizer may trim in the very thread that is about to begin: it works itself.
                if not run.working and self._means.clock() - since >= self._means.patience:
                    run.work(ours=False)
                bell.acquire(timeout=pause)
            if run.serves(me):
                return report

    async def atrim(
        self, level: str, *, min_interval: float | None = None, deadline: float | None = None
    ) -> TrimReport:
        """:meth:`trim` for tasks; waiting takes no thread."""
        import asyncio

        want, until = self._asked(level, min_interval, deadline)
        if (nothing := self._nothing()) is not None:
            return nothing
        loop, bell = asyncio.get_running_loop(), asyncio.Event()
        me = Caller(want, lambda: loop.call_soon_threadsafe(bell.set))
        while True:
            run = self._board(me)
            while (report := run.report) is None:
                pause = self._pause(run, until)
                if isinstance(pause, TrimReport):
                    return pause
                timer = loop.call_later(pause, bell.set)
                try:
                    await bell.wait()
                finally:
                    timer.cancel()
                bell.clear()
            if run.serves(me):
                return report

    @contextmanager
    def inside(self, run: Run) -> Iterator[None]:
        """Marks this thread as one that `run` works in: a trim from here is nested."""
        before = getattr(self._local, "run", None)
        self._local.run = run
        try:
            yield
        finally:
            self._local.run = before

    def tell(self, report: TrimReport | None) -> None:
        """Logs what a trim brought, where anybody imported logging; that may fail."""
        try:
            get_logger = getattr(sys.modules.get("logging"), "getLogger", None)
            if get_logger is None or report is None:
                return
            released = report.released
            logger = get_logger("memweir.trim")
            log = logger.info if released is not None and released >= WIN else logger.debug
            steps = (f"{s.name} {signed(s.released)}" for s in report.steps if s.released)
            log(
                "%s in %.2f s: %s",
                signed(released),
                report.seconds,
                ", ".join(steps) or report.note or "no step",
            )
        except Exception:
            pass

    def forget(self) -> None:
        """In a forked child: no trim runs here, whatever ran in the parent."""
        self.epoch = object()
        self.pace = Pace(self._means.clock)
        self.aside.forget()
        self._head = Run(self, self._means)

    def close(self) -> None:
        """At the end of the process: what runs is broken off, and nothing is begun any more."""
        self.closing = True
        until = time.monotonic() + GRACE
        run = self._last()
        while run.begun and not run.over and time.monotonic() < until:
            time.sleep(0.005)

    @property
    def waiting(self) -> int:
        """Callers of the trim that runs at this moment."""
        return self._last().callers

    def _last(self) -> Run:
        run = self._head
        while run.report is not None and (after := run.next.get(None)) is not None:
            run = after
        return run

    def _board(self, me: Caller) -> Run:
        run = self._head
        while not run.board(me):
            run = run.next.setdefault(None, Run(self, self._means))
        self._head = run
        run.launch()
        return run

    def _pause(self, run: Run, until: float | None) -> float | TrimReport:
        """Seconds to wait before the next look, or the report to leave with."""
        if run.epoch is not self.epoch:
            return run.so_far("the process has forked, and the trim stayed with its parent")
        if until is None:
            return self._means.patrol
        left = until - self._means.clock()
        if left <= 0:
            return run.so_far("the deadline came first, and the trim goes on")
        return min(left, self._means.patrol)

    def _nothing(self) -> TrimReport | None:
        run = getattr(self._local, "run", None)
        # One that is over waits for nobody: neither does who was left behind in it.
        if run is not None and run.epoch is self.epoch and not run.over:
            return TrimReport(
                finished=False, nested=True, note="called from inside a trim: nothing done"
            )
        if self.closing or sys.is_finalizing():
            return TrimReport(finished=False, note="the process is ending: nothing done")
        return None

    def _asked(
        self, level: str, interval: float | None, deadline: float | None
    ) -> tuple[Want, float | None]:
        if level != "auto" and level not in LEVELS:
            known = ", ".join(("auto", *LEVELS))
            raise ValueError(f"no level {level!r} of a trim; there are {known}")
        depth = len(LEVELS) - 1 if level == "auto" else LEVELS.index(level)
        interval = seconds("min_interval", interval)
        deadline = seconds("deadline", deadline)
        want = Want(depth, interval, interval is None or (level == "gc" and depth == GC))
        return want, None if deadline is None else self._means.clock() + deadline


_all: weakref.WeakSet[Trims] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for trims in _all:
        trims.forget()


def _at_exit() -> None:
    for trims in list(_all):
        trims.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
