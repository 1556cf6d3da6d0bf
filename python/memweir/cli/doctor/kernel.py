"""How the kernel hands out memory: huge pages, overcommit, maps, pressure, swap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .finding import Facts, Finding
from .host import Host

__all__ = ["facts", "findings"]

MAPS = 65_530
"""The kernel's own ``vm.max_map_count``."""


def facts(host: Host) -> dict[str, Any]:
    memory = "/proc/sys/vm"
    return {
        "huge_pages": host.chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "huge_pages_defrag": host.chosen("/sys/kernel/mm/transparent_hugepage/defrag"),
        "overcommit_memory": host.number(f"{memory}/overcommit_memory"),
        "max_map_count": host.number(f"{memory}/max_map_count"),
        "maps": _lines(host.text("/proc/self/maps")),
        "pressure": host.text("/proc/pressure/memory") is not None,
        "swap": _swap(host),
    }


def findings(facts: Facts) -> Iterator[Finding]:
    seen = facts["kernel"]
    if seen["huge_pages"] == "always":
        yield Finding(
            "warning",
            "huge-pages-always",
            "transparent huge pages are always on: the kernel fills free parts of heaps in again "
            "after they were given back",
            "set /sys/kernel/mm/transparent_hugepage/enabled to madvise; memweir asks for huge "
            "pages where they help",
        )
    if seen["huge_pages"] == "never":
        yield Finding(
            "note",
            "huge-pages-never",
            "transparent huge pages are off: large entries of a cache take more page faults",
            "set /sys/kernel/mm/transparent_hugepage/enabled to madvise if you may",
        )
    if seen["overcommit_memory"] == 2:
        yield Finding(
            "warning",
            "overcommit-strict",
            "vm.overcommit_memory is 2: what is reserved counts, not only what is used, and memory "
            "is refused long before it is full",
            "set vm.overcommit_memory to 0, or raise vm.overcommit_ratio",
        )
    most, now = seen["max_map_count"], seen["maps"]
    if most is not None and most < MAPS:
        yield Finding(
            "warning",
            "maps-few",
            f"vm.max_map_count is {most}, less than the kernel's own {MAPS}: maps may be refused "
            "while there is memory",
            f"sysctl -w vm.max_map_count={MAPS} (or more) on the host",
        )
    elif most is not None and now is not None and now > 0.8 * most:
        yield Finding(
            "warning",
            "maps-many",
            f"this process has {now} of the {most} memory maps that it may have",
            "raise vm.max_map_count on the host",
        )
    if not seen["pressure"]:
        yield Finding(
            "note",
            "pressure-unreadable",
            "/proc/pressure/memory cannot be read: memory pressure (PSI) is not told",
            "nothing depends on it; kernels have it with psi=1 on their command line",
        )
    if seen["swap"] == 0:
        yield Finding(
            "note",
            "swap-none",
            "there is no swap: at the limit the process is killed, with little or no pressure told "
            "before",
            "leave room between budgets and the limit: bytes in use grow before anybody can act",
        )


def _lines(text: str | None) -> int | None:
    return None if text is None else text.count("\n") + 1


def _swap(host: Host) -> int | None:
    for line in (host.text("/proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()
        if name == "SwapTotal" and number and number[0].isdecimal():
            return int(number[0]) * 1024
    return None
