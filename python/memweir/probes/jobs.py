"""Probes under way: each in a daemon thread with a deadline, or a task of the caller's loop.

A probe that outlives its deadline cannot be ended. It is left to itself, keeps its place among the
probes that may run, and what it says in the end still counts.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from memweir._flight import Load
    from memweir.probes.verdict import Verdict

__all__ = ["Job", "Outcome", "OwnersAlone"]


class OwnersAlone(Exception):
    """An error has been raised to another, who led before."""


class Outcome:
    """How a probe ended: with a verdict, or with an error that is its owner's."""

    __slots__ = ("error", "verdict")

    def __init__(
        self, verdict: Verdict[Any] | None = None, error: BaseException | None = None
    ) -> None:
        self.verdict = verdict
        self.error = error

    def get(self) -> Verdict[Any]:
        """The verdict; raises what the owner has to see, and to who comes later that it was."""
        if self.verdict is not None:
            return self.verdict
        error, self.error = self.error, None  # its frames will hold this
        try:
            if error is None:
                raise OwnersAlone
            raise error
        finally:
            del error


class Job:
    """A probe in a thread, for whoever leads the flight by now."""

    __slots__ = ("_bells", "_deadline", "given_up", "load", "outcome")

    def __init__(self, seconds: float | None, load: Load | None) -> None:
        self._deadline = None if seconds is None else monotonic() + seconds
        self.outcome: Outcome | None = None
        self.given_up = False
        self.load = load
        self._bells: dict[Callable[[], object], None] = {}

    def start(self, name: str, work: Callable[[], Outcome]) -> None:
        """Runs `work`, which raises nothing, in a daemon thread of its own."""
        run = copy_context().run
        threading.Thread(target=self._run, args=(run, work), name=name, daemon=True).start()

    def _run(self, run: Callable[..., Outcome], work: Callable[[], Outcome]) -> None:
        self.outcome = run(work)
        for ring in list(self._bells):
            with suppress(RuntimeError):  # it rings already, or its loop is closed
                ring()

    @property
    def left(self) -> float | None:
        """Seconds until the deadline, at least 0."""
        return None if self._deadline is None else max(0.0, self._deadline - monotonic())

    def wait(self) -> Outcome | None:
        """The outcome, or ``None`` at the deadline."""
        bell = threading.Lock()
        bell.acquire()
        self._bells[bell.release] = None
        try:
            if self.outcome is None:
                left = self.left
                bell.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX))
            return self.outcome
        finally:
            self._bells.pop(bell.release, None)

    async def await_(self) -> Outcome | None:
        """:meth:`wait` for tasks."""
        import asyncio

        loop, bell = asyncio.get_running_loop(), asyncio.Event()

        def ring() -> None:
            loop.call_soon_threadsafe(bell.set)

        self._bells[ring] = None
        try:
            if self.outcome is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.left):
                        await bell.wait()
            return self.outcome
        finally:
            self._bells.pop(ring, None)
