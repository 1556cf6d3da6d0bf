"""The budget as the kernel counts it: a cache in a process of its own, watched from outside.

RssAnon is the process's, the charge that of a memory cgroup made for it. Both count from a
baseline with everything but the cache in place.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np

import memweir as mw

from .harness import Table
from .kernel import GIB, KIB, MIB, Case, Reader, play, watch

COLUMNS = ("", "RssAnon", "cgroup", "", "goal")
WIDTHS = (52, 9, 9, 17, 0)

Array = np.ndarray[Any, Any]


def main() -> None:
    growth()
    returned()


def growth() -> None:
    table = Table("Growth over the baseline, highest of samples every 20 ms", COLUMNS, WIDTHS)
    for case, budget, what in (
        ("sizes", 512 * MIB, "200 000 puts of 20 KiB–1 MiB, 3 000 of 1–50 MiB"),
        ("sizes mixed", 512 * MIB, "the same, compact entries among them"),
        ("replacements", 2 * GIB, "full of 100 KiB, 50 000 random replacements"),
        ("replacements mixed", 2 * GIB, "the same, compact entries among them"),
    ):
        seen = watch("benches.memory", case)
        most = budget * 1.03 + 8 * MIB
        table.row(
            what,
            mib(seen["anon"]),
            mib(seen["charge"]),
            f"budget {budget // MIB} MiB",
            f"≤ {mib(most)}",
            holds=max(seen["anon"], seen["charge"] or 0) <= most,
        )
        maps = seen["maps"]
        table.row("", "", "", f"{maps} memory maps", "< 10000", holds=maps < 10_000)


def returned() -> None:
    title = "Given back to the kernel within the call, of what it promises"
    table = Table(title, COLUMNS, WIDTHS)
    for kind in ("", " mixed"):
        for size in ("100 KiB", "3 MiB"):
            found = watch("benches.memory", f"return {size}{kind}")["result"]
            for call, (promised, anon, charge) in found.items():
                holds = min(anon, promised if charge is None else charge) >= 0.97 * promised
                shown = [
                    "" if part is None else f"{100 * part / promised:.1f} %"
                    for part in (anon, charge)
                ]
                what = f"{call} after churn, entries of half to {size}{kind and ', some compact'}"
                table.row(what, *shown, f"of {mib(promised)}", "≥ 97 %", holds=holds)


def mib(size: float | None) -> str:
    return "" if size is None else f"{size / MIB:.0f} MiB"


# What runs in the process that is watched.


class Pool:
    """Source arrays: parts of buffers whose pages are all there before the baseline."""

    def __init__(self, *, mixed: bool = False) -> None:
        self.random = random.Random(0)
        self.noise = np.random.default_rng(0).integers(256, size=64 * MIB, dtype=np.uint8)
        self.mixed = mixed
        if mixed:
            table = ((np.arange(256) / 255 - 0.48) / 0.27).astype(np.float32)
            self.floats = table[self.noise[: 16 * MIB]]
            self.halves = np.tile(self.floats.astype(np.float16), 2)
            self.mask = np.repeat(np.array([1, 0]), 4 * MIB)
        mw.PixelCache("1 MiB", name="warm").put("array", self.noise[:KIB])

    def entry(self, least: int, most: int | None = None) -> Any:
        """Arrays at a random place; their size is log-uniform between the bounds, in bytes."""
        size = least if most is None else self.size(least, most)
        kind = self.random.randrange(4) if self.mixed else 0
        if kind < 3:
            buffer = self.noise if kind == 0 else (self.floats, self.halves)[kind - 1]
            return self.cut(buffer, size)
        mask = self.random.randrange(size // 4)
        start = len(self.mask) // 2 - self.random.randrange(mask // 8 + 1)
        return {
            "pixel_values": self.cut(self.floats, size - mask),
            "pixel_mask": self.mask[start : start + mask // 8],
            "image_grid_thw": self.mask[:3],
        }

    def size(self, least: int, most: int) -> int:
        return int(math.exp(self.random.uniform(math.log(least), math.log(most))))

    def cut(self, buffer: Array, size: int) -> Array:
        length = size // buffer.itemsize
        start = self.random.randrange(len(buffer) - length + 1)
        return buffer[start : start + length]


def sizes(mixed: bool) -> Case:
    """Puts of every size from 20 KiB to 50 MiB."""

    def prepare(_: Reader) -> Callable[[], None]:
        pool = Pool(mixed=mixed)

        def work() -> None:
            cache = mw.PixelCache("512 MiB", name="bench")
            for number in range(200_000):
                assert cache.put(f"{number}", pool.entry(20 * KIB, MIB))
            for number in range(3_000):
                assert cache.put(f"big {number}", pool.entry(MIB, 50 * MIB))
            assert cache.stats().evictions > 100_000

        return work

    return prepare


def replacements(mixed: bool) -> Case:
    """A cache full of 100 KiB entries, replaced in random order."""

    def prepare(_: Reader) -> Callable[[], None]:
        pool = Pool(mixed=mixed)

        def work() -> None:
            cache = mw.PixelCache("2 GiB", name="bench")
            numbers = count()
            while cache.stats().evictions == 0:
                assert cache.put(f"{next(numbers)}", pool.entry(100 * KIB))
            full = next(numbers)
            for number in range(50_000):
                assert cache.put(f"{pool.random.randrange(full + number)}", pool.entry(100 * KIB))

        return work

    return prepare


def give_back(size: int, mixed: bool) -> Case:
    """Promised bytes, and the fall of RssAnon and of the charge, by call."""

    def prepare(read: Reader) -> Callable[[], dict[str, Any]]:
        pool = Pool(mixed=mixed)

        def work() -> dict[str, Any]:
            cache = mw.PixelCache("1 GiB", name="bench")
            keys = [f"{number}" for number in range((6 if mixed else 2) * GIB // size)]
            found = {}
            for name, act, left in (
                ("evict(to=half)", lambda: cache.evict(cache.stats().bytes // 2), 0.5),
                ("resize(half)", lambda: cache.resize(cache.stats().bytes // 2), 0.5),
                ("clear()", cache.clear, 0.0),
            ):
                cache.resize("1 GiB")
                for _ in range(2 * len(keys)):
                    key = pool.random.choice(keys)
                    if cache.get(key) is None:
                        cache.put(key, pool.entry(size // 2, size))
                promised = int(cache.stats().bytes * (1 - left))
                before = read()
                act()
                fell = [
                    was - now if was is not None else None
                    for was, now in zip(before, read(), strict=True)
                ]
                found[name] = [promised, *fell]
            return found

        return work

    return prepare


def cases() -> Iterator[tuple[str, Case]]:
    for kind, mixed in (("", False), (" mixed", True)):
        yield f"sizes{kind}", sizes(mixed)
        yield f"replacements{kind}", replacements(mixed)
        yield f"return 100 KiB{kind}", give_back(100 * KIB, mixed)
        yield f"return 3 MiB{kind}", give_back(3 * MIB, mixed)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        play(dict(cases())[sys.argv[1]], sys.argv[2])
    else:
        main()
