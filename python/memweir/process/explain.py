"""Where the resident bytes of this process are, down to those that nobody accounts for."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from memweir._core import Memory, memory
from memweir.pixels.live import live_caches
from memweir.process.heap import Heap, heap
from memweir.sizes import format_size

__all__ = ["Explanation", "Part", "explain"]

Place = Literal["anonymous", "heap", "device"]


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes with an owner; ``None`` where the owner does not say.

    ``place`` is ``"anonymous"`` for a part of the anonymous memory, ``"heap"`` for what is counted
    there already as heap in use, and ``"device"`` for what is not in this machine's memory.
    ``at_most`` marks an upper bound.
    """

    name: str
    bytes: int | None
    place: Place = "anonymous"
    note: str = ""
    at_most: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Resident bytes by owner. Printable, in a notebook too.

    ``resident`` is ``anon + file + shmem``, as the kernel counts, and ``anon`` is the sum of the
    parts in the place ``"anonymous"`` and of ``unexplained``. That is what is left: Python's small
    objects, stacks, memory that libraries map by themselves. It is negative where owners count
    more than is there: memory that was asked for and not touched yet, or free parts of the heap
    whose pages the system has back already.

    All were read one after the other: what other threads do meanwhile shows as unexplained.
    """

    memory: Memory
    heap: Heap
    resident: int | None
    anon: int | None
    file: int | None
    shmem: int | None
    parts: tuple[Part, ...]
    unexplained: int | None
    seconds: float
    """How long looking took."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        names = ("resident", "anon", "file", "shmem", "unexplained", "seconds")
        return {
            **{name: getattr(self, name) for name in names},
            "parts": [part.as_dict() for part in self.parts],
            "memory": self.memory.as_dict(),
            "heap": self.heap.as_dict(),
        }

    def __str__(self) -> str:
        rows = [("  " * depth + name, size, note) for depth, name, size, note in self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = (f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="padding-left:{1 + 1.5 * depth}em;text-align:left">{html.escape(name)}'
            f'</td><td style="text-align:right">{html.escape(size)}</td>'
            f'<td style="text-align:left">{html.escape(note)}</td></tr>'
            for depth, name, size, note in self._rows()
        )
        return f"<table>{rows}</table>"

    def _rows(self) -> Iterator[tuple[int, str, str, str]]:
        """Depth, name, size and note of each line."""
        yield 0, "resident", _size(self.resident), ""
        yield 1, "files", _size(self.file), "pages of mapped files: programs, libraries, weights"
        yield 1, "shared memory", _size(self.shmem), ""
        yield 1, "anonymous", _size(self.anon), ""
        for part in self._at("anonymous"):
            yield 2, part.name, _size(part.bytes, at_most=part.at_most), part.note
        note = "Python's small objects, stacks, what libraries map"
        if self.unexplained is not None and self.unexplained < 0:
            note = "counted above, but not there: not touched yet, or given back already"
        yield 2, "unexplained", _size(self.unexplained), note
        for title, place in (("counted as heap in use", "heap"), ("on devices", "device")):
            for number, part in enumerate(self._at(place)):
                if number == 0:
                    yield 0, title, "", ""
                yield 1, part.name, _size(part.bytes, at_most=part.at_most), part.note
        if self.memory.swap:
            yield 0, "swapped out", _size(self.memory.swap), ""
        if self.memory.charge is not None:
            yield 0, "charged to the cgroup", _size(self.memory.charge), "with its other processes"
        if self.memory.limit is not None:
            yield 0, "limit", _size(self.memory.limit), self.memory.limit_source or ""

    def _at(self, place: str) -> list[Part]:
        return [part for part in self.parts if part.place == place]


def explain() -> Explanation:
    """Looks once at everything that says what it holds: for a person, not for a loop.

    Imports nothing, collects no garbage and changes nothing. Libraries are asked if they are
    imported already.
    """
    start = time.perf_counter()
    now = memory(full=True)
    holds = heap()
    parts = (*_heap(holds), *_caches(), *_libraries())
    anon = unexplained = None
    if now.rss is not None and now.file is not None and now.shmem is not None:
        anon = now.rss - now.file - now.shmem
        unexplained = anon - sum(part.bytes or 0 for part in parts if part.place == "anonymous")
    seconds = time.perf_counter() - start
    return Explanation(now, holds, now.rss, anon, now.file, now.shmem, parts, unexplained, seconds)


def _heap(holds: Heap) -> Iterator[Part]:
    arenas = f", {_count(holds.arenas, 'arena', 'arenas')}" if holds.arenas else ""
    yield Part("heap in use", holds.in_use, note=f"handed out by {holds.allocator}{arenas}")
    yield Part("heap retained", holds.free, note="what memweir.trim() may give back", at_most=True)


def _caches() -> Iterator[Part]:
    for cache in live_caches():
        stats = cache.stats()
        budget = f"{_count(stats.entries, 'entry', 'entries')}, of {format_size(stats.budget)}"
        yield Part(f"pixel cache {cache.name!r}", stats.bytes, note=budget)
        if stats.lent_bytes:
            yield Part(f"lent by {cache.name!r}", stats.lent_bytes, note="arrays in callers' hands")


def _libraries() -> Iterator[Part]:
    for module, name, ask in _POOLS:
        found = sys.modules.get(module)
        if found is None:
            continue
        try:
            # What is in the module, and not what it would import when asked.
            yield from ask(vars(found))
        except Exception as error:
            # In the middle of its import, of another version, or not what its name says.
            yield Part(name, None, note=f"does not say: {type(error).__name__}")


def _pyarrow(module: dict[str, Any]) -> Iterator[Part]:
    pool = module["default_memory_pool"]()
    backend, held = pool.backend_name, int(pool.bytes_allocated())
    if held:
        # Its other backends are allocators of its own, beside the process's.
        place: Place = "heap" if backend == "system" else "anonymous"
        yield Part(f"pyarrow's pool ({backend})", held, place)


def _pillow(module: dict[str, Any]) -> Iterator[Part]:
    core = module["core"]
    blocks = core.get_stats()["blocks_cached"]
    if blocks:
        held = blocks * core.get_block_size()
        yield Part("Pillow's free blocks", held, "heap", at_most=True)


def _torch(module: dict[str, Any]) -> Iterator[Part]:
    cuda = module["cuda"]
    if not cuda.is_initialized():
        return
    for device in range(cuda.device_count()):
        held, used = int(cuda.memory_reserved(device)), int(cuda.memory_allocated(device))
        if held:
            note = f"{format_size(used)} in use"
            yield Part(f"torch on cuda:{device}", held, "device", note)


def _sessions(module: dict[str, Any]) -> Iterator[Part]:
    for session in list(module["live"]):
        if not session.closed:
            mapped = f"{format_size(session.size.mapped)} of files are mapped"
            yield Part(f"{session!r}", session.size.anon, "heap", note=f"when loaded; {mapped}")


_Ask = Callable[[dict[str, Any]], Iterator[Part]]
_POOLS: tuple[tuple[str, str, _Ask], ...] = (
    ("pyarrow", "pyarrow", _pyarrow),
    ("PIL.Image", "Pillow", _pillow),
    ("torch", "torch", _torch),
    ("memweir.ort.handle", "ONNX sessions", _sessions),
)


def _size(nbytes: int | None, *, at_most: bool = False) -> str:
    if nbytes is None:
        return "unknown"
    return ("≤ " if at_most else "") + format_size(nbytes)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
