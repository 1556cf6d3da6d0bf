"""What the tests of the heap do in processes of their own: each function is one process."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from memweir import _core, heap, tune

MIB = 1 << 20
PROCESS = ctypes.CDLL(None)
PROCESS.malloc.restype = ctypes.c_void_p
PROCESS.malloc.argtypes = [ctypes.c_size_t]
PROCESS.free.argtypes = [ctypes.c_void_p]
PROCESS.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


def anon() -> int:
    """Resident anonymous memory in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise LookupError("RssAnon")


def step(step: Any) -> dict[str, Any]:
    names = [name for name in dir(step) if not name.startswith("_")]
    return {name: getattr(step, name) for name in names}


def job(**parts: bool) -> list[dict[str, Any]]:
    job = _core.heap_job(**parts)
    assert job.wait(120)
    return [step(each) for each in job.steps]


def sweep_of(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return next(step for step in steps if step["name"] == "sweep")


def take(size: int) -> int:
    block = PROCESS.malloc(size)
    assert block
    PROCESS.memset(block, 1, size)
    return block


def fill(meet: threading.Barrier) -> None:
    """44 MiB in this thread's arena, freed while others hold theirs; some bytes stay below."""
    big = take(30 * MIB)  # freed, it moves glibc's thresholds: from now on MiB come from arenas
    PROCESS.free(big)
    meet.wait()
    take(200)
    blocks = [take(MIB) for _ in range(44)]
    meet.wait()
    for block in blocks:
        PROCESS.free(block)
    meet.wait()


class Threads:
    """Eight threads that fill their arenas: new ones each time, or the same ones."""

    def __init__(self, live: bool, count: int = 8) -> None:
        self.count = count
        self.pool = ThreadPoolExecutor(count) if live else None

    def fill(self) -> None:
        meet = threading.Barrier(self.count)
        if self.pool is not None:
            list(self.pool.map(fill, [meet] * self.count))
            return
        threads = [threading.Thread(target=fill, args=(meet,)) for _ in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def lives(live: bool) -> list[dict[str, Any]]:
    """Three lives: bytes over the base when full, after a plain trim, and after a sweep."""
    threads, found = Threads(live), []
    job()
    base = anon()
    for _ in range(3):
        threads.fill()
        full = anon() - base
        trimmed = [job(sweep=False), anon() - base][1]
        swept = sweep_of(job(release=False))
        found.append({"full": full, "trim": trimmed, "sweep": anon() - base, "step": swept})
    return found


def release() -> list[dict[str, Any]]:
    """Four cycles of threads that come and go: bytes over the base when full and after a job."""
    threads, found = Threads(live=False), []
    threads.fill()
    job()
    base = anon()
    for _ in range(4):
        threads.fill()
        full = anon() - base
        steps = job()
        # Threads that end give back, too, and are not waited for by those that join them.
        for _ in range(100):
            if anon() - base < 2 * MIB:
                break
            time.sleep(0.02)
        found.append({"full": full, "left": anon() - base, "steps": steps})
    return found


def identify(first: str | None = None, late: str | None = None) -> dict[str, Any]:
    """The heap, once a module was imported or a library loaded with its symbols for all."""
    if first is not None:
        __import__(first)
    if late is not None:
        library = ctypes.CDLL(late, mode=ctypes.RTLD_GLOBAL)
        assert library._handle
    found = heap()
    return found.as_dict() | {"text": str(found), "trims": bool(hasattr(PROCESS, "malloc_trim"))}


def record() -> list[dict[str, Any]]:
    Threads(live=False).fill()
    return job()


def small(overwrite: bool = False) -> dict[str, Any]:
    """A sweep after a thread's blocks that are too small to trim a top when they are freed."""
    if overwrite:  # as who renames a process does, with the variables moved elsewhere first
        for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
            if name in os.environ:
                os.environ[name] = os.environ[name]
        start, end = map(int, Path("/proc/self/stat").read_text().split(")")[-1].split()[47:49])
        ctypes.memset(start, 0, end - start)

    # No list: what else is allocated in the thread would lie above the blocks, and stay there.
    blocks = (ctypes.c_void_p * 100_000)()

    def fill() -> None:
        for place in range(len(blocks)):
            blocks[place] = take(100)
        for block in blocks:
            PROCESS.free(block)
        take(2000)  # glibc puts them together for this: none of what comes next lies above them

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
    return sweep_of(job())


def refaults() -> list[int]:
    """Pages faulted in by the same buffer again and again, twice, after a sweep."""
    found = []
    swept = small()
    assert swept["sweepers"]
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            PROCESS.free(take(4 * MIB))
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return found


def unstartable(room: int) -> dict[str, Any]:
    """A sweep where the address space has room for so many KiB of threads."""
    # Stacks of threads that are gone would serve new ones.
    threads = Threads(live=True)
    threads.fill()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + room * 1024, unlimited[1]))
    started = _core.heap_job(release=False)
    assert started.wait(60)
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
    before = anon()
    steps = [step(each) for each in started.steps]
    return {"steps": steps, "before": before, "again": job(), "after": anon()}


def fragment() -> list[int]:
    """A heap that takes a while to trim: holes of some KiB, between blocks that stay."""
    blocks = [take(24 * 1024) for _ in range(12_000)]
    for block in blocks[::2]:
        PROCESS.free(block)
    return blocks[1::2]


def fork_in_the_middle() -> dict[str, Any]:
    """Forks while a job runs, until one was caught at it; what the child saw of its job."""
    fragment()
    for attempt in range(50):
        Threads(live=True, count=2).fill()
        started = _core.heap_job()
        seen, tell = os.pipe()
        child = os.fork()
        if child == 0:
            done = started.wait(0)
            last = [step(each) for each in started.steps][-1:]
            following = _core.heap_job()
            ended = following.wait(60)
            fresh = {"joined": following.joined, "ended": ended, "same": following == started}
            fresh["names"] = [each.name for each in following.steps]
            os.write(tell, json.dumps({"done": done, "last": last, "fresh": fresh}).encode())
            os._exit(0)
        os.close(tell)
        with os.fdopen(seen, "rb") as answer:
            said = json.loads(answer.read())
        status = os.waitpid(child, 0)[1]
        ended = started.wait(60)
        names = [each.name for each in started.steps]
        if said["last"] and said["last"][0]["name"] == "fork":
            return {**said, "status": status, "parent": [ended, names], "attempts": attempt + 1}
    raise AssertionError("no fork came while a job ran")


def exit_in_the_middle() -> str:
    fragment()
    threads = Threads(live=False)
    threads.fill()
    _core.heap_job()
    return "left"


def at_once() -> dict[str, Any]:
    """Eight threads ask at the same time, until they were all faster than the job."""
    fragment()
    for attempt in range(50):
        refill = [take(24 * 1024) for _ in range(6_000)]
        for block in refill:
            PROCESS.free(block)
        meet = threading.Barrier(8)

        def ask(_: int, meet: threading.Barrier = meet) -> Any:
            meet.wait()
            return _core.heap_job()

        with ThreadPoolExecutor(8) as pool:
            jobs = list(pool.map(ask, range(8)))
        assert all(job.wait(60) for job in jobs)
        if len(set(jobs)) == 1:
            joined = sum(job.joined for job in jobs)
            return {"joined": joined, "attempts": attempt + 1, "equal": jobs[0] == jobs[-1]}
    raise AssertionError("every time the job was done before all had asked")


def tuned(profile: str, overrides: dict[str, Any]) -> dict[str, Any]:
    report = tune(profile, **overrides)  # type: ignore[arg-type]
    return report.as_dict() | {"text": str(report), "ok": report.ok}


def tuned_late() -> dict[str, Any]:
    early = tune("server")
    Threads(live=False).fill()
    late = tune("server", arena_max=3)
    return {"early": early.as_dict(), "late": late.as_dict()}


def tuned_lives(profile: str, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """What live threads keep where the allocator was tuned first, and after a job."""
    tune(profile, **(overrides or {}))  # type: ignore[arg-type]
    threads = Threads(live=True)
    base = anon()
    threads.fill()
    found = {"left": anon() - base, "arenas": heap().arenas, "steps": job()}
    return found | {"trimmed": anon() - base}


def decays() -> dict[str, Any]:
    """How much jemalloc keeps once its threads give back, without anybody asking."""
    tune("images", dirty_decay_ms=10)
    threads = Threads(live=True, count=2)
    threads.fill()
    full = anon()
    for _ in range(200):
        if anon() < full - 30 * MIB:
            break
        time.sleep(0.05)
    child = os.fork()
    if child == 0:
        Threads(live=False, count=2).fill()
        os._exit(0)
    return {"full": full, "left": anon(), "status": os.waitpid(child, 0)[1]}


if __name__ == "__main__":
    scenario, args = sys.argv[1:]
    print(json.dumps(globals()[scenario](*json.loads(args))))
