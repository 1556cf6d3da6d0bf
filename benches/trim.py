"""What a trim of a fragmented heap of 3 GiB costs others: who goes on, and who waits how long."""

from __future__ import annotations

import ctypes
import os
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median
from time import perf_counter, sleep
from typing import Any

import memweir as mw
from memweir.process.trim import _trims as ours

from .harness import Table, duration
from .kernel import GIB, KIB, MIB, Case, Reader, play, watch

ROUNDS = int(os.environ.get("MEMWEIR_BENCH_ROUNDS", "3"))
HEAP = int(float(os.environ.get("MEMWEIR_BENCH_GIB", "3")) * GIB)
JOINERS = 8


def main() -> None:
    found = [watch("benches.trim", "play")["result"] for _ in range(ROUNDS)]
    table = Table(
        f"A trim of {HEAP / GIB:g} GiB in the main arena, of which one chunk in 20 is in use",
        ("", "least", "median", "most", "goal"),
        (58, 10, 10, 10, 0),
    )

    def row(what: str, key: str, told: Callable[[float], str], goal: str = "", least: int = 0):  # type: ignore[no-untyped-def]
        values = [each[key] for each in found]
        shown = [told(value) for value in (min(values), median(values), max(values))]
        table.row(what, *shown, goal, holds=min(values) >= least)

    row("released", "released", lambda size: f"{size / MIB:.0f} MiB")
    row("malloc_trim", "allocator", duration)
    row("arena sweep", "arenas", duration)
    row("collection, in a process of few objects", "gc", duration)
    row("steps of Python code meanwhile, collection left out", "python", count, "≥ 1000", 1000)
    row("  of those of as long a time before", "python part", part)
    row("malloc and free meanwhile in an arena of its own", "malloc", count, "≥ 1000", 1000)
    row("  of those of as long a time before", "malloc part", part)
    row("  the longest of them", "malloc stall", duration)
    row("the longest malloc and free in the trimmed arena", "stall", duration)
    row("callers that joined", "joined", count, f"= {JOINERS}", JOINERS)


def count(value: float) -> str:
    return f"{value:.0f}"


def part(value: float) -> str:
    return f"{value:.2f}"


# What runs in the process that is watched.

libc = ctypes.CDLL(None)
# Plain functions: a thread that is in the C library lets others run Python.
malloc, free, fill = libc.malloc, libc.free, libc.memset
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
free.restype, free.argtypes = None, [ctypes.c_void_p]
fill.restype, fill.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


def fragment(size: int) -> None:
    """Fills this thread's arena with chunks of 1 to 8 KiB, and frees 19 of 20."""
    picks = random.Random(0)
    chunks = []
    while size > 0:
        length = picks.randrange(KIB, 8 * KIB)
        chunk = malloc(length)
        fill(chunk, 1, length)
        chunks.append(chunk)
        size -= length
    for number, chunk in enumerate(chunks):
        if number % 20:
            free(chunk)


class Worker:
    """Counts what it does, and keeps the longest time that one of it took."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.count, self.longest = 0, 0.0
        self.stop = threading.Event()

    def __call__(self) -> None:
        while not self.stop.is_set():
            begun = perf_counter()
            self.work()
            self.longest = max(self.longest, perf_counter() - begun)
            self.count += 1


def allocate() -> None:
    # Above what a thread keeps for itself, below what is mapped apart.
    for size in (40 * KIB, 100 * KIB):
        free(malloc(size))


def prepare(_: Reader) -> Callable[[], dict[str, Any]]:
    fragment(HEAP)
    mw.trim("buffers")  # imports what it imports

    def work() -> dict[str, Any]:
        python, apart, here = Worker(int), Worker(allocate), Worker(allocate)
        workers = python, apart
        seen: dict[str, Any] = {"python": 0, "malloc": 0, "busy": 0.0}

        def heap_job(release: bool, sweep: bool) -> Any:
            if release:
                for _ in range(JOINERS):
                    pool.submit(trims.trim, "auto")
                while trims.waiting < JOINERS + 1:
                    sleep(0.001)
                apart.longest = here.longest = 0.0
            begun, counts = perf_counter(), [worker.count for worker in workers]
            job = ours._means.heap_job(release, sweep)
            job.wait(None)
            seen["busy"] += perf_counter() - begun
            for name, worker, before in zip(("python", "malloc"), workers, counts, strict=True):
                seen[name] += worker.count - before
            if sweep:
                seen["malloc stall"] = apart.longest
                here.stop.set()
            return job

        trims = type(ours)(replace(ours._means, heap_job=heap_job))
        with ThreadPoolExecutor(JOINERS + 3) as pool:
            for worker in workers:
                pool.submit(worker)
            sleep(0.2)
            counts, begun = [worker.count for worker in workers], perf_counter()
            sleep(1.0)
            elapsed = perf_counter() - begun
            rates = [(w.count - c) / elapsed for w, c in zip(workers, counts, strict=True)]
            report = pool.submit(trims.trim, "auto")
            here()  # the main thread, whose arena is the one that is trimmed
            told = report.result()
            for worker in workers:
                worker.stop.set()
        for name, rate in zip(("python", "malloc"), rates, strict=True):
            seen[f"{name} part"] = seen[name] / max(seen["busy"] * rate, 1)
        seen |= {step.name: step.seconds for step in told.steps}
        return {**seen, "released": told.released, "joined": told.joined, "stall": here.longest}

    return work


CASE: Case = prepare

if __name__ == "__main__":
    if len(sys.argv) > 1:
        play(CASE, sys.argv[2])
    else:
        main()
