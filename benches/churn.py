"""A cache through 100 000 random puts, removals and evictions: what it owns beside what it uses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import memweir as mw

from .harness import Table
from .kernel import KIB, MIB, Reader, play, watch
from .memory import Pool

STEPS = 100_000
BUDGET = 1024 * MIB
SEEN = 64 * MIB
"""Bytes in use from which samples count: a part of very little says nothing."""


def main() -> None:
    seen = watch("benches.churn", "play")["result"]
    title = f"{STEPS} random steps, entries that take 20 KiB–10 MiB, budget 1 GiB"
    columns = ("highest and lowest part, of all samples", "highest", "lowest", "samples", "goal")
    table = Table(title, columns, (52, 9, 9, 9, 0))
    for what, (low, high, samples), least in (
        ("owned, of what the arrays take", seen["owned"], 1.0),
        ("RssAnon, of owned", seen["anon"], 0.97),
        ("the cgroup's charge, of owned", seen["charge"], 0.97),
    ):
        goal = f"≤ 1.03, ≥ {least:g}"
        holds = samples == 0 or (high <= 1.03 and low >= least)
        table.row(what, f"{high:.4f}", f"{low:.4f}", f"{samples}", goal, holds=holds)
    print(f"{seen['evictions']} evictions, {seen['compact']} of {seen['puts']} puts compact")


class Part:
    """The lowest and highest of samples."""

    def __init__(self) -> None:
        self.low, self.high, self.samples = float("inf"), 0.0, 0

    def see(self, part: float) -> None:
        self.low, self.high = min(self.low, part), max(self.high, part)
        self.samples += 1

    def told(self) -> list[float]:
        return [self.low if self.samples else 0.0, self.high, self.samples]


def prepare(read: Reader) -> Callable[[], dict[str, Any]]:
    pool = Pool(mixed=True)
    parts = {name: Part() for name in ("owned", "anon", "charge")}
    base = read()

    def work() -> dict[str, Any]:
        cache = mw.PixelCache(BUDGET, name="bench")
        takes: dict[str, int] = {}
        puts = compact = 0
        for step in range(STEPS):
            chance = pool.random.random()
            if chance < 0.9:
                key = f"{pool.random.randrange(3000)}"
                array, size = entry(pool)
                assert cache.put(key, array)
                takes[key] = size
                puts, compact = puts + 1, compact + (size < array.nbytes)
            elif chance < 0.998 and takes:
                key = pool.random.choice(list(takes))
                cache.remove(key)
            else:
                cache.evict(int(cache.stats().bytes * pool.random.uniform(0.2, 0.9)))
            takes = {key: size for key, size in takes.items() if key in cache}
            used, owned = sum(takes.values()), cache.stats().bytes
            assert len(takes) == len(cache)
            if used < SEEN:
                continue
            parts["owned"].see(owned / used)
            if step % 20 == 0:
                for name, now, was in zip(("anon", "charge"), read(), base, strict=True):
                    if now is not None and was is not None:
                        parts[name].see((now - was) / owned)
        found: dict[str, Any] = {name: part.told() for name, part in parts.items()}
        return found | {"puts": puts, "compact": compact, "evictions": cache.stats().evictions}

    return work


def entry(pool: Pool) -> tuple[Any, int]:
    """An array, and the bytes that its bytes or codes take."""
    size = pool.size(20 * KIB, 10 * MIB)
    buffer = pool.random.choice((pool.noise, pool.floats, pool.halves))
    array = pool.cut(buffer, size * buffer.itemsize)
    return array, size


if __name__ == "__main__":
    if len(sys.argv) > 1:
        play(prepare, sys.argv[2])
    else:
        main()
