"""One trim: its callers, its steps in their order, and its report.

There is no lock: finalizers that trim may run between any two instructions of any thread, and a
fork may come there, too. Callers and the end of the trim take numbered places in a dict by single
calls of ``setdefault``, so that each caller is either aboard, and told, or knows that it is late.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from memweir.process._aside import Outcome, Skip, describe
from memweir.process._report import TrimReport, TrimStep, anon_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from memweir.process._engine import Means, Trims

__all__ = ["LEVELS", "Caller", "Run", "Want"]

LEVELS = ("buffers", "hooks", "gc", "allocator", "arenas")
GC = LEVELS.index("gc")
SWEEPS = ("sweep", "advice")
"""Steps of the heap that are part of ``arenas``."""
SWEPT = ("sweepers", "arenas_seen", "arenas_swept", "trim_threshold")
UNADVISED = ("unadvised_ranges", "unadvised_bytes")
JOBS = 4
"""How often the heap is asked while somebody else's job is in the way."""

# Why a level was not taken: nobody wanted it, or nobody wanted it so soon.
_UNWANTED, _PACED = "unwanted", "paced"


class Want(NamedTuple):
    """What a caller asks for."""

    depth: int
    interval: float | None
    collects: bool

    def takes(self, depth: int) -> bool:
        return depth <= self.depth and (depth != GC or self.collects)


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
    """Somebody who waits for a trim; `ring` wakes them, from any thread."""

    want: Want
    ring: Callable[[], object]


_LATE = Caller(Want(-1, None, False), int)
_LOST = TrimReport(finished=False, note="broken off, and its report is lost")


class Run:
    """A trim from its first caller to its report; the next one hangs behind it."""

    def __init__(self, owner: Trims, means: Means) -> None:
        self.report: TrimReport | None = None
        self.over = False
        self.abandoned = False
        self.next: dict[None, Run] = {}
        self.epoch = owner.epoch
        self._owner = owner
        self._means = means
        self._callers: dict[int, Caller] = {}
        self._launcher: dict[None, object] = {}
        self._worker: dict[None, object] = {}
        self._steps: list[TrimStep] = []
        self._passed: dict[int, str] = {}
        self._running: str | None = None
        self._allocator: Any = None
        self._before: Any = None
        self._begun: float | None = None
        self._supported = True
        self._finished = False
        self._note: str | None = None

    def board(self, me: Caller) -> bool:
        """Whether `me` came in time to be told."""
        callers = self._callers
        place = max(len(callers) - 1, 0)
        while (there := callers.setdefault(place, me)) is not me:
            if there is _LATE:
                return False
            place += 1
        return True

    @property
    def callers(self) -> int:
        """Callers aboard, until they are told."""
        return 0 if self.report is not None else len(self._callers)

    @property
    def working(self) -> bool:
        return bool(self._worker)

    @property
    def begun(self) -> bool:
        return bool(self._launcher)

    def launch(self) -> None:
        """Sees to it that somebody works: a thread of ours, or else this one."""
        me = object()
        # Inside from before the claim: a finalizer or signal handler that trims here would wait
        # for what this very thread has yet to start.
        with self._owner.inside(self):
            try:
                if self._launcher.setdefault(None, me) is not me:
                    return
                self._means.start(self.work, "memweir-trim")
                return
            except (RuntimeError, MemoryError):
                self._note = "no thread could be started: done in the caller's"
            except BaseException:
                self._abandon(me)
                raise
        self.work(ours=False)

    def work(self, *, ours: bool = True) -> None:
        """Takes the steps, unless somebody does already: in a thread of `ours` or a caller's."""
        me = object()
        # Inside from before the claim, as above.
        with self._owner.inside(self):
            if self._worker.setdefault(None, me) is not me:
                return
            try:
                self._begun = self._means.clock()
                self._allocator = attempt(self._means.allocator)
                self._before = self._memory(full=True)
                for depth in range(len(LEVELS)):
                    self._level(depth)
                    if self._leave():
                        self._note = "broken off: the process is ending"
                        break
                else:
                    self._finished = True
            except BaseException as error:  # whoever waits is told all the same
                self._note = f"broken off by {describe(error)}"
                if not ours and not isinstance(error, Exception):
                    raise  # it was meant for the caller: Ctrl-C
            finally:
                try:
                    self._land()
                    self._owner.tell(self.report)
                finally:
                    self.over = True

    def serves(self, me: Caller) -> bool:
        """Whether the report answers what `me` asked for.

        It does not where a level was left out that `me` came too late to ask for.
        """
        if self.abandoned:
            return False
        return not any(
            me.want.takes(depth) and (why == _UNWANTED or me.want.interval is None)
            for depth, why in self._passed.items()
        )

    def so_far(self, note: str | None = None) -> TrimReport:
        """The report of a caller that does not wait any longer."""
        return self._told(max(len(self._callers) - 1, 0), finished=False, note=note)

    def _abandon(self, me: object) -> None:
        if self._launcher.get(None) is me and self._worker.setdefault(None, me) is me:
            self.abandoned = True
            self._note = "broken off before it began"
            self._land()
            self.over = True

    def _land(self) -> None:
        report = _LOST
        try:
            after = None if self._begun is None else self._memory(full=True)
            callers = self._callers
            place = len(callers)
            while callers.setdefault(place, _LATE) is not _LATE:
                place += 1
            self._running = None
            told = attempt(self._told, place - 1, finished=self._finished, after=after)
            report = told or _LOST
        finally:
            self.report = report  # without one, whoever waits would do so for ever
            self._callers = {0: _LATE}  # whoever still has the other finds the end there, too
        for each in range(place):
            attempt(callers[each].ring)  # its loop may be closed

    def _told(
        self, joined: int, *, finished: bool, after: Any = None, note: str | None = None
    ) -> TrimReport:
        begun = self._begun
        if after is None and begun is not None:
            after = self._memory(full=True)
        return TrimReport(
            allocator=self._allocator,
            steps=tuple(self._steps),
            before=self._before,
            after=after,
            seconds=0.0 if begun is None else self._means.clock() - begun,
            supported=self._supported,
            finished=finished,
            joined=joined,
            running=self._running,
            note=note or self._note,
        )

    def _leave(self) -> bool:
        return self._owner.closing or self._owner.epoch is not self.epoch

    def _memory(self, *, full: bool) -> Any:
        return attempt(self._means.memory, full)

    def _wants(self, depth: int) -> list[Want]:
        wants = [caller.want for caller in self._callers.copy().values()]
        return [want for want in wants if want.takes(depth)]

    def _level(self, depth: int) -> None:
        level = LEVELS[depth]
        if not self._wants(depth):
            self._passed[depth] = _UNWANTED
            if depth == GC and self._wants(depth + 1):
                why = (
                    "no full collection was asked for: a periodic trim forces none unless its "
                    "level is gc, and a release has just made its own"
                )
                self._steps.append(TrimStep(level, level, skipped=why))
        elif level == "hooks":
            self._hooks(depth)
        elif level == "buffers":
            self._take(depth, level, self._buffers)
        elif level == "gc":
            self._take(depth, level, self._collect)
        else:
            self._take(depth, level, partial(self._heap, sweep=level == "arenas"))

    def _hooks(self, depth: int) -> None:
        hooks = attempt(self._means.hooks) or ()
        for hook in hooks:
            key = hook.name, id(hook.function)  # a function that is running keeps its id
            self._take(depth, f"hooks.{hook.name}", partial(self._aside, key, hook))
        if not hooks:
            why = "none is registered, and no library with one is imported"
            self._steps.append(TrimStep("hooks", "hooks", skipped=why))

    def _take(self, depth: int, name: str, work: Callable[[], Outcome]) -> None:
        if self._leave():
            return
        level, pace, clock = LEVELS[depth], self._owner.pace, self._means.clock
        intervals = [want.interval for want in self._wants(depth)]
        soonest = [interval for interval in intervals if interval is not None]
        asked = len(soonest) < len(intervals)
        if not asked and (why := pace.too_soon(name, min(soonest, default=0.0))) is not None:
            self._passed[depth] = _PACED
            self._steps.append(TrimStep(name, level, skipped=why))
            return
        self._running = name
        before, begun = anon_of(self._memory(full=False)), clock()
        try:
            outcome = work()
        except Skip as why:
            outcome = Outcome(skipped=str(why))
        except Exception as error:
            outcome = Outcome(failed=describe(error))
        seconds, after = clock() - begun, anon_of(self._memory(full=False))
        released = None
        if outcome.skipped is None:
            released = None if before is None or after is None else before - after
            pace.did(name, released, asked=asked)
        detail = outcome.value if isinstance(outcome.value, dict) else {}
        self._steps.append(
            TrimStep(name, level, seconds, released, outcome.skipped, outcome.failed, detail)
        )

    def _buffers(self) -> Outcome:
        return Outcome({"freed": self._means.buffers()})

    def _collect(self) -> Outcome:
        # Finalizers are other people's code, too, and may want what a caller of trim holds.
        return self._aside(None, lambda: {"collected": self._means.collect()})

    def _aside(self, key: object, work: Callable[[], Any]) -> Outcome:
        def inside() -> Any:
            with self._owner.inside(self):
                return work()

        return self._owner.aside.call(key, inside, self._leave)

    def _heap(self, *, sweep: bool) -> Outcome:
        for _ in range(JOBS):
            job = self._means.heap_job(not sweep, sweep)
            # In slices: a thread that is off the GIL when the interpreter ends must not come back.
            while not job.wait(self._means.patrol):
                if self._leave():
                    return Outcome(failed="left behind: the process is ending")
            steps = job.steps
            if not job.joined:
                break
            steps = [step for step in steps if (step.name in SWEEPS) is sweep]
            if steps:
                break
        else:
            return Outcome(skipped="somebody else's work on the heap was in the way")
        done = [step for step in steps if step.ok]
        refused = {step.name: step.why or "refused" for step in steps if not step.ok}
        if not done:
            why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
            self._supported = self._supported and sweep
            return Outcome(skipped=why or "this allocator has nothing of the kind")
        detail = {step.name: step.returned for step in done if step.returned is not None}
        for name in (*SWEPT, *UNADVISED):
            for step in done:
                if (value := getattr(step, name, None)) is not None:
                    detail[name] = value
        detail.update({f"{step.name} left": step.why for step in done if step.why is not None})
        return Outcome({**detail, **refused})


def attempt(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """What a function gives, or ``None`` where it cannot."""
    try:
        return function(*args, **named)
    except Exception:
        return None
