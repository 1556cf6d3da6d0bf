"""A process whose numpy arrays lie in glibc's heaps, and what the kernel was advised of them."""

from __future__ import annotations

import ctypes
import json
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import memweir as mw

MIB = 1 << 20
HEAP = 64 * MIB
"""The heaps of threads begin at multiples of it."""


@dataclass
class Range:
    """A mapping: bytes, those that are resident, and whether huge pages are advised."""

    start: int
    end: int
    name: str
    resident: int
    advised: bool

    @property
    def sparse(self) -> bool:
        return self.advised and self.resident * 2 < self.end - self.start


def ranges() -> list[Range]:
    found = []
    for text in re.split(r"(?<=\n)(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text()):
        first, *fields = text.splitlines()
        start, end = (int(part, 16) for part in first.split()[0].split("-"))
        known = dict(field.split(":", 1) for field in fields)
        resident = int(known["Rss"].split()[0]) * 1024
        name = first.split(maxsplit=5)[5:]
        advised = "hg" in known["VmFlags"].split()
        found.append(Range(start, end, "".join(name), resident, advised))
    return found


def at(place: int) -> Range:
    return next(each for each in ranges() if each.start <= place < each.end)


def advised(places: list[int]) -> list[bool]:
    """Whether huge pages are advised at each place; not where nothing is mapped any more."""
    wanted = [each for each in ranges() if each.advised]
    return [any(each.start <= place < each.end for each in wanted) for place in places]


def borders(places: list[int]) -> int:
    """Mappings of the heaps that these places are in."""
    blocks = {place // HEAP for place in places}
    return sum(each.name == "[heap]" or each.start // HEAP in blocks for each in ranges())


def main() -> dict[str, Any]:
    free = ctypes.CDLL(None)
    free.malloc.restype, free.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    free.free(free.malloc(31 * MIB))  # from now on arrays of less come from heaps
    mw.trim()
    dense: list[Any] = []
    small: list[Any] = []
    places: list[int] = []
    meet, leave = threading.Barrier(3), threading.Event()  # which never comes

    def large_ones_go() -> None:
        arrays = []
        for number in range(3):
            arrays.append(np.full(8 * MIB, number, np.uint8))
            small.append(np.full(100_000, number, np.uint8))
        places.extend(array.ctypes.data + 4 * MIB for array in arrays)

    def go_and_wait() -> None:
        large_ones_go()
        meet.wait()
        leave.wait()

    def one_stays() -> None:
        dense.append(np.full(30 * MIB, 7, np.uint8))
        meet.wait()
        leave.wait()

    threads = [threading.Thread(target=target, daemon=True) for target in (go_and_wait, one_stays)]
    for thread in threads:
        thread.start()
    meet.wait()
    large_ones_go()
    everywhere = [*places, dense[0].ctypes.data + 4 * MIB]
    found: dict[str, Any] = {"before": advised(everywhere)}
    found["borders"] = [borders(everywhere)]
    step = mw.trim().step("arenas")
    assert step is not None
    found["detail"] = dict(step.detail)
    found["after"] = advised(everywhere)
    found["borders"].append(borders(everywhere))
    heaps = {place // HEAP for place in places}
    found["sparse"] = sum(
        each.sparse and (each.name == "[heap]" or each.start // HEAP in heaps) for each in ranges()
    )
    # What is advised anew, in the same places, is advised.
    again = np.ones(8 * MIB, np.uint8)
    found["again"] = at(again.ctypes.data + 4 * MIB).advised
    found["in place"] = at(again.ctypes.data + 4 * MIB).name == "[heap]"
    expected = [0, 1, 2] * 2
    found["values"] = [int(each[0]) for each in small] == expected and all(
        bool((each == each[0]).all()) for each in small
    )
    found["large"] = bool((dense[0] == 7).all())
    return found


if __name__ == "__main__":
    print(json.dumps(main()))
