"""What tuning sets, what it says of what it could not, and what it brings."""

from __future__ import annotations

import re
from typing import Any

import pytest
from preload_kit import EVERY, GLIBC, run

import memweir as mw

MIB = 1 << 20


def knobs(report: dict[str, Any]) -> dict[str, tuple[int, bool]]:
    return {knob["name"]: (knob["value"], knob["ok"]) for knob in report["knobs"]}


@pytest.mark.parametrize("profile", ["images", "models", "server"])
def test_glibc_always_gets_both_thresholds(profile: str) -> None:
    report = run("tuned", profile, {})
    assert report["ok"]
    assert report["late"] is None
    assert {"mmap_threshold", "trim_threshold"} <= knobs(report).keys()
    assert all(ok for _, ok in knobs(report).values())
    assert report["allocator"]["kind"] == GLIBC
    # To set one alone would leave the other wherever it got to.
    report = run("tuned", profile, {"mmap_threshold": "2 MiB"})
    assert knobs(report)["mmap_threshold"] == (2 * MIB, True)
    assert "trim_threshold" in knobs(report)


def test_profiles_have_the_values_that_were_measured() -> None:
    images, models = (knobs(run("tuned", name, {})) for name in ("images", "models"))
    assert images["mmap_threshold"][0] == 4 * MIB
    assert models["mmap_threshold"][0] == MIB
    assert models["trim_threshold"][0] == images["trim_threshold"][0] == 128 * 1024


@pytest.mark.parametrize(("profile", "most"), [("images", 120), ("models", 12)])
def test_live_threads_of_a_tuned_process_keep_little_by_themselves(profile: str, most: int) -> None:
    found = run("tuned_lives", profile)
    # 352 MiB where nothing is tuned. Blocks of 1 MiB are in the heap with the one, not the other.
    assert found["left"] < most * MIB
    assert found["trimmed"] < 12 * MIB


def test_a_server_has_few_arenas_and_keeps_its_threshold_after_a_sweep() -> None:
    found = run("tuned_lives", "server")
    assert found["arenas"] <= 17
    assert found["steps"][-2]["trim_threshold"] in (MIB, None)
    found = run("tuned_lives", "server", {"mmap_threshold": "32 MiB", "trim_threshold": "1 GiB"})
    assert found["steps"][-2]["trim_threshold"] == 1 << 30
    assert found["trimmed"] < 12 * MIB


def test_a_bound_on_arenas_lets_a_sweep_reach_them_with_few_threads() -> None:
    env = {"MALLOC_MMAP_THRESHOLD_": str(32 * MIB), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    sweep = run("record", MALLOC_ARENA_MAX="3", **env)[-2]
    assert sweep["arenas_seen"] == sweep["arenas_swept"] == 3
    assert sweep["sweepers"] == 6


def test_49_tuning_after_big_allocations_says_that_it_is_late() -> None:
    found = run("tuned_late")
    assert found["early"]["late"] is None
    late = found["late"]
    assert re.search(
        r"big allocations came first \(its arenas have held up to \d{2,} MiB", late["late"]
    )
    arenas = next(knob for knob in late["knobs"] if knob["name"] == "arena_max")
    assert not arenas["ok"]
    assert arenas["why"].startswith("too late")


def test_47_every_allocator_gets_what_it_knows() -> None:
    for name in EVERY:
        report = run("tuned", "models", {}, allocator=name)
        found = knobs(report)
        if name == GLIBC:
            assert "mmap_threshold" in found
        elif name == "jemalloc":
            expected = {"background_thread": (1, True), "dirty_decay_ms": (1000, True)}
            assert expected.items() <= found.items()
        elif name == "mimalloc":
            assert found == {"purge_delay_ms": (10, True)}
        else:
            assert found == {"release_rate": (10, False)}
            assert "TCMALLOC_RELEASE_RATE" in report["knobs"][0]["why"]


@pytest.mark.parametrize("name", EVERY)
def test_a_knob_of_another_allocator_is_told_and_not_set(name: str) -> None:
    other = {"dirty_decay_ms": 50} if name != "jemalloc" else {"arena_max": 2}
    report = run("tuned", "models", other, allocator=name)
    knob = next(knob for knob in report["knobs"] if knob["name"] in other)
    assert not knob["ok"]
    assert knob["why"].endswith(f"here {name} answers malloc")
    assert not report["ok"]
    assert "not set" in report["text"]


def test_jemallocs_threads_give_back_unasked_and_a_child_can_be_forked() -> None:
    found = run("decays", allocator="jemalloc")
    assert found["left"] < found["full"] - 30 * MIB
    assert found["status"] == 0


def test_none_leaves_a_knob_alone() -> None:
    assert "arena_max" not in knobs(run("tuned", "server", {"arena_max": None}))


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        ({"arena_max": 0}, ValueError, "arena_max is an int from 1 to 65536, not 0"),
        ({"arena_max": True}, TypeError, "arena_max is an int from 1 to 65536, not True"),
        ({"mmap_threshold": "33 MiB"}, ValueError, "mmap_threshold is bytes .* at most 32.0 MiB"),
        ({"trim_threshold": "lots"}, ValueError, "trim_threshold is bytes .*not a size: 'lots'"),
        ({"top_pad": 1.5}, TypeError, "top_pad is bytes .*not 1.5"),
        ({"background_thread": 1}, TypeError, "background_thread is True or False, not 1"),
        ({"dirty_decay_ms": -2}, ValueError, "dirty_decay_ms is an int from -1 .*, not -2"),
        ({"nmap": 1}, TypeError, "knows no 'nmap'; it takes mmap_threshold, trim_threshold"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    overrides: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        mw.tune("models", **overrides)
    with pytest.raises(error, match=words):
        mw.recommended_env("models", **overrides)


def test_other_profiles_are_refused() -> None:
    with pytest.raises(ValueError, match='a profile is "images", "models" or "server"'):
        mw.tune("speed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an allocator is one of glibc, jemalloc"):
        mw.recommended_env("images", "malloc")


def test_the_environment_says_the_same_for_every_allocator() -> None:
    assert mw.recommended_env("models", "glibc", arena_max=2) == {
        "NUMPY_MADVISE_HUGEPAGE": "0",
        "MALLOC_MMAP_THRESHOLD_": str(MIB),
        "MALLOC_TRIM_THRESHOLD_": str(128 * 1024),
        "MALLOC_ARENA_MAX": "2",
    }
    assert mw.recommended_env("images", "jemalloc")["MALLOC_CONF"] == (
        "background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0"
    )
    assert mw.recommended_env("images", "mimalloc")["MIMALLOC_PURGE_DELAY"] == "10"
    assert mw.recommended_env("images", "tcmalloc")["TCMALLOC_RELEASE_RATE"] == "10"
    assert mw.recommended_env("images", "musl") == {"NUMPY_MADVISE_HUGEPAGE": "0"}
    assert "MallocLargeCache" in mw.recommended_env("images", "macos")


@pytest.mark.parametrize("name", EVERY)
def test_an_allocator_takes_the_environment_that_is_recommended_for_it(name: str) -> None:
    env = mw.recommended_env("images", name)
    assert run("identify", allocator=name, **env)["allocator"]["kind"] == name
