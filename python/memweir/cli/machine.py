"""Memory that this process may still take, as the kernel and its cgroups tell it."""

from __future__ import annotations

from pathlib import Path

from memweir._core import limits, memory

__all__ = ["available"]


def available() -> int | None:
    """Bytes that can be taken before the kernel or a cgroup refuses, or ``None`` if unknown."""
    now = memory()
    room = [] if now.available is None else [now.available]
    for bound in limits():
        if bound.source.startswith("/"):
            # Others may live in the group that sets the limit: what is used is what it says.
            used = _used(Path(bound.source).parent)
            room.append(bound.bytes - (now.working_set or 0 if used is None else used))
    return max(0, min(room)) if room else None


def _used(group: Path) -> int | None:
    """Charged to a group, less the file pages it would drop first."""
    for usage in ("memory.current", "memory.usage_in_bytes"):
        try:
            used = int((group / usage).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            idle = int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
        except (OSError, ValueError):
            continue  # of the other version, or out of sight
        return max(0, used - idle)
    return None
