"""Sessions that are interrupted, closed from where one would not think, and forked."""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref

import onnxruntime as ort
import pytest
from ort_kit import FakeRuntime, node_model

import memweir as mw
from flight_kit import until
from memweir.cli.demo.encoder import TINY, inputs
from memweir.ort import handle, offload

FEED = inputs(40, shape=TINY)
IDENTITY = node_model("Identity")


class Cut(BaseException):
    """In the place of KeyboardInterrupt, which would end the test run should it escape."""


def cut_at(place, call):
    """Calls, and interrupts at the nth place where the interpreter would: calls, and C returns.

    Whether there was such a place.
    """
    seen, here = [0], handle.__file__

    def profiler(frame, event, arg):
        if event in ("call", "c_return") and frame.f_code.co_filename == here:
            seen[0] += 1
            if seen[0] == place:
                sys.setprofile(None)
                raise Cut

    sys.setprofile(profiler)
    try:
        call()
    except Cut:
        pass
    finally:
        sys.setprofile(None)
    return seen[0] >= place


@pytest.mark.parametrize(
    "use",
    [
        lambda session: session.run(None, {}),
        lambda session: session.offload(),
        lambda session: session.io_binding(),
    ],
)
def test_an_interrupted_run_is_not_waited_for(use, monkeypatch):
    fake = FakeRuntime()
    session = mw.ort.session(IDENTITY, runtime=fake)
    monkeypatch.setattr(type(session._inner()), "io_binding", lambda self: fake, raising=False)
    place = 1
    while cut_at(place, lambda: use(session)):
        assert not session._runs, place
        place += 1
    assert place > 3
    session.close(timeout=0)


def test_a_close_that_was_interrupted_holds_up_no_other():
    place, there = 1, True
    while there:
        session = mw.ort.session(IDENTITY, runtime=FakeRuntime(), trim=False)
        inner = weakref.ref(session._inner())
        there = cut_at(place, session.close)
        assert session._closing == 0, place
        if session._ends:
            assert session._report is not None, place
        session.close(timeout=0)
        assert session.closed, place
        assert inner() is None, place
        place += 1
    assert place > 10


def test_nobody_runs_between_the_last_wait_and_the_end(monkeypatch):
    ends = handle.Session._end
    came = []

    def late(self, begun, trims):
        try:
            came.append(self.run(None, {}))
        except mw.Released as error:
            came.append(error)
        return ends(self, begun, trims)

    monkeypatch.setattr(handle.Session, "_end", late)
    mw.ort.session(IDENTITY, runtime=FakeRuntime()).close()
    assert isinstance(came[0], mw.Released)


def test_a_signal_handler_may_close_the_session_that_its_thread_runs():
    fake, notes = FakeRuntime(), []
    session = mw.ort.session(IDENTITY, runtime=fake)
    fake.runs = lambda feed: notes.append(session.close().note)
    session.run(None, {})
    assert notes == ["it ends after the run that closed it"]
    until(lambda: session.closed)
    assert session.close().held is None


def test_a_signal_handler_may_close_the_session_that_its_thread_closes(monkeypatch):
    notes = []
    session = mw.ort.session(IDENTITY, runtime=FakeRuntime())
    session._trim = lambda: notes.append(session.close().note)
    session.close()
    assert notes == ["this thread is closing it"]


def test_an_exception_that_a_callback_keeps_holds_up_no_close(tiny):
    session = mw.ort.session(tiny, threads=2)
    kept, rang = [], threading.Event()

    def callback(results, data, error):
        try:
            raise KeyError(data)
        except KeyError as found:
            kept.append(found)  # with its frames, as a future would
        rang.set()

    session.run_async(None, FEED, callback, None)
    assert rang.wait(30)
    until(lambda: not session._runs)
    assert kept
    assert session.close(timeout=30).held is None


def test_another_choice_of_providers_counts_as_opening(monkeypatch, tiny):
    seen = []
    session = mw.ort.session(tiny, runtime=FakeRuntime())
    monkeypatch.setattr(
        type(session._inner()),
        "set_providers",
        lambda self, names, options: seen.append(bool(offload._changing)),
        raising=False,
    )
    session.set_providers(["CPUExecutionProvider"])
    assert seen == [True]


def test_values_in_a_vector_are_a_run_like_any(tiny):
    session = mw.ort.session(tiny)
    session.close()
    with pytest.raises(mw.Released):
        session.run_with_ortvaluevector(ort.RunOptions(), [], [], [], [], [])
    assert "run_with_ortvaluevector" in vars(handle.Session)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_may_drop_the_session(tiny):
    # Its threads are not there, and taking it apart would wait for them.
    held = [mw.ort.session(tiny, threads=2)]
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        held.clear()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    held[0].close()
