"""Which allocator answers, what it holds, and what a job gives back: under each real one."""

from __future__ import annotations

import resource
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from preload_kit import EVERY, GLIBC, LIBRARIES, library, need_glibc, run

import memweir as mw
from memweir import _core

MIB = 1 << 20
AFTER = "sweep", "advice"

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="what is resident is read from /proc"
)


@pytest.mark.parametrize("name", EVERY)
def test_48_the_allocator_that_is_really_loaded_is_found(name: str) -> None:
    found = run("identify", allocator=name)
    assert found["allocator"]["kind"] == name
    assert found["allocator"]["version"]
    owner = Path(found["allocator"]["object"]).name
    assert owner.startswith("libc.so" if name == GLIBC else LIBRARIES[name][0])
    # It can be called under every preload, which is why its presence decides nothing.
    assert found["trims"]
    assert found["text"].startswith(name)


def test_48_torch_beside_it_changes_nothing() -> None:
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    found = run("identify", "torch", allocator="mimalloc")
    assert found["allocator"]["kind"] == "mimalloc"


@pytest.mark.parametrize("other", ["mimalloc", "tcmalloc"])
def test_48_an_allocator_that_a_package_brings_along_is_not_taken_for_it(other: str) -> None:
    # Loaded late, its functions are found by everybody, and malloc stays where it was.
    found = run("identify", None, library(other))
    assert found["allocator"]["kind"] == GLIBC


def test_48_prefixed_copies_are_not_taken_for_it(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make such a library with")
    source, made = tmp_path / "copies.c", tmp_path / "copies.so"
    names = ("je_mallctl", "mallctl", "mi_collect", "mi_version", "je_malloc", "mi_malloc")
    source.write_text("".join(f"int {name}(void) {{ __builtin_trap(); }}\n" for name in names))
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", made, source], check=True)
    found = run("identify", None, str(made))
    assert found["allocator"]["kind"] == GLIBC


@pytest.mark.parametrize("name", EVERY)
def test_48_what_threads_left_goes_back_to_the_system(name: str) -> None:
    for cycle in run("release", allocator=name):
        assert cycle["full"] > 40 * MIB or name == "jemalloc"  # whose threads purge as they go
        assert cycle["left"] < 12 * MIB, cycle
        assert all(step["ok"] or step["name"] in AFTER for step in cycle["steps"]), cycle


@pytest.mark.parametrize("name", EVERY)
def test_figures_are_those_of_the_allocator(name: str) -> None:
    found = run("identify", allocator=name)
    assert found["mapped"] > MIB
    if name == "mimalloc":  # which counts what it has committed, and no more
        assert found["in_use"] is None
        assert found["free"] is None
        return
    assert 0 < found["in_use"] <= found["mapped"] + found["free"]
    assert (found["arenas"] is None) == (name == "tcmalloc")
    assert (found["tops"] is None) == (name != GLIBC)


@pytest.mark.parametrize("name", EVERY)
def test_26_a_step_is_a_record_of_what_was_called_and_what_it_cost(name: str) -> None:
    steps = run("record", allocator=name)
    first, sweep, advice = steps[-3:]
    expected = {
        "glibc": "malloc_trim",
        "jemalloc": "arena.purge",
        "mimalloc": "mi_collect",
        "tcmalloc": "ReleaseFreeMemory",
    }
    assert first["name"] == expected[name]
    assert first["ok"] is True
    assert first["why"] is None
    assert first["seconds"] > 0
    assert first["anon_before"] > first["anon_after"] - MIB > 0
    assert first["returned"] == {"glibc": 1, "jemalloc": 0}.get(name)
    assert sweep["name"] == "sweep"
    assert sweep["ok"] is (name == GLIBC)
    assert (sweep["why"] is None) == (name == GLIBC)
    assert advice["name"] == "advice"
    assert advice["ok"] or advice["why"]
    assert (advice["unadvised_ranges"] is not None) == advice["ok"] <= (name == GLIBC)


def test_27_and_28_what_an_allocator_lacks_is_an_outcome() -> None:
    took, why = _core.heap_tune("no such knob", 1)
    assert not took
    assert why is not None
    assert why.endswith("has no such knob")
    if mw.heap().allocator.kind == GLIBC:
        said = "this is mimalloc's, and here glibc answers malloc"
        assert _core.heap_tune("purge_delay_ms", 1) == (False, said)


@pytest.mark.parametrize("live", [False, True], ids=["exited", "live"])
def test_arenas_of_threads_are_swept_in_three_lives(live: bool) -> None:
    lives = run("lives", live)
    for life in lives:
        assert life["full"] > 300 * MIB
        assert life["sweep"] < 10 * MIB, lives
        sweep = life["step"]
        assert sweep["ok"]
        assert sweep["why"] is None
        assert 0 < sweep["sweepers"] <= 64
        assert sweep["arenas_seen"] == sweep["arenas_swept"] > 8
        assert sweep["tops_after"] < sweep["tops_before"]
        assert sweep["trim_threshold"] == 64 * MIB
    # malloc_trim leaves hundreds of MiB in at least one of them.
    assert max(life["trim"] for life in lives) > 100 * MIB


def test_the_environments_threshold_is_set_back() -> None:
    env = {"MALLOC_MMAP_THRESHOLD_": str(32 * MIB), "MALLOC_TRIM_THRESHOLD_": "200000000"}
    assert run("record", **env)[-2]["trim_threshold"] == 200_000_000
    tunables = "glibc.malloc.mmap_threshold=0x2000000:glibc.malloc.trim_threshold=0xc000000"
    assert run("record", GLIBC_TUNABLES=tunables)[-2]["trim_threshold"] == 0xC000000


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MALLOC_MMAP_THRESHOLD_", str(MIB)),
        ("GLIBC_TUNABLES", "glibc.malloc.top_pad=131072"),
    ],
)
def test_the_threshold_that_another_variable_holds_where_it_is_is_set_back(
    variable: str, value: str
) -> None:
    sweep = run("small", **{variable: value})
    assert sweep["tops_before"] > 8 * MIB > 4 * MIB > sweep["tops_after"]
    assert sweep["trim_threshold"] == 128 * 1024


@pytest.mark.parametrize("value", ["-1", str(1 << 40), str((1 << 31) + 5)])
def test_a_threshold_that_mallopt_cannot_take_becomes_the_largest_it_takes(value: str) -> None:
    sweep = run("small", MALLOC_TRIM_THRESHOLD_=value)
    assert sweep["tops_before"] > 8 * MIB > 4 * MIB > sweep["tops_after"]
    assert sweep["trim_threshold"] == (1 << 31) - 1


def test_a_number_of_arenas_without_end_is_none_to_count_with() -> None:
    sweep = run("small", MALLOC_ARENA_MAX=str((1 << 64) - 1))
    assert sweep["ok"], sweep


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_environments_threshold_is_known_after_the_process_was_renamed(overwrite: bool) -> None:
    assert run("small", overwrite, MALLOC_TRIM_THRESHOLD_="300000")["trim_threshold"] == 300_000


def test_buffers_are_not_faulted_in_anew_for_ever_after_a_sweep() -> None:
    # Without a sweep glibc keeps the memory of the second for the third, and so on.
    pages = 4 * MIB // resource.getpagesize()
    first, second = run("refaults")
    assert first < 3 * pages
    assert second < pages
    # What was chosen at the start stays: each buffer is a map of its own.
    assert min(run("refaults", MALLOC_MMAP_THRESHOLD_=str(MIB))) > 15 * pages


def test_a_sweep_whose_threads_cannot_be_started_ends_and_says_so() -> None:
    found = run("unstartable", 4500)
    sweep, _ = found["steps"]
    assert sweep["ok"]
    assert sweep["why"].startswith("only ")
    assert sweep["arenas_swept"] < sweep["arenas_seen"]
    assert sweep["trim_threshold"] == 64 * MIB
    assert all(step["ok"] for step in found["again"][:2])
    assert found["after"] < found["before"] - 40 * MIB


def test_a_job_whose_thread_cannot_be_started_is_done_by_who_waits() -> None:
    found = run("unstartable", 0)
    sweep, _, thread = found["steps"]
    assert not sweep["ok"]
    assert sweep["why"].startswith("no thread could be started")
    assert thread["name"] == "thread"
    assert "the one that waited did it" in thread["why"]
    assert [step["name"] for step in found["again"]] == ["malloc_trim", *AFTER]
    assert found["after"] < found["before"] - 40 * MIB


def test_a_fork_in_the_middle_leaves_the_child_free_and_the_parent_at_it() -> None:
    found = run("fork_in_the_middle")
    assert found["status"] == 0
    assert found["done"] is True
    assert found["last"][0]["why"].startswith("the process was forked meanwhile")
    assert found["fresh"] == {
        "joined": False,
        "ended": True,
        "same": False,
        "names": ["malloc_trim", *AFTER],
    }
    assert found["parent"] == [True, ["malloc_trim", *AFTER]]


@pytest.mark.parametrize("name", EVERY)
def test_the_interpreter_ends_while_a_job_runs(name: str) -> None:
    for _ in range(3):
        assert run("exit_in_the_middle", allocator=name) == "left"


def test_eight_threads_that_ask_at_once_get_one_job() -> None:
    found = run("at_once")
    assert found["joined"] == 7
    assert found["equal"]


def test_jobs_are_compared_by_what_they_do() -> None:
    first = _core.heap_job(release=False, sweep=False)
    assert first.wait(30)
    second = _core.heap_job(release=False, sweep=False)
    assert second.wait()
    assert first != second
    assert first.done
    assert first.steps == []
    assert hash(first) == hash(first)
    assert "done" in repr(first)
    with pytest.raises(ValueError, match="timeout is None or seconds from 0 on, not -1"):
        first.wait(-1)
    with pytest.raises(ValueError, match="not NaN"):
        first.wait(float("nan"))
    assert first.wait(float("inf"))


def test_caches_are_beside_the_heap_and_counted() -> None:
    before = mw.heap().ours
    cache = mw.PixelCache("8 MiB", compact="off")
    assert cache.put("key", memoryview(bytes(MIB)))
    found = mw.heap()
    assert found.ours >= before + MIB
    assert found.seconds > 0
    assert found.as_dict()["allocator"]["kind"] == found.allocator.kind
    assert "pixel caches" in str(found)


def test_asking_starts_no_thread() -> None:
    need_glibc()
    tasks = Path("/proc/self/task")
    before = set(tasks.iterdir())
    mw.heap()
    assert set(tasks.iterdir()) <= before
