"""ONNX Runtime sessions over their life: anonymous memory, peaks, processor time, shared pages.

Every arm runs in processes of its own. Memory is the kernel's, over the baseline after imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np

import memweir as mw

from .harness import Table
from .kernel import MIB

REPEATS = int(os.environ.get("MEMWEIR_BENCH_ROUNDS", "3"))
CYCLES = 8
RUNS = 8
"""Runs of each cycle, of 1 to 512 tokens."""
SHAPES = 300
CALLERS = 8
CALLER_RUNS = 16

# Bare sessions, as they are used: dropped, and never trimmed, but where the name says so.
BARE = {
    "ORT's defaults": {},
    "arena and pattern off": {"enable_cpu_mem_arena": False, "enable_mem_pattern": False},
}
OURS = ("balanced", "lean", "arena_off")
# Beside the profiles: what was tried, and is no profile.
TRIED = {
    "balanced, ORT_ENABLE_BASIC": ("balanced", {"optimization": "basic"}),
    "balanced, pattern off": ("balanced", {"mem_pattern": False}),
    "balanced, no pre-packing at all": (
        "balanced",
        {"config": {"session.disable_prepacking": "1"}},
    ),
    "balanced, without shrinking": ("balanced", {"shrink": False}),
    "lean, without shrinking": ("lean", {"shrink": False}),
    "lean, embedded weights": ("lean", {"prepacked": False}),
    "balanced, int8 weights": ("balanced", {}),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        memory(folder, tuned=True)
        memory(folder, tuned=False)
        callers(folder)
        workers(folder)
        processor(folder)
        tried(folder)


def prepare(folder: Path) -> None:
    """The model, and its pre-packed form, made in a process of their own."""
    child("prepare", folder)


def child(*arguments: object, env: dict[str, str] | None = None) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "benches.ort", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", **(env or {})},
    )
    if done.returncode != 0:
        raise SystemExit(f"{arguments}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# Tables.


def memory(folder: Path, *, tuned: bool) -> None:
    table = Table(
        f"MiB over the baseline, the worst of {CYCLES} cycles in each of {REPEATS} processes, "
        + ('after mw.tune("models")' if tuned else "not tuned"),
        ("", "loaded", "after runs", "after close", "peak", "of it file", "goal"),
        (26, 8, 10, 11, 6, 10, 0),
    )
    for arm in (*BARE, *OURS):
        found = [child("cycles", folder, arm, int(tuned)) for _ in range(REPEATS)]
        worst = worst_of(found)
        goals: dict[str, float] = {}
        if tuned and arm == "lean":
            goals = {"loaded": 5, "runs": 10, "closed": 5, "peak": 260}
        elif tuned and arm == "balanced":
            goals = {"loaded": 210, "closed": 5, "peak": 260}
        worst["peak"] = max(each["peak"] for each in found)
        table.row(
            arm,
            *(f"{worst[key]:.1f}" for key in ("loaded", "runs", "closed")),
            f"{worst['peak']:.0f}",
            f"{max(each['file'] for each in found):.0f}",
            ", ".join(f"{key} ≤ {most:g}" for key, most in goals.items()),
            holds=all(worst[key] <= most for key, most in goals.items()),
        )


def worst_of(found: list[Any]) -> dict[str, float]:
    """The highest value of each kind over all cycles of all processes."""
    every = [one for each in found for one in each["cycles"]]
    return {key: max(one[key] for one in every) for key in every[0]}


def callers(folder: Path) -> None:
    table = Table(
        f"Runs from {CALLERS} threads of an executor: the worst of {CYCLES} cycles, MiB",
        ("", "after runs", "after close", "and a trim", "goal"),
        (34, 10, 11, 10, 0),
    )
    for tuned, arms in ((True, (*BARE, *OURS)), (False, ("arena and pattern off", "lean"))):
        for arm in arms:
            worst = worst_of([child("callers", folder, arm, int(tuned)) for _ in range(REPEATS)])
            goal = tuned and arm in ("lean", "balanced")
            table.row(
                f"{arm}{'' if tuned else ', not tuned'}",
                *(f"{worst[key]:.1f}" for key in ("runs", "closed", "trimmed")),
                "after close ≤ 8" if goal else "",
                holds=not goal or worst["closed"] <= 8,
            )


def workers(folder: Path) -> None:
    table = Table(
        "Three worker processes with one model, after 8 runs each: sum of PSS",
        ("", "MiB", "of ORT's defaults", "goal"),
        (26, 8, 18, 0),
    )
    plain = median(shared(folder, "ORT's defaults") for _ in range(REPEATS))
    for arm in ("ORT's defaults", "balanced", "lean"):
        size = (
            plain
            if arm == "ORT's defaults"
            else median(shared(folder, arm) for _ in range(REPEATS))
        )
        goal = arm == "lean"
        table.row(
            arm,
            f"{size:.0f}",
            f"{100 * size / plain:.0f} %",
            "≤ 45 %" if goal else "",
            holds=not goal or size <= 0.45 * plain,
        )


def processor(folder: Path) -> None:
    arms = ("ORT's defaults", "balanced", "lean")
    table = Table(
        f"Processor time of {SHAPES} runs of 1 to 512 tokens, one thread, interleaved: ratios to "
        f"ORT's defaults, medians of {REPEATS} rounds",
        ("", "p50", "p95", "total", "wall p50", "same bits", "goal"),
        (26, 7, 7, 7, 9, 9, 0),
    )
    rounds = [paired(folder, arms, 1) for _ in range(REPEATS)]
    for arm, most in (("balanced", 1.02), ("lean", 1.05)):
        value = {key: median(each[arm][key] for each in rounds) for key in rounds[0][arm]}
        table.row(
            arm,
            *(f"{value[key]:.3f}" for key in ("p50", "p95", "total", "wall")),
            "yes" if value["off"] == 0 else "NO",
            f"p50 ≤ {most}, total ≤ 1.07",
            holds=value["off"] == 0 and value["p50"] <= most and value["total"] <= 1.07,
        )


def tried(folder: Path) -> None:
    table = Table(
        "What was tried and is no profile, tuned: MiB as above, processor time to ORT's defaults",
        ("", "loaded", "after runs", "after close", "p50", "total", "outputs off", "goal"),
        (34, 8, 10, 11, 7, 7, 11, 0),
    )
    rounds = paired(folder, ("ORT's defaults", "arena and pattern off", *TRIED), 1, 60)
    for arm in ("arena and pattern off", *TRIED):
        worst = worst_of([child("cycles", folder, arm, 1)])
        each = rounds[arm]
        table.row(
            arm,
            *(f"{worst[key]:.1f}" for key in ("loaded", "runs", "closed")),
            f"{each['p50']:.3f}",
            f"{each['total']:.3f}",
            "by 0" if each["off"] == 0 else f"by {each['off']:.1e}",
            "",
        )


def paired(
    folder: Path, arms: tuple[str, ...], threads: int, shapes: int = SHAPES
) -> dict[str, dict[str, float]]:
    """All arms alive, one shape after another through each of them in changing order."""
    alive = {arm: Worker(folder, arm, threads) for arm in arms}
    times: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    off = dict.fromkeys(arms, 0.0)
    try:
        for number, tokens in enumerate((16, 512, 100, *lengths(shapes, 3))):
            answers = {}
            order = list(arms)[:: 1 if number % 2 else -1]
            for arm in order:
                answers[arm] = alive[arm].run(tokens)
            for arm in arms:
                off[arm] = max(off[arm], apart(answers[arm], answers[arms[0]]))
                if number >= 3:  # the first ones find out how large things are
                    times[arm].append((answers[arm]["cpu"], answers[arm]["wall"]))
    finally:
        for worker in alive.values():
            worker.end()
    base = times[arms[0]]
    found = {}
    for arm in arms[1:]:
        cpu = [mine[0] / other[0] for mine, other in zip(times[arm], base, strict=True)]
        wall = [mine[1] / other[1] for mine, other in zip(times[arm], base, strict=True)]
        slow = [np.percentile([one[0] for one in each], 95) for each in (times[arm], base)]
        total = sum(one[0] for one in times[arm]) / sum(one[0] for one in base)
        found[arm] = {
            "p50": median(cpu),
            "p95": float(slow[0] / slow[1]),
            "total": total,
            "wall": median(wall),
            "off": off[arm],
        }
    return found


def apart(mine: Any, other: Any) -> float:
    """The largest difference of two answers; none where their bits are the same."""
    if mine["digest"] == other["digest"]:
        return 0.0
    return float(np.abs(np.load(mine["scores"]) - np.load(other["scores"])).max())


def shared(folder: Path, arm: str) -> float:
    """MiB of proportional memory of three workers that have run."""
    alive = [Worker(folder, arm, 1) for _ in range(3)]
    try:
        for worker in alive:
            for tokens in lengths(8, 3):
                worker.run(tokens)
        total = 0
        for worker in alive:
            for line in Path(f"/proc/{worker.process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total / MIB
    finally:
        for worker in alive:
            worker.end()


class Worker:
    """A process that holds a session and runs what it is told."""

    def __init__(self, folder: Path, arm: str, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benches.ort", "worker", str(folder), arm, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", arm

    def run(self, tokens: int) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{tokens}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# What runs in the processes that are watched.


def lengths(count: int, seed: int) -> list[int]:
    """From 1 to 512 tokens, most of them short, as requests are."""
    drawn = np.random.default_rng(seed).lognormal(4.3, 1.1, count)
    return [int(min(512, max(1, one))) for one in drawn]


def inputs(tokens: int) -> dict[str, Any]:
    words = np.random.default_rng(tokens).integers(0, 12_000, (1, tokens))
    return {"input_ids": words, "attention_mask": np.ones_like(words)}


def open_arm(folder: Path, arm: str, threads: int = 1) -> tuple[Any, Callable[[], object]]:
    """A session, and what ends it beside dropping it."""
    model = folder / ("int8.onnx" if "int8" in arm else "model.onnx")
    if arm in BARE:
        import onnxruntime as ort  # type: ignore[import-untyped]

        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        for name, value in BARE[arm].items():
            setattr(options, name, value)
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        return session, lambda: None
    profile, overrides = TRIED.get(arm, (arm, {}))
    ours = mw.ort.session(
        model,
        profile,
        providers=["CPUExecutionProvider"],
        threads=threads,
        log_severity=3,
        cache_dir=folder / "cache",
        **overrides,
    )
    return ours, ours.close


def status() -> dict[str, float]:
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM", "RssAnon", "RssFile"):
            found[name] = int(value.split()[0]) * 1024 / MIB
    return found


def baseline(tuned: bool) -> dict[str, float]:
    """What there is after imports, and nothing of it can be given back."""
    if tuned:
        assert mw.tune("models").ok
    import onnxruntime  # noqa: F401

    mw.ort.session  # noqa: B018  imports what a session needs
    mw.trim()
    Path("/proc/self/clear_refs").write_text("5")
    return status()


def cycles(folder: Path, arm: str, tuned: bool) -> dict[str, Any]:
    base = baseline(tuned)
    found = []
    file = 0.0
    for cycle in range(CYCLES):
        session, end = open_arm(folder, arm)
        loaded = status()["RssAnon"]
        for tokens in lengths(RUNS, cycle):
            session.run(None, inputs(tokens))
        runs = status()
        file = max(file, runs["RssFile"] - base["RssFile"])
        end()
        del session, end
        found.append(
            {
                "loaded": loaded - base["RssAnon"],
                "runs": runs["RssAnon"] - base["RssAnon"],
                "closed": status()["RssAnon"] - base["RssAnon"],
            }
        )
    return {"cycles": found, "peak": status()["VmHWM"] - base["VmRSS"], "file": file}


def called(folder: Path, arm: str, tuned: bool) -> dict[str, Any]:
    base = baseline(tuned)
    found = []
    with ThreadPoolExecutor(CALLERS) as pool:
        for cycle in range(CYCLES):
            session, end = open_arm(folder, arm)

            def one(tokens: int, session: Any = session) -> None:
                session.run(None, inputs(tokens))

            list(pool.map(one, lengths(CALLER_RUNS, cycle)))
            runs = status()["RssAnon"]
            end()
            del session, end, one
            closed = status()["RssAnon"]
            mw.trim()
            found.append(
                {
                    "runs": runs - base["RssAnon"],
                    "closed": closed - base["RssAnon"],
                    "trimmed": status()["RssAnon"] - base["RssAnon"],
                }
            )
    return {"cycles": found}


def work(folder: Path, arm: str, threads: int) -> None:
    from time import perf_counter

    if arm not in BARE:
        mw.tune("models")
    session, _ = open_arm(folder, arm, threads)
    kept = folder / f"{os.getpid()}.npy"
    print("ready", flush=True)
    for line in sys.stdin:
        feed = inputs(int(line))
        cpu, wall = process_time(), perf_counter()
        (scores,) = session.run(None, feed)
        told = {"cpu": process_time() - cpu, "wall": perf_counter() - wall}
        np.save(kept, scores)
        told = {**told, "digest": mw.hash_array(scores).hex(), "scores": str(kept)}
        print(json.dumps(told), flush=True)


def play(what: str, folder: Path, rest: list[str]) -> Iterator[Any]:
    if what == "prepare":
        from onnxruntime.quantization import quantize_dynamic  # type: ignore[import-untyped]

        from memweir.cli.demo import encoder

        encoder.save(folder / "model.onnx")
        quantize_dynamic(folder / "model.onnx", folder / "int8.onnx")
        yield mw.ort.prepack(folder / "model.onnx", folder / "cache").nbytes
    elif what == "cycles":
        yield cycles(folder, rest[0], rest[1] == "1")
    elif what == "callers":
        yield called(folder, rest[0], rest[1] == "1")
    elif what == "worker":
        work(folder, rest[0], int(rest[1]))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        for result in play(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]):
            print(json.dumps(result))
    else:
        main()
