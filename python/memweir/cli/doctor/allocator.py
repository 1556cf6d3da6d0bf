"""Who serves ``malloc`` in this process."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memweir.process.heap import heap

from .finding import Facts, Finding
from .host import Host

__all__ = ["facts", "findings"]

_GIVES_BACK = frozenset({"glibc", "jemalloc", "mimalloc", "tcmalloc", "macos"})


def facts(host: Host) -> dict[str, Any]:
    now = heap()
    return {
        "kind": now.allocator.kind,
        "version": now.allocator.version,
        "object": now.allocator.object,
        "libc": libc(),
        "in_use": now.in_use,
        "free": now.free,
        "arenas": now.arenas,
        "preload": preloaded(host),
    }


def findings(facts: Facts) -> Iterator[Finding]:
    seen = facts["allocator"]
    for library in seen["preload"]:
        if not library["there"]:
            yield Finding(
                "problem",
                "preload-missing",
                f"LD_PRELOAD names {library['name']}, which is not there: the loader went on "
                f"without it, and malloc is {seen['kind']}'s",
                "install it in the image, or correct the path (it differs between x86-64 and "
                "aarch64: /usr/lib/x86_64-linux-gnu, /usr/lib/aarch64-linux-gnu)",
                library["name"],
            )
        elif library["allocator"] not in (None, seen["kind"]):
            yield Finding(
                "problem",
                "preload-idle",
                f"LD_PRELOAD names {library['name']}, and malloc is {seen['kind']}'s all the same",
                "see what the loader says with LD_DEBUG=libs; where several allocators are "
                "preloaded, the first one serves",
                library["name"],
            )
    if seen["kind"] not in _GIVES_BACK:
        yield Finding(
            "warning",
            "allocator-unknown",
            f"the allocator is {seen['kind']}: memweir has no way to make it give memory back",
            "use an image with glibc, or preload jemalloc; caches give their bytes back anyway",
        )
    if seen["kind"] == "tcmalloc":
        yield Finding(
            "note",
            "tcmalloc-keeps",
            "tcmalloc keeps what was freed until it is told to release it",
            "call mw.trim() after large releases, or preload jemalloc",
        )


def libc() -> str:
    """The C library and, for glibc, its version."""
    name, version = platform.libc_ver()
    if name:
        return f"{name} {version}"
    musl = "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or "")
    return "musl" if musl else platform.system()


def preloaded(host: Host) -> list[dict[str, Any]]:
    """What LD_PRELOAD named when the process started, and whether the loader found it."""
    variables = host.environ if host.at_start is None else host.at_start
    maps = host.text("/proc/self/maps") or ""
    mapped = {line.rpartition("/")[2] for line in maps.splitlines() if "/" in line}
    found = []
    for name in variables.get("LD_PRELOAD", "").replace(":", " ").split():
        path = Path(name)
        real, given = path.name, True
        if "/" in name and "$" not in name:  # others are the loader's to find
            file = host.root / name.lstrip("/")
            real = file.resolve().name
            # Another of its name may be mapped; it may be itself, and replaced since.
            given = not path.is_absolute() or file.exists() or f" {name} (deleted)\n" in maps + "\n"
        # What is mapped ends in more of a version, or in "(deleted)".
        there = not maps or (given and any(f.startswith((path.name, real)) for f in mapped))
        kinds = (kind for kind in ("jemalloc", "mimalloc", "tcmalloc") if kind in path.name)
        found.append({"name": name, "there": there, "allocator": next(kinds, None)})
    return found
