"""Every finding, on facts that make it appear and on some that do not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doctor_kit import GIB, found, names, settings_facts, sound

from memweir.cli import doctor
from memweir.cli.doctor.finding import Facts
from memweir.settings import Settings

Change = Callable[[Facts], object]


def group(name: str, size: int, folder: str = "/sys/fs/cgroup/app") -> dict[str, Any]:
    return {"kind": name, "source": f"{folder}/{name}", "bytes": size}


def bounds(*more: dict[str, Any], **other: Any) -> Change:
    def change(facts: Facts) -> None:
        facts["limits"]["bounds"] += more
        facts["limits"]["limit"] = min(one["bytes"] for one in facts["limits"]["bounds"])
        facts["limits"].update(other)

    return change


def kernel(**seen: Any) -> Change:
    return lambda facts: facts["kernel"].update(seen)


def limits(**seen: Any) -> Change:
    return lambda facts: facts["limits"].update(seen)


def variable(
    name: str, value: str = "1", *, late: bool | None = False, kind: str = "glibc"
) -> Change:
    def change(facts: Facts) -> None:
        facts["environment"]["variables"][name] = {"value": value, "late": late}
        facts["allocator"]["kind"] = kind

    return change


def variables(*changes: Change) -> Change:
    return lambda facts: [change(facts) for change in changes]


def unknown(nearest: str | None) -> Change:
    return lambda facts: facts["environment"]["unknown"].update({"MEMWEIR_X": nearest})


def preload(name: str, kind: str, *, there: bool, serves: str | None = "jemalloc") -> Change:
    def change(facts: Facts) -> None:
        facts["allocator"]["preload"] = [{"name": name, "there": there, "allocator": serves}]
        facts["allocator"]["kind"] = kind
        facts["environment"]["variables"]["MALLOC_CONF"] = {
            "value": "background_thread:true",
            "late": False,
        }
        if kind != "jemalloc":
            del facts["environment"]["variables"]["MALLOC_CONF"]

    return change


def allocator(kind: str) -> Change:
    return lambda facts: facts["allocator"].update(kind=kind)


def settings(made: Settings | None = None, **seen: Any) -> Change:
    def change(facts: Facts) -> None:
        if made is not None:
            facts["settings"]["values"] = settings_facts(made)
        facts["settings"].update(seen)

    return change


def tuned(tune: str | None = "images", **seen: Any) -> Change:
    done = {"by": "PixelCache", "profile": "images", "why": None, "late": None, "knobs": []}
    return settings(Settings(tune=tune), applied={**done, **seen})


REFUSED = {"name": "M_ARENA_MAX", "value": 2, "ok": False, "why": "too late"}
TAKEN = {**REFUSED, "ok": True, "why": None}
JEMALLOC = "/usr/lib/libjemalloc.so.2"
CONF = "background_thread:true,dirty_decay_ms:1000"
NUMPY = "NUMPY_MADVISE_HUGEPAGE"


def without_numpy(**seen: str) -> Change:
    def change(facts: Facts) -> None:
        facts["environment"]["variables"].pop(NUMPY, None)
        facts["kernel"]["huge_pages"] = seen.get("pages", "madvise")
        facts["allocator"]["kind"] = seen.get("kind", "glibc")
        if seen.get("kind") == "jemalloc":
            variable("MALLOC_CONF", CONF, kind="jemalloc")(facts)

    return change


# The finding, how bad it is, what makes it appear, and what is next to it and does not.
CASES: list[tuple[str, str, Change, Change]] = [
    ("huge-pages-always", "warning", kernel(huge_pages="always"), kernel(huge_pages=None)),
    ("huge-pages-never", "note", kernel(huge_pages="never"), kernel(huge_pages="madvise")),
    ("overcommit-strict", "warning", kernel(overcommit_memory=2), kernel(overcommit_memory=1)),
    ("maps-few", "warning", kernel(max_map_count=65529), kernel(max_map_count=None)),
    ("maps-many", "warning", kernel(maps=60_000), kernel(maps=50_000)),
    ("pressure-unreadable", "note", kernel(pressure=False), kernel(pressure=True)),
    ("swap-none", "note", kernel(swap=0), kernel(swap=None)),
    (
        "limit-below-ram",
        "note",
        bounds(group("memory.max", 2 * GIB)),
        bounds(group("memory.max", 16 * GIB)),
    ),
    (
        "throttled-above",
        "note",
        bounds(group("memory.high", 8 * GIB), group("memory.max", 16 * GIB), charge=GIB),
        bounds(group("memory.high", 16 * GIB), group("memory.max", 16 * GIB), charge=GIB),
    ),
    (
        "throttled",
        "warning",
        bounds(group("memory.high", 8 * GIB), charge=8 * GIB),
        bounds(group("memory.max", 16 * GIB), charge=8 * GIB),
    ),
    (
        "limit-near",
        "warning",
        bounds(group("memory.max", 16 * GIB), working_set=15 * GIB),
        bounds(group("memory.max", 16 * GIB), working_set=14 * GIB),
    ),
    (
        "address-space-limited",
        "warning",
        bounds({"kind": "RLIMIT_AS", "source": "RLIMIT_AS", "bytes": 32 * GIB}),
        bounds(),
    ),
    (
        "threads-of-host",
        "warning",
        limits(cpu_quota=2.0),
        variables(limits(cpu_quota=2.0), variable("OMP_NUM_THREADS", "2")),
    ),
    ("threads-of-host", "warning", limits(cpu_quota=0.5), limits(cpu_quota=4.0)),
    (
        "shared-memory-counts",
        "note",
        bounds(group("memory.max", 16 * GIB), shared_memory=17 * GIB),
        bounds(group("memory.max", 16 * GIB), shared_memory=16 * GIB),
    ),
    ("shared-memory-small", "warning", limits(shared_memory=64 << 20), limits(shared_memory=None)),
    ("variable-unknown", "warning", unknown("MEMWEIR_TUNE"), variable("MEMWEIR_TUNE", "images")),
    ("variable-unknown", "warning", unknown(None), variable("OTHER")),
    (
        "variable-misspelt",
        "problem",
        variable("MALLOC_TRIM_THRESHOLD", "131072"),
        variable("MALLOC_TRIM_THRESHOLD_", "131072"),
    ),
    (
        "variable-misspelt",
        "problem",
        variable("MALLOC_ARENA_MAX_", "2"),
        variable("MALLOC_ARENA_MAX", "2"),
    ),
    (
        "variable-no-number",
        "problem",
        variable("MALLOC_TRIM_THRESHOLD_", "128K"),
        variable("MALLOC_TRIM_THRESHOLD_", " 131072 "),
    ),
    *(
        ("variable-no-number", "problem", variable("MALLOC_ARENA_MAX", "two"), understood)
        for understood in (
            variable("MALLOC_TRIM_THRESHOLD_", "-1"),  # never, in the words of its manual
            variable("MALLOC_MMAP_THRESHOLD_", "0x20000"),
            variable("MALLOC_ARENA_MAX", ""),
        )
    ),
    (
        "variable-late",
        "problem",
        variable("MALLOC_ARENA_MAX", "2", late=True),
        variable("MALLOC_ARENA_MAX", "2", late=None),
    ),
    (
        "variable-late",
        "problem",
        variable("MIMALLOC_PURGE_DELAY", "0", late=True, kind="mimalloc"),
        variable("MEMWEIR_TUNE", "images", late=True),
    ),
    (
        "variable-maybe-late",
        "warning",
        variable(NUMPY, "0", late=True),
        variable("ARROW_DEFAULT_MEMORY_POOL", "system", late=True),
    ),
    (
        "variable-idle",
        "warning",
        variables(variable("MALLOC_CONF", CONF), variable("MALLOC_ARENA_MAX", kind="jemalloc")),
        variable("MALLOC_ARENA_MAX"),
    ),
    (
        "variable-idle",
        "warning",
        variable("MALLOC_CONF", CONF),
        variable("MALLOC_CONF", CONF, kind="jemalloc"),
    ),
    (
        "variable-idle",
        "warning",
        variable("TCMALLOC_RELEASE_RATE", kind="mimalloc"),
        variable("MIMALLOC_PURGE_DELAY", kind="mimalloc"),
    ),
    (
        "variable-idle",
        "warning",
        variable("GLIBC_TUNABLES", "glibc.malloc.arena_max=2", kind="mimalloc"),
        variable("GLIBC_TUNABLES", "glibc.rtld.nns=4", kind="mimalloc"),
    ),
    (
        "jemalloc-no-background",
        "note",
        variable("MALLOC_CONF", "dirty_decay_ms:1000", kind="jemalloc"),
        variable("MALLOC_CONF", CONF, kind="jemalloc"),
    ),
    ("jemalloc-no-background", "note", allocator("jemalloc"), allocator("glibc")),
    ("numpy-huge-pages", "note", without_numpy(), without_numpy(kind="jemalloc")),
    ("numpy-huge-pages", "note", without_numpy(), variable("OTHER")),
    ("numpy-huge-pages", "note", without_numpy(), without_numpy(pages="always")),
    (
        "torch-conf-twice",
        "warning",
        variables(
            variable("PYTORCH_ALLOC_CONF", "expandable_segments:True"),
            variable("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128"),
        ),
        variables(variable("PYTORCH_ALLOC_CONF"), variable("PYTORCH_CUDA_ALLOC_CONF")),
    ),
    (
        "preload-missing",
        "problem",
        preload("/nowhere/libx.so", "glibc", there=False, serves=None),
        preload("/usr/lib/libx.so", "glibc", there=True, serves=None),
    ),
    (
        "preload-idle",
        "problem",
        preload(JEMALLOC, "glibc", there=True),
        preload(JEMALLOC, "jemalloc", there=True),
    ),
    ("allocator-unknown", "warning", allocator("musl"), allocator("mimalloc")),
    ("tcmalloc-keeps", "note", allocator("tcmalloc"), allocator("mimalloc")),
    ("setting-bad", "problem", settings(error="MEMWEIR_TUNE: no such name"), settings(Settings())),
    ("budget-over-limit", "warning", settings(budget=16 * GIB), settings(budget=15 * GIB)),
    (
        "budget-over-limit",
        "warning",
        settings(Settings(low_memory=True), budget=16 * GIB),
        settings(Settings(low_memory=True), budget=15 * GIB),
    ),
    (
        "budget-over-limit",
        "problem",  # somebody said so
        settings(Settings(cache_budget="16 GiB"), budget=16 * GIB),
        settings(Settings(cache_budget="15 GiB"), budget=15 * GIB),
    ),
    ("tune-failed", "warning", tuned(why="OSError: no"), tuned()),
    ("tune-late", "warning", tuned(late="threads run"), tuned()),
    ("tune-refused", "note", tuned(knobs=[REFUSED]), tuned(knobs=[TAKEN])),
    ("tune-other", "note", tuned("models"), tuned("images")),
]
ELSEWHERE = {"pair-broken", "undeclared-missing"}


def test_a_sound_machine_has_nothing() -> None:
    assert found(sound()) == []


@pytest.mark.parametrize(
    ("name", "severity", "appears", "absent"), CASES, ids=[case[0] for case in CASES]
)
def test_a_finding(name: str, severity: str, appears: Change, absent: Change) -> None:
    facts = sound()
    appears(facts)
    (one,) = {found.severity for found in found(facts) if found.name == name}
    assert one == severity
    assert names(facts) - {name} <= {"throttled-above", "limit-below-ram", "variable-idle"}
    for each in found(facts):
        assert each.what
        assert each.do
    other = sound()
    absent(other)
    assert name not in names(other)


def test_every_finding_is_tried() -> None:
    told: set[str] = set()
    for path in Path(doctor.__file__).parent.glob("*.py"):
        told |= set(re.findall(r'^\s+"([a-z]+(?:-[a-z]+)+)"[,\s]', path.read_text(), re.MULTILINE))
        told |= set(re.findall(r'"(throttled(?:-above)?)"', path.read_text()))
    assert told == {case[0] for case in CASES} | ELSEWHERE


def test_the_worst_comes_first() -> None:
    facts = sound()
    for _, _, appears, _ in CASES:
        appears(facts)
    order = [one.severity for one in found(facts)]
    assert order == sorted(order, key=("problem", "warning", "note").index)
    assert set(order) == {"problem", "warning", "note"}
