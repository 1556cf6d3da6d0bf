"""Memory that this process may still take, as the kernel and its cgroups tell it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Group", "available", "groups", "meminfo"]

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


class Group(NamedTuple):
    """The memory controller of one cgroup. Sizes are bytes; ``limit`` is ``None`` for none."""

    version: int
    limit: int | None
    used: int
    """Charged to the group, less the file pages it would drop first."""


def groups() -> Iterator[Group]:
    """The groups this process counts in, from its own to the root of what it can see."""
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _levels(CGROUP, path, 2, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes"
            yield from _levels(CGROUP / "memory", path, 1, *names)


def available() -> int | None:
    """Bytes that can be taken before the kernel or a cgroup refuses, or ``None`` if unknown."""
    room = [g.limit - g.used for g in groups() if g.limit is not None]
    free = meminfo().get("MemAvailable")
    if free is not None:
        room.append(free)
    return max(0, min(room)) if room else None


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes; empty where there is none."""
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {name.rstrip(":"): int(value) * 1024 for name, value, *unit in fields if unit}


def _levels(mount: Path, path: str, version: int, limit: str, usage: str) -> Iterator[Group]:
    group = mount / path.lstrip("/")
    for level in (group, *group.parents):
        try:
            used = int((level / usage).read_text())
            most = (level / limit).read_text().strip()
            stat = dict(line.split() for line in (level / "memory.stat").read_text().splitlines())
        except OSError:
            pass  # no such file at this level, as at a v2 root or in a container's view
        else:
            idle = int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
            yield Group(version, _bounded(most), max(0, used - idle))
        if level == mount:
            return


def _bounded(text: str) -> int | None:
    """v2 writes ``max`` for no limit, v1 a number larger than any memory."""
    return int(text) if text.isdecimal() and int(text) < 1 << 60 else None
