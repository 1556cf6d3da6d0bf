"""``PixelCache`` beside cachebox's LRU cache, and its views beside numpy's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import cachebox
import numpy as np

import memweir as mw

from .harness import Ratio, Table

ENTRIES = 4096
KEYS: dict[str, Callable[[int], Any]] = {
    "Digest": lambda n: mw.hash_bytes(n.to_bytes(8)),
    "bytes": lambda n: bytes(mw.hash_bytes(n.to_bytes(8))),
    "str": lambda n: mw.hash_bytes(n.to_bytes(8)).hex(),
}


def main() -> None:
    table = Table("PixelCache and cachebox 6 (LRUCache), the same keys")
    for kind, key in KEYS.items():
        keys = [key(n) for n in range(ENTRIES)]
        # A look-up's key is made for it; cachebox is faster where it is the stored object itself.
        gets(table, f"get, {kind} keys", keys, [key(n) for n in range(ENTRIES)])
        gets(table, f"get, {kind} keys, the stored objects", keys, keys)
    for nbytes, shown in ((4 << 10, "4 KiB"), (150_000, "150 KB")):
        puts(table, nbytes, shown)
    threads(table)
    views(table)


def gets(table: Table, what: str, keys: list[Any], asked: list[Any]) -> None:
    """Hits in random order; both give what was stored, ours as a handle that pins it."""
    ours, other = filled(keys)
    random.Random(0).shuffle(asked := list(asked))
    kept = ours.get(asked[0])
    most = 1.3 if ours.get(asked[0]) is kept else 1.7

    def look(get: Callable[[Any], object]) -> Callable[[], None]:
        def work() -> None:
            for key in asked:
                get(key)

        return work

    measured = Ratio.measure(look(ours.get), look(other.get), calls=20, operations=len(asked))
    table.ratio(what, measured, most)


def filled(keys: list[Any]) -> tuple[mw.PixelCache, cachebox.LRUCache[Any, Any]]:
    """Both caches with a small array under each key, and room for all."""
    array = np.zeros(64, np.float32)
    ours = mw.PixelCache("256 MiB", name="bench")
    other: cachebox.LRUCache[Any, Any] = cachebox.LRUCache(len(keys))
    for key in keys:
        assert ours.put(key, array)
        other[key] = array
    return ours, other


def puts(table: Table, nbytes: int, shown: str) -> None:
    """New keys into full caches of one budget, so that every put evicts."""
    budget = 64 << 20
    ours = mw.PixelCache(budget, name="bench")
    other: cachebox.LRUCache[Any, Any] = cachebox.LRUCache(
        budget, getsizeof=lambda _, array: array.nbytes
    )
    arrays = [np.random.default_rng(n).integers(256, size=nbytes, dtype=np.uint8) for n in range(8)]
    room = budget // nbytes
    keys = [mw.hash_bytes(n.to_bytes(8)) for n in range(3 * room)]

    def into(store: Callable[[Any, Any], object]) -> Callable[[], None]:
        feed: Iterator[tuple[Any, Any]] = zip(cycle(keys), cycle(arrays), strict=False)

        def work() -> None:
            for _ in range(room // 4):
                store(*next(feed))

        for _ in range(6):  # full, and every map and heap page touched
            work()
        return work

    def copied(key: Any, array: Any) -> None:
        other[key] = array.copy()

    measured = Ratio.measure(into(ours.put), into(copied), calls=2, operations=room // 4)
    assert ours.stats().evictions > 3 * room
    table.ratio(f"put of {shown}, evicting; cachebox: a.copy()", measured, 1.5)


def threads(table: Table) -> None:
    """The same number of hits by four threads and by one."""
    keys = [KEYS["Digest"](n) for n in range(ENTRIES)]
    cache, _ = filled(keys)
    repeats = 40

    def look(times: int) -> None:
        get = cache.get
        for _ in range(times):
            for key in keys:
                get(key)

    with ThreadPoolExecutor(4) as pool:
        measured = Ratio.measure(
            lambda: list(pool.map(look, [repeats // 4] * 4)),
            lambda: pool.submit(look, repeats).result(),
            operations=repeats * len(keys),
        )
    table.ratio("get by 4 threads; other: by 1 thread", measured, 1 / 0.9)


def views(table: Table) -> None:
    """An array over an entry's bytes, without a copy."""
    content = bytes(1 << 20)
    cache = mw.PixelCache("8 MiB", name="bench")
    cache.put("key", np.frombuffer(content, np.uint8))
    pixels = cache.get("key")
    assert pixels is not None
    view = pixels.view("array")
    table.ratio(
        "np.asarray(view); other: np.frombuffer(bytes)",
        Ratio.measure(
            lambda: np.asarray(view), lambda: np.frombuffer(content, np.uint8), calls=20_000
        ),
        1.5,
    )
    table.ratio(
        'pixels["array"]; other: np.frombuffer(bytes)',
        Ratio.measure(
            lambda: pixels["array"], lambda: np.frombuffer(content, np.uint8), calls=20_000
        ),
    )


if __name__ == "__main__":
    main()
