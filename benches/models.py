"""Models lent and let go: what the process keeps, beside plain ``del`` and a collection.

Each arm runs in a process of its own. RssAnon counts from before the first load, with everything
imported that is.
"""

from __future__ import annotations

import gc
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from typing import Any

import memweir as mw

from .harness import Ratio, Table, duration
from .kernel import MIB, Case, Reader, play, watch

ROUNDS = int(os.environ.get("MEMWEIR_BENCH_ROUNDS", "3"))
CYCLES = int(os.environ.get("MEMWEIR_BENCH_CYCLES", "100"))
BLOCK = 7_087_872 * 4  # bytes of one transformer block of width 768
REQUESTS = int(os.environ.get("MEMWEIR_BENCH_REQUESTS", "50"))
BIG, SMALL, WINDOW = 14, 2, 15.0
ARMS = "del and gc.collect()", "memweir"


def main() -> None:
    unloads()
    many()
    held()
    leases()


def unloads() -> None:
    size = BIG * BLOCK
    table = Table(
        f"{size / 1e6:.0f} MB of torch weights loaded in a live thread and let go, 6 cycles after "
        "one to warm up: RssAnon over base",
        ("", "warm", "cycles", "spread", "goal"),
        (30, 8, 42, 8, 0),
    )
    for arm in ARMS:
        for _ in range(ROUNDS):
            warm, *cycles = watch("benches.models", f"cycles {arm}")["result"]
            spread = max(cycles) - min(cycles)
            ours = arm == "memweir"
            table.row(
                arm,
                mib(warm),
                " ".join(f"{each / MIB:.1f}" for each in cycles),
                mib(spread),
                "≤ warm + 1 %, spread ≤ 5 MiB" if ours else "",
                holds=not ours or (max(cycles) <= warm + size // 100 and spread <= 5 * MIB),
            )


def many() -> None:
    table = Table(
        f"{SMALL * BLOCK / 1e6:.0f} MB, {CYCLES} cycles in four live threads: RssAnon over base",
        ("", "warm", "most", "last", "slope of a cycle", "goal"),
        (30, 10, 10, 10, 18, 0),
    )
    for arm in ARMS:
        warm, *cycles = watch("benches.models", f"many {arm}")["result"]
        ours = arm == "memweir"
        table.row(
            arm,
            *(mib(each) for each in (warm, max(cycles), cycles[-1])),
            f"{slope(cycles) / MIB:.3f} MiB",
            "≤ warm + 5 MiB, ≤ 0.05 MiB" if ours else "",
            holds=not ours or (max(cycles) <= warm + 5 * MIB and slope(cycles) <= 0.05 * MIB),
        )


def held() -> None:
    table = Table(
        "A photograph through ResNet-50 and a SigLIP vision tower: RssAnon over base, in MiB",
        ("", "in use", "after the window", "second request", "after its window", "loads"),
        (44, 10, 18, 16, 18, 0),
    )
    for arm in ("kept", "del and gc.collect()", "memweir"):
        runs = [watch("benches.models", f"request {arm}")["result"] for _ in range(ROUNDS)]
        shown = [
            mib(median(run[name] for run in runs)) for name in ("used", "idle", "again", "end")
        ]
        table.row(arm, *shown, str(runs[0]["loads"]))
    loads = watch("benches.models", "burst memweir")["result"]
    table.row(f"a burst of {REQUESTS} requests, four at a time", "", "", "", "", f"{loads}, goal 2")


def leases() -> None:
    table = Table("Leases", ("", "least", "median", "goal"), (58, 12, 12, 0))
    took = watch("benches.models", "lease memweir")["result"]
    for what, each in (
        ("of a model that is there", "lease"),
        ("  a bare lock in its place", "lock"),
    ):
        least, middle = took[f"least {each}"], took[each]
        ours = each == "lease"
        table.row(
            what,
            duration(least),
            duration(middle),
            "≤ 5 µs" if ours else "",
            holds=not ours or least <= 5e-6,
        )
    met = watch("benches.models", "meet memweir")["result"]
    for what in ("loads", "uses"):
        found = met[what]
        table.row(
            f"{what} at a time, of four models in four threads",
            f"{found}",
            "",
            "4",
            holds=found == 4,
        )


def mib(size: float) -> str:
    return f"{size / MIB:.1f} MiB"


def slope(values: list[int]) -> float:
    """Of the line through them with the least squares."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    across = sum((at - middle) ** 2 for at in range(len(values)))
    return sum((at - middle) * (value - mean) for at, value in enumerate(values)) / across


# What runs in the process that is watched.


def transformer(blocks: int) -> Any:
    from torch import manual_seed, nn

    manual_seed(0)
    block = {"d_model": 768, "nhead": 12, "dim_feedforward": 3072, "batch_first": True}
    return nn.Sequential(*(nn.TransformerEncoderLayer(**block) for _ in range(blocks))).eval()


def forward(model: Any) -> float:
    import torch

    with torch.inference_mode():
        return float(model(torch.zeros(1, 64, 768)).sum())


def cycles(arm: str, blocks: int, count: int, threads: int) -> Case:
    """RssAnon over base after each of so many loads, uses and releases."""

    def prepare(read: Reader) -> Callable[[], list[int]]:
        import torch

        torch.set_num_threads(1)
        forward(transformer(1))
        mw.trim()
        base = read()[0]

        def plain() -> None:
            forward(transformer(blocks))
            gc.collect()

        pool = mw.ModelPool()
        pool.add("model", load=lambda: transformer(blocks))

        def use() -> None:
            with pool.lease("model") as model:
                forward(model)
                del model

        def first(rest: threading.Barrier) -> None:
            rest.wait()
            forward(transformer(1))

        def work() -> list[int]:
            seen = []
            with ThreadPoolExecutor(threads) as workers:
                # Each has been used, so that what torch keeps for a thread is there.
                rest = threading.Barrier(threads)
                for each in [workers.submit(first, rest) for _ in range(threads)]:
                    each.result()
                for _ in range(count + 1):
                    if arm == "memweir":
                        workers.submit(use).result()
                        (gone,) = pool.unload("model").released
                        assert gone.verdict == "dead", gone
                    else:
                        workers.submit(plain).result()
                    seen.append(read()[0] - base)
            return seen

        return work

    return prepare


def classifier() -> Any:
    import torchvision
    from torch import manual_seed

    manual_seed(0)
    return torchvision.models.resnet50(weights=None).eval()


def tower() -> Any:
    import transformers
    from torch import manual_seed

    manual_seed(0)
    config = transformers.SiglipVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    return transformers.SiglipVisionModel(config).eval()


def photograph() -> bytes:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(256, size=(96, 128, 3), dtype=np.uint8)
    kept = io.BytesIO()
    Image.fromarray(noise).resize((1024, 768)).save(kept, "JPEG")
    return kept.getvalue()


def request(lend: Callable[[str], Any], encoded: bytes) -> float:
    """One answer: a photograph decoded, classified and embedded."""
    import numpy as np
    import torch
    from PIL import Image

    image = Image.open(io.BytesIO(encoded)).convert("RGB").resize((224, 224))
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.inference_mode(), lend("classifier") as model:
        label = model(pixels).sum()
        del model
    with torch.inference_mode(), lend("tower") as model:
        embedded = model(pixels).pooler_output.sum()
        del model
    return float(label + embedded)


MAKERS = {"classifier": classifier, "tower": tower}


class Keeper:
    """Lends models as services do: loaded at the first request, and kept or dropped."""

    def __init__(self, arm: str, window: float) -> None:
        self.loads = 0
        self.kept: dict[str, Any] = {}
        self.lock = threading.Lock()
        self.pool: Any = None
        if arm == "memweir":
            self.pool = mw.ModelPool(idle=mw.Idle(unload=window))
            for name in MAKERS:
                self.pool.add(name, load=lambda name=name: self.make(name))

    def make(self, name: str) -> Any:
        self.loads += 1
        return MAKERS[name]()

    def lend(self, name: str) -> Any:
        return self.pool.lease(name) if self.pool is not None else self.plain(name)

    @contextmanager
    def plain(self, name: str) -> Iterator[Any]:
        with self.lock:
            if name not in self.kept:
                self.kept[name] = self.make(name)
        yield self.kept[name]


def requests(arm: str) -> Case:
    """RssAnon over base with the models in use and after the window, for two requests."""

    def prepare(read: Reader) -> Callable[[], dict[str, Any]]:
        encoded, keeper = ready(arm, WINDOW)
        base = read()[0]

        def work() -> dict[str, Any]:
            seen: dict[str, Any] = {}
            with ThreadPoolExecutor(4) as workers:
                for used, idle in (("used", "idle"), ("again", "end")):
                    workers.submit(request, keeper.lend, encoded).result()
                    seen[used] = read()[0] - base
                    if arm == "del and gc.collect()":
                        keeper.kept.clear()
                        gc.collect()
                    time.sleep(WINDOW + 3 if arm == "memweir" else 1)
                    seen[idle] = read()[0] - base
            return {**seen, "loads": keeper.loads}

        return work

    return prepare


def ready(arm: str, window: float) -> tuple[bytes, Keeper]:
    """Everything imported that the first request would import, and no weights."""
    import torch
    import torchvision
    import transformers

    torch.set_num_threads(1)
    assert torchvision.models.resnet50
    assert transformers.SiglipVisionModel
    encoded = photograph()
    mw.trim()
    return encoded, Keeper(arm, window)


def burst(arm: str) -> Case:
    """Loads for many requests within the window."""

    def prepare(_: Reader) -> Callable[[], int]:
        encoded, keeper = ready(arm, 60.0)

        def work() -> int:
            with ThreadPoolExecutor(4) as workers:
                for answer in [
                    workers.submit(request, keeper.lend, encoded) for _ in range(REQUESTS)
                ]:
                    answer.result()
            return keeper.loads

        return work

    return prepare


class Meeting:
    """How many are inside at a time, at most, of those that wait for each other a while."""

    def __init__(self, size: int) -> None:
        self.size, self.inside, self.most = size, 0, 0
        self.changed = threading.Condition()

    def __call__(self) -> None:
        with self.changed:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most == self.size, timeout=10)
            self.inside -= 1


def meet(_: Reader) -> Callable[[], dict[str, int]]:
    """How many of four threads with a model each load, and use, at a time."""
    loading, using = Meeting(4), Meeting(4)
    pool = mw.ModelPool()

    def load() -> Any:
        loading()
        return bytearray(MIB)

    for name in "abcd":
        pool.add(name, load=load)

    def use(name: str) -> None:
        with pool.lease(name):
            using()

    def work() -> dict[str, int]:
        with ThreadPoolExecutor(4) as workers:
            list(workers.map(use, "abcd"))
        return {"loads": loading.most, "uses": using.most}

    return work


def lease(_: Reader) -> Callable[[], dict[str, float]]:
    """Seconds of a lease of a model that is there, and of a bare lock, in turns.

    The least of many short rounds beside their medians: who has no core of his own waits for one.
    """
    pool = mw.ModelPool()
    pool.add("model", load=lambda: bytearray(MIB))
    pool.preload("model")
    lock = threading.Lock()

    def lend() -> None:
        with pool.lease("model"):
            pass

    def hold() -> None:
        with lock:
            pass

    def work() -> dict[str, float]:
        found = Ratio.measure(lend, hold, calls=300, rounds=301)
        return {
            "lease": median(found.ours),
            "least lease": min(found.ours),
            "lock": median(found.other),
            "least lock": min(found.other),
        }

    return work


def case(what: str) -> Case:
    name, _, arm = what.partition(" ")
    cases: dict[str, Callable[[], Case]] = {
        "cycles": lambda: cycles(arm, BIG, 6, 1),
        "many": lambda: cycles(arm, SMALL, CYCLES, 4),
        "request": lambda: requests(arm),
        "burst": lambda: burst(arm),
        "lease": lambda: lease,
        "meet": lambda: meet,
    }
    return cases[name]()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        play(case(sys.argv[1]), sys.argv[2])
    else:
        main()
