"""What stays of 500 decodes after all was dropped but small survivors: untrimmed and trimmed.

Photographs of 800 to 3400 pixels become float32 in eight threads, and 600 MiB of them are kept,
in an LRU of numpy arrays or a ``PixelCache``. Each arm runs in a process of its own, where a trim
has three lives, one after the other. RssAnon counts from before the first decode.
"""

from __future__ import annotations

import io
import os
import random
import resource
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

import memweir as mw

from .deploy import PARTS, environment
from .harness import Table
from .kernel import MIB, Case, Reader, play, watch

DECODES = int(os.environ.get("MEMWEIR_BENCH_DECODES", "500"))
ROUNDS = int(os.environ.get("MEMWEIR_BENCH_ROUNDS", "3"))
PHOTOGRAPHS, THREADS, LIVES, KEPT, LATER = 60, 8, 3, 600 * MIB, 30.0
BUDGETS = {"cache": KEPT, "nothing": 0, "default": None}
"""Of a ``PixelCache``; ``None``: what the settings say."""
SLACK = 10 * MIB
FOLDER = "MEMWEIR_BENCH_PHOTOGRAPHS"

Array = np.ndarray[Any, Any]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder))
        os.environ[FOLDER] = folder
        lru()
        cache()
        switch()
    forward()


def lru() -> None:
    title = (
        f"{DECODES} decodes, 600 MiB kept in an LRU of numpy arrays, all dropped: RssAnon over base"
    )
    table = Table(title, ("", "dropped", "left", "30 s later", "goal"), (44, 18, 18, 12, 0))
    for threads in ("ended", "live"):
        for act in ("trim", "malloc_trim"):
            runs = [watch("benches.decode", f"lru {threads} {act}") for _ in range(ROUNDS)]
            found = [run["result"] for run in runs]
            left = [life["left"] for run in found for life in run["lives"]]
            later = median(run["later"] for run in found)
            ours = act == "trim"
            table.row(
                f"{'mw.trim()' if ours else 'malloc_trim(0)'}, threads {threads}",
                spread([life["dropped"] for run in found for life in run["lives"]]),
                spread(left),
                mib(later),
                f"≤ {mib(SLACK)} in each life" if ours else "",
                holds=not ours or max(*left, later) <= SLACK,
            )
            if ours:
                steps(table, found)


def steps(table: Table, found: list[Any]) -> None:
    lives = [life for run in found for life in run["lives"]]
    most = max(life["sweepers"] or 0 for life in lives)
    table.row("  sweepers, at most", "", f"{most}", "", "≤ 64", holds=most <= 64)
    for name in ("allocator", "arenas"):
        took = sorted(life["seconds"][name] for life in lives)
        table.row(f"  {name}", "", f"{median(took) * 1e3:.0f} ms", f"≤ {took[-1] * 1e3:.0f} ms", "")


def cache() -> None:
    title = f"{DECODES} decodes with a PixelCache of 600 MiB: RssAnon over base"
    table = Table(title, ("", "least", "median", "most", "goal"), (44, 10, 10, 10, 0))
    nothing = [watch("benches.decode", "nothing ended trim")["anon"] for _ in range(ROUNDS)]
    table.row("peak without a budget", *three(nothing), "")
    for threads in ("ended", "live"):
        runs = [watch("benches.decode", f"cache {threads} trim") for _ in range(ROUNDS)]
        lives = [life for run in runs for life in run["result"]["lives"]]
        peaks = [run["anon"] for run in runs]
        most = 1.3 * KEPT + median(nothing)
        row(table, f"peak, threads {threads}", peaks, f"≤ {mib(most)}", median(peaks) <= most)
        back = [life["cleared"] / life["owned"] for life in lives]
        told = [f"{100 * part:.1f} %" for part in (min(back), median(back), max(back))]
        table.row("  of its bytes, back within clear()", *told, "≥ 97 %", holds=min(back) >= 0.97)
        row(table, "  left untrimmed", [life["dropped"] for life in lives], "", True)
        left = [life["left"] for life in lives] + [run["result"]["later"] for run in runs]
        row(
            table,
            "  left by mw.trim(), and 30 s later",
            left,
            f"≤ {mib(SLACK)}",
            max(left) <= SLACK,
        )


def switch() -> None:
    """What each part of ``MEMWEIR_LOW_MEMORY`` brings."""
    title = f"{DECODES} decodes over a PixelCache(), eight live threads: RssAnon over base"
    table = Table(
        title, ("", "peak", "cleared", "after mw.trim()", "30 s later"), (44, 12, 12, 16, 0)
    )
    for what, variables in PARTS:
        with environment(variables):
            runs = [watch("benches.decode", "default live trim") for _ in range(ROUNDS)]
        lives = [life for run in runs for life in run["result"]["lives"]]
        found = (
            [run["anon"] for run in runs],
            [life["dropped"] for life in lives],
            [life["left"] for life in lives],
            [run["result"]["later"] for run in runs],
        )
        table.row(what, *(mib(median(values)) for values in found))


def forward() -> None:
    table = Table(
        "Minor page faults of a torch forward (12 blocks, 8×196×576), median of 9",
        ("", "before", "after", "the first", "goal"),
        (44, 10, 10, 10, 0),
    )
    for act in ("trim", "128 KiB left set"):
        found = [watch("benches.decode", f"forward {act}")["result"] for _ in range(ROUNDS)]
        before, after = (median(run[key] for run in found) for key in ("before", "after"))
        first = median(run["first"] for run in found)
        ours = act == "trim"
        table.row(
            "mw.trim()" if ours else "a sweep that leaves its threshold",
            *(f"{faults:.0f}" for faults in (before, after, first)),
            "≤ 1.1 × before" if ours else "",
            holds=not ours or after <= 1.1 * before,
        )


def row(table: Table, what: str, values: list[float], goal: str, holds: bool) -> None:
    table.row(what, *three(values), goal, holds=holds)


def three(values: list[float]) -> list[str]:
    return [mib(value) for value in (min(values), median(values), max(values))]


def spread(values: list[float]) -> str:
    return f"{median(values) / MIB:.1f} ({min(values) / MIB:.1f}–{max(values) / MIB:.1f})"


def mib(size: float) -> str:
    return f"{size / MIB:.1f} MiB"


def photographs(folder: Path) -> None:
    """Crops of scikit-image's photographs, made larger, as JPEG files."""
    from skimage import data

    picks = random.Random(0)
    found = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), data.retina()]
    for number in range(PHOTOGRAPHS):
        image = Image.fromarray(found[number % len(found)])
        width, height = (picks.uniform(0.6, 1.0) * side for side in image.size)
        image = image.crop((0, 0, int(width), int(height)))
        longest = picks.randrange(800, 3401)
        scale = longest / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


# What runs in the process that is watched.


class Lru:
    """The numpy cache that people write: bytes are bounded, under one lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.arrays: OrderedDict[int, Array] = OrderedDict()
        self.bytes = 0

    def load(self, key: int, load: Callable[[], Array]) -> None:
        array = load()
        with self.lock:
            self.arrays[key] = array
            self.bytes += array.nbytes
            while self.bytes > KEPT:
                self.bytes -= self.arrays.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        self.arrays.clear()
        self.bytes = 0

    def owned(self) -> int:
        return self.bytes


class Cache:
    """The same of a ``PixelCache``."""

    def __init__(self, budget: int | None) -> None:
        self.cache = mw.PixelCache(budget, name="decode")

    def load(self, key: int, load: Callable[[], Array]) -> None:
        self.cache.get_or_load(f"{key}", load)

    def clear(self) -> None:
        self.cache.clear()

    def owned(self) -> int:
        return self.cache.stats().bytes


def decodes(kind: str, live: bool, act: str) -> Case:
    def prepare(read: Reader) -> Callable[[], dict[str, Any]]:
        files = [path.read_bytes() for path in sorted(Path(os.environ[FOLDER]).iterdir())]
        kept: Any = Lru() if kind == "lru" else Cache(BUDGETS[kind])
        survivors: list[Array] = []
        decode(small(), survivors)  # imports what decoding imports
        pool = ThreadPoolExecutor(THREADS) if live else None
        if pool is not None:
            list(pool.map(lambda _: time.sleep(0.1), range(THREADS)))

        def work() -> dict[str, Any]:
            base = read()[0]
            lives = []
            for life in range(LIVES if act == "trim" and kind != "nothing" else 1):
                picks = random.Random(life)
                jobs = [(DECODES * life + n, picks.choice(files)) for n in range(DECODES)]

                def one(job: tuple[int, bytes]) -> None:
                    key, data = job
                    kept.load(key, lambda: decode(data, survivors))

                if pool is not None:
                    list(pool.map(one, jobs))
                else:
                    with ThreadPoolExecutor(THREADS) as threads:
                        list(threads.map(one, jobs))
                owned, full = kept.owned(), read()[0]
                kept.clear()
                told: dict[str, Any] = {"owned": max(owned, 1), "cleared": full - read()[0]}
                told["dropped"] = read()[0] - base
                told |= give_back(act)
                told["left"] = read()[0] - base
                lives.append(told)
            time.sleep(LATER)
            return {"lives": lives, "later": read()[0] - base}

        return work

    return prepare


def decode(data: bytes, survivors: list[Array]) -> Array:
    """A photograph as float32 by channel; something small of it stays."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"))
    survivors.append(pixels[::512, ::512].copy())
    scaled = pixels.astype(np.float32) * np.float32(1 / 255)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def small() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    return file.getvalue()


def give_back(act: str) -> dict[str, Any]:
    if act == "malloc_trim":
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
        return {}
    report = mw.trim()
    arenas = report.step("arenas")
    return {
        "sweepers": None if arenas is None else arenas.detail.get("sweepers"),
        "seconds": {step.name: step.seconds for step in report.steps},
    }


def forwards(act: str) -> Case:
    def prepare(_: Reader) -> Callable[[], dict[str, Any]]:
        import torch

        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(576, 8, 2304, batch_first=True)
        model = torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).eval()
        given = torch.randn(8, 196, 576)

        def faults() -> int:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            with torch.inference_mode():
                model(given)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        def work() -> dict[str, Any]:
            for _ in range(3):
                faults()
            before = median(faults() for _ in range(9))
            mw.trim()
            if act != "trim":
                import ctypes

                ctypes.CDLL(None).mallopt(-1, 128 << 10)  # as the sweep needs it meanwhile
            first = faults()
            faults()
            return {"before": before, "first": first, "after": median(faults() for _ in range(9))}

        return work

    return prepare


def case(name: str) -> Case:
    kind, _, rest = name.partition(" ")
    if kind == "forward":
        return forwards(rest)
    threads, act = rest.split()
    return decodes(kind, threads == "live", act)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        play(case(sys.argv[1]), sys.argv[2])
    else:
        main()
