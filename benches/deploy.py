"""What each piece of advice about memory in deployment brings to one workload.

Eight threads decode photographs into float32 and keep them in an LRU of numpy arrays; then all of
it is dropped. Each arm is a process of its own, started with the variables of the advice; RssAnon
is sampled from outside. ``python -m benches.deploy [ROUNDS]`` takes the median of so many (3).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import IO, Any, NamedTuple

from .harness import Table
from .kernel import MIB, Reader

DECODES, THREADS, FILES = 120, 8, 48
LRU = 200 * MIB
QUIET = 30
"""Seconds that a process does nothing at all in the end."""
LIBRARIES = "/usr/lib/{}-linux-gnu/lib{}"
PRELOADS = {
    "jemalloc": "jemalloc.so.2",
    "mimalloc": "mimalloc.so.2",
    "tcmalloc": "tcmalloc_minimal.so.4",
}


class Arm(NamedTuple):
    """What an operator may do about memory, and what the program does besides."""

    what: str
    variables: dict[str, str] = {}  # noqa: RUF012  nobody writes to it
    preload: str = ""
    does: str = ""
    """``tune``, ``configure`` (in the beginning), ``trim`` (in the end), ``cache`` for the LRU; or
    ``lend``, which is another workload.
    """


BACKGROUND = {"MALLOC_CONF": "background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:1000"}
ARMS = (
    Arm("glibc, as it comes"),
    Arm("MALLOC_ARENA_MAX=2", {"MALLOC_ARENA_MAX": "2"}),
    Arm("MALLOC_TRIM_THRESHOLD_=131072", {"MALLOC_TRIM_THRESHOLD_": "131072"}),
    Arm(
        "the same, MALLOC_MMAP_THRESHOLD_=1048576",
        {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "1048576"},
    ),
    Arm("jemalloc", {}, "jemalloc"),
    Arm("jemalloc, background thread, decay 1 s", BACKGROUND, "jemalloc"),
    Arm("jemalloc, MALLOC_ARENA_MAX=2", {"MALLOC_ARENA_MAX": "2"}, "jemalloc"),
    Arm("mimalloc", {}, "mimalloc"),
    Arm("tcmalloc", {}, "tcmalloc"),
    Arm('glibc, mw.tune("images") at the start', does="tune"),
    Arm("glibc, mw.trim() after the drop", does="trim"),
    Arm("MEMWEIR_LOW_MEMORY=1", {"MEMWEIR_LOW_MEMORY": "1"}, does="configure"),
    Arm("the same, mw.trim() after the drop", {"MEMWEIR_LOW_MEMORY": "1"}, does="configure trim"),
)
PARTS = (
    ("nothing set", {}),
    ("MEMWEIR_CACHE_BUDGET=256 MiB", {"MEMWEIR_CACHE_BUDGET": "256 MiB"}),
    ("MEMWEIR_TUNE=images", {"MEMWEIR_TUNE": "images"}),
    ("MEMWEIR_LOW_MEMORY=1", {"MEMWEIR_LOW_MEMORY": "1"}),
    (
        "MEMWEIR_LOW_MEMORY=1 MEMWEIR_TUNE=none",
        {"MEMWEIR_LOW_MEMORY": "1", "MEMWEIR_TUNE": "none"},
    ),
)
LENT = (
    *PARTS[:1],
    *(
        (f"{name}={value}", {name: value})
        for name, value in (
            ("MEMWEIR_TUNE", "images"),
            ("MEMWEIR_SESSION_PROFILE", "lean"),
            ("MEMWEIR_IDLE_UNLOAD", "0"),
        )
    ),
    ("MEMWEIR_LOW_MEMORY=1", {"MEMWEIR_LOW_MEMORY": "1"}),
    (
        "MEMWEIR_LOW_MEMORY=1 MEMWEIR_IDLE_UNLOAD=600",
        {"MEMWEIR_LOW_MEMORY": "1", "MEMWEIR_IDLE_UNLOAD": "600"},
    ),
)
REQUESTS = 48
PLAN = {"rollouts": 8}
WIDTHS = (46, 10, 10, 10, 8)


Runs = dict[str, list[dict[str, float]]]


def main(rounds: int = 3) -> None:
    arms = [arm for arm in ARMS if found(arm.preload)]
    switch = [Arm(what, variables, does="cache") for what, variables in PARTS]
    lent = [Arm(what, variables, does="lend") for what, variables in LENT]
    seen: tuple[Runs, Runs, Runs, Runs] = {}, {}, {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, jpeg in enumerate(photographs()):
            (folder / f"{number}.jpg").write_bytes(jpeg)
        subprocess.run([sys.executable, "-m", "benches.deploy", "pack", name], check=True)
        for number in range(rounds):
            # Who comes first alternates: an arm works while the one before it is quiet.
            for runs, some in ((seen[0], arms), (seen[1], switch), (seen[2], lent)):
                for arm, figures in play_all(some[:: -1 if number % 2 else 1], folder):
                    note(runs, arm.what, figures)
            for what, figures in play_demos():
                note(seen[3], what, figures)
    title = f"{DECODES} photographs to float32 by {THREADS} threads, LRU of {LRU // MIB} MiB"
    tell(f"{title}: over the start", seen[0])
    for arm in ARMS:
        if not found(arm.preload):
            print(f"{arm.what}: skipped, {PRELOADS[arm.preload]} is not installed")
    tell("The same with a PixelCache() in place of the LRU", seen[1])
    tell(
        f"{REQUESTS} requests to a pool that lends a session of 199 MiB", seen[2], after="answered"
    )
    tell(f"memweir demo, {PLAN['rollouts']} rollouts over a PixelCache()", seen[3], "clock")


def note(runs: Runs, what: str, figures: dict[str, float]) -> None:
    runs.setdefault(what, []).append(figures)
    print(json.dumps([what, figures]), file=sys.stderr, flush=True)


def tell(title: str, runs: Runs, time: str = "CPU", after: str = "dropped") -> None:
    table = Table(title, ("", "peak", after, f"{QUIET} s later", time), WIDTHS)
    for what, each in runs.items():
        seen = {key: median(one[key] for one in each) for key in each[0]}
        sizes = (mib(seen[key]) if key in seen else "" for key in ("peak", "dropped", "later"))
        table.row(what, *sizes, f"{seen['seconds']:.1f} s")


def mib(size: float) -> str:
    return f"{size / MIB:.0f} MiB"


def found(preload: str) -> str:
    """The library called so, where distributions install it; something true for none."""
    if not preload:
        return "none needed"
    names = [LIBRARIES.format(machine, PRELOADS[preload]) for machine in ("x86_64", "aarch64")]
    return next((name for name in names if Path(name).exists()), "")


def play_all(arms: Any, folder: Path) -> Iterator[tuple[Arm, dict[str, float]]]:
    """Runs the arms one after another; while one is quiet in the end, the next one works."""
    quiet: list[tuple[Arm, subprocess.Popen[str], dict[str, float]]] = []
    for arm in arms:
        process = start(arm, folder)
        quiet.append((arm, process, watched(process)))
    for arm, process, seen in quiet:
        last = json.loads(line(process))
        if process.wait() != 0:
            raise RuntimeError(f"{arm.what} ended with {process.returncode}")
        base = seen["base"]
        yield arm, {k: v - (0 if k == "seconds" else base) for k, v in {**seen, **last}.items()}


def start(arm: Arm, folder: Path) -> subprocess.Popen[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC", "MEMWEIR"))}
    if arm.preload:
        variables["LD_PRELOAD"] = found(arm.preload)
    command = [sys.executable, "-m", "benches.deploy", "play", arm.does, str(folder)]
    return subprocess.Popen(
        command, env={**variables, **arm.variables}, stdout=subprocess.PIPE, text=True
    )


def watched(process: subprocess.Popen[str]) -> dict[str, float]:
    """What a process says until all is dropped, and its highest RssAnon meanwhile."""
    assert line(process) == "ready\n"
    peak, stop, read = [0], Event(), Reader(process.pid, None)

    def sample() -> None:
        while not stop.wait(0.01):
            peak[0] = max(peak[0], read()[0])

    sampler = Thread(target=sample)
    sampler.start()
    try:
        seen: dict[str, float] = json.loads(line(process))
    finally:
        stop.set()
        sampler.join()
    return {**seen, "peak": peak[0]}


def line(process: subprocess.Popen[str]) -> str:
    stdout: IO[str] | None = process.stdout
    assert stdout is not None
    return stdout.readline()


def photographs() -> Iterator[bytes]:
    """JPEG files of 0.6 to 4 megapixels: 7 to 48 MB each as floats."""
    import io

    from PIL import Image
    from skimage import data

    from memweir.cli.demo.workload import SUBJECTS

    for number in range(FILES):
        pixels: Any = getattr(data, SUBJECTS[number % len(SUBJECTS)])()
        image = Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels)
        width = 900 + number * 30
        image = image.convert("RGB").resize((width, width * 3 // 4))
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=85)
        yield encoded.getvalue()


# What runs in the process that is watched.


def play(does: str, folder: Path) -> None:
    """The workload once, with the advice that needs a line of Python."""
    import gc
    import random
    import resource
    import time
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from PIL import Image

    import memweir as mw

    if "tune" in does:
        mw.tune("images")
    if "configure" in does:
        mw.configure()
    files = sorted(folder.glob("*.jpg"))
    kept: Any = mw.PixelCache() if "cache" in does else Recent()

    def load(path: Path) -> Any:
        image = np.asarray(Image.open(path).convert("RGB"))
        floats = image.astype(np.float32) / np.float32(255)
        return np.ascontiguousarray(floats.transpose(2, 0, 1))

    def look(path: Path) -> None:
        kept.get_or_load(path.name, lambda: load(path))

    load(files[0])
    read = Reader(os.getpid(), None)
    gc.collect()
    base = read()[0]
    print("ready", flush=True)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(look, random.Random(0).choices(files, k=DECODES)))
        kept.clear()
        gc.collect()
        if "trim" in does:
            mw.trim()
        dropped = read()[0]
        used = resource.getrusage(resource.RUSAGE_SELF)
        seen = {"base": base, "dropped": dropped, "seconds": used.ru_utime + used.ru_stime}
        print(json.dumps(seen), flush=True)
        time.sleep(QUIET)
        print(json.dumps({"later": read()[0]}), flush=True)  # before the threads end


class Recent:
    """The cache that everybody writes: the arrays looked at last, up to so many bytes."""

    def __init__(self) -> None:
        from collections import OrderedDict
        from threading import Lock

        self.lock, self.bytes = Lock(), 0
        self.arrays: OrderedDict[str, Any] = OrderedDict()

    def get_or_load(self, key: str, load: Any) -> Any:
        with self.lock:
            if key in self.arrays:
                self.arrays.move_to_end(key)
                return self.arrays[key]
        array = load()
        with self.lock:
            if key not in self.arrays:
                self.arrays[key] = array
                self.bytes += array.nbytes
            while self.bytes > LRU:
                self.bytes -= self.arrays.popitem(last=False)[1].nbytes
        return array

    def clear(self) -> None:
        with self.lock:
            self.arrays.clear()
            self.bytes = 0


# Sessions and pools, as settings have them.


def pack(folder: Path) -> None:
    """The model and its pre-packed form."""
    import memweir as mw
    from memweir.cli.demo import encoder

    encoder.save(folder / "model.onnx")
    mw.ort.prepack(folder / "model.onnx", folder / "cache")


def lend(folder: Path) -> None:
    """Requests from a few threads, each with a lease; then nobody asks any more."""
    import resource
    import time
    from concurrent.futures import ThreadPoolExecutor

    import onnxruntime  # type: ignore[import-untyped]  # noqa: F401  part of the base

    import memweir as mw

    from .ort import inputs, lengths

    mw.configure()
    pool = mw.ModelPool()
    pool.add(
        "encoder",
        lambda: mw.ort.session(folder / "model.onnx", cache_dir=folder / "cache", threads=1),
    )

    def ask(tokens: int) -> None:
        with pool.lease("encoder") as session:
            session.run(None, inputs(tokens))

    read = Reader(os.getpid(), None)
    base = read()[0]
    print("ready", flush=True)
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(ask, lengths(REQUESTS, 0)))
        time.sleep(1)  # what goes at once has gone
        used = resource.getrusage(resource.RUSAGE_SELF)
        seen = {"base": base, "dropped": read()[0], "seconds": used.ru_utime + used.ru_stime}
        print(json.dumps(seen), flush=True)
        time.sleep(QUIET)
        print(json.dumps({"later": read()[0]}), flush=True)


# The demo, with the budget that settings give.


def play_demos() -> Iterator[tuple[str, dict[str, float]]]:
    from memweir.cli.demo.watch import watch
    from memweir.cli.demo.workload import Plan, photographs

    plan, uris = Plan(**PLAN), photographs()
    steps = len(list(plan.steps())) + len(list(plan.batches()))
    command = [sys.executable, "-m", "benches.deploy", "demo"]
    for what, variables in PARTS:
        with tempfile.TemporaryDirectory() as name, environment(variables):
            (Path(name) / "job.json").write_text(json.dumps({"plan": asdict(plan), "uris": uris}))
            run = watch("budget", Path(name), steps, lambda: None, command)
        yield what, {"peak": run.peak, "dropped": run.end, "seconds": run.seconds}


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


def play_demo(name: str, folder: Path) -> None:
    import memweir as mw
    from memweir.cli.demo import arms

    class Settled(arms.Budgeted):
        def __init__(self, sources: Any) -> None:
            super().__init__("0", sources)
            self.cache = mw.PixelCache()
            self.processor = mw.CachedProcessor(arms.image_processor(), self.cache)
            self.recompute = mw.Recompute(self.processor, self.source_of)

    mw.configure()
    arms.make_arm = lambda _, sources: Settled(sources)
    arms.main(name, folder)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["pack", folder]:
            pack(Path(folder))
        case ["play", "lend", folder]:
            lend(Path(folder))
        case ["play", does, folder]:
            play(does, Path(folder))
        case ["demo", name, folder]:
            play_demo(name, Path(folder))
        case [*rounds]:
            main(*map(int, rounds))
