"""How models are let go: one pass for a batch, in a fixed order, with proof.

The pool's references go first, then the user's finalizer runs, then a collection, the caches of
device runtimes and one trim. Each step is measured, and nothing that goes wrong stops the next.
"""

from __future__ import annotations

import gc
import sys
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memweir._core import memory
from memweir.models.adapters.protocol import NOTHING, Sizes
from memweir.models.referrers import describe_referrers
from memweir.models.report import ReleaseStep, Resident, Unloaded, UnloadReport, Verdict
from memweir.models.witnesses import witnesses
from memweir.process._aside import describe
from memweir.process._devices import device_bytes, empty_caches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from memweir.models.ladder import Rung
    from memweir.process._report import TrimReport

__all__ = ["Doomed", "Release", "settle"]


@dataclass(slots=True)
class Doomed:
    """A model that its pool has given up: whoever hands this over keeps no reference to it."""

    key: str
    model: Any
    finalizer: Callable[[Any], object] | None = None
    promised: Sizes = NOTHING
    reason: str = "unload"
    rung: Rung | None = None


def settle() -> TrimReport:
    """One trim, all of which comes after this call, without a second collection."""
    from memweir.process.trim import _trims

    report = _trims.trim("auto", collected=True)
    if report.joined:
        # It may have begun, and asked the allocator, before what is to come back was free.
        report = _trims.trim("auto", collected=True)
    return report


class Release:
    """The pass. What it works with can be replaced, one call of each is made for each batch.

    `collect` is a full collection, `caches` empties those of device runtimes, `trim` gives freed
    memory back and returns its report, `read` tells the process's memory (`anon` and `file`), and
    `device` the bytes held on devices.
    """

    def __init__(
        self,
        *,
        collect: Callable[[], object] = gc.collect,
        caches: Callable[[], object] = empty_caches,
        trim: Callable[[], object] = settle,
        read: Callable[[], Any] = memory,
        device: Callable[[], int | None] | None = device_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._collect = collect
        self._caches = caches
        self._trim = trim
        self._read = read
        self._device = device
        self._clock = clock

    def __call__(self, batch: Iterable[Doomed]) -> UnloadReport:
        """Lets the models go. An empty batch is no pass.

        Raises nothing of what finalizers and steps raise; it is in the report. A
        ``KeyboardInterrupt`` passes, when the pass is whole.
        """
        doomed = list(batch)
        return self._pass(doomed) if doomed else UnloadReport()

    def tidy(self) -> UnloadReport:
        """The pass after a load that failed: what it had made by then is nobody's."""
        return self._pass([])

    def _pass(self, doomed: list[Doomed]) -> UnloadReport:
        done = _Pass(self, doomed)
        if doomed:
            done.take("drop", done.drop)
            done.drop()  # what an interrupt left
        done.take("gc", self._collect)
        done.take("caches", self._caches)
        trimmed = done.take("trim", self._trim)
        report = done.report(trimmed)
        tell(report)
        if done.interrupt is not None:
            raise done.interrupt
        return report

    def resident(self) -> Resident:
        """What the process takes now, as far as it can be read."""
        anon = file = device = None
        try:
            now = self._read()
            anon, file = getattr(now, "anon", None), getattr(now, "file", None)
        except Exception:
            pass
        try:
            device = None if self._device is None else self._device()
        except Exception:
            pass
        return Resident(anon, file, device)

    def now(self) -> float:
        return self._clock()


class _Pass:
    """A batch on its way out, and what was noted of it."""

    def __init__(self, means: Release, doomed: list[Doomed]) -> None:
        self.interrupt: KeyboardInterrupt | None = None
        self._means = means
        self._doomed = doomed
        self._left = list(enumerate(doomed))[::-1]
        self._watched: dict[int, tuple[weakref.ref[Any], ...]] = {}
        self._steps: list[ReleaseStep] = []
        self._errors: list[str] = []
        self._begun = means.now()
        self._before = self._last = means.resident()

    def take(self, name: str, work: Callable[[], Any]) -> Any:
        """One step, measured; what it returns, or ``None`` where it failed."""
        begun, failed, value = self._means.now(), None, None
        try:
            value = work()
        except BaseException as error:
            failed = self._failed(name, error)
        before, after = self._last, self._means.resident()
        self._last = after
        self._steps.append(ReleaseStep(name, self._means.now() - begun, before, after, failed))
        return value

    def drop(self) -> None:
        while self._left:
            number, doomed = self._left.pop()
            try:
                self._let_go(number, doomed)
            except BaseException as error:
                self._failed(doomed.key, error)

    def _let_go(self, number: int, doomed: Doomed) -> None:
        model, doomed.model = doomed.model, None
        finalizer, doomed.finalizer = doomed.finalizer, None
        try:
            self._watched[number] = witnesses(model)
        except Exception:
            pass  # a model's own containers may raise: then it is not provable
        if finalizer is not None:
            finalizer(model)

    def _failed(self, what: str, error: BaseException) -> str:
        if isinstance(error, KeyboardInterrupt):
            # It was meant for the process. Without its frames, which keep the model.
            self.interrupt = error.with_traceback(None)
        told = f"{what}: {describe(error)}"
        self._errors.append(told)
        return told

    def report(self, trimmed: Any) -> UnloadReport:
        released = []
        for number, doomed in enumerate(self._doomed):
            verdict, referrers = self._verdict(self._watched.get(number, ()))
            rung = getattr(doomed.rung, "name", None)
            released.append(
                Unloaded(
                    doomed.key,
                    doomed.reason,
                    doomed.promised,
                    verdict,
                    referrers,
                    None if rung is None else rung.lower(),
                )
            )
        return UnloadReport(
            released=tuple(released),
            errors=tuple(self._errors),
            before=self._before,
            after=self._last,
            seconds=self._means.now() - self._begun,
            steps=tuple(self._steps),
            trim=trimmed,
        )

    def _verdict(self, watched: tuple[weakref.ref[Any], ...]) -> tuple[Verdict, tuple[str, ...]]:
        if not watched:
            return "not provable", ()
        alive = next((ref for ref in watched if ref() is not None), None)
        if alive is None:
            return "dead", ()
        try:
            return "alive", describe_referrers(alive)
        except Exception as error:
            return "alive", (f"not to be found out: {describe(error)}",)


def tell(report: UnloadReport) -> None:
    """One line about what was released, where anybody imported logging; that may fail."""
    try:
        get_logger = getattr(sys.modules.get("logging"), "getLogger", None)
        if get_logger is None:
            return
        logger = get_logger("memweir.models")
        wrong = report.alive or report.errors
        told = logger.warning if wrong else logger.info if report else logger.debug
        told("%s", report)
    except Exception:
        pass
