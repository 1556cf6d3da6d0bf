"""A cache of answers that are slow to get and may not be had at all."""

from __future__ import annotations

import os
import time
import weakref
from math import inf
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeVar, cast, overload

from memweir import _flight
from memweir._flight import Flights
from memweir.errors import Busy, LoadFailed
from memweir.identifiers import check_identifier
from memweir.probes.auth import ANY, Token, _Auth
from memweir.probes.classify import Failure, classify_hub
from memweir.probes.jobs import OwnersAlone
from memweir.probes.keys import OMITTED, UNCACHEABLE, Auth, Keys
from memweir.probes.options import Options, ProbeStats, refuse_reserved
from memweir.probes.policy import TTL, Backoff
from memweir.probes.runner import Question, Runner
from memweir.probes.slots import Slot, Slots
from memweir.probes.verdict import UNKNOWN, Verdict, _Unknown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from typing import Unpack

    Key = tuple[Any, ...]

__all__ = ["ProbeCache", "ProbeStats"]

T = TypeVar("T")
D = TypeVar("D")


class ProbeCache(Generic[T]):
    """Asks once, remembers what it was told, and knows "no" from "could not find out".

    ``probe(subject, *, token, **dims)`` returns a value or :data:`~memweir.UNKNOWN`, or raises; it
    may be a coroutine function. It gets the normalised subject, the resolved token (``False`` for
    anonymous, as Hugging Face libraries have it) and the caller's keyword arguments. ``None`` is
    no answer: it is a ``TypeError``, for the caller that ran the probe.

    A question is the subject, who asks, the environment and the keyword arguments. Callers of one
    question, threads and tasks of all event loops, share one probe; different questions never wait
    for each other. No lock is held while the probe runs, nor anywhere else.

    - ``auth``: ``"required"`` makes ``token=`` obligatory: a string, :data:`~memweir.AMBIENT` or
      :data:`~memweir.ANONYMOUS`. Those two can be bound here as the default. ``False`` is for
      questions that nobody has to be asked as: no ``token`` is taken or handed on. Keys hold a
      keyed fingerprint; what one identity was told is not told to another.
    - ``normalize(subject)`` gives the spelling that is looked up *and* probed. If it raises, the
      subject is taken as it is and shares no entry with a normalised one.
    - ``identify(subject)``: what the answer also depends on, such as the stat of a file. Looked at
      before and after the probe; an ``OSError`` means that the answer is not kept.
    - ``environment``: library versions, endpoint, offline switch. A value, or a function that is
      called for each question.
    - ``ttl``, ``backoff``: how long outcomes are kept and when to ask again; ``ttl`` as a number
      is that of values.
    - ``deadline``: seconds for one probe, or ``None``. A sync probe runs in a daemon thread, so
      that whoever waits can leave; past the deadline the answer is unknown, and what the probe
      says later still counts. With ``None`` it runs in the caller's own thread.
    - ``max_entries``: those not asked for lately go first. ``max_inflight``: probes that may run;
      further callers are told ``"busy"`` at once.
    - ``classify(error)``: what a raised exception means, a
      :class:`~memweir.probes.classify.Failure`.

    A forked child keeps what was answered anonymously. The rest is dropped, since fingerprints
    are keyed anew, and so is what was under way.
    """

    @overload
    def __init__(
        self, probe: Callable[..., Awaitable[T | _Unknown]], **options: Unpack[Options]
    ) -> None: ...

    @overload
    def __init__(self, probe: Callable[..., T | _Unknown], **options: Unpack[Options]) -> None: ...

    def __init__(
        self,
        probe: Callable[..., Any],
        *,
        name: str = "probe",
        auth: Auth = "required",
        normalize: Callable[[str], str] | None = None,
        identify: Callable[[str], Hashable] | None = None,
        environment: Hashable | Callable[[], Hashable] = None,
        classify: Callable[[BaseException], Failure] = classify_hub,
        ambient: Callable[[], str | None] | None = None,
        ttl: TTL | float | None = None,
        backoff: Backoff | None = None,
        deadline: float | None = 10.0,
        max_entries: int = 1024,
        max_inflight: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not callable(probe):
            raise TypeError(f"a probe is callable, not {type(probe).__name__}")
        if deadline is not None and not 0 < deadline < inf:
            raise ValueError("a deadline is a positive number of seconds, or None")
        if max_entries < 1 or max_inflight < 1:
            raise ValueError("max_entries and max_inflight are at least 1")
        refuse_reserved(probe)
        self.name = check_identifier(name, kind="label")
        self._clock = clock
        self._runner = Runner(
            probe,
            name=self.name,
            classify=classify,
            ttl=ttl if isinstance(ttl, TTL) else TTL(known=ttl),
            backoff=backoff or Backoff(),
            deadline=deadline,
            max_inflight=max_inflight,
            clock=clock,
        )
        self._keys = Keys(
            auth=auth,
            normalize=normalize,
            identify=identify,
            environment=environment,
            ambient=ambient,
            log=self._runner.log,
        )
        self._key = self._keys.key
        self._takes_token = auth is not False
        self._flights = Flights()
        self._slots = Slots(max_entries)
        self._passing: dict[Key, Slot] = {}  # questions that are asked and not remembered
        self._refreshing: dict[Slot, _Refresh] = {}
        self._tasks: set[Any] = set()
        self._hits = self._misses = self._backoffs = self._stale = self._uncacheable = 0
        _caches.add(self)

    def get(
        self,
        subject: str | os.PathLike[str],
        /,
        *,
        token: Token = OMITTED,
        timeout: float | None = None,
        refresh: bool = False,
        stale_ok: bool = False,
        **dims: Hashable,
    ) -> Verdict[T]:
        """What is known about `subject`, asked at most once; failures of the probe are verdicts.

        ``timeout`` in seconds bounds the wait for a probe that another caller runs: the verdict
        is then unknown (``"waiting"``), and the probe goes on. ``refresh`` asks again, whatever is
        remembered, except while a server has asked to be left alone. ``stale_ok`` returns an
        expired value at once while one refresh runs behind it.

        ``KeyboardInterrupt`` and bugs of the probe (``TypeError`` and its like) are raised, to the
        caller that ran it.
        """
        key = self._key(subject, token, dims)
        if not refresh and (hit := self._hit(key)) is not None:
            return hit
        question = self._question(key, token, dims, refresh)
        del token  # an error that the probe raises carries this frame
        known = self._at_once(question, stale_ok)
        if known is None:
            return self._join(question, timeout)
        if known.source == "stale":
            self._refresh(question)
        return known

    async def aget(
        self,
        subject: str | os.PathLike[str],
        /,
        *,
        token: Token = OMITTED,
        timeout: float | None = None,
        refresh: bool = False,
        stale_ok: bool = False,
        **dims: Hashable,
    ) -> Verdict[T]:
        """:meth:`get` for tasks, sharing its probes.

        An async probe runs on the loop of the caller that leads, and ends with it: another then
        leads. A sync probe runs in a thread, and outlives its caller.
        """
        key = self._key(subject, token, dims)
        if not refresh and (hit := self._hit(key)) is not None:
            return hit
        question = self._question(key, token, dims, refresh)
        del token
        known = self._at_once(question, stale_ok)
        if known is None:
            return await self._ajoin(question, timeout)
        if known.source == "stale":
            self._arefresh(question)
        return known

    def peek(
        self, subject: str | os.PathLike[str], /, *, token: Token = OMITTED, **dims: Hashable
    ) -> Verdict[T] | None:
        """What :meth:`get` would say without asking, or ``None``. Nothing is counted."""
        slot = self._slots.table.get(self._key(subject, token, dims))
        if slot is None:
            return None
        return self._runner.settled(Question(slot, "", {}, _always, 0))

    def put(
        self,
        subject: str | os.PathLike[str],
        value: T,
        /,
        *,
        token: Token = OMITTED,
        **dims: Hashable,
    ) -> Verdict[T]:
        """Remembers a value that was learnt elsewhere; a probe that began before is not kept."""
        if value is None or cast("object", value) is UNKNOWN:
            raise TypeError("only a value can be put: to forget one there is invalidate()")
        question = self._question(self._key(subject, token, dims), token, dims, refresh=False)
        self._let_go(question.slot)
        return self._runner.keep(question, value)

    def invalidate(
        self,
        subject: str | os.PathLike[str] | None = None,
        /,
        *,
        token: Token | Literal[_Auth.ANY] = ANY,
    ) -> int:
        """Forgets a subject, or everything, as asked by one identity or by :data:`~memweir.ANY`.

        Probes under way are neither kept nor joined by later callers. Returns the number of
        questions that are forgotten, their back-offs included.
        """
        if subject is None and token is ANY:
            return self._slots.clear()
        subjects: tuple[object, ...] = ()
        if subject is not None:
            raw = self._keys.text(subject)
            subjects = (self._keys.normalized(raw, token), (raw,))
        auth = None if token is ANY else self._keys.identity(token)

        def wanted(key: Key) -> bool:
            return (subject is None or key[0] in subjects) and (token is ANY or key[1] == auth)

        return self._slots.drop(wanted)

    def flag(self, default: D) -> Callable[..., T | D]:
        """A function in place of one that answers yes or no, where unknown is `default`.

        ``is_vision = cache.flag(default=False)`` is called as :meth:`get` is.
        """

        def ask(subject: str | os.PathLike[str], /, **arguments: Any) -> T | D:
            return self.get(subject, **arguments).or_(default)

        return ask

    def stats(self) -> ProbeStats:
        """Counters; cheap enough for every scrape."""
        runner = self._runner
        return ProbeStats(
            entries=len(self._slots.table),
            running=runner.running,
            hits=self._hits,
            misses=self._misses,
            probes=runner.probes,
            shared=self._flights.joins,
            backoff=self._backoffs,
            stale=self._stale,
            unknown=runner.unknown,
            busy=runner.busy,
            bugs=runner.bugs,
            evicted=self._slots.evicted,
            fenced=runner.fenced,
            uncacheable=self._uncacheable,
            normalize_fallbacks=self._keys.normalize_fallbacks,
            ambient_failures=self._keys.ambient_failures,
        )

    def __repr__(self) -> str:
        return f"ProbeCache({self.name!r}, {len(self._slots.table)} entries)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ProbeCache is not pickled: its keys mean nothing in another process")

    def _hit(self, key: Key) -> Verdict[T] | None:
        slot = self._slots.table.get(key)
        if slot is None or (verdict := slot.verdict) is None:
            return None
        if verdict.until is not None and self._clock() >= verdict.until:
            return None
        slot.touched = True
        self._hits += 1
        return verdict

    def _question(self, key: Key, token: Any, dims: dict[str, Any], refresh: bool) -> Question:
        arguments = dict(dims)
        if self._takes_token:
            arguments["token"], auth = self._keys.resolved(token)
            if auth != key[1]:  # the ambient one has changed since
                key = (key[0], auth, *key[2:])
        subject = key[0] if isinstance(key[0], str) else key[0][0]
        current = _always
        if len(key) > 3 and key[3] is UNCACHEABLE:
            self._uncacheable += 1
            slot, current = self._passing.setdefault(key, Slot(key)), _never
        else:
            slot = self._slots.find(key)
            if len(key) > 3 and key[3] is not None:
                identified = self._keys.identified

                def current() -> bool:
                    return bool(identified(subject) == key[3])

        seen = 0
        if refresh:
            seen = max((v.order for v in (slot.verdict, slot.failure) if v is not None), default=0)
        return Question(slot, subject, arguments, current, seen)

    def _at_once(self, question: Question, stale_ok: bool) -> Verdict[T] | None:
        settled = self._runner.settled(question)
        if settled is not None and settled.source == "cache":
            question.slot.touched = True
            self._hits += 1
            return settled
        old = question.slot.verdict
        if stale_ok and old is not None and old.known and question.seen == 0:
            self._stale += 1
            return old.seen_as("backoff" if settled is not None else "stale")
        if settled is not None:
            self._backoffs += 1
            return settled
        self._misses += 1
        return None

    def _join(self, question: Question, timeout: float | None) -> Verdict[T]:
        led = False

        def lead() -> Verdict[T]:
            nonlocal led
            led = True
            return self._runner.run(question)

        try:
            verdict = self._flights.run(
                question.slot, lead, check=lambda: self._runner.settled(question), timeout=timeout
            )
        except (Busy, LoadFailed, OwnersAlone) as error:
            if led and not isinstance(error, OwnersAlone):
                raise
            return self._unserved(error)
        finally:
            if led:
                self._let_go(question.slot)
        return _as_seen(verdict, led)

    async def _ajoin(self, question: Question, timeout: float | None) -> Verdict[T]:
        led = False

        async def lead() -> Verdict[T]:
            nonlocal led
            led = True
            return await self._runner.arun(question)

        try:
            verdict = await self._flights.arun(
                question.slot, lead, check=lambda: self._runner.settled(question), timeout=timeout
            )
        except (Busy, LoadFailed, OwnersAlone) as error:
            if led and not isinstance(error, OwnersAlone):
                raise
            return self._unserved(error)
        finally:
            if led:
                self._let_go(question.slot)
        return _as_seen(verdict, led)

    def _let_go(self, slot: Slot) -> None:
        # What is not remembered is shared by those who ask at the same time.
        if slot.key is not None and self._passing.get(slot.key) is slot:
            self._passing.pop(slot.key, None)

    def _unserved(self, error: Exception) -> Verdict[T]:
        # A wait that ended says nothing about the subject, and a bug is its owner's.
        return self._runner.own("waiting" if isinstance(error, Busy) else "aborted", 0.0)

    def _refresh(self, question: Question) -> None:
        """Asks again in a thread, unless somebody does; nobody is there to be told of errors."""
        import threading

        mine = self._begin_refresh(question.slot, None)
        if mine is None:
            return

        def work() -> None:
            try:
                self._join(question, None)
            except BaseException as error:
                self._runner.log("a refresh ended with %s", type(error).__qualname__)
            finally:
                self._end_refresh(question.slot, mine)

        thread = threading.Thread(
            target=_flight.detached().run,
            args=(work,),
            name=f"memweir-refresh-{self.name}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as error:  # no thread can be started: the next caller tries again
            self._end_refresh(question.slot, mine)
            self._runner.log("no refresh begins, %s", type(error).__qualname__)

    def _arefresh(self, question: Question) -> None:
        """:meth:`_refresh` in a task."""
        import asyncio

        loop = asyncio.get_running_loop()
        mine = self._begin_refresh(question.slot, loop)
        if mine is None:
            return

        async def work() -> None:
            try:
                await self._ajoin(question, None)
            except Exception as error:
                self._runner.log("a refresh ended with %s", type(error).__qualname__)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._end_refresh(question.slot, mine)

        task = loop.create_task(work(), context=_flight.detached())
        self._tasks.add(task)  # a loop keeps no task alive
        task.add_done_callback(ended)

    def _begin_refresh(self, slot: Slot, loop: Any) -> _Refresh | None:
        mine = _Refresh(loop)
        taken = self._refreshing.setdefault(slot, mine)
        if taken is not mine and taken.is_lost():
            self._end_refresh(slot, taken)
            taken = self._refreshing.setdefault(slot, mine)
        return mine if taken is mine else None

    def _end_refresh(self, slot: Slot, refresh: _Refresh) -> None:
        if self._refreshing.get(slot) is refresh:
            self._refreshing.pop(slot, None)

    def _after_fork(self) -> None:
        self._slots.after_fork(lambda key: not key[1])
        self._passing = {}
        self._refreshing = {}
        self._tasks = set()
        self._runner.after_fork()


class _Refresh:
    """A refresh behind a stale answer, in a thread or in a task of a loop."""

    __slots__ = ("_loop",)

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def is_lost(self) -> bool:
        """Whether nobody may ever end it: its loop does not run."""
        return self._loop is not None and not self._loop.is_running()


def _as_seen(verdict: Verdict[T], led: bool) -> Verdict[T]:
    return verdict if led or verdict.source != "probe" else verdict.seen_as("shared")


def _always() -> bool:
    return True


def _never() -> bool:
    return False


_caches: weakref.WeakSet[ProbeCache[Any]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for cache in _caches:
        cache._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
