"""What a look at this process's memory costs, beside psutil's, at several sizes of it.

Each size is touched in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

import memweir as mw

from .harness import Ratio, Table, duration, seconds
from .kernel import GIB, MIB

SIZES = (0, 1, 8)
"""GiB that are resident besides what the interpreter and its libraries take."""
CALLS = 500


def main() -> None:
    found = {size: watch(size) for size in SIZES}
    table = Table("A look at one's own memory, by its size")
    for size, times in found.items():
        resident = f"{size} GiB resident" if size else "nothing but the interpreter"
        table.ratio(f"memory(), {resident}", Ratio(*times["fast"]), most=0.5)
    table = Table("The same, in seconds", ("", "memweir", "other", "all rounds", "goal"))
    for size, times in found.items():
        resident = f"{size} GiB resident" if size else "nothing but the interpreter"
        for what, name, most in (
            ("one read of statm", "read", None),
            ("memory()", "fast", 4e-6),
            ("memory(full=True)", "full", 40e-6),
            ("limits()", "limits", None),
            ("memory(detail=True)", "detail", None),
            ("explain()", "explain", None),
        ):
            ours = times[name][0]
            floor = name == "read"  # memory() makes two, and asks twice what it has read from
            table.row(
                f"{what}, {resident}",
                "" if floor else duration(median(ours)),
                duration(median(ours)) if floor else "",
                f"{duration(min(ours))}–{duration(max(ours))}",
                f"≤ {duration(most)}" if most else "",
                holds=most is None or median(ours) <= most,
            )


def watch(size: int) -> dict[str, list[list[float]]]:
    """Seconds of each round, ours and the other's, in a fresh process."""
    command = [sys.executable, "-m", "benches.reading", str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    times: dict[str, list[list[float]]] = json.loads(done.stdout)
    return times


def play(size: int) -> None:
    import psutil

    # Of 4 KiB pages, as most heaps are: huge ones would be walked in no time.
    kept = [np.ones(MIB, np.uint8) for _ in range(size * GIB // MIB)]
    rss = mw.memory().rss
    assert rss is None or rss >= len(kept) * MIB
    process = psutil.Process()
    fast = Ratio.measure(mw.memory, process.memory_info, calls=CALLS)
    times = {"fast": [fast.ours, fast.other]}
    statm, buffer = os.open("/proc/self/statm", os.O_RDONLY), [bytearray(256)]
    single: tuple[tuple[str, Callable[[], Any], int], ...] = (
        ("read", lambda: os.preadv(statm, buffer, 0), CALLS),
        ("full", lambda: mw.memory(full=True), CALLS),
        ("limits", mw.limits, CALLS),
        ("detail", lambda: mw.memory(detail=True), 1),
        ("explain", mw.explain, 1),
    )
    for name, look, calls in single:
        look()
        times[name] = [[seconds(look, calls) for _ in range(15)]]
    print(json.dumps(times))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        play(int(sys.argv[1]))
    else:
        main()
