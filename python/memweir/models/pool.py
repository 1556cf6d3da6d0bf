"""Models that are loaded once, lent under leases, and given back within budgets."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from memweir import _core
from memweir._flight import is_async
from memweir._seconds import seconds
from memweir.events import Events
from memweir.models import keeper, leaving, live
from memweir.models.adapters.auto import chooser
from memweir.models.desk import Desk
from memweir.models.entry import Entry, Spec, caller
from memweir.models.ladder import Idle
from memweir.models.lease import AsyncLease, Lease
from memweir.models.release import Release
from memweir.models.sizing import parse_nbytes
from memweir.models.status import PoolStatus, status_of
from memweir.sizes import parse_size

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from memweir.events import Event
    from memweir.models.adapters.protocol import Adapter, Sizes
    from memweir.models.report import ShutdownReport, UnloadReport

    Size = int | str
    Given = Literal["auto", "opaque", "session"] | Adapter | Callable[[], Adapter]

__all__ = ["ModelPool"]

T = TypeVar("T")
_NEVER = object()


class ModelPool:
    """Models by key: one load for all callers, leases, an idle clock, budgets in bytes.

    ``ram`` and ``device`` are budgets: bytes or text (``"8 GiB"``, ``"25%"``); ``device`` counts
    for each device, or is a mapping from names to budgets. ``None`` is no budget. Bytes are
    reserved before a load and corrected to what was measured. What does not fit lets go what nobody
    uses: first what is cheap to have again and was not used for long, last what was loaded less
    than ``residence`` seconds ago. Where that is not enough it is :class:`~memweir.BudgetExceeded`.

    ``idle`` says when a model that nobody uses goes down (:class:`~memweir.Idle`). ``arbiter`` is
    any object with ``claim(key)``, asked before a load to a device; what it returns is released
    when the model has left it. ``on_event`` is called with each :class:`~memweir.Event`.

    ``clock``, ``memory`` (an object with ``anon`` and ``file`` in bytes), ``devices`` (bytes in use
    on devices), ``collect`` and ``trim`` replace what the pool measures and acts with. A pool with
    a clock of its own has no thread: :meth:`tick` does what is due.

    Threads and tasks share it freely. A forked child finds it empty.
    """

    def __init__(
        self,
        ram: Size | None = None,
        device: Size | Mapping[str, Size] | None = None,
        *,
        idle: Idle | None = None,
        name: str = "models",
        arbiter: Any = None,
        on_event: Callable[[Event], object] | None = None,
        residence: float = 1.0,
        clock: Callable[[], float] | None = None,
        memory: Callable[[], Any] | None = None,
        devices: Callable[[], int | None] | None = None,
        collect: Callable[[], object] = gc.collect,
        trim: Callable[[], object] | None = None,
    ) -> None:
        limits = _limits(device)
        if arbiter is not None and not callable(getattr(arbiter, "claim", None)):
            raise TypeError("an arbiter has a method claim(key)")
        self._idle = Idle() if idle is None else _checked(idle)
        given: dict[str, Any] = {"collect": collect, "clock": clock or time.monotonic}
        if memory is not None:
            given["read"] = memory
        if devices is not None:
            given["device"] = devices
        if trim is not None:
            given["trim"] = trim
        claims = _core.Claims()
        self._desk = desk = Desk(
            name=name,
            claims=claims,
            clock=clock or time.monotonic,
            read=memory or _core.memory,
            device=devices if devices is not None else _device_bytes,
            release=Release(**given),
            events=Events(name, "memweir.models", on_event),
            arbiter=arbiter,
            ram=claims.account(None if ram is None else parse_size(ram)),
            limits=limits,
            residence=float(residence),
            threaded=clock is None,
        )
        desk.serial = Entry(_nothing("(loads that may not overlap)"), claims)
        if clock is not None:
            keeper.ensure(desk)
        live.register(desk)

    @property
    def name(self) -> str:
        """How it is called in events and reports."""
        return self._desk.name

    @property
    def closed(self) -> bool:
        """Whether it lends nothing any more."""
        return self._desk.closed

    def add(
        self,
        key: str,
        load: Callable[[], Any],
        *,
        release: Callable[[Any], object] | None = None,
        device: str | None = None,
        adapter: Given = "auto",
        nbytes: Size | Sizes | os.PathLike[str] | None = None,
        idle: Idle | None = None,
        pin: bool = False,
        serial: bool = False,
    ) -> None:
        """Says how the model of a key is made; loads nothing.

        ``load()`` returns the model, in whichever thread comes first. ``release(model)`` is called
        once when it goes. ``device`` is where it is used, ``None`` the host. ``nbytes`` is what a
        load takes at most, its peak included: bytes, text, :class:`Sizes <memweir.models.adapters.
        protocol.Sizes>`, or the path of the weights. Unknown sizes reserve all that is left, and
        are remembered. ``pin`` keeps it from the idle clock and from eviction. Loads with
        ``serial`` run one at a time.

        Raises ``ValueError`` for a key that is there already.
        """
        entry = self._made(key, load, release, device, adapter, nbytes, idle, pin, serial)
        if self._desk.entries.setdefault(key, entry) is not entry:
            self._desk.claims.forget(entry.slot)
            raise ValueError(f"there is a model {key!r} already")

    def lease(
        self,
        key: str,
        *,
        timeout: float | None = None,
        working_bytes: Size = 0,
        load: Callable[[], Any] | None = None,
        **options: Any,
    ) -> Lease:
        """``with pool.lease(key) as model``: the model, here for as long as the block runs.

        It is loaded if need be, by one caller while the others wait. ``timeout`` seconds bound the
        wait (:class:`~memweir.Busy`), and nothing is cancelled by it; only with one are leases of
        others waited for where there is no room. ``working_bytes`` is what
        using the model takes beside it, reserved for as long as the lease. With ``load`` a key
        that is not there is added, with the ``options`` of :meth:`add`.

        Raises ``KeyError`` for an unknown key, and :class:`~memweir.Released` once the pool is
        closed. What a load raises reaches the caller that ran it; who waited gets
        :class:`~memweir.LoadFailed` from it, and so does who comes while it is not tried again.
        """
        entry = self._desk.entries.get(key)
        if entry is None or options:
            entry = self._find(key, load, options)
        if timeout is not None:
            timeout = seconds("timeout", timeout)
        return Lease(self._desk, entry, timeout, parse_size(working_bytes) if working_bytes else 0)

    def alease(
        self,
        key: str,
        *,
        timeout: float | None = None,
        working_bytes: Size = 0,
        load: Callable[[], Any] | None = None,
        **options: Any,
    ) -> AsyncLease:
        """:meth:`lease` for tasks: ``async with pool.alease(key) as model``."""
        entry = self._find(key, load, options)
        timeout = seconds("timeout", timeout)
        return AsyncLease(self._desk, entry, timeout, parse_size(working_bytes))

    async def run(self, key: str, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """``fn(model, *args, **kwargs)`` in a worker thread, under a lease.

        A task that is cancelled while it runs leaves at once; the lease ends when the thread does.
        """
        import asyncio
        import contextvars
        import threading

        lease = self.alease(key)
        model = await lease.__aenter__()
        context = contextvars.copy_context()
        turn: dict[None, str] = {}

        def work(model: Any) -> T:
            if turn.setdefault(None, "runs") != "runs":
                raise asyncio.CancelledError
            try:
                lease._hand_over(threading.current_thread())
                return context.run(fn, model, *args, **kwargs)
            except StopIteration as error:  # which a future cannot carry
                raise RuntimeError("what was to run raised StopIteration") from error
            finally:
                lease._release()

        try:
            future = asyncio.get_running_loop().run_in_executor(None, work, model)
            del model
            return await future
        finally:
            if turn.setdefault(None, "left") == "left":
                lease._release()

    def preload(self, *keys: str, timeout: float | None = None) -> None:
        """Loads models one after the other, and leaves them idle; what is there already stays."""
        for key in keys:
            with self.lease(key, timeout=timeout):
                pass

    async def apreload(self, *keys: str, timeout: float | None = None) -> None:
        """:meth:`preload` for tasks; cancelling it leaves the rest unloaded."""
        for key in keys:
            async with self.alease(key, timeout=timeout):
                pass

    def offload(self, *keys: str) -> tuple[str, ...]:
        """Brings models that nobody uses from their devices into memory, and those whose place is
        memory to their mapped files; which ones went.

        Not those that are lent, nor those whose adapter has only one place for them.
        """
        return leaving.offload(self._desk, self._known(keys))

    def unload(
        self,
        *keys: str,
        prefix: str | None = None,
        leased: Literal["defer", "refuse", "wait"] | None = None,
        deadline: float | None = None,
    ) -> UnloadReport:
        """Lets models go, with one pass for all: by key, and those whose key begins with `prefix`.

        ``leased`` is what becomes of models that are lent: ``"defer"`` lets them go with their
        last lease, ``"refuse"`` leaves them, ``"wait"`` waits for at most ``deadline`` seconds
        (``None``: for as long as it takes) and then leaves them. A ``deadline`` alone is
        ``"wait"``, and without either it is ``"defer"``. Unknown keys are left out. What was
        added stays added: the next lease loads it.
        """
        policy = leased or ("defer" if deadline is None else "wait")
        if policy not in ("defer", "refuse", "wait"):
            raise ValueError(f'leased is "defer", "refuse" or "wait", not {leased!r}')
        if deadline is not None and policy != "wait":
            raise ValueError(f"a deadline is for waiting, not to {policy}")
        deadline = seconds("deadline", deadline)
        entries = self._known(keys)
        if prefix is not None:
            entries += [e for k, e in self._desk.entries.copy().items() if k.startswith(prefix)]
        until = None if deadline is None else time.monotonic() + deadline
        return leaving.unload(self._desk, entries, policy, until)

    def reclaim(self, nbytes: Size | None = None, *, device: str | None = None) -> int:
        """Makes room of at least so many bytes from what nobody uses; ``None``: all of it.

        A rung down where that helps, then out. Returns the bytes that left the budget of the
        ``device``, or of the host. Pinned and lent models stay.
        """
        return leaving.reclaim(self._desk, None if nbytes is None else parse_size(nbytes), device)

    def release_abandoned(self) -> tuple[str, ...]:
        """Ends leases whose holders are gone: thread ended, task done, lease dropped.

        Returns where they were taken. Never done by itself: whoever has the model may use it.
        """
        return leaving.release_abandoned(self._desk)

    def tick(self) -> UnloadReport:
        """Does what the idle clock has made due, in this thread."""
        desk = self._desk
        keeper.ensure(desk)
        clock = desk.keeper.get("keeper") or keeper.Keeper(desk)
        due, _ = clock.look(desk, keeper.collected(desk.mail))
        if desk.threaded:
            desk.mail.put(None)  # its thread may sleep past what was found here
        return keeper.lower_due(desk, due)

    def status(self) -> PoolStatus:
        """Budgets, models and who holds them; cheap enough for every scrape."""
        for entry in self._desk.entries.copy().values():
            if entry.loans:
                keeper.tell_lost(self._desk, entry)
        return status_of(self._desk)

    def events(self) -> tuple[Event, ...]:
        """The newest 256 things that happened."""
        return self._desk.events.latest()

    def close(self, deadline: float | None = 10.0) -> ShutdownReport:
        """Lends nothing from now on, waits for leases, lets everything go, and says so.

        What is lent after ``deadline`` seconds (``None``: never) is in the report, and goes with
        its last lease. Raises nothing; a second call finds nothing to do.
        """
        return leaving.close(self._desk, deadline, caller())

    async def aclose(self, deadline: float | None = 10.0) -> ShutdownReport:
        """:meth:`close` for tasks: the loop goes on."""
        import asyncio

        return await asyncio.to_thread(leaving.close, self._desk, deadline, caller())

    def __contains__(self, key: object) -> bool:
        return key in self._desk.entries

    def __iter__(self) -> Iterator[str]:
        return iter([*self._desk.entries])

    def __len__(self) -> int:
        return len(self._desk.entries)

    def __enter__(self) -> ModelPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> ModelPool:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<ModelPool {status_of(self._desk)}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a ModelPool belongs to its process: make one there")

    def _known(self, keys: tuple[str, ...]) -> list[Entry]:
        found = (self._desk.entries.get(key) for key in keys)
        return [entry for entry in found if entry is not None]

    def _find(self, key: str, load: Callable[[], Any] | None, options: dict[str, Any]) -> Entry:
        entry = self._desk.entries.get(key)
        if entry is None:
            if load is None:
                raise KeyError(f"no model {key!r}: add it, or lease it with load=")
            return self._desk.entries.setdefault(key, self._made(key, load, **options))
        if options and load is None:
            raise TypeError(f"{', '.join(options)}: go with load=")
        return entry

    def _made(
        self,
        key: str,
        load: Callable[[], Any],
        release: Callable[[Any], object] | None = None,
        device: str | None = None,
        adapter: Given = "auto",
        nbytes: Any = None,
        idle: Idle | None = None,
        pin: bool = False,
        serial: bool = False,
    ) -> Entry:
        if not isinstance(key, str):
            raise TypeError(f"a key is a str, not {type(key).__name__}: model_key() makes one")
        if not callable(load):
            raise TypeError(f"load is called, and {type(load).__name__} cannot be")
        if is_async(load):
            raise TypeError("load runs in a thread without an event loop: give a plain function")
        if release is not None and not callable(release):
            raise TypeError(f"release is called, and {type(release).__name__} cannot be")
        if device is not None and device.partition(":")[0] == "cpu":
            device = None
        if not isinstance(adapter, str) and release is not None:
            raise ValueError("an adapter has its own release: give one of the two")
        spec = Spec(
            key=key,
            load=load,
            device=device,
            nbytes=parse_nbytes(nbytes, device),
            idle=self._idle if idle is None else _checked(idle),
            pin=bool(pin),
            serial=bool(serial),
            adapter=chooser(adapter, release),
        )
        return Entry(spec, self._desk.claims)


def _checked(idle: Any) -> Idle:
    if not isinstance(idle, Idle):
        raise TypeError(f"idle is memweir.Idle, not {type(idle).__name__}")
    return idle


def _limits(device: Any) -> Callable[[str], int | None]:
    if isinstance(device, Mapping):
        each = {name: parse_size(size) for name, size in device.items()}
        return each.get
    size = None if device is None else parse_size(device)
    return lambda name: size


def _device_bytes() -> int | None:
    from memweir.process._devices import device_bytes

    return device_bytes()


def _nothing(key: str) -> Spec:
    from memweir.models.adapters.opaque import Opaque

    return Spec(key, lambda: None, None, None, Idle.never(), True, False, lambda _: Opaque())
