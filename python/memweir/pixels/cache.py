"""A cache of pixels that never owns more bytes than its budget."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from memweir import _core
from memweir._flight import Flights, current, is_async
from memweir.pixels.live import register
from memweir.sizes import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Literal

    from memweir._core import Digest, Pixels

    Part: TypeAlias = Digest | bytes | str
    Key: TypeAlias = Part | tuple[Part, ...]
    Arrays: TypeAlias = Any | Mapping[str, Any]

__all__ = ["CacheStats", "PixelCache", "Spec"]

Mapping.register(_core.Pixels)


class Spec(NamedTuple):
    """One array of an entry: numpy's token of its dtype, its shape, its size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def _specs(layouts: Mapping[str, tuple[str, int, tuple[int, ...], int]]) -> dict[str, Spec]:
    # `Pixels.spec` calls this.
    return {name: Spec(dtype, shape, n) for name, (dtype, _, shape, n) in layouts.items()}


class CacheStats(NamedTuple):
    """A cache at one moment.

    ``bytes`` owned (pages, bookkeeping, evicted entries still in use, output buffers that are
    kept, what loads have put aside) out of ``budget``, and their ``peak_bytes``;
    ``logical_bytes`` of the arrays as users see them; ``pinned_bytes`` in
    use, which cannot be evicted; ``lent_bytes`` served from outside the budget and still in use.
    Since the start: ``hits``, ``misses``, ``joins`` (callers that waited for another's load),
    ``evictions``, ``refused`` (entries that did not fit).
    """

    entries: int
    bytes: int
    budget: int
    peak_bytes: int
    logical_bytes: int
    pinned_bytes: int
    lent_bytes: int
    hits: int
    misses: int
    joins: int
    evictions: int
    refused: int


class PixelCache(_core.Cache):
    """Arrays by key, least recently used first to go, within a strict byte budget.

    ``budget`` is bytes or text (``"2 GiB"``, ``"25%"`` of the memory limit); ``None`` takes
    :class:`~memweir.Settings`' default, 0 keeps nothing. Everything the cache owns counts,
    bookkeeping included, at every moment. ``compact`` is how entries may be stored; arrays come
    back bit for bit whatever it says.

    Keys are a :class:`~memweir.Digest`, ``bytes``, ``str`` or a tuple of those; ``"a"`` and
    ``b"a"`` are different keys. Values are an array (found under the name ``"array"``) or a
    mapping of names to arrays: numpy, of any dtype but object, or torch tensors on the CPU.

    Threads share it freely. A forked child keeps the entries it was born with, copy-on-write.
    """

    name: str
    compact: Literal["auto", "off"]
    _flights: Flights

    def __new__(
        cls,
        budget: int | str | None = None,
        *,
        name: str = "pixels",
        compact: Literal["auto", "off"] = "auto",
    ) -> PixelCache:
        if compact not in ("auto", "off"):
            raise ValueError(f'compact is "auto" or "off", not {compact!r}')
        from memweir import settings

        defaults = settings.first_use("PixelCache")
        size = parse_size(defaults.cache_budget if budget is None else budget)
        self = super().__new__(cls, size, compact == "auto")
        self.name = name
        self.compact = compact
        self._flights = Flights()
        register(self)
        return self

    def get_or_load(
        self, key: Key, load: Callable[[], Arrays], *, nbytes: int | None = None
    ) -> Pixels:
        """The entry of ``key``, loaded by one caller while the others wait.

        ``load()`` returns what :meth:`put` takes. ``nbytes``, the size of the arrays where it is
        known, is put aside before it runs: all of it with ``compact="off"``, else the share that
        entries took so far. What does not fit is returned all the same, outside the budget, and
        counted.

        What ``load`` raises reaches the caller that ran it; those who waited get
        :class:`~memweir.LoadFailed` from it, and the next call loads again. A ``load`` that asks
        for its own key is a ``RuntimeError``.
        """
        found = self.get(key)
        if found is not None:
            return found
        return self._flights.run(
            self._key(key),
            lambda: self._load(key, load, nbytes),
            check=lambda: self._peek(key),
        )

    async def aget_or_load(
        self,
        key: Key,
        load: Callable[[], Arrays] | Callable[[], Awaitable[Arrays]],
        *,
        nbytes: int | None = None,
    ) -> Pixels:
        """:meth:`get_or_load` for asyncio, in the same flights as threads.

        A ``load`` that is a coroutine function runs on this loop, any other in a worker thread.
        """
        found = self.get(key)
        if found is not None:
            return found
        if is_async(load):
            import asyncio

            coroutine: Callable[[], Any] = load

            async def lead() -> Pixels:
                with _Room(self, nbytes) as room:
                    arrays = await coroutine()
                    return await asyncio.to_thread(room.serve, key, arrays)

            return await self._flights.arun(self._key(key), lead, check=lambda: self._peek(key))
        return await self._flights.arun(
            self._key(key),
            lambda: self._load(key, load, nbytes),
            check=lambda: self._peek(key),
        )

    def _load(self, key: Key, load: Callable[[], Arrays], nbytes: int | None) -> Pixels:
        with _Room(self, nbytes) as room:
            return room.serve(key, load())

    def resize(self, budget: int | str) -> int:
        """Changes the budget, evicting what exceeds it.

        Returns the bytes still owned above the new budget: pinned entries, which go as their
        users do, and entries that are being stored. Usually 0.
        """
        nbytes = parse_size(budget)
        excess = self._resize(nbytes)
        self._log("resized to %s, %s in use above it", format_size(nbytes), format_size(excess))
        return excess

    def evict(self, to: int | str = 0) -> int:
        """Evicts the least recently used entries until at most ``to`` bytes are owned.

        Pinned entries stay. Returns the bytes given back to the system within the call.
        """
        freed = self._evict(parse_size(to))
        self._log("evicted %s", format_size(freed))
        return freed

    def clear(self) -> int:
        """Removes every entry; loads in flight are served and not kept.

        Pinned entries cannot be found any more and go with their last user. Returns the bytes
        given back to the system within the call.
        """
        self._flights.bump()
        freed = self._clear()
        self._log("cleared, %s freed", format_size(freed))
        return freed

    def stats(self) -> CacheStats:
        """Counters and bytes; cheap enough for every scrape."""
        return CacheStats(joins=self._flights.joins, **self._stats())

    def _log(self, message: str, *args: object) -> None:
        # Where nobody imported logging nobody listens, and a fork in the middle of a first import
        # would leave the child waiting for the module's lock.
        get_logger = getattr(sys.modules.get("logging"), "getLogger", None)
        if get_logger is not None:
            get_logger("memweir.pixels").info("%s: " + message, self.name, *args)

    def __repr__(self) -> str:
        s = self.stats()
        return (
            f"<PixelCache {self.name!r}: {format_size(s.bytes)} of {format_size(s.budget)}, "
            f"{s.entries} entries, {s.hits} hits, {s.misses} misses>"
        )

    def _repr_html_(self) -> str:
        import html

        values = self.stats()._asdict()
        rows = "".join(
            f"<tr><td>{key}</td><td style='text-align:right'>"
            f"{format_size(value) if key == 'budget' or 'bytes' in key else value}</td></tr>"
            for key, value in values.items()
        )
        return f"<table><caption>{html.escape(self.name)}</caption>{rows}</table>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a PixelCache belongs to its process: pass references, or make one there")


class _Room:
    """Bytes put aside for one load, and the moment it began."""

    def __init__(self, cache: PixelCache, nbytes: int | None) -> None:
        self._cache = cache
        self._generation: int | None = cache._generation
        self._reservation = None
        if nbytes is not None:
            self._reservation = cache._reserve(min(nbytes, sys.maxsize))
            if self._reservation is None and cache.compact == "off":
                self._generation = None  # no room: what is loaded is served and not kept

    def __enter__(self) -> _Room:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._reservation is not None:
            self._reservation.release()

    def serve(self, key: Key, arrays: Arrays) -> Pixels:
        load = current()
        keep = load is None or not load.stale
        return self._cache._serve(
            key, arrays, self._generation if keep else None, self._reservation
        )
