"""Runs the probe of a cache, and writes down what became of it."""

from __future__ import annotations

import sys
from collections import deque
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

from memweir import _flight
from memweir.errors import ProbeFailed
from memweir.identifiers import loggable
from memweir.probes.jobs import Job, Outcome
from memweir.probes.verdict import PERMANENT, UNKNOWN, Reason, Verdict
from memweir.redaction import redact

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from memweir.probes.classify import Failure
    from memweir.probes.policy import TTL, Backoff
    from memweir.probes.slots import Slot

__all__ = ["Question", "Runner"]


class Question:
    """One question as the probe gets it. It holds the token, and lives while it is asked.

    It is no tuple: what reports errors with the variables of their frames would list its items.
    """

    __slots__ = ("arguments", "current", "seen", "slot", "subject")

    def __init__(
        self,
        slot: Slot,
        subject: str,
        arguments: dict[str, Any],
        current: Callable[[], bool],
        seen: int,
    ) -> None:
        self.slot = slot
        self.subject = subject
        self.arguments = arguments
        self.current = current  # whether the subject is still what the key says
        self.seen = seen  # an answer must be newer than this one

    def __repr__(self) -> str:
        return "Question()"


class Runner:
    """A probe with its limits, and the rules by which its outcomes are kept."""

    def __init__(
        self,
        probe: Callable[..., Any],
        *,
        name: str,
        classify: Callable[[BaseException], Failure],
        ttl: TTL,
        backoff: Backoff,
        deadline: float | None,
        max_inflight: int,
        clock: Callable[[], float],
    ) -> None:
        self._probe = probe
        self._async = _flight.is_async(probe)
        self._name = name
        self._classify = classify
        self._ttl = ttl
        self._backoff = backoff
        self._deadline = deadline
        self._max_inflight = max_inflight
        self._clock = clock
        self._order = count(1)
        self.probes = self.unknown = self.busy = self.bugs = self.fenced = 0
        self.after_fork()

    def after_fork(self) -> None:
        """Every place is free again: the threads are gone."""
        self._places = deque(range(self._max_inflight))

    @property
    def running(self) -> int:
        """Probes that run at this moment, those given up on included."""
        return self._max_inflight - len(self._places)

    def settled(self, question: Question) -> Verdict[Any] | None:
        """What can be said without a probe."""
        slot, now = question.slot, self._clock()
        verdict, failure = slot.verdict, slot.failure
        fresh = verdict is not None and (verdict.until is None or now < verdict.until)
        if verdict is not None and fresh and verdict.order > question.seen:
            return verdict
        if failure is None or failure.not_before is None:
            return None
        if failure.order > question.seen and now < failure.not_before:
            return failure
        if now < slot.locked_until:  # whoever asks, and however much
            return verdict if fresh else failure
        return None

    def run(self, question: Question) -> Verdict[Any]:
        """The verdict of a probe that runs now, at most until its deadline; for a leader."""
        job = self._joined(question)
        if job is None:
            place = self._take()
            if place is None:
                return self._too_busy()
            if self._deadline is None and not self._async:
                alone = question.slot.job = Job(None, None)  # keeps the slot; nobody can join it
                return self._work(question, alone, place).get()
            # An async probe needs a loop of its own, which a thread with a loop cannot run.
            job = self._started(question, place)
        outcome = job.wait()
        return outcome.get() if outcome is not None else self._too_late(question, job)

    async def arun(self, question: Question) -> Verdict[Any]:
        """:meth:`run` for tasks: an async probe runs on this loop, any other in a thread."""
        if self._async:
            return await self._arun(question)
        job = self._joined(question)
        if job is None:
            place = self._take()
            if place is None:
                return self._too_busy()
            job = self._started(question, place)
        outcome = await job.await_()
        return outcome.get() if outcome is not None else self._too_late(question, job)

    async def _arun(self, question: Question) -> Verdict[Any]:
        import asyncio

        place = self._take()
        if place is None:
            return self._too_busy()
        slot, order = question.slot, next(self._order)
        self.probes += 1
        job = slot.job = Job(None, None)  # keeps the slot; nobody can join a task of this loop
        loop = asyncio.get_running_loop()

        async def call() -> Any:
            # Within the task: arguments that the probe does not take are an error of its own.
            return await self._probe(question.subject, **question.arguments)

        def ended(task: asyncio.Future[Any]) -> None:
            place()
            if slot.job is job:
                slot.job = None
            if task.done() and not task.cancelled():
                task.exception()  # asyncio logs the text of one that nobody looked at

        task = asyncio.ensure_future(call())

        task.add_done_callback(ended)
        try:
            done, _ = await asyncio.wait({task}, timeout=self._deadline)
        finally:
            if loop.is_closed():  # this is an abandoned coroutine being closed
                ended(task)
            else:
                task.cancel()
        if not done:
            return self._say(question, order, Reason("timeout"), None)
        if task.cancelled():  # by itself: who waits for it was not
            return self._say(question, order, Reason("transient", "CancelledError"), None)
        return self._outcome(question, order, task.exception(), task.result).get()

    def _take(self) -> Callable[[], None] | None:
        places = self._places
        try:
            place = places.popleft()
        except IndexError:
            return None
        taken = [place]

        def free() -> None:
            if taken:
                places.append(taken.pop())

        return free

    def _too_busy(self) -> Verdict[Any]:
        self.busy += 1
        self.log("%d probes are running, which is the limit", self._max_inflight)
        return self.own("busy", self._backoff.first)

    def own(self, kind: Any, wait: float) -> Verdict[Any]:
        """A verdict for one caller, who may ask again in `wait` seconds; it is not remembered."""
        self.unknown += 1
        return Verdict(UNKNOWN, Reason(kind), not_before=self._clock() + wait, clock=self._clock)

    def _joined(self, question: Question) -> Job | None:
        """The probe that an earlier leader left running."""
        job, me = question.slot.job, _flight.current()
        # Who loads alone does so because it must not wait for that one.
        if job is None or me is None or me.stale or job.load is None:
            return None
        me.waits = job.load.waits
        return job

    def _started(self, question: Question, place: Callable[[], None]) -> Job:
        job = Job(self._deadline, _flight.current())
        question.slot.job = job
        try:
            job.start(f"memweir-probe-{self._name}", lambda: self._work(question, job, place))
        except RuntimeError as error:  # no thread can be started
            question.slot.job = None
            place()
            reason = Reason("exhausted", type(error).__qualname__)
            verdict = self._say(question, next(self._order), reason, None)
            job.outcome = Outcome(verdict)
        return job

    def _work(self, question: Question, job: Job, place: Callable[[], None]) -> Outcome:
        order = next(self._order)
        self.probes += 1
        value, error = None, None
        try:
            value = self._called(question)
        except BaseException as raised:
            error = raised
        try:
            if job.given_up and not self._still_says(error):
                return Outcome(error=error)  # it was written down as a timeout
            return self._outcome(question, order, error, lambda: value)
        except BaseException as raised:  # the classifier's own
            return Outcome(error=raised)
        finally:
            del error
            place()
            if question.slot.job is job:
                question.slot.job = None

    def _called(self, question: Question) -> Any:
        if not self._async:
            return self._probe(question.subject, **question.arguments)
        import asyncio

        async def call() -> Any:
            try:
                async with asyncio.timeout(self._deadline) as timer:
                    return await self._probe(question.subject, **question.arguments)
            except TimeoutError:
                if timer.expired():
                    raise ProbeFailed("timeout") from None
                raise

        return asyncio.run(call())

    def _still_says(self, error: BaseException | None) -> bool:
        """Whether the end of a probe that was given up on is an answer."""
        if error is None:
            return True
        return isinstance(error, Exception) and self._classify(error).kind in PERMANENT

    def _too_late(self, question: Question, job: Job) -> Verdict[Any]:
        job.given_up = True
        if question.slot.job is job:
            question.slot.job = None
        if job.outcome is not None:  # just now
            return job.outcome.get()
        return self._say(question, next(self._order), Reason("timeout"), None)

    def _outcome(
        self,
        question: Question,
        order: int,
        error: BaseException | None,
        value: Callable[[], Any],
    ) -> Outcome:
        if error is not None:
            # A probe that cancels itself ends nothing but itself.
            cancelled = type(error).__name__ == "CancelledError"
            if not isinstance(error, Exception) and not cancelled:
                return Outcome(error=error)
            failure = self._classify(error)
            what = self._shown(question, failure.error)
            if failure.kind == "bug":
                self.bugs += 1
                self.log("%s: the probe has a bug, %s", self._named(question), what)
                return Outcome(error=error)
            reason = Reason(failure.kind, what, failure.status)
            return Outcome(self._say(question, order, reason, failure.retry_after))
        answer = value()
        if answer is UNKNOWN:
            return Outcome(self._say(question, order, Reason("undecided"), None))
        if answer is None or hasattr(answer, "__await__"):
            self.bugs += 1
            what = "None" if answer is None else "an awaitable"
            told = f"a probe returned {what}: it returns a value or mw.UNKNOWN"
            return Outcome(error=TypeError(told))
        return Outcome(self.keep(question, answer, order))

    def keep(self, question: Question, value: Any, order: int | None = None) -> Verdict[Any]:
        """The verdict for a value, which is remembered."""
        order = next(self._order) if order is None else order
        return self._remember(
            question,
            Verdict(value, order=order, until=self._until(self._ttl.known), clock=self._clock),
        )

    def _say(
        self, question: Question, order: int, reason: Reason, retry_after: float | None
    ) -> Verdict[Any]:
        """The verdict for a failure, which is remembered as the answer or for the back-off."""
        self.unknown += 1
        named = self._named(question)
        if reason.permanent:
            until = self._until(getattr(self._ttl, reason.kind))
            self.log("%s: not to be known, %s", named, reason)
            return self._remember(
                question, Verdict(UNKNOWN, reason, order=order, until=until, clock=self._clock)
            )
        slot, now = question.slot, self._clock()
        delay = self._backoff.delay(slot.failures + 1, retry_after)
        self.log("%s: unknown, %s; asked again in %.1f s", named, reason, delay)
        verdict = Verdict[Any](
            UNKNOWN, reason, order=order, not_before=now + delay, clock=self._clock
        )
        kept = slot.verdict
        if kept is None or kept.order < order:
            slot.fail(verdict.seen_as("backoff"), now + delay if retry_after is not None else 0.0)
        return verdict

    def _remember(self, question: Question, verdict: Verdict[Any]) -> Verdict[Any]:
        if question.current():
            question.slot.keep(verdict.seen_as("cache"))
            question.slot.recover(self._clock())
        else:
            self.fenced += 1
            self.log("%s: changed while it was probed, not remembered", self._named(question))
        return verdict

    def _until(self, ttl: float | None) -> float | None:
        return None if ttl is None else self._clock() + ttl

    @classmethod
    def _named(cls, question: Question) -> str:
        return cls._shown(question, question.subject)

    @staticmethod
    def _shown(question: Question, text: str) -> str:
        token = question.arguments.get("token")
        return loggable(redact(text, secrets=(token,) if isinstance(token, str) else ()))

    def log(self, message: str, *args: object) -> None:
        """A DEBUG record, where anybody imported logging; nothing fails because that did."""
        get_logger = getattr(sys.modules.get("logging"), "getLogger", None)
        if get_logger is not None:
            with suppress(Exception):  # somebody's filter
                get_logger("memweir.probes").debug("%s: " + message, self._name, *args)
