"""What bounds this process, who says so, and what containers make of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memweir._core import limits, memory
from memweir.sizes import format_size

from .finding import Facts, Finding
from .host import Host

__all__ = ["facts", "findings"]

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SHARED = 64 << 20
"""What container engines give ``/dev/shm`` when nobody says."""


def facts(host: Host) -> dict[str, Any]:
    now, bounds = memory(), limits()
    return {
        "ram": next((bound.bytes for bound in bounds if bound.kind == "host"), None),
        "available": now.available,
        "limit": now.limit,
        "limit_source": now.limit_source,
        "bounds": [
            {"kind": bound.kind, "source": bound.source, "bytes": bound.bytes} for bound in bounds
        ],
        "charge": now.charge,
        "working_set": now.working_set,
        "cgroup": controller(host),
        "cpus": host.cpus,
        "cpu_quota": quota(host),
        "shared_memory": _shared(host),
    }


def findings(facts: Facts) -> Iterator[Finding]:
    seen = facts["limits"]
    bounds = {bound["kind"]: bound for bound in reversed(seen["bounds"])}
    groups = [bound for bound in seen["bounds"] if bound["source"].startswith("/")]
    hard = min((b["bytes"] for b in groups if b["kind"] != "memory.high"), default=None)
    if hard is not None and seen["ram"] is not None and hard < seen["ram"]:
        yield Finding(
            "note",
            "limit-below-ram",
            f"the limit is {format_size(hard)} and the machine has {format_size(seen['ram'])}: "
            "libraries that ask the machine (psutil, /proc/meminfo) see the larger",
            'give budgets as percentages ("25%"): they are of the limit',
        )
    yield from _throttled(seen, groups, hard)
    yield from _used(seen, hard)
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        if name in bounds:
            yield Finding(
                "warning",
                "address-space-limited",
                f"{name} is {format_size(bounds[name]['bytes'])}: it counts what is reserved, and "
                "neither a trim nor an empty cache lowers it",
                "limit the cgroup (MemoryMax=, --memory) in place of ulimit",
                name,
            )
    yield from _threads(facts)
    shared = seen["shared_memory"]
    if shared is not None and hard is not None and shared > hard:
        yield Finding(
            "note",
            "shared-memory-counts",
            f"/dev/shm may hold {format_size(shared)}, and what is in it counts against the limit "
            f"of {format_size(hard)}",
            "give it a size below the limit (--shm-size, sizeLimit of an emptyDir)",
        )
    if shared is not None and shared <= _SHARED:
        yield Finding(
            "warning",
            "shared-memory-small",
            f"/dev/shm holds {format_size(shared)}: workers of a torch DataLoader end with a bus "
            "error when their tensors do not fit",
            "docker run --shm-size=1g, or an emptyDir with medium: Memory at /dev/shm",
        )


def _throttled(seen: dict[str, Any], groups: list[Any], hard: int | None) -> Iterator[Finding]:
    high = [bound for bound in groups if bound["kind"] == "memory.high"]
    if not high:
        return
    least = min(high, key=lambda bound: int(bound["bytes"]))
    if hard is not None and least["bytes"] >= hard:
        return
    reached = seen["charge"] is not None and seen["charge"] >= least["bytes"]
    yield Finding(
        "warning" if reached else "note",
        "throttled" if reached else "throttled-above",
        f"above memory.high, {format_size(least['bytes'])} in {least['source']}, the kernel slows "
        "the process down in place of telling it" + (": it is there now" if reached else ""),
        "keep budgets below it, or set memory.max alone",
    )


def _used(seen: dict[str, Any], hard: int | None) -> Iterator[Finding]:
    used = seen["working_set"]
    if hard is not None and used is not None and used > 0.9 * hard:
        yield Finding(
            "warning",
            "limit-near",
            f"{format_size(used)} of {format_size(hard)} are in use: the next large image may be "
            "the last",
            "lower budgets or raise the limit; mw.explain() says where the bytes are",
        )


def _threads(facts: Facts) -> Iterator[Finding]:
    seen, variables = facts["limits"], facts["environment"]["variables"]
    quota = seen["cpu_quota"]
    if quota is None or quota >= seen["cpus"] or any(name in variables for name in THREADS):
        return
    yield Finding(
        "warning",
        "threads-of-host",
        f"the quota is {quota:g} CPUs and the process may run on {seen['cpus']}: libraries start "
        "as many threads, and malloc makes up to eight arenas for each of them",
        f"set OMP_NUM_THREADS={max(1, round(quota))} before the process starts",
    )


def controller(host: Host) -> str | None:
    """The kind of cgroups that counts memory: ``"v1"``, ``"v2"``, or v1 beside a v2 tree."""
    kinds = set()
    for line in (host.text("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, _ = rest.partition(":")
        if colon and controllers == "":
            kinds.add("v2")
        elif "memory" in controllers.split(","):
            kinds.add("v1")
    if kinds == {"v1", "v2"}:
        return "v1 (hybrid)"
    return next(iter(kinds), None)


def quota(host: Host) -> float | None:
    """CPUs that the cgroups grant: the least of this one and those around it."""
    found = []
    for line in (host.text("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and controllers == "":
            mounts = "/sys/fs/cgroup", "/sys/fs/cgroup/unified"
        elif "cpu" in controllers.split(","):
            mounts = "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"
        else:
            continue
        for mount in map(Path, mounts):
            group = mount / path.lstrip("/")
            for level in (group, *group.parents):
                found.append(_granted(host, level))
                if level == mount:
                    break
    return min((cpus for cpus in found if cpus is not None), default=None)


def _granted(host: Host, group: Path) -> float | None:
    text = host.text(f"{group}/cpu.max")
    if text is None:
        text = f"{host.text(f'{group}/cpu.cfs_quota_us')} {host.text(f'{group}/cpu.cfs_period_us')}"
    most, _, period = text.partition(" ")
    if not (most.isdecimal() and period.isdecimal()) or int(period) == 0:
        return None
    return int(most) / int(period)


def _shared(host: Host) -> int | None:
    mounts = (host.text("/proc/self/mounts") or "").splitlines()
    if not any(line.split()[1:3] == ["/dev/shm", "tmpfs"] for line in mounts):
        return None
    try:
        found = os.statvfs(host.root / "dev/shm")
    except (AttributeError, OSError):
        return None
    return found.f_blocks * found.f_frsize or None  # 0: it has no size of its own
