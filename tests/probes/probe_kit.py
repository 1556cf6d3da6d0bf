"""A clock that is set by hand, and probes that answer when they are told to."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

from flight_kit import until
from memweir.probes import Backoff, ProbeCache

TOKEN = "hf_" + "T0kenT0kenT0kenT0kenT0kenT0kenT0ke"
OTHER = "hf_" + "0therOther0therOther0therOther0the"
STEADY = Backoff(1.0, 60.0, jitter=0.0)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Probe:
    """A probe that notes who asked what, and answers what it is told to, at once."""

    def __init__(self, answer: Any = True) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, subject: str, **arguments: Any) -> Any:
        self.asked.append((subject, arguments))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer(subject) if callable(self.answer) else self.answer

    @property
    def count(self) -> int:
        return len(self.asked)


class Gated:
    """A probe, sync or async, each run of which is up until its verdict is in."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.verdicts: list[Future[Any]] = []

    def sync(self, subject: str, **_: Any) -> Any:
        return self._begin(subject).result()

    async def coroutine(self, subject: str, **_: Any) -> Any:
        return await asyncio.wrap_future(self._begin(subject))

    def _begin(self, subject: str) -> Future[Any]:
        verdict: Future[Any] = Future()
        self.verdicts.append(verdict)
        self.asked.append(subject)
        return verdict

    def up(self, n: int = 1) -> Future[Any]:
        """The verdict to be given to the n-th run, once that is up."""
        until(lambda: len(self.asked) >= n)
        return self.verdicts[n - 1]


def cache(probe: Any, **options: Any) -> ProbeCache[Any]:
    """A cache on a clock of its own that asks nobody's token."""
    options.setdefault("auth", False)
    options.setdefault("backoff", STEADY)
    options.setdefault("clock", Clock())
    return ProbeCache(probe, **options)
