"""Memory cgroups of a test's own, where this process may make some."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["Group", "own_group"]


class Group:
    """A memory cgroup of either version."""

    def __init__(self, path: Path, *, v2: bool) -> None:
        self.path = path
        self.v2 = v2
        self.limit_file = path / ("memory.max" if v2 else "memory.limit_in_bytes")

    def limit(self, nbytes: int | None) -> None:
        text = ("max" if self.v2 else "-1") if nbytes is None else str(nbytes)
        self.limit_file.write_text(text)

    def charge(self) -> int:
        name = "memory.current" if self.v2 else "memory.usage_in_bytes"
        return int((self.path / name).read_text())

    def adopt(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def child(self, name: str) -> Group:
        path = self.path / name
        path.mkdir()
        if self.v2:
            (self.path / "cgroup.subtree_control").write_text("+memory")
        return Group(path, v2=self.v2)


@contextmanager
def own_group(name: str) -> Iterator[Group]:
    """A new group, removed afterwards with those below it; skips where there can be none."""
    reasons = []
    for mount, v2 in ((Path("/sys/fs/cgroup/memory"), False), (Path("/sys/fs/cgroup"), True)):
        path = mount / f"memweir-test-{os.getpid()}-{name}"
        if v2 and "memory" not in _words(mount / "cgroup.subtree_control"):
            reasons.append(f"{mount} has no memory controller to give")
            continue
        try:
            path.mkdir()
        except OSError as error:
            reasons.append(f"{mount}: {error.strerror}")
            continue
        try:
            if (path / ("memory.max" if v2 else "memory.limit_in_bytes")).exists():
                yield Group(path, v2=v2)
                return
            reasons.append(f"{path} limits no memory")
        finally:
            for below in sorted(path.glob("*/"), reverse=True):
                below.rmdir()
            path.rmdir()
    pytest.skip(f"no memory cgroup can be made here: {'; '.join(reasons)}")


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
