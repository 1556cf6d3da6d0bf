"""One flight per key: of all the callers that want a key, one loads it and the others wait.

Threads and asyncio tasks, on any number of event loops, meet in one table. The caller that begins
a flight leads it. What becomes of its load is told to everyone aboard:

- *A value*: all of them return the same object.
- *An* ``Exception``: it reaches the leader unchanged, and every waiter as a ``LoadFailed`` of its
  own, whose cause is a copy without frames. The next call loads again.
- *Nothing*, because the leader left by another ``BaseException`` (``KeyboardInterrupt``, a
  cancelled task), its thread died or its event loop stopped: one of the waiters leads in its
  place and the others go on waiting. That is one more load, whatever may still become of the old
  one: a thread that works for a cancelled task runs on, and what it returns is dropped.

A wait that cannot end is not begun. A load that asks for its own key is a ``RuntimeError``. Where
loads wait for each other in a circle, or a thread would block the event loop that the leader needs,
the caller that would close the circle loads for itself, and its :class:`Load` says not to keep it.

There is no lock. Each step that matters is one call of ``setdefault`` or ``pop`` on a built-in
dict, which no other thread, signal handler or finalizer can interrupt or find half done, and which
a fork cannot leave locked. Waking is only a hint: every waiter looks at the flight again, and once
a second without being woken, which is how it finds a leader that is gone.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from .errors import Busy, LoadFailed

T = TypeVar("T")

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Hashable, Iterator
    from typing import TypeAlias

    Lead: TypeAlias = Callable[[], T]
    Check: TypeAlias = Callable[[], T | None] | None
    Seconds: TypeAlias = float | None

__all__ = ["Flights", "Load", "current", "detached", "is_async", "without_frames"]

_PATROL = 1.0  # seconds between a waiter's own looks at its flight


class Load:
    """One caller's load of a key; the code that it runs finds it by :func:`current`.

    It does not know its flight, hence not the result: contexts inherit it and may outlive it.
    """

    __slots__ = ("home", "key", "outer", "over", "table", "task", "thread", "waits")

    def __init__(
        self, table: Flights, key: Hashable, task: asyncio.Task[Any] | None = None
    ) -> None:
        self.table = table
        self.key = key
        self.home = table._home
        self.over = False
        self.waits: list[_Flight] = []  # what the code that it runs waits for
        self.outer = tuple(load for load in _loads.get() if not load.over)
        self.thread = weakref.ref(threading.current_thread())
        self.task = None if task is None else weakref.ref(task)
        if any(load.table is table and load.key == key for load in self.outer):
            raise RuntimeError("a load re-entered itself: it asked for the key that it is loading")

    @property
    def stale(self) -> bool:
        """Whether the result must not be kept.

        The table was bumped, another leads in this one's place, the process has forked since, or
        the load was never shared. Who waits for the result gets it all the same.
        """
        return self.over or self.home is not self.table._home

    def alive(self) -> bool:
        """Whether the thread or task that runs it can still end it."""
        thread = self.thread()
        if thread is None or not thread.is_alive():
            return False
        if self.task is None:
            return True
        task = self.task()
        return task is not None and not task.done() and task.get_loop().is_running()


_loads: ContextVar[tuple[Load, ...]] = ContextVar("memweir_loads", default=())


def current() -> Load | None:
    """The innermost load that this code is part of, through threads and tasks of its context."""
    loads = _loads.get()
    return loads[-1] if loads else None


def detached() -> Context:
    """A copy of this context for work that none of its loads waits for."""
    context = copy_context()
    context.run(_loads.set, ())
    return context


def is_async(function: Callable[[], object]) -> bool:
    """Whether calling `function` makes a coroutine: an ``async def``, or an object called so."""
    from inspect import iscoroutinefunction

    return iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)


class Flights:
    """Single flight over any hashable keys whose comparison is not written in Python.

    ``joins`` counts the calls that were answered by another's load.
    """

    __slots__ = ("__weakref__", "_home", "joins")

    def __init__(self) -> None:
        self.joins = 0
        self._home: dict[Hashable, _Flight] = {}
        _tables.add(self)

    def run(
        self, key: Hashable, lead: Lead[T], *, check: Check[T] = None, timeout: Seconds = None
    ) -> T:
        """What `lead` returns, called by one of all callers at a time.

        `check` is cheap and asked first by the leader, so that a value stored between the
        caller's miss and this flight is not loaded twice; ``None`` means it was not.
        `timeout` in seconds bounds the wait for another's load: :class:`~memweir.errors.Busy`,
        for this caller only.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        bell = threading.Lock()
        bell.acquire()
        alone = False
        while True:
            me = Load(self, key)
            flight = self._board(me, alone)
            with flight.aboard(me, bell.release):
                while (fate := flight.fate) is None:
                    if flight.begin(me):
                        return cast(T, flight.fly(me, check, lead))
                    pause = flight.patrol(me, deadline, blocking=True)
                    if pause is None:
                        alone = True
                        break
                    bell.acquire(timeout=pause)
            if fate is not None and not fate.void:
                return cast(T, self._joined(fate))

    @overload
    async def arun(
        self,
        key: Hashable,
        lead: Lead[Coroutine[Any, Any, T]],
        *,
        check: Check[T] = None,
        timeout: Seconds = None,
    ) -> T: ...

    @overload
    async def arun(
        self, key: Hashable, lead: Lead[T], *, check: Check[T] = None, timeout: Seconds = None
    ) -> T: ...

    async def arun(
        self, key: Hashable, lead: Lead[Any], *, check: Check[Any] = None, timeout: Seconds = None
    ) -> Any:
        """:meth:`run` for tasks.

        A coroutine function is awaited by the leader's task. Any other `lead` runs in the event
        loop's default executor, whose size bounds how many do at once. Nobody holds a thread to
        wait: of the tasks that ask for one the first to get it leads, unless a caller that needs
        none has begun before.
        """
        import asyncio

        deadline = None if timeout is None else time.monotonic() + timeout
        loop, task, bell = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()
        inline = is_async(lead)
        alone = False

        def ring() -> None:
            loop.call_soon_threadsafe(bell.set)

        while True:
            me = Load(self, key, task)
            flight = self._board(me, alone)
            job: asyncio.Future[Any] | None = None
            try:
                with flight.aboard(me, ring):
                    while (fate := flight.fate) is None and not me.over:
                        if inline and flight.begin(me):
                            return await flight.afly(me, check, lead)
                        if not inline and flight.leader is None and (job is None or job.done()):
                            run = copy_context().run
                            job = loop.run_in_executor(None, run, flight.work, me, check, lead)
                        pause = flight.patrol(me, deadline, blocking=False)
                        if pause is None:
                            alone = True
                            break
                        timer = loop.call_later(pause, bell.set)
                        await bell.wait()
                        timer.cancel()
                        bell.clear()
                    if job is not None and me.over:
                        return await job
            finally:
                if job is not None and not loop.is_closed():
                    job.cancel()
                job = None  # it may hold an exception that holds this frame
            if fate is not None and not fate.void:
                return self._joined(fate)

    def bump(self) -> None:
        """Makes every flight in progress stale.

        Who waits gets its result; it is not to be kept, and later callers start a new flight.
        """
        self._home = {}

    def waiting(self, key: Hashable) -> int:
        """Callers that wait for `key` at this moment, the leader left out."""
        flight = self._home.get(key)
        return 0 if flight is None else len(flight.bells) - (flight.leader is not None)

    def _board(self, me: Load, alone: bool) -> _Flight:
        if alone:
            me.home = {}
        while True:
            flight = me.home.setdefault(me.key, _Flight(me.key, me.home))
            if flight.fate is None:
                return flight
            flight.unlist()

    def _joined(self, fate: _Fate) -> Any:
        self.joins += 1
        if fate.error is None:
            return fate.value
        name = type(fate.error).__qualname__
        # A copy for each waiter: raising the cause again would add its frames to all of them.
        raise LoadFailed(f"another caller's load failed with {name}") from without_frames(
            fate.error
        )


class _Fate:
    """How a flight ended: with a value, with an error, or void, since all have left."""

    __slots__ = ("error", "value", "void")

    def __init__(self, value: tuple[Any, ...], error: BaseException | None) -> None:
        self.value = value[0] if value else None
        self.error = error
        self.void = not value and error is None


class _Flight:
    """Those who want a key, led by one after the other until one lands it."""

    __slots__ = ("_begun", "_fate", "_home", "_key", "_left", "bells")

    def __init__(self, key: Hashable, home: dict[Hashable, _Flight]) -> None:
        self._key = key
        self._home = home
        self.bells: dict[Callable[[], object], None] = {}  # one for each caller aboard
        self._begun: dict[int, Load] = {}  # when n leaders have left,
        self._left: dict[Load, None] = {}  # the next is who first takes place n
        self._fate: dict[None, _Fate] = {}

    @property
    def leader(self) -> Load | None:
        return self._begun.get(len(self._left))

    @property
    def fate(self) -> _Fate | None:
        return self._fate.get(None)

    @contextmanager
    def aboard(self, me: Load, ring: Callable[[], object]) -> Iterator[None]:
        # A caller hangs up its bell, then looks at the flight: it sees a change or is rung.
        self.bells[ring] = None
        for load in me.outer:
            load.waits.append(self)
        try:
            yield
        finally:
            for load in me.outer:
                load.waits.remove(self)
            self.bells.pop(ring, None)
            self._leave(me)
            # The last one off takes the lead, so that nobody else can, and closes the flight.
            if not self.bells and self.begin(me):
                self.land(me)

    def begin(self, me: Load) -> bool:
        """Makes `me` the leader if there is none."""
        return self._begun.setdefault(len(self._left), me) is me

    def fly(self, me: Load, check: Check[Any], lead: Lead[Any]) -> Any:
        with self._flying(me):
            value = None if check is None else check()
            if value is None:
                value = lead()
        self.land(me, value)
        return value

    async def afly(self, me: Load, check: Check[Any], lead: Lead[Any]) -> Any:
        with self._flying(me):
            value = None if check is None else check()
            if value is None:
                value = await lead()
        self.land(me, value)
        return value

    def work(self, me: Load, check: Check[Any], lead: Lead[Any]) -> Any:
        """:meth:`fly` in a worker thread for `me`, unless another has begun."""
        if self.fate is not None or not self.begin(me):
            return None
        me.thread, me.task = weakref.ref(threading.current_thread()), None
        try:
            return self.fly(me, check, lead)
        except StopIteration as error:  # which a future cannot carry
            raise RuntimeError("a load raised StopIteration") from error
        finally:
            self._leave(me)

    @contextmanager
    def _flying(self, me: Load) -> Iterator[None]:
        token = _loads.set((*_loads.get(), me))
        try:
            yield
        except Exception as error:
            self.land(me, error=without_frames(error))
            raise
        finally:
            with suppress(ValueError):  # an abandoned coroutine is closed in any context
                _loads.reset(token)

    def land(self, me: Load, *value: Any, error: BaseException | None = None) -> None:
        """Ends the flight, unless another leads it by now."""
        if self.leader is me:
            me.over = True
            self._fate.setdefault(None, _Fate(value, error))
            self._ring()
            self.unlist()

    def unlist(self) -> None:
        if self._home.get(self._key) is self:
            taken = self._home.pop(self._key, None)
            # Another may have unlisted this flight just now, and a third have opened the next: put
            # that one back. Should a fourth have come in between, the key is loaded once more.
            if taken is not None and taken is not self:
                self._home.setdefault(self._key, taken)

    def _leave(self, load: Load) -> None:
        """If `load` leads and has not landed, lets another take its place."""
        if self.leader is load and self.fate is None:
            load.over = True
            self._left[load] = None
            self._ring()

    def _ring(self) -> None:
        for ring in list(self.bells):
            with suppress(RuntimeError):  # it rings already, or its loop is closed
                ring()

    def patrol(self, me: Load, deadline: float | None, *, blocking: bool) -> float | None:
        """Seconds to wait before the next look; ``None`` if waiting would never end."""
        leader = self.leader
        if leader is None or leader is me:
            return _PATROL
        if not leader.alive():
            self._leave(leader)
            return 0.0
        if self._stuck(me, blocking):
            return None
        if deadline is None:
            return _PATROL
        left = deadline - time.monotonic()
        if left <= 0:
            raise Busy("another caller is still loading this; nothing was cancelled")
        return min(left, _PATROL)

    def _stuck(self, me: Load, blocking: bool) -> bool:
        # Every caller says what it waits for, then follows what that waits for. Of those who close
        # a circle at the same time the last one sees it, and all of them do at the next patrol.
        seen: set[_Flight] = set()
        ahead = [self]
        while ahead:
            flight = ahead.pop()
            leader = flight.leader
            if leader is None or flight in seen:
                continue
            if leader in me.outer or (blocking and leader.thread() is threading.current_thread()):
                return True
            seen.add(flight)
            ahead.extend(leader.waits.copy())
        return False


def without_frames(error: BaseException, depth: int = 8) -> BaseException:
    """`error` and what led to it, without frames.

    Whoever raises an exception adds frames to it, so one that is shared keeps the locals of all
    its callers alive, weights among them. The class's own ``__init__`` is not run: its parameters
    are unknown.
    """
    cls = type(error)
    base: Any = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    try:
        _, args, *state = base.__reduce__(error)
        if isinstance(error, BaseExceptionGroup):
            args = (error.message, [without_frames(e, depth - 1) for e in error.exceptions])
        copy = cls.__new__(cls, *args)
        base.__init__(copy, *args)
        if state and state[0]:
            copy.__setstate__(state[0])
    except Exception:
        copy = LoadFailed(f"{cls.__qualname__}, which cannot be copied")
    if depth > 0 and error.__cause__ is not None:
        copy.__cause__ = without_frames(error.__cause__, depth - 1)
    elif depth > 0 and error.__context__ is not None and not error.__suppress_context__:
        copy.__context__ = without_frames(error.__context__, depth - 1)
    return copy


_tables: weakref.WeakSet[Flights] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # The other threads are gone, and with them the flights they led and the loops they ran. A load
    # that forked goes on in no table, and the child may ask for its key.
    for table in _tables:
        table.bump()
    for load in _loads.get():
        load.over = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
