"""The budget as the kernel counts it: a cache in a process of its own, watched from outside.

RssAnon is the process's, the charge that of a memory cgroup made for it, where this process may
make one (v1 and v2). Both count from a baseline with everything but the cache in place.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np

import memweir as mw

from .harness import Table

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def main() -> None:
    columns = ("", "RssAnon", "cgroup", "", "goal")
    widths = (52, 9, 9, 17, 0)
    table = Table("Growth over the baseline, highest of samples every 20 ms", columns, widths)
    for case, budget in (("sizes", 512 * MIB), ("replacements", 2 * GIB)):
        seen = watch(case)
        most = budget * 1.03 + 8 * MIB
        table.row(
            CASES[case][1],
            mib(seen["anon"]),
            mib(seen["charge"]),
            f"budget {budget // MIB} MiB",
            f"≤ {mib(most)}",
            holds=max(seen["anon"], seen["charge"] or 0) <= most,
        )
        maps = seen["maps"]
        table.row("", "", "", f"{maps} memory maps", "< 10000", holds=maps < 10_000)
    title = "Given back to the kernel within the call, of what it promises"
    table = Table(title, columns, widths)
    for size in ("100 KiB", "3 MiB"):
        for call, (promised, anon, charge) in watch(f"return {size}")["result"].items():
            holds = min(anon, promised if charge is None else charge) >= 0.97 * promised
            shown = [
                "" if part is None else f"{100 * part / promised:.1f} %" for part in (anon, charge)
            ]
            what = f"{call} after churn, entries of half to {size}"
            table.row(what, *shown, f"of {mib(promised)}", "≥ 97 %", holds=holds)


def mib(size: float | None) -> str:
    return "" if size is None else f"{size / MIB:.0f} MiB"


# What runs in the process that is watched.


def sizes(pool: Pool, _: Reader) -> None:
    """Puts of every size from 20 KiB to 50 MiB."""
    cache = mw.PixelCache("512 MiB", name="bench")
    for number in range(200_000):
        assert cache.put(f"{number}", pool.array(20 * KIB, MIB))
    for number in range(3_000):
        assert cache.put(f"big {number}", pool.array(MIB, 50 * MIB))


def replacements(pool: Pool, _: Reader) -> None:
    """A cache full of 100 KiB entries, replaced in random order."""
    cache = mw.PixelCache("2 GiB", name="bench")
    entries = 2 * GIB // (100 * KIB)
    for number in range(entries):
        cache.put(f"{number}", pool.array(100 * KIB))
    for number in range(50_000):
        assert cache.put(f"{pool.random.randrange(entries + number)}", pool.array(100 * KIB))


def give_back(size: int) -> Callable[[Pool, Reader], dict[str, Any]]:
    """Promised bytes, and the fall of RssAnon and of the charge, by call."""

    def work(pool: Pool, read: Reader) -> dict[str, Any]:
        cache = mw.PixelCache("1 GiB", name="bench")
        keys = [f"{number}" for number in range(2 * GIB // size)]

        def churn() -> None:
            for _ in range(2 * len(keys)):
                key = pool.random.choice(keys)
                if cache.get(key) is None:
                    cache.put(key, pool.array(size // 2, size))

        found = {}
        for name, act, left in (
            ("evict(to=half)", lambda: cache.evict(cache.stats().bytes // 2), 0.5),
            ("resize(half)", lambda: cache.resize(cache.stats().bytes // 2), 0.5),
            ("clear()", cache.clear, 0.0),
        ):
            cache.resize("1 GiB")
            churn()
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


CASES: dict[str, tuple[Callable[[Pool, Reader], Any], str]] = {
    "sizes": (sizes, "200 000 puts of 20 KiB–1 MiB, 3 000 of 1–50 MiB"),
    "replacements": (replacements, "full of 100 KiB, 50 000 random replacements"),
    "return 100 KiB": (give_back(100 * KIB), ""),
    "return 3 MiB": (give_back(3 * MIB), ""),
}


class Pool:
    """Source arrays: parts of one buffer whose pages are all there before the baseline."""

    def __init__(self) -> None:
        self.random = random.Random(0)
        self.buffer = np.random.default_rng(0).integers(256, size=64 * MIB, dtype=np.uint8)

    def array(self, least: int, most: int | None = None) -> np.ndarray[Any, Any]:
        """An array at a random place; its size is log-uniform between the bounds, in bytes."""
        size = least
        if most is not None:
            size = int(math.exp(self.random.uniform(math.log(least), math.log(most))))
        start = self.random.randrange(len(self.buffer) - size)
        return self.buffer[start : start + size]


class Reader:
    """RssAnon of a process and the charge of its cgroup, in bytes; ``None`` without a cgroup."""

    def __init__(self, pid: int, group: Path | None) -> None:
        self.status = Path(f"/proc/{pid}/status")
        self.usage = None
        if group is not None:
            names = "memory.usage_in_bytes", "memory.current"
            self.usage = next(group / name for name in names if (group / name).exists())

    def __call__(self) -> tuple[int, int | None]:
        anon = next(
            int(line.split()[1]) * KIB
            for line in self.status.read_text().splitlines()
            if line.startswith("RssAnon")
        )
        return anon, None if self.usage is None else int(self.usage.read_text())


def play(case: str, group: str) -> None:
    """Runs a case between two lines on stdin, and prints what it found."""
    sys.stdin.readline()  # by now this process is in its cgroup: what it touches is charged there
    pool, read = Pool(), Reader(os.getpid(), Path(group) if group else None)
    mw.PixelCache("1 MiB", name="warm").put("array", pool.array(KIB))
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(CASES[case][0](pool, read)), flush=True)


# What runs in the process that watches.


def watch(case: str) -> dict[str, Any]:
    """Runs ``case`` in a fresh process; its highest growth, its maps, and what it printed."""
    with own_group() as group:
        command = [sys.executable, "-m", "benches.memory", case, str(group or "")]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if group is not None:
                (group / "cgroup.procs").write_text(str(process.pid))
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "ready\n"
            seen: dict[str, Any] = {"anon": 0, "charge": None if group is None else 0, "maps": 0}
            stop = Event()
            sampler = Thread(target=sample, args=(process.pid, group, seen, stop))
            sampler.start()
            process.stdin.write("\n")
            process.stdin.flush()
            seen["result"] = json.loads(process.stdout.readline())
            stop.set()
            sampler.join()
        return seen


def sample(pid: int, group: Path | None, seen: dict[str, Any], stop: Event) -> None:
    """Keeps the highest growth and number of maps in ``seen`` until told to stop."""
    read = Reader(pid, group)
    anon, charge = read()
    rounds = 0
    while not stop.wait(0.02):
        now_anon, now_charge = read()
        seen["anon"] = max(seen["anon"], now_anon - anon)
        if now_charge is not None and charge is not None:
            seen["charge"] = max(seen["charge"], now_charge - charge)
        if rounds % 50 == 0:
            maps = Path(f"/proc/{pid}/maps").read_text().count("\n")
            seen["maps"] = max(seen["maps"], maps)
        rounds += 1


@contextmanager
def own_group() -> Iterator[Path | None]:
    """A new memory cgroup, or ``None`` where none can be made."""
    for mount in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        group = mount / f"memweir-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            counts = any((group / n).exists() for n in ("memory.usage_in_bytes", "memory.current"))
            yield group if counts else None
        finally:
            group.rmdir()
        return
    yield None


if __name__ == "__main__":
    play(*sys.argv[1:])
