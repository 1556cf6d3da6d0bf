"""Where the resident bytes are, and that they add up."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import memweir as mw
from memweir.process.explain import Part

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
MIB = 1 << 20


def part(name: str, explanation: Any = None) -> Part:
    (found,) = [p for p in (explanation or mw.explain()).parts if p.name == name]
    return found


def run(script: str) -> None:
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@linux
def test_45_the_parts_add_up_to_what_is_resident() -> None:
    cache = mw.PixelCache("8 MiB", name="sum")
    cache.put("a", np.ones(MIB, np.uint8))
    found = mw.explain()
    assert found.resident is not None
    assert found.anon is not None
    assert found.unexplained is not None
    assert found.resident == found.anon + (found.file or 0) + (found.shmem or 0)
    parts = [p.bytes or 0 for p in found.parts if p.place == "anonymous"]
    assert found.anon == sum(parts) + found.unexplained
    status = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]
    assert found.resident == pytest.approx(int(status) * 1024, abs=4 * MIB)
    assert found.anon == pytest.approx(found.memory.anon, abs=4 * MIB)


@linux
def test_each_kind_of_memory_is_found_under_its_name() -> None:
    run("""
import mmap
import memweir as mw
import numpy as np

MIB = 1 << 20

def look():
    found = mw.explain()
    sizes = {part.name: part.bytes for part in found.parts}
    return {**sizes, "unexplained": found.unexplained, "file": found.file, "shmem": found.shmem}

def grew(name, mib, do):
    before = look()
    kept = do()
    after = look()
    change = {key: after[key] - before.get(key, 0) for key in after if key != "heap retained"}
    assert abs(change.pop(name) - mib * MIB) < 3 * MIB, (name, before, after)
    assert all(abs(other) < 3 * MIB for other in change.values()), (name, change)
    return kept

def map_anonymous():
    area = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.write(b"x" * (64 * MIB))
    return area

def map_shared():
    area = mmap.mmap(-1, 64 * MIB)
    area.write(b"x" * (64 * MIB))
    return area

def load(cache=mw.PixelCache("100 MiB", name="photos")):
    noise = np.random.default_rng(0).integers(256, size=40 * MIB, dtype=np.uint8)
    assert cache.put("a", noise)
    return cache

look(), np.random.default_rng(0)
kept = [
    grew("heap in use", 112, lambda: np.ones(112 * MIB, np.uint8)),  # jemalloc has this size, too
    grew("unexplained", 64, map_anonymous),
    grew("shmem", 64, map_shared),
    grew("pixel cache 'photos'", 40, load),
]
# Asked for and not touched: counted in the heap, and not there.
array = np.empty(200 * MIB, np.uint8)
found = mw.explain()
assert found.unexplained < 0
line = next(line for line in str(found).splitlines() if "unexplained" in line)
assert "-" in line and "not there" in line, line
""")


def test_caches_and_what_they_lend_are_named() -> None:
    cache = mw.PixelCache("64 MiB", name="mine")
    values = np.linspace(0, 1, 256, dtype=np.float32)
    noise = np.random.default_rng(0).integers(256, size=(3, 512, 512))
    assert cache.put("a", values[noise])
    assert part("pixel cache 'mine'").bytes == cache.stats().bytes > 0
    assert "lent by 'mine'" not in str(mw.explain())
    array = cache.get("a")["array"]  # type: ignore[index]
    assert part("lent by 'mine'").bytes == cache.stats().lent_bytes >= array.nbytes
    del array, cache
    assert "'mine'" not in str(mw.explain())


def test_names_are_text_and_not_markup() -> None:
    cache = mw.PixelCache("1 MiB", name="<b>a & b</b>\nanother line")
    found = mw.explain()
    shown = found._repr_html_()
    assert "<b>" not in shown
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in shown
    assert shown.count("<tr>") == shown.count("</tr>") == len(str(found).splitlines())
    del cache


def test_as_plain_data() -> None:
    found = mw.explain()
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain["resident"] == found.resident
    assert [p["name"] for p in plain["parts"]] == [p.name for p in found.parts]
    assert {"memory", "heap", "unexplained", "seconds"} <= plain.keys()
    assert found.seconds > 0


def test_columns_are_aligned() -> None:
    lines = str(mw.explain()).splitlines()
    unit = {line.index("iB  ") for line in lines if "iB  " in line}
    assert len(unit) == 1, lines
    assert max(map(len, lines)) <= 120


def test_it_collects_no_garbage_and_imports_nothing() -> None:
    run("""
import gc, sys
import memweir as mw
mw.explain()
runs = []
gc.callbacks.append(lambda phase, info: runs.append(phase))
gc.disable()
before = set(sys.modules)
str(mw.explain()), mw.explain()._repr_html_(), mw.explain().as_dict()
assert not runs
assert set(sys.modules) == before
assert not {"PIL", "torch", "pyarrow", "typer", "rich"} & before
""")
    assert gc.isenabled()


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(content)
    return made


def test_pools_of_libraries_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def pool(backend: str, held: int) -> Any:
        return lambda: SimpleNamespace(backend_name=backend, bytes_allocated=lambda: held)

    def others(found: Any) -> int:
        return sum(p.bytes or 0 for p in found.parts if p.place == "anonymous")

    # An allocator of its own, beside the heap.
    monkeypatch.setitem(
        sys.modules, "pyarrow", module("pyarrow", default_memory_pool=pool("mimalloc", 5 * MIB))
    )
    found = mw.explain()
    arrow = part("pyarrow's pool (mimalloc)", found)
    assert (arrow.bytes, arrow.place) == (5 * MIB, "anonymous")
    assert found.anon is None or found.anon == others(found) + (found.unexplained or 0)
    # The process's own: counted in the heap already.
    monkeypatch.setitem(
        sys.modules, "pyarrow", module("pyarrow", default_memory_pool=pool("system", 6 * MIB))
    )
    found = mw.explain()
    assert part("pyarrow's pool (system)", found).place == "heap"
    assert found.anon is None or found.anon == others(found) + (found.unexplained or 0)
    assert "counted as heap in use" in str(found)

    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        memory_reserved=lambda device: device * 8 * MIB,
        memory_allocated=lambda device: device * 3 * MIB,
    )
    monkeypatch.setitem(sys.modules, "torch", module("torch", cuda=cuda))
    found = mw.explain()
    device = part("torch on cuda:1", found)
    assert (device.bytes, device.place, device.note) == (8 * MIB, "device", "3.0 MiB in use")
    assert "cuda:0" not in str(found)
    cuda.is_initialized = lambda: False
    assert "torch" not in str(mw.explain())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pyarrow", {}),  # in the middle of its import
        ("pyarrow", {"default_memory_pool": lambda: 1 / 0}),
        ("torch", {}),
        ("torch", {"cuda": SimpleNamespace(is_initialized=lambda: True)}),
        ("PIL.Image", {"core": None}),
    ],
)
def test_a_library_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, content: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, name, module(name, **content))
    (silent,) = [p for p in mw.explain().parts if p.note.startswith("does not say")]
    assert silent.bytes is None
    assert "unknown" in str(mw.explain())


def test_a_module_is_not_asked_for_what_it_would_import(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    lazy = module("torch", __getattr__=asked.append)
    monkeypatch.setitem(sys.modules, "torch", lazy)
    mw.explain()
    assert not asked
    monkeypatch.setitem(sys.modules, "torch", None)
    mw.explain()


def test_where_the_kernel_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``/proc`` hidden."""
    from memweir.process import explain as module_of

    fields = dict.fromkeys(("rss", "file", "shmem", "swap", "charge", "limit", "limit_source"))
    monkeypatch.setattr(module_of, "memory", lambda full: SimpleNamespace(**fields))
    found = mw.explain()
    assert found.resident is found.anon is found.unexplained is None
    assert "unknown" in str(found)
    assert part("heap in use", found).name in str(found)
