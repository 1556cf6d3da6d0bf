"""A session that has an end: what runs is waited for, and what it held goes back to the system."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from memweir._seconds import seconds
from memweir.errors import BadModel, Busy, Released
from memweir.process._aside import spawn

from .late import NOTE, Watch, is_late, trim_later
from .offload import changing, offload
from .settings import SHRINK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from memweir.process.trim import TrimReport

    from .offload import OffloadReport
    from .settings import SessionSettings

__all__ = ["CloseReport", "Inside", "Session", "Size", "live"]

_PATROL = 0.05

live: weakref.WeakSet[Session] = weakref.WeakSet()
"""Sessions that somebody holds: so that it can be said where memory is."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a session took, by the kernel's count, when it was loaded and trimmed."""

    anon: int | None
    """Anonymous memory; other threads' is in it. ``None`` where the kernel does not tell."""
    mapped: int
    """Bytes of files with weights that it maps: clean pages, which processes share."""


@dataclass(frozen=True, slots=True)
class CloseReport:
    """What a close did. ``held`` says who still holds the runtime's session, so that it stays."""

    trim: TrimReport | None
    seconds: float
    waited: float
    """Seconds of these that runs took to end."""
    held: str | None = None
    note: str | None = None

    @property
    def released(self) -> int | None:
        """Bytes that the trim brought back; what left before it is not counted."""
        return None if self.trim is None else self.trim.released


@dataclass(frozen=True, slots=True)
class NodeArg:
    """An input or output, as the runtime tells of it."""

    name: str
    type: str
    shape: list[Any]


def _plain(one: Any) -> NodeArg:
    return NodeArg(one.name, one.type, list(one.shape))


@dataclass(slots=True)
class Inside:
    """What a handle is made of."""

    runtime: Any
    session: Any
    settings: SessionSettings
    run_config: Mapping[str, str]
    size: Size
    files: tuple[str, ...]
    """Files of weights that may be mapped."""
    trim: Callable[[], TrimReport] | None
    bytes_dropped: bool = False


class Session:
    """A session of ONNX Runtime that code written for ``InferenceSession`` takes.

    :meth:`close` waits for what runs, then frees everything and gives it back to the system.
    Whatever is called afterwards raises :class:`~memweir.Released`; so it does in a forked child,
    whose threads the session does not have.
    """

    def __init__(self, inside: Inside) -> None:
        self.settings = inside.settings
        """What was applied, left out, and is to be known."""
        self.size = inside.size
        self._home = os.getpid()
        self._runtime = inside.runtime
        self._config = dict(inside.run_config)
        self._files = inside.files
        self._trim = inside.trim
        self._asynchronous = False
        self._no_bytes = inside.bytes_dropped
        # A run enters its name here, then looks whether the session closes; who closes says so
        # first, then looks here. Single operations only: no lock that a fork could catch.
        self._runs: set[Any] = set()
        self._closing = 0
        self._kept: dict[str, Any] = {"session": inside.session}
        self._bindings: weakref.WeakSet[Any] = weakref.WeakSet()
        self._ends: dict[str, tuple[int, object]] = {}
        self._report: CloseReport | None = None
        self._over = threading.Event()
        self._options = self._made_options()
        inputs, outputs = inside.session.get_inputs(), inside.session.get_outputs()
        self._io = ", ".join(x.name for x in inputs), ", ".join(x.name for x in outputs)
        self.providers: tuple[str, ...] = tuple(inside.session.get_providers())
        """What the runtime runs it on, in order."""
        live.add(self)

    # What it takes and gives. The runtime's own objects for these keep all of a session alive.

    def get_inputs(self) -> list[NodeArg]:
        """``InferenceSession.get_inputs``."""
        return [_plain(one) for one in self._inner().get_inputs()]

    def get_outputs(self) -> list[NodeArg]:
        """``InferenceSession.get_outputs``."""
        return [_plain(one) for one in self._inner().get_outputs()]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """``InferenceSession.get_overridable_initializers``."""
        return [_plain(one) for one in self._inner().get_overridable_initializers()]

    def get_modelmeta(self) -> SimpleNamespace:
        """``InferenceSession.get_modelmeta``."""
        found = self._inner().get_modelmeta()
        names = (name for name in dir(found) if not name.startswith("_"))
        return SimpleNamespace(**{name: getattr(found, name) for name in names})

    # What runs.

    def run(
        self, output_names: Any, input_feed: Any, run_options: Any = None
    ) -> Any:  # the runtime's: arrays, sparse tensors, lists or dicts
        """``InferenceSession.run``."""
        token = _token()
        try:
            session = self._enter(token)
            return session.run(output_names, input_feed, self._with(run_options))
        finally:
            self._runs.discard(token)

    def run_async(
        self,
        output_names: Any,
        input_feed: Any,
        callback: Callable[..., Any],
        user_data: Any,
        run_options: Any = None,
    ) -> Any:
        """``InferenceSession.run_async``; the session counts as running until ``callback`` ends."""
        self._asynchronous = True
        called = _Callback(callback)
        # The runtime lets go of the callback last, in C: until then its thread wants the
        # interpreter, and whoever frees the session holds that and waits for the thread.
        token = weakref.ref(called, self._runs_end)
        try:
            session = self._enter(token)
            return session.run_async(
                output_names, input_feed, called, user_data, self._with(run_options)
            )
        except BaseException:
            self._runs.discard(token)
            raise

    def run_with_ort_values(
        self, output_names: Any, input_dict_ort_values: Any, run_options: Any = None
    ) -> Any:
        """``InferenceSession.run_with_ort_values``."""
        token = _token()
        try:
            session = self._enter(token)
            return session.run_with_ort_values(
                output_names, input_dict_ort_values, self._with(run_options)
            )
        finally:
            self._runs.discard(token)

    def run_with_ortvaluevector(self, run_options: Any, *vectors: Any) -> None:
        """``InferenceSession.run_with_ortvaluevector``."""
        token = _token()
        try:
            session = self._enter(token)
            session.run_with_ortvaluevector(self._with(run_options), *vectors)
        finally:
            self._runs.discard(token)

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        """``InferenceSession.run_with_iobinding``."""
        token = _token()
        try:
            session = self._enter(token)
            session.run_with_iobinding(iobinding, self._with(run_options))
        finally:
            self._runs.discard(token)

    def io_binding(self) -> Any:
        """``InferenceSession.io_binding``; it is gone with the session."""
        token = _token()
        try:
            # A close in between would not know of it.
            binding = self._enter(token).io_binding()
            self._bindings.add(binding)
            return binding
        finally:
            self._runs.discard(token)

    def set_providers(self, providers: Any = None, provider_options: Any = None) -> None:
        """``InferenceSession.set_providers``, which loads the model anew."""
        if self._no_bytes:
            raise ValueError(
                "the model came as bytes, which are not kept: open another session with "
                "providers=[...]"
            )
        token = _token()
        try:
            session = self._enter(token)
            if providers is not None:
                # The runtime would warn, and go on with the CPU.
                names = [one if isinstance(one, str) else one[0] for one in providers]
                there = self._runtime.get_available_providers()
                if missing := [name for name in names if name not in there]:
                    raise BadModel(f"{', '.join(missing)} is not to be had", kind="providers")
            with changing():
                session.set_providers(providers, provider_options)
            self.providers = tuple(session.get_providers())
        finally:
            self._runs.discard(token)

    def __getattr__(self, name: str) -> Any:
        # Everything else is the runtime's, as long as there is one.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._inner(), name)

    @property
    def nbytes(self) -> int:
        """Bytes that it took when it was loaded, mapped files included."""
        return max(0, self.size.anon or 0) + self.size.mapped

    # What ends it.

    @property
    def closed(self) -> bool:
        """Whether nothing can be run any more."""
        return "session" not in self._kept or self._home != os.getpid()

    def close(self, timeout: float | None = None, *, trim: bool = True) -> CloseReport:
        """Waits for what runs, frees the session and gives its memory back.

        Meanwhile nobody begins another run. After ``timeout`` seconds it raises
        :class:`~memweir.Busy`, and the session goes on. A second call returns the first one's
        report. With ``trim=False`` its memory is left to a trim of the caller's, who ends several
        with one. Called by a callback of :meth:`run_async`, it ends the session after that.
        """
        timeout = seconds("timeout", timeout)
        if self._home != os.getpid():
            # Its threads are the parent's: it cannot be taken apart here, and takes no memory
            # that is not shared with the parent.
            return CloseReport(None, 0.0, 0.0, note="it belongs to the parent of this process")
        inside = "callback" if getattr(_local, "inside", 0) else "run" if self._runs_here() else ""
        if inside:  # the latter in a signal handler or a finalizer
            spawn(partial(self.close, trim=trim), "memweir-ort-close")
            return CloseReport(None, 0.0, 0.0, note=f"it ends after the {inside} that closed it")
        begun = time.monotonic()
        self._closing += 1
        try:
            self._drain(begun, timeout)
            # Before anybody may run again.
            return self._end(begun, trim)
        finally:
            self._closing -= 1

    def _drain(self, begun: float, timeout: float | None) -> None:
        until = None if timeout is None else begun + timeout
        while self._runs and "session" in self._kept:
            left = _PATROL if until is None else min(_PATROL, until - time.monotonic())
            if left <= 0:
                raise Busy(f"{len(self._runs)} runs have not ended; the session goes on")
            time.sleep(min(left, 0.001 if time.monotonic() - begun < 0.1 else left))

    def _end(self, begun: float, trims: bool) -> CloseReport:
        me, cut = _token(), CloseReport(None, 0.0, 0.0, note="it was interrupted")
        report: CloseReport | None = None
        try:
            first = self._ends.setdefault("by", me)
            if first is not me:
                return self._ended(first)
            report = self._free(begun, trims)
            return report
        finally:
            # Whatever interrupts it, nobody waits for ever.
            if "by" in self._ends and self._ends["by"] is me:
                self._report = report or cut
                self._kept.pop("session", None)
                self._over.set()

    def _ended(self, by: tuple[int, object]) -> CloseReport:
        while self._report is None:
            if by[0] == threading.get_ident():  # in a signal handler
                return CloseReport(None, 0.0, 0.0, note="this thread is closing it")
            self._over.wait(_PATROL)
        return self._report

    def _free(self, begun: float, trims: bool) -> CloseReport:
        waited = time.monotonic() - begun
        for binding in list(self._bindings):
            binding._iobinding = binding._session = _Gone()
        held = Watch(self._kept["session"])
        with changing():
            self._kept.pop("session")
            if held.alive():
                gc.collect()
                # A thread of the runtime may still be on its way out of a callback.
                for _ in range(20):
                    if not held.alive():
                        break
                    time.sleep(0.005)
        if self._asynchronous and is_late(*held.parts()):
            if self._trim is not None:  # the caller's own comes before it has died
                trim_later(held.alive, self._trim)
            return CloseReport(None, time.monotonic() - begun, waited, note=NOTE)
        trim = self._trim() if trims and self._trim is not None else None
        word = "something outside still refers to the runtime's session" if held.alive() else None
        return CloseReport(trim, time.monotonic() - begun, waited, held=word)

    def __enter__(self) -> Self:
        self._inner()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def offload(self) -> OffloadReport:
        """Drops the resident pages of mapped weights, as long as nobody has written to them.

        The session stays, and reads them again when it is used next. Only what is mapped from
        files can be dropped: all weights of a pre-packed model.
        """
        token = _token()
        try:
            self._enter(token)
            return offload(self._files)
        finally:
            self._runs.discard(token)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"({self._io[0]}) -> ({self._io[1]})"
        return f"<memweir.ort.Session {self.settings.profile}: {state}>"

    def __reduce__(self) -> Any:
        raise TypeError("a session cannot be pickled: send its path, and open it there")

    # Between.

    def _inner(self) -> Any:
        if self._home != os.getpid():
            raise Released(
                "this session belongs to the process that this one was forked from: open it "
                "after the fork"
            )
        session = self._kept.get("session")
        if session is None:
            raise Released("this session was closed: open another")
        return session

    def _enter(self, token: Any) -> Any:
        # Within the caller's `try`, which takes it out again: an interrupt comes after any call.
        self._runs.add(token)
        session = self._inner()
        if self._closing:
            raise Released("this session is being closed: open another")
        return session

    def _runs_here(self) -> bool:
        here = threading.get_ident()
        return any(type(token) is tuple and token[0] == here for token in list(self._runs))

    @property
    def _runs_end(self) -> Callable[[Any], Any]:
        # A function in C, so that the interpreter cannot be left in the middle of it.
        return self._runs.discard

    def _with(self, options: Any) -> Any:
        """What a run is told: the session's entries, unless the caller's own say otherwise."""
        if options is None:
            return self._options
        for key, value in self._config.items():
            if not _entry(options, key):
                options.add_run_config_entry(key, value)
        if self.settings.get("arena") is False and _entry(options, SHRINK):
            # Of a session that has an arena: here the runtime would refuse the run.
            options.add_run_config_entry(SHRINK, "")
        return options

    def _made_options(self) -> Any:
        if not self._config:
            return None
        options = self._runtime.RunOptions()
        for key, value in self._config.items():
            options.add_run_config_entry(key, value)
        return options


class _Callback:
    """The caller's callback, in a thread that must not free the session."""

    __slots__ = ("__weakref__", "function")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> None:
        function = self.function
        # An exception that is kept would keep this frame, and the session would count as running.
        del self
        _local.inside = getattr(_local, "inside", 0) + 1
        try:
            function(*arguments)
        finally:
            _local.inside -= 1


_local = threading.local()


def _token() -> tuple[int, object]:
    """The name of a run, and the thread that it keeps busy."""
    return threading.get_ident(), object()


def _entry(options: Any, key: str) -> str:
    try:
        return str(options.get_run_config_entry(key))
    except Exception:  # it has none, which is the runtime's error
        return ""


class _Gone:
    """In the place of a binding's own part."""

    def __getattr__(self, name: str) -> Any:
        raise Released("the session of this binding was closed: open another")


def _after_fork_in_child() -> None:
    # Taking a session apart waits for its threads, which are not here: it is never freed. Arrays
    # of objects are unknown to the collector, so that one which holds itself outlives even the
    # interpreter's own end.
    held = [session._kept.get("session") for session in list(live)]
    forever = np.empty(1, object)
    forever[0] = (forever, held)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
