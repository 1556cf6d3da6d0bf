"""The end of a session: who waits, who is refused, what is held, and forks."""

from __future__ import annotations

import gc
import os
import signal
import threading
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest
from ort_kit import FakeRuntime, node_model

import memweir as mw
from flight_kit import until
from memweir.cli.demo.encoder import TINY, inputs
from memweir.ort import handle, opening
from memweir.ort.handle import Inside, Session, Size
from memweir.ort.settings import SessionSettings

FEED = inputs(40, shape=TINY)
IDENTITY = node_model("Identity")


def held_run(fake: FakeRuntime) -> tuple[threading.Semaphore, list[object]]:
    """Runs of the fake that stay until they are let go."""
    gate, inside = threading.Semaphore(0), []

    def runs(feed):
        inside.append(feed)
        gate.acquire()
        return [np.ones(3, np.float32)]

    fake.runs = runs
    return gate, inside


def test_a_session_is_gone_after_close(tiny):
    session = mw.ort.session(tiny)
    binding = session.io_binding()
    session.close()
    for use in (
        lambda: session.run(None, FEED),
        lambda: session.run_async(None, FEED, print, None),
        lambda: session.run_with_ort_values(None, {}),
        lambda: session.run_with_iobinding(binding),
        lambda: binding.bind_output("scores"),
        session.get_inputs,
        session.get_modelmeta,
        lambda: session.get_provider_options,
        session.io_binding,
        session.offload,
        session.set_providers,
        session.__enter__,
        lambda: ort.IOBinding(session),
    ):
        with pytest.raises(mw.Released):
            use()
    assert session.closed
    assert "closed" in repr(session)


def test_a_second_close_returns_the_first_ones_report(tiny):
    session = mw.ort.session(tiny)
    first = session.close()
    assert session.close() is first
    assert first.held is None


def test_26_a_close_reports_what_its_trim_did(tiny):
    report = mw.ort.session(tiny).close()
    assert isinstance(report.trim, mw.TrimReport)
    assert report.trim.finished
    assert report.released == report.trim.released
    assert report.seconds >= report.waited >= 0
    assert mw.ort.session(tiny, trim=False).close().trim is None


def test_29_the_trim_is_injectable_and_called_once():
    for injected in (1, 0):
        calls = []
        inner = FakeRuntime().InferenceSession(b"", None)
        session = Session(
            Inside(
                runtime=FakeRuntime(),
                session=inner,
                settings=SessionSettings("balanced", ()),
                run_config={},
                size=Size(0, 0),
                files=(),
                trim=(lambda calls=calls: calls.append("trim")) if injected else None,
            )
        )
        del inner
        session.close()
        session.close()
        assert calls == ["trim"] * injected


def test_32_every_way_to_close_trims_the_same_way(monkeypatch):
    calls = []
    monkeypatch.setattr(opening, "_trim", lambda: calls.append("trim"))
    for profile in ("balanced", "lean", "arena_off", "default"):
        mw.ort.session(IDENTITY, profile, runtime=FakeRuntime(), prepacked=False).close()
        assert calls == ["trim", "trim"]  # after the load, and after the end
        calls.clear()
    with mw.ort.session(IDENTITY, runtime=FakeRuntime()):
        pass
    assert len(calls) == 2
    with pytest.raises(KeyError), mw.ort.session(IDENTITY, runtime=FakeRuntime()):
        raise KeyError
    assert len(calls) == 4


def test_a_load_that_fails_trims_and_leaves_nothing(monkeypatch):
    calls = []
    monkeypatch.setattr(opening, "_trim", lambda: calls.append("trim"))
    fake = FakeRuntime()
    fake.fails = [RuntimeError("no")]
    before = len(handle.live)
    with pytest.raises(mw.BadModel):
        mw.ort.session(IDENTITY, runtime=fake)
    assert calls == ["trim"]
    assert len(handle.live) <= before


def test_close_waits_for_runs_and_refuses_new_ones():
    fake = FakeRuntime()
    gate, inside = held_run(fake)
    session = mw.ort.session(IDENTITY, runtime=fake)
    with ThreadPoolExecutor(3) as pool:
        run = pool.submit(session.run, None, {})
        until(lambda: inside)
        close = pool.submit(session.close)
        until(lambda: session._closing)
        with pytest.raises(mw.Released, match="being closed"):
            session.run(None, {})
        assert not close.done()
        gate.release()
        assert run.result()[0].shape == (3,)
        assert close.result().held is None


def test_a_close_that_may_not_wait_is_refused_and_the_session_goes_on():
    fake = FakeRuntime()
    gate, inside = held_run(fake)
    session = mw.ort.session(IDENTITY, runtime=fake)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(session.run, None, {})
        until(lambda: inside)
        with pytest.raises(mw.Busy):
            session.close(timeout=0)
        gate.release(2)
        run.result()
        assert session.run(None, {})
    session.close(timeout=0)
    with pytest.raises(ValueError, match="timeout"):
        session.close(timeout=-1)


def closes(session, start):
    start.wait()
    return session.close()


def test_threads_that_run_while_others_close_get_answers_or_released(tiny):
    for _ in range(5):
        session = mw.ort.session(tiny, trim=False)
        (wanted,) = session.run(None, FEED)
        start = threading.Barrier(5)

        def runs(session=session, start=start):
            start.wait()
            answers = []
            try:
                while True:
                    answers.append(session.run(None, FEED)[0])
            except mw.Released:
                return answers

        with ThreadPoolExecutor(5) as pool:
            running = [pool.submit(runs) for _ in range(3)]
            closing = [pool.submit(closes, session, start) for _ in range(2)]
            reports = [one.result() for one in closing]
            for one in running:
                assert all(np.array_equal(found, wanted) for found in one.result())
        assert reports[0] is reports[1]
        assert reports[0].held is None


def test_close_waits_for_a_callback_that_has_not_ended(tiny):
    session = mw.ort.session(tiny, threads=2)
    inside, gate = threading.Event(), threading.Event()

    def callback(results, data, error):
        inside.set()
        gate.wait(30)

    session.run_async(None, FEED, callback, None)
    assert inside.wait(30)
    with pytest.raises(mw.Busy):
        session.close(timeout=0)
    with ThreadPoolExecutor(1) as pool:
        close = pool.submit(session.close)
        until(lambda: session._closing)
        assert not close.done()
        gate.set()
        report = close.result()
        assert report.waited > 0
        assert report.held is None
    assert session.closed


def test_a_session_that_the_runtime_keeps_for_the_main_thread_is_trimmed_when_it_is_gone(tiny):
    trims = []
    session = mw.ort.session(tiny, threads=2, trim=False)
    session._trim = lambda: trims.append(native())
    inside, gate = threading.Event(), threading.Event()

    def callback(results, data, error):
        inside.set()
        gate.wait(30)

    session.run_async(None, FEED, callback, None)
    assert inside.wait(30)
    native = weakref.ref(session._inner()._sess)
    with ThreadPoolExecutor(1) as pool:
        close = pool.submit(session.close)
        until(lambda: session._closing)
        gate.set()
        report = close.result()  # the main thread is not to be had meanwhile
    assert report.held is None
    # Some versions keep it so, others free it at once: trimmed is what is gone, once.
    until(lambda: trims)
    assert trims == [None]
    assert (report.note is None) or "main thread" in report.note


def test_a_runtime_that_keeps_its_own_part_is_said_to_and_trimmed_later():
    trims, kept = [], []
    fake = FakeRuntime()
    session = mw.ort.session(IDENTITY, runtime=fake, trim=False)
    session._trim = lambda: trims.append("trim")
    session._inner()._sess = type("Native", (), {})()
    kept.append(session._inner()._sess)
    session._asynchronous = True
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(session.close).result()
    assert report.held is None
    assert "main thread" in report.note
    assert not trims
    kept.clear()
    until(lambda: trims)
    assert trims == ["trim"]


def test_a_callback_may_close_its_session(tiny):
    for _ in range(10):
        session = mw.ort.session(tiny, threads=2, trim=False)
        notes = []

        def callback(*_, session=session, notes=notes):
            notes.append(session.close().note)

        session.run_async(None, FEED, callback, None)
        until(lambda session=session: session.closed)
        assert notes == ["it ends after the callback that closed it"]
        assert session.close().held is None


def test_a_run_that_could_not_begin_is_not_waited_for(tiny):
    session = mw.ort.session(tiny, threads=1)
    with pytest.raises(Exception, match="thread pool"):
        session.run_async(None, FEED, print, None)
    with pytest.raises(Exception, match="Required inputs"):
        session.run(None, {})
    assert not session._runs
    session.close(timeout=0)


def test_what_still_holds_the_session_is_reported(tiny):
    session = mw.ort.session(tiny)
    inner = session._sess
    assert "still refers to" in session.close().held
    del inner


def test_a_session_that_is_dropped_goes_without_close(tiny):
    session = mw.ort.session(tiny)
    inner = weakref.ref(session._inner()._sess)
    del session
    gc.collect()
    assert inner() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_is_refused_and_can_open_its_own(tiny, threads):
    with mw.ort.session(tiny, "lean", threads=threads) as session:
        (wanted,) = session.run(None, FEED)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            code = 1
            try:
                with pytest.raises(mw.Released, match="forked from"):
                    session.run(None, FEED)
                assert session.closed
                assert "belongs to the parent" in session.close().note
                with mw.ort.session(tiny, "lean", threads=threads) as own:
                    assert np.array_equal(own.run(None, FEED)[0], wanted)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert np.array_equal(session.run(None, FEED)[0], wanted)


def test_a_session_is_not_pickled(tiny):
    import pickle

    with mw.ort.session(tiny) as session, pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(session)
