"""Sessions of ONNX Runtime in a pool: lent, left on their file, closed, opened again."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import memweir as mw
from memweir.models.adapters.session import Session
from memweir.models.ladder import Rung
from pool_kit import Clock, in_thread, until

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from memweir.cli.demo import encoder

FEED = encoder.inputs(40, shape=encoder.TINY)
linux = pytest.mark.skipif(sys.platform != "linux", reason="pages are dropped on Linux")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    encoder.save(made / "tiny.onnx", encoder.TINY)
    mw.ort.prepack(made / "tiny.onnx", made / "cache")
    return made


class Pool(mw.ModelPool):
    """One with a clock that stands, and which counts its trims."""

    def __init__(self, **options) -> None:
        self.clock, self.trims, self.told = Clock(), [], []
        options.setdefault("idle", mw.Idle(offload=None, mapped=30, unload=600))
        super().__init__(
            clock=self.clock,
            trim=lambda: self.trims.append("trim"),
            on_event=self.told.append,
            **options,
        )

    def after(self, seconds: float) -> mw.UnloadReport:
        self.clock += seconds
        return self.tick()

    def of(self, key: str):
        return self.status().models[key]

    def kinds(self, kind: str):
        return [event for event in self.told if event.kind == kind]


@pytest.fixture
def pool(folder):
    with Pool() as pool:
        pool.add("lean", opener(folder, "lean"))
        pool.add("plain", opener(folder, "balanced"))
        yield pool


def opener(folder, profile="lean", kept=None, **options):
    def load():
        session = mw.ort.session(
            folder / "tiny.onnx", profile, cache_dir=folder / "cache", trim=False, **options
        )
        if kept is not None:
            kept.append(session)
        return session

    return load


def answer(pool, key="lean"):
    with pool.lease(key) as session:
        (scores,) = session.run(None, FEED)
        return scores


def weights(session) -> list[list[int]]:
    """Where the file of its weights is mapped, and how many bytes of that are resident."""
    (file,) = session._files
    found = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            ours = words[-1] == file
            if ours:
                start, end = (int(part, 16) for part in words[0].split("-"))
                found.append([start, end, 0])
        elif ours and words[0] == "Rss:":
            found[-1][2] = int(words[1]) << 10
    return found


def resident(session) -> int:
    return sum(part for *_, part in weights(session))


def test_auto_picks_it_for_sessions_and_counts_what_the_session_says(pool, folder):
    for key, mapped in (("lean", True), ("plain", False)):
        with pool.lease(key) as session:
            assert isinstance(session, mw.ort.Session)
            status = pool.of(key)
            assert status.adapter == "session"
            assert status.measured_by == "adapter"
            assert status.sizes == mw.Sizes(max(0, session.size.anon), file=session.size.mapped)
            assert (status.sizes.file > 0) is mapped
            assert status.rung == "host"
    with pool.lease("other", load=list) as other:
        assert other == []
    assert pool.of("other").adapter == "opaque"


@linux
def test_idle_it_goes_to_its_file_and_comes_back_with_the_same_bits(pool):
    wanted = answer(pool)
    session = pool._desk.entries["lean"].model
    full = pool.of("lean").sizes
    assert resident(session) > 0
    pool.after(31)
    assert pool.of("lean").state == "mapped"
    assert pool.of("lean").sizes == full._replace(file=0)
    assert resident(session) == 0
    assert np.array_equal(answer(pool), wanted)
    assert pool.of("lean").state == "loaded"
    assert pool.of("lean").sizes == full
    assert resident(session) > 0
    assert pool.of("lean").loads == 1
    assert not pool.trims
    del session
    pool.after(601)
    assert pool.of("lean").state == "absent"
    assert np.array_equal(answer(pool), wanted)
    assert pool.of("lean").loads == 2


@linux
def test_it_goes_to_its_file_when_it_is_asked_to(pool):
    answer(pool)
    answer(pool, "plain")
    assert pool.offload("lean", "plain") == ("lean",)
    assert pool.offload("lean", "plain") == ()
    with pool.lease("lean"):
        assert pool.offload("lean") == ()


def test_a_session_that_is_not_pre_packed_has_no_file_to_go_to(pool):
    answer(pool, "plain")
    assert pool._desk.entries["plain"].adapter.rungs == (Rung.HOST,)
    pool.after(31)
    assert pool.of("plain").state == "loaded"
    with pytest.raises(mw.UnsupportedType, match="no rung"):
        Session().move(SimpleNamespace(closed=False), Rung.MAPPED, None)


@linux
def test_pages_that_were_written_to_stay_and_the_reason_is_told(pool):
    wanted = answer(pool)
    session = pool._desk.entries["lean"].model
    start, end, _ = weights(session)[0]
    both = mmap.PROT_READ | mmap.PROT_WRITE
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(end - start), both) == 0
    first = ctypes.c_ubyte.from_address(start)
    first.value = first.value  # the same bytes, on a page of the process's own
    before = weights(session)[0]
    pool.after(31)
    assert pool.of("lean").state == "loaded"
    (event,) = pool.kinds("refused")
    assert "written to" in event.reason
    assert weights(session)[0] == before
    assert np.array_equal(answer(pool), wanted)
    pool.after(31)
    assert pool.offload("lean") == ()
    assert len(pool.kinds("refused")) == 1  # it is not asked for again
    del session
    pool.after(600)
    assert pool.of("lean").state == "absent"  # the last rung is there still


@linux
def test_while_another_session_is_opened_it_stays_and_is_asked_again_later(pool):
    from memweir.ort.offload import changing

    answer(pool)
    with changing():
        pool.after(31)
        for _ in range(3):
            pool.tick()
    assert len(pool.kinds("refused")) == 1
    assert pool.of("lean").state == "loaded"
    pool.after(4)
    assert pool.of("lean").state == "loaded"
    pool.after(2)
    assert pool.of("lean").state == "mapped"


def test_an_unload_closes_them_proves_it_and_trims_once(folder):
    kept: list[mw.ort.Session] = []
    with Pool() as pool:
        for number in range(3):
            pool.add(str(number), opener(folder, kept=kept))
            answer(pool, str(number))
        closed = [session._over for session in kept]
        kept.clear()
        report = pool.unload("0", "1", "2")
        assert [each.verdict for each in report.released] == ["dead"] * 3
        assert not report.errors
        assert all(over.is_set() for over in closed)
        assert pool.trims == ["trim"]
        assert report.promised.file > 0


def test_the_sessions_own_trim_is_left_out():
    from memweir.ort.handle import Inside, Size
    from memweir.ort.handle import Session as Handle
    from memweir.ort.settings import SessionSettings

    seen: list[str] = []

    class Inner:
        def get_inputs(self):
            return []

        get_outputs = get_providers = get_inputs

    handle = Handle(
        Inside(
            runtime=None,
            session=Inner(),
            settings=SessionSettings("balanced", ()),
            run_config={},
            size=Size(5, 0),
            files=(),
            trim=lambda: seen.append("trim"),
        )
    )
    adapter = Session()
    adapter.adopt(handle, None)
    assert adapter.nbytes(handle) == mw.Sizes(host=5)
    adapter.dispose(handle)
    assert handle.closed
    assert seen == []


def test_the_end_of_a_pool_closes_what_it_has(folder):
    kept: list[mw.ort.Session] = []
    pool = Pool()
    pool.add("lean", opener(folder, kept=kept))
    pool.add("mapped", opener(folder, kept=kept))
    answer(pool)
    answer(pool, "mapped")
    pool.offload("mapped")
    report = pool.close()
    assert report.finished
    assert not report.errors
    assert [session.closed for session in kept] == [True, True]
    assert pool.trims == ["trim"]


def test_a_session_that_its_user_closed_is_opened_anew(pool):
    wanted = answer(pool)
    with pool.lease("lean") as session:
        session.close()
        other = in_thread(answer, pool)  # while it is lent: it comes when that lease is over
        until(lambda: pool.of("lean").state == "draining")
        assert not other.done()
    del session
    pool.tick()
    assert np.array_equal(other.result(), wanted)
    assert pool.of("lean").loads == 2

    pool._desk.entries["lean"].model.close()
    assert np.array_equal(answer(pool), wanted)
    assert pool.of("lean").loads == 3
    assert [one.reason for one in pool.kinds("transition") if one.after == "absent"] == [
        "unload",
        "ended by its user",
    ]
    pool.offload("lean")
    pool._desk.entries["lean"].model.close()
    assert np.array_equal(answer(pool), wanted)
    assert pool.of("lean").loads == 4


def test_tasks_get_another_one_too(pool):
    import asyncio

    async def main() -> None:
        async with pool.alease("lean") as session:
            session.close()
        async with pool.alease("lean") as session:
            assert not session.closed
        assert np.array_equal(await pool.run("lean", lambda one: one.run(None, FEED)[0]), wanted)

    wanted = answer(pool)
    asyncio.run(main())
    assert pool.of("lean").loads == 2


def test_a_run_that_outlives_its_lease_is_waited_for_then_left_alone(folder):
    gate, inside = threading.Event(), threading.Event()

    def callback(results, data, error):
        inside.set()
        gate.wait(30)

    with Pool() as pool:
        pool.add("lean", opener(folder, threads=2), adapter=lambda: Session(patience=0.0))
        with pool.lease("lean") as session:
            session.run_async(None, FEED, callback, None)
            assert inside.wait(30)
        report = pool.unload("lean")
        assert any("Busy" in error for error in report.errors)
        assert not session.closed
        gate.set()
        session.close()


def test_the_users_release_comes_before_the_end(folder):
    seen: list[bool] = []
    with Pool() as pool:
        pool.add("lean", opener(folder), release=lambda session: seen.append(session.closed))
        answer(pool)
        assert pool.unload("lean").released[0].verdict == "dead"
    assert seen == [False]


def test_what_outside_still_refers_to_is_told(pool):
    with pool.lease("lean") as session:
        inner = session._sess
    del session
    report = pool.unload("lean")
    assert any("still refers to" in error for error in report.errors)
    del inner


def test_what_is_no_open_session_or_anothers_is_refused(folder):
    with pytest.raises(mw.UnsupportedType, match="no session of memweir"):
        Session().adopt([], None)
    session = opener(folder)()
    first = Session()
    first.adopt(session, None)
    with pytest.raises(mw.LoadFailed, match="managed already"):
        Session().adopt(session, None)
    session.close()
    first.dispose(session)
    with pytest.raises(mw.LoadFailed, match="closed"):
        Session().adopt(session, None)
    with pytest.raises(ValueError, match='"session"'):
        mw.ModelPool().add("a", list, adapter="onnx")


def test_on_a_device_the_pool_measures(folder):
    session = opener(folder)()
    adapter = Session()
    adapter.adopt(session, "cuda:0")
    assert adapter.rungs == (Rung.DEVICE,)
    assert adapter.nbytes(session) is None
    adapter.dispose(session)
    assert session.closed


def test_for_one_use(folder):
    kept: list[mw.ort.Session] = []
    lent = mw.loaded(opener(folder, kept=kept))
    (scores,) = lent.run(lambda session: session.run(None, FEED))
    assert scores.size
    assert kept.pop().closed
    assert not lent.report.errors


def test_pools_import_neither_sessions_nor_the_runtime():
    code = """
import sys
import memweir as mw
pool = mw.ModelPool()
pool.add("a", list, adapter="session")
pool.add("b", list)
with pool.lease("b"):
    pass
try:
    with pool.lease("a"):
        pass
except mw.UnsupportedType as error:
    assert "list" in str(error)
else:
    raise AssertionError
pool.close()
assert not [name for name in sys.modules if name.startswith(("memweir.ort", "onnxruntime"))]
"""
    subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-c", code], check=True)
