"""What settings do to a process: once, by whoever comes first, and never at import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import memweir as mw
from memweir import _applied, settings
from memweir.process import tune as tuning
from memweir.settings import Settings

glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or mw.heap().allocator.kind != "glibc",
    reason="what is told to glibc shows in how glibc behaves",
)

# Bytes that stay resident of 8 MiB in blocks of 2 MiB that were freed, after glibc has seen a
# larger block come and go: untold, it keeps up to twice that at the top of its heap.
KEPT = """
import ctypes, json, os
import memweir as mw
from memweir import settings
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
def touched(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block
def kept():
    libc.free(touched(16 << 20))
    before = resident()
    blocks = [touched(2 << 20) for _ in range(4)]
    for block in blocks:
        libc.free(block)
    return resident() - before
"""
MOST = 1 << 20


def fresh(script: str, **variables: str) -> Any:
    """What the last line of a fresh process says, as JSON."""
    quiet = {k: v for k, v in os.environ.items() if not k.startswith(("MEMWEIR_", "MALLOC_"))}
    done = subprocess.run(
        [sys.executable, "-c", KEPT + script],
        env={**quiet, **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout.splitlines()[-1])


@glibc
class TestSwitch:
    def test_nothing_is_changed_without_it(self) -> None:
        script = "mw.configure(); mw.PixelCache(); print(json.dumps([kept(), settings.applied()]))"
        kept, applied = fresh(script)
        assert kept > 4 * MOST
        assert applied is None

    def test_nothing_is_changed_by_importing(self) -> None:
        variables = {"MEMWEIR_LOW_MEMORY": "1"}
        assert fresh("print(json.dumps(kept()))", **variables) > 4 * MOST
        more = "import memweir.settings, memweir._applied; mw.Settings.from_env(); mw.heap();"
        assert fresh(f"{more} print(json.dumps(kept()))", **variables) > 4 * MOST

    @pytest.mark.parametrize(
        ("call", "by"),
        [
            ("mw.configure()", "configure()"),
            ("mw.configure(mw.Settings(low_memory=True))", "configure()"),
            ("cache = mw.PixelCache()", "PixelCache"),
            ("cache = mw.PixelCache('1 MiB')", "PixelCache"),
        ],
    )
    def test_tunes_the_heap_at_the_first(self, call: str, by: str) -> None:
        script = f"{call}\nprint(json.dumps([kept(), settings.applied().by]))"
        kept, who = fresh(script, MEMWEIR_LOW_MEMORY="1")
        assert kept < MOST
        assert who == by

    def test_gives_caches_a_smaller_budget(self) -> None:
        script = "print(json.dumps(mw.PixelCache().budget))"
        assert fresh(script, MEMWEIR_LOW_MEMORY="1") == 256 << 20
        assert fresh(script, MEMWEIR_LOW_MEMORY="1", MEMWEIR_CACHE_BUDGET="5 MiB") == 5 << 20
        assert fresh(script) == 1 << 30

    def test_leaves_the_heap_alone_where_that_is_said(self) -> None:
        script = "mw.configure(); print(json.dumps([kept(), settings.applied()]))"
        kept, applied = fresh(script, MEMWEIR_LOW_MEMORY="1", MEMWEIR_TUNE="none")
        assert kept > 4 * MOST
        assert applied is None

    def test_takes_other_values_for_the_profile(self) -> None:
        variables = {"MEMWEIR_LOW_MEMORY": "1", "MEMWEIR_TRIM_THRESHOLD": "64 MiB"}
        script = """
mw.configure()
knobs = {knob.name: knob.value for knob in settings.applied().report.knobs if knob.ok}
print(json.dumps([kept(), knobs]))"""
        kept, knobs = fresh(script, **variables)
        assert kept > 4 * MOST
        assert knobs["trim_threshold"] == 64 << 20

    def test_says_when_it_came_too_late(self) -> None:
        early = "mw.configure(); print(json.dumps(settings.applied().report.late))"
        late = f"blocks = [touched(100 << 10) for _ in range(1500)]; {early}"
        assert fresh(early, MEMWEIR_LOW_MEMORY="1") is None
        assert "MiB" in fresh(late, MEMWEIR_LOW_MEMORY="1")

    def test_is_there_in_a_forked_child(self) -> None:
        script = """
mw.configure()
read, write = os.pipe()
if os.fork() == 0:
    mw.PixelCache()
    done = settings.applied()
    os.write(write, json.dumps([kept(), done.by, done.inherited]).encode())
    os._exit(0)
os.wait()
print(os.read(read, 1000).decode())"""
        kept, by, inherited = fresh(script, MEMWEIR_LOW_MEMORY="1")
        assert kept < MOST
        assert (by, inherited) == ("configure()", True)


@pytest.fixture
def heap(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What tuning is asked for, in place of tuning."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def tune(profile: str, **overrides: Any) -> SimpleNamespace:
        asked.append((profile, overrides))
        return SimpleNamespace(late=None, knobs=())

    monkeypatch.setattr(tuning, "tune", tune)
    monkeypatch.setattr(_applied, "_state", {})
    monkeypatch.setattr(settings, "_current", None)
    return asked


class TestApplied:
    def test_once_whatever_follows(self, heap: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMWEIR_TUNE", "server")
        mw.PixelCache(0)
        mw.PixelCache()
        mw.configure(tune="models", arena_max=2)
        assert heap == [("server", {})]
        done = settings.applied()
        assert done is not None
        assert (done.by, done.profile, done.inherited) == ("PixelCache", "server", False)

    def test_by_settings_that_say_so_first(self, heap: list[Any]) -> None:
        mw.PixelCache()
        mw.configure(cache_budget="1 MiB")
        assert settings.applied() is None
        mw.configure(tune="models", arena_max=2, trim_threshold="1 MiB")
        assert heap == [("models", {"arena_max": 2, "trim_threshold": "1 MiB"})]

    def test_what_tuning_refuses_reaches_the_caller_and_may_be_said_again(
        self, heap: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = tuning.tune

        def refuse(profile: str, **overrides: Any) -> None:
            raise ValueError("arena_max is 3")

        monkeypatch.setattr(tuning, "tune", refuse)
        with pytest.raises(ValueError, match="arena_max"):
            mw.configure(tune="images", arena_max=3)
        assert settings.applied() is None
        assert settings.configured() is None
        monkeypatch.setattr(tuning, "tune", ours)
        mw.configure(tune="images", arena_max=2)
        assert heap == [("images", {"arena_max": 2})]

    def test_an_interrupted_tuning_is_done_by_who_comes_next(
        self, heap: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(profile: str, **overrides: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(tuning, "tune", interrupted)
            with pytest.raises(KeyboardInterrupt):
                mw.configure(tune="images")
        mw.configure(tune="images")
        assert heap == [("images", {})]

    def test_a_platform_that_cannot_is_no_error(
        self, heap: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(profile: str, **overrides: Any) -> None:
            raise OSError("no such thing here")

        monkeypatch.setattr(tuning, "tune", fail)
        mw.configure(low_memory=True)
        assert mw.PixelCache().budget == 256 << 20
        done = settings.applied()
        assert done is not None
        assert done.report is None
        assert done.why == "OSError: no such thing here"

    def test_of_many_threads_one_does_it(self, heap: list[Any]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        made = Settings(tune="images")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: _applied.apply(made, f"{number}"), range(200)))
        assert heap == [("images", {})]

    def test_a_fork_in_the_middle_of_it_leaves_it_to_the_child(
        self, heap: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(_applied._state, "turn", object())
        mw.configure(tune="images")
        assert heap == []  # another thread is at it
        _applied._after_fork_in_child()
        mw.configure(tune="images")
        assert heap == [("images", {})]
        _applied._after_fork_in_child()
        mw.configure(tune="images")
        assert heap == [("images", {})]
        done = settings.applied()
        assert done is not None
        assert done.inherited
