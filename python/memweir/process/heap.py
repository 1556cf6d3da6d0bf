"""The allocator that this process really uses, and what it holds."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from memweir import _core
from memweir.pixels.live import live_caches
from memweir.sizes import format_size

__all__ = ["Allocator", "Heap", "allocator", "heap"]


@dataclass(frozen=True, slots=True)
class Allocator:
    """Who answers ``malloc`` here.

    ``kind`` is ``"glibc"``, ``"jemalloc"``, ``"mimalloc"``, ``"tcmalloc"``, ``"macos"``,
    ``"musl"``, ``"windows"`` or ``"unknown"``; ``version`` as it says it, and ``object`` the
    library or program that holds it, where the system tells.
    """

    kind: str
    version: str | None
    object: str | None

    def __str__(self) -> str:
        # jemalloc puts the whole commit into its version
        version = self.version.split("-")[0] if self.version else None
        return " ".join(part for part in (self.kind, version) if part)


@dataclass(frozen=True, slots=True)
class Heap:
    """What the allocator holds, in bytes as it counts them; ``None`` where it does not.

    ``in_use`` is handed out. ``free`` is an upper bound of what it could give back: the free parts
    of pages in use count, and in glibc so do pages that went back to the system already. ``mapped``
    was taken from the system. ``arenas`` are the heaps that threads share out among themselves, and
    ``tops`` the free bytes at their ends, which glibc's ``malloc_trim`` does not reach.

    ``ours`` are bytes of live :class:`~memweir.PixelCache` objects, which are not in this heap.
    ``seconds`` is how long asking took: glibc walks all that is free, under its locks.
    """

    allocator: Allocator
    in_use: int | None
    free: int | None
    mapped: int | None
    arenas: int | None
    tops: int | None
    ours: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        sizes = {"in use": self.in_use, "free at most": self.free, "mapped": self.mapped}
        parts = [f"{format_size(size)} {name}" for name, size in sizes.items() if size is not None]
        if self.arenas is not None:
            parts.append(f"{self.arenas} arenas")
        parts.append(f"{format_size(self.ours)} in pixel caches beside it")
        return f"{self.allocator}: {', '.join(parts)}"


def allocator() -> Allocator:
    """The live allocator; found out once, and then at no cost."""
    return Allocator(*_core.heap_allocator())


def heap() -> Heap:
    """Asks the allocator; for a look now and then, not for every request."""
    start = time.perf_counter()
    in_use, free, mapped, arenas, tops = _core.heap_stats()
    seconds = time.perf_counter() - start
    ours = sum(cache._stats()["bytes"] for cache in live_caches())
    return Heap(allocator(), in_use, free, mapped, arenas, tops, ours, seconds)
