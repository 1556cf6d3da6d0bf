"""How many processors this process may use: those it is bound to, and what its cgroups grant."""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["processors", "quota", "usable"]

_V2 = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_V1 = ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct")


def processors(root: Path = Path("/")) -> int:
    """Threads that have a processor each: never more than the cgroups' quota, rounded up."""
    granted = quota(root)
    bound = usable()
    return bound if granted is None else max(1, min(bound, ceil(granted)))


def usable() -> int:
    """Processors that this process may run on, whatever its share of them."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def quota(root: Path = Path("/")) -> float | None:
    """Processors that the cgroups grant: the least of this one and those around it."""
    granted = (_granted(group) for group in _groups(root))
    return min((cpus for cpus in granted if cpus is not None), default=None)


def _groups(root: Path) -> Iterator[Path]:
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and controllers == "":
            mounts = _V2
        elif "cpu" in controllers.split(","):
            mounts = _V1
        else:
            continue
        for place in mounts:
            mount = root / place.lstrip("/")
            group = mount / path.lstrip("/")
            for level in (group, *group.parents):
                yield level
                if level == mount:
                    break


def _granted(group: Path) -> float | None:
    text = _text(group / "cpu.max")
    if text is None:
        most, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    else:
        most, _, period = text.partition(" ")
    if most is None or period is None or not (most.isdecimal() and period.isdecimal()):
        return None
    return int(most) / int(period) if int(period) else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except (OSError, ValueError):
        return None
