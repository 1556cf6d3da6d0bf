"""Rollouts with images: K rollouts of 8 turns, a new 1024² image each turn, and what stays.

Each cell is a process of its own. ``python -m benches.rollouts [ROUNDS [AT_ONCE]]`` takes the
median of so many rounds, ``python -m benches.rollouts --figures`` of 3, two cells at a time:
that costs seconds and no memory. Cells of 128 rollouts and more are played once.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from memweir.cli.demo.offline import count_calls

from .harness import Ratio, Table, duration

TURNS = 8
SIDE = 1024
PATCHES = SIDE // 16 * (SIDE // 16)
MB = 1e6
SAMPLE = 64
"""Images of large cells that are looked at in the end; all of them in the others."""


class Cell(NamedTuple):
    """What one process plays: with upstream's renderer where there is no budget."""

    backend: str
    rollouts: int
    budget: str | None = None
    group: int = 1


BACKENDS = ("torchvision", "pil")
UPSTREAM = [Cell(backend, k) for backend in BACKENDS for k in (8, 16, 32)]
SMALL = [Cell(b, k, "64 MiB") for b in BACKENDS for k in (16, 32, 64, 128, 256)]
LARGE = [Cell(backend, 32, "1 GiB") for backend in BACKENDS]
GROUPS = [Cell(backend, 64, "64 MiB", 8) for backend in BACKENDS]


def main(rounds: int = 1, at_once: int = 1) -> None:
    rerender()
    cells = (*UPSTREAM, *SMALL, *LARGE, *GROUPS)
    with ThreadPoolExecutor(at_once) as pool:
        seen = dict(zip(cells, pool.map(lambda cell: play_all(cell, rounds), cells), strict=True))
    memory(seen)


def play_all(cell: Cell, rounds: int) -> dict[str, float]:
    """The median of each figure."""
    all_of_them = []
    for _ in range(rounds if cell.rollouts < 128 else 1):
        command = [sys.executable, "-m", "benches.rollouts", "cell", json.dumps(cell)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        all_of_them.append(json.loads(done.stdout))
        print(json.dumps(cell), done.stdout.strip(), file=sys.stderr, flush=True)
    return {name: median([one[name] for one in all_of_them]) for name in all_of_them[0]}


def memory(seen: dict[Cell, dict[str, float]]) -> None:
    title = f"{TURNS} turns, a new {SIDE}² image each: MB over the baseline"
    columns = ("", "strings", "RSS", "trimmed", "peak", "processed", "s", "goal")
    table = Table(title, columns, (44, 8, 8, 8, 8, 10, 6, 0))
    for cell, found in seen.items():
        rss, peak = found["rss"], found["peak"]
        goal, holds = "", True
        images = cell.rollouts * TURNS // cell.group
        if cell.budget is not None:
            holds = found["processed"] == images
            goal = f"{images} processed"
        if cell in SMALL and cell.rollouts == 32:
            goal += ", RSS ≤ 270, peak ≤ 450"
            holds &= rss <= 270 and peak <= 450
        elif cell in LARGE:
            goal += ", RSS ≤ 1150, none again"
            holds &= rss <= 1150 and not found["again"]
        figures = (found["strings"], rss, found["trimmed"], peak, found["processed"])
        shown = [f"{figure:.0f}" for figure in (*figures, found["seconds"])]
        table.row(name_of(cell), *shown, goal, holds=holds)
    for backend in BACKENDS:
        per_rollout(table, backend, seen)


def per_rollout(table: Table, backend: str, seen: dict[Cell, dict[str, float]]) -> None:
    """Growth with each rollout, upstream's beside it, and what 256 of upstream's would hold."""
    for before, after, most in (
        (Cell(backend, 8), Cell(backend, 32), None),
        (
            Cell(backend, 16, "64 MiB"),
            Cell(backend, 64, "64 MiB"),
            0.6 if backend == "pil" else 1.5,
        ),
    ):
        a, b = seen[before], seen[after]
        more = after.rollouts - before.rollouts
        each = {name: (b[name] - a[name]) / more for name in ("strings", "rss", "trimmed")}
        beyond = each["rss"] - each["strings"]
        shown = [f"{each[name]:.2f}" for name in ("strings", "rss", "trimmed")]
        what = f"{name_of(after)}, more for each since {before.rollouts}"
        goal = "" if most is None else f"RSS − strings ≤ {most}"
        table.row(what, *shown, "", "", "", goal, holds=most is None or beyond <= most)
        if most is None:
            whole = b["rss"] + (256 - after.rollouts) * each["rss"]
            table.row(f"  256 of them, extrapolated: {whole / 1e3:.0f} GB", *[""] * 7)


def name_of(cell: Cell) -> str:
    who = "upstream" if cell.budget is None else cell.budget
    groups = f" in groups of {cell.group}" if cell.group > 1 else ""
    return f"{cell.backend}, {who}, {cell.rollouts} rollouts{groups}"


def rerender() -> None:
    """A prompt of eight images that were all seen before."""
    from .qwen3_vl import message

    table = Table("8 data-URI images rendered again, all cached")
    messages = [message(uri(number)) for number in range(TURNS)]
    theirs, ours = renderers("pil", "1 GiB")
    kept = ours.render(messages)
    assert tokens_of(kept) == tokens_of(theirs.render(messages))
    again = Ratio.measure(lambda: ours.render(messages), lambda: theirs.render(messages), rounds=9)
    table.ratio("render; other: upstream", again)
    found = median(again.ours)
    table.row("", duration(found), "", "", "≤ 3 ms", holds=found <= 3e-3)
    del kept
    table.ratio(
        "the same, with no earlier prompt kept",
        Ratio.measure(lambda: ours.render(messages), lambda: theirs.render(messages), rounds=9),
    )


# What runs in a process of its own.


def play(cell: Cell) -> dict[str, float]:
    """Plays a cell and measures. MB over the baseline, and how many images were processed."""
    import torch  # noqa: F401  part of the baseline

    theirs, ours = renderers(cell.backend, cell.budget)
    renderer = theirs if ours is None else ours
    renderer.render(turn(10**6))
    if ours is None:
        renderer._image_cache.clear()
    else:
        ours.pixel_cache.clear()
    gc.collect()
    calls = count_calls(type(theirs._processor.image_processor))
    Path("/proc/self/clear_refs").write_text("5")  # the highest from here on
    base = status("VmRSS")
    start = time.perf_counter()
    kept, strings = rollouts(renderer, cell)
    found = {"seconds": time.perf_counter() - start, "rss": (status("VmRSS") - base) / MB}
    found["peak"] = (status("VmHWM") - base) / MB
    found["strings"] = strings / MB
    found["processed"] = len(calls)
    trim()
    found["trimmed"] = (status("VmRSS") - base) / MB
    found["again"] = 0
    if ours is not None:
        stats = ours.pixel_cache.stats()
        assert stats.peak_bytes <= stats.budget
        calls.clear()
        check(kept, theirs, cell)
        found["again"] = ours.pixel_cache.stats().misses - stats.misses
    return found


def rollouts(renderer: Any, cell: Cell) -> tuple[list[list[Any]], int]:
    """All steps of all rollouts as trainers keep them, and the bytes of their distinct sources."""
    steps: list[list[Any]] = [[] for _ in range(cell.rollouts)]
    strings = 0
    for number in range(TURNS):
        for rollout, mine in enumerate(steps):
            if rollout % cell.group == 0:
                new = turn(rollout // cell.group * 1000 + number)
                strings += len(source_of(new))
            mine.append((new, *step(renderer, new, mine)))
    return steps, strings


def step(renderer: Any, new: list[Any], before: list[Any]) -> tuple[list[int], list[int], Any]:
    """Prompt, completion and images of a turn."""
    if before:
        _, prompt, completion, images = before[-1]
        out = renderer.bridge_to_next_turn(
            prompt, completion, new, previous_multi_modal_data=images
        )
    else:
        out = renderer.render(new, add_generation_prompt=True)
    completion = [*renderer._encode("click"), renderer._im_end]
    return out.token_ids, completion, out.multi_modal_data


def check(steps: list[list[Any]], theirs: Any, cell: Cell) -> None:
    """Whether everything is upstream's, bit for bit: tokens, placeholders, hashes and pixels."""
    import numpy as np

    some = steps if cell.rollouts <= 64 else steps[:: cell.rollouts * TURNS // SAMPLE]
    for mine in some[:: cell.group]:
        again: list[Any] = []
        for new, prompt, completion, images in mine:
            again.append((new, *step(theirs, new, again)))
            assert again[-1][1:3] == (prompt, completion)
            assert tokens_of(again[-1][3]) == tokens_of(images)
        for ours, other in zip(
            images.mm_items["image"], again[-1][3].mm_items["image"], strict=True
        ):
            assert np.array_equal(ours["image_grid_thw"], other["image_grid_thw"])
            assert np.asarray(ours["pixel_values"]).tobytes() == other["pixel_values"].tobytes()
        theirs._image_cache.clear()


def tokens_of(rendered: Any) -> Any:
    images = getattr(rendered, "multi_modal_data", rendered)
    return getattr(rendered, "token_ids", None), images.mm_hashes, images.mm_placeholders


def renderers(backend: str, budget: str | None) -> tuple[Any, Any]:
    """Upstream's renderer and ours, of one processor."""
    from transformers import Qwen2VLImageProcessor

    from .qwen3_vl import Qwen2VLImageProcessorPil, make_renderer

    theirs = make_renderer(Qwen2VLImageProcessorPil if backend == "pil" else Qwen2VLImageProcessor)
    if budget is None:
        return theirs, None
    from memweir.integrations.renderers import Qwen3VLRenderer, Qwen3VLRendererConfig

    config = Qwen3VLRendererConfig(byte_budget=budget, mm_hash="upstream")
    return theirs, Qwen3VLRenderer(theirs._tokenizer, config, processor=theirs._processor)


def turn(seed: int) -> list[Any]:
    from .qwen3_vl import message

    return [message(uri(seed))]


def uri(seed: int) -> str:
    from .qwen3_vl import screenshot

    return screenshot(seed, SIDE)


def source_of(messages: list[Any]) -> str:
    text: str = messages[0]["content"][0]["image_url"]["url"]
    return text


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))


def trim() -> None:
    import ctypes

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["cell"]:
        print(json.dumps(play(Cell(*json.loads(sys.argv[2])))))
    else:
        main(*((3, 2) if "--figures" in sys.argv else map(int, sys.argv[1:])))
