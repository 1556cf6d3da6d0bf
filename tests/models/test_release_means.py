"""What a release works with unless it is given something else: the trim, and devices in use."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from memweir.models.release import Doomed, Release, settle
from memweir.process import trim as trims


class Model:
    """Something that can be referred to weakly."""


def doomed() -> Doomed:
    return Doomed("a", Model())


def test_the_trim_forces_no_second_collection_and_takes_every_other_step():
    report = settle()
    assert report.step("gc").skipped
    assert {"buffers", "allocator", "arenas"} <= {step.name for step in report.steps}


def test_releases_that_bring_little_slow_nobodys_periodic_trims():
    pace = trims._trims.pace
    settle()
    before = pace._last["allocator"].doublings
    for _ in range(3):
        settle()
    assert pace._last["allocator"].doublings <= before


def test_a_trim_that_others_were_aboard_of_is_done_again(monkeypatch):
    joined = iter([SimpleNamespace(joined=2), SimpleNamespace(joined=1), None])
    engine = SimpleNamespace(trim=lambda level, **given: next(joined))
    monkeypatch.setattr(trims, "_trims", engine)
    assert settle().joined == 1


class Backend:
    def __init__(self, done: list[str], name: str, *, started: bool) -> None:
        self.done, self.name, self.started = done, name, started

    def is_initialized(self) -> bool:
        return self.started

    def device_count(self) -> int:
        return 2

    def memory_reserved(self, index: int) -> int:
        return 10 + index

    def empty_cache(self) -> None:
        self.done.append(self.name)

    def is_available(self) -> bool:
        return self.started

    def driver_allocated_memory(self) -> int:
        return 100


def fake_torch(monkeypatch, *started: str) -> list[str]:
    done: list[str] = []
    backends = {
        name: Backend(done, name, started=name in started) for name in ("cuda", "xpu", "mps")
    }
    torch = SimpleNamespace(
        cuda=backends["cuda"],
        xpu=backends["xpu"],
        backends=SimpleNamespace(mps=backends["mps"]),
        _C=SimpleNamespace(_host_emptyCache=lambda: done.append("pinned")),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.mps", backends["mps"])
    return done


@pytest.mark.parametrize(
    ("started", "emptied", "held"),
    [
        ((), [], None),
        (("cuda",), ["cuda", "pinned"], 21),
        (("xpu",), ["xpu"], 21),
        (("mps",), ["mps"], 100),
        (("cuda", "xpu", "mps"), ["cuda", "pinned", "xpu", "mps"], 142),
    ],
)
def test_only_caches_of_devices_in_use_are_emptied(monkeypatch, started, emptied, held):
    done = fake_torch(monkeypatch, *started)
    report = Release(collect=int, trim=int)([doomed()])
    assert done == emptied
    assert report.before.device == held


def test_a_runtime_that_nobody_imported_stays_so(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    report = Release(collect=int, trim=int)([doomed()])
    assert not report.errors
    assert "torch" not in sys.modules
