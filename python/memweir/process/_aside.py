"""Other people's code in a thread of its own, which is left behind when it takes too long."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memweir.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Aside", "Outcome", "Skip", "describe", "spawn"]

NO_THREAD = "no thread could be started for it"
_SHOWN = 200  # characters of an exception's text


class Skip(Exception):
    """Raised by a step that finds nothing to do; its text says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call: a value, an error's description, or why there was none."""

    value: Any = None
    failed: str | None = None
    skipped: str | None = None


def spawn(work: Callable[[], object], name: str) -> None:
    """Starts a thread that keeps nobody from exiting."""
    threading.Thread(target=work, name=name, daemon=True).start()


def describe(error: BaseException) -> str:
    """An exception in words, without its frames, which keep what they hold, and without secrets."""
    name = type(error).__qualname__
    try:
        text = redact(str(error))
    except Exception:
        return name
    return f"{name}: {text[:_SHOWN]}" if text else name


class Aside:
    """Runs one call at a time for its owner, and remembers those that have not come back.

    While it waits it asks the owner whether to leave, and then leaves the call behind at once.
    """

    def __init__(
        self,
        *,
        start: Callable[[Callable[[], None], str], None] = spawn,
        clock: Callable[[], float] = time.monotonic,
        patience: float,
        patrol: float,
    ) -> None:
        self._start = start
        self._clock = clock
        self._patience = patience
        self._patrol = patrol
        # Changed by single operations on the dict only: no lock that a fork could catch.
        self._strays: dict[object, object] = {}

    def forget(self) -> None:
        """In a forked child: the threads are gone."""
        self._strays = {}

    def call(self, key: object, work: Callable[[], Any], leave: Callable[[], bool]) -> Outcome:
        """What became of `work`, unless an earlier call of the same `key` has not come back."""
        strays, mine = self._strays, object()
        if strays.setdefault(key, mine) is not mine:
            return Outcome(skipped="it still runs since an earlier trim")
        bell = threading.Lock()
        bell.acquire()
        ended: list[Outcome] = []

        def body() -> None:
            try:
                ended.append(Outcome(work()))
            except Skip as reason:
                ended.append(Outcome(skipped=str(reason)))
            except BaseException as error:  # SystemExit, too, is its own and nobody else's
                ended.append(Outcome(failed=describe(error)))
            finally:
                strays.pop(key, None)
                bell.release()

        begun = self._clock()
        try:
            self._start(body, "memweir-trim-aside")
        except (RuntimeError, MemoryError):
            strays.pop(key, None)
            return Outcome(skipped=NO_THREAD)
        while not bell.acquire(timeout=self._patrol):
            if leave():
                return Outcome(failed="left behind: the process is ending, or has forked")
            if self._clock() - begun >= self._patience:
                return Outcome(failed=f"left behind, still running after {self._patience:g} s")
        return ended[0]
