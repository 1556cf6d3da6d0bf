"""What may still be taken, where groups set limits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from memweir.cli import machine


class Group:
    """Files of a memory cgroup."""

    def __init__(self, folder: Path, **files: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    def limit(self, name: str, size: int) -> SimpleNamespace:
        return SimpleNamespace(kind=name, source=str(self.folder / name), bytes=size)


def here(
    monkeypatch: pytest.MonkeyPatch, *bounds: SimpleNamespace, **now: int | None
) -> int | None:
    monkeypatch.setattr(machine, "limits", lambda: list(bounds))
    seen = {"available": None, "working_set": None, **now}
    monkeypatch.setattr(machine, "memory", lambda: SimpleNamespace(**seen))
    return machine.available()


def test_every_limit_counts_with_what_its_group_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = "anon 1\ninactive_file 100000\n"
    outer = Group(tmp_path / "app", memory__current="900000\n", memory__stat=stat)
    own = Group(tmp_path / "app/worker", memory__current="300000\n", memory__stat=stat)
    bounds = outer.limit("memory.max", 1_000_000), own.limit("memory.high", 900_000)
    assert here(monkeypatch, *bounds, available=10**9) == 200_000
    assert here(monkeypatch, *bounds[1:], available=10**9) == 700_000
    assert here(monkeypatch, *bounds, available=100) == 100


def test_v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = "inactive_file 1\ntotal_inactive_file 400\n"
    group = Group(tmp_path / "g", memory__usage_in_bytes="1000\n", memory__stat=stat)
    assert here(monkeypatch, group.limit("memory.limit_in_bytes", 5000), available=10**9) == 4400


def test_a_group_out_of_sight_counts_what_is_known_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Group(tmp_path / "g").limit("memory.max", 5000)
    assert here(monkeypatch, gone, available=10**9, working_set=2000) == 3000
    assert here(monkeypatch, gone) == 5000
    assert here(monkeypatch, gone, working_set=9000) == 0


def test_what_is_no_group_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(kind="RLIMIT_AS", source="RLIMIT_AS", bytes=5)
    assert here(monkeypatch, other, available=77) == 77
    assert here(monkeypatch, other) is None


def test_this_machine_has_some() -> None:
    found = machine.available()
    assert found is None or found > 0
