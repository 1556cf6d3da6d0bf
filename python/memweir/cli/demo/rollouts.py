"""``memweir demo rollouts``: the prompts of rollouts, by upstream's renderers and by memweir's."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console

    from .report import Claim
    from .watch import Run

__all__ = ["PROCESSED", "TURNS", "UPSTREAM", "run"]

NEEDS: Final = ("renderers", "httpx", "openai", "transformers", "PIL", "skimage", "psutil")
COMMAND: Final = [sys.executable, "-m", "memweir.cli.demo.rollout_arms"]
UPSTREAM: Final = "upstream"
PROCESSED: Final = "processed"
"""Under which an arm says how many images its rollouts had processed."""
TURNS: Final = 8
SIDE: Final = 1024
BYTES_PER_IMAGE: Final = 64 * 64 * 1536 * 4
"""Bytes of one photograph after the processor: 64 × 64 patches of 1536 float32."""


BESIDE: Final = 160
"""MiB that memweir's may take beside its cache: the trainer's image, and what processing takes."""


class Arm(NamedTuple):
    """A way to make prompts; ``budget`` is memweir's, in MiB."""

    name: str
    title: str
    budget: int | None = None


ARMS: Final = (
    Arm(UPSTREAM, "upstream's Qwen3VLRenderer"),
    Arm("1 GiB", "memweir's, 1 GiB", 1024),
    Arm("64 MiB", "memweir's, 64 MiB", 64),
)
READING: Final = (
    "Every turn adds an image and renders the whole conversation; the rollouts keep what renderers"
    " returned, and a trainer takes the pixels of every image in the end. Growth is resident memory"
    " over the process's own baseline, which holds the data URIs. Digests that prove equality are"
    " taken off the clock.",
    "Upstream decodes all images of a conversation in every turn, and keeps the pixels of each."
    " With 1 GiB all images stay, in an eighth of their floats. With 64 MiB most have gone when the"
    " trainer comes, and are made again from their data URIs.",
)


def run(rollouts: int) -> int:
    """The demo; the exit code: 1 when a claim does not hold, 2 when packages are missing."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        names = ", ".join(map(repr, missing))
        how = "pip install 'memweir[demo,renderers]'"
        print(f"memweir demo rollouts: no module {names}: {how}", file=sys.stderr)
        return 2

    from rich.console import Console

    from .watch import ArmError

    console = Console(highlight=False)
    rollouts = fitted(console, rollouts)
    try:
        runs = run_arms(console, rollouts)
    except ArmError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    tell(console, runs)
    verdicts = list(claims(runs, rollouts))
    for claim in verdicts:
        mark = "[green]holds [/green]" if claim.holds else "[red]BROKEN[/red]"
        console.print(f"{mark} {claim.text}: {claim.seen}")
    return 0 if all(claim.holds for claim in verdicts) else 1


def fitted(console: Console, wanted: int) -> int:
    """As many rollouts as this machine has memory for; says so first."""
    from memweir.cli.machine import available
    from memweir.sizes import format_size

    free = available()
    each = TURNS * BYTES_PER_IMAGE
    # Beside its pixels a rollout of upstream's leaves half as much again in the heap.
    rollouts = wanted if free is None else max(1, min(wanted, free // 3 // (each * 3 // 2)))
    size = f"{rollouts} rollouts × {TURNS} turns, a new {SIDE}² photograph in each"
    console.print(f"{size}: {format_size(rollouts * each)} of pixels.")
    if rollouts < wanted:
        console.print(f"Scaled down from {wanted}, to a third of the memory available.")
    return rollouts


def run_arms(console: Console, rollouts: int) -> dict[str, Run]:
    """Each arm in a process of its own, by name; raises ``ArmError``."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from .watch import watch
    from .workload import frames

    images = rollouts * TURNS
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    runs = {}
    with tempfile.TemporaryDirectory() as name, Progress(*columns, console=console) as progress:
        folder = Path(name)
        warm, *uris = frames(images + 1, SIDE)
        job = {"rollouts": rollouts, "uris": uris, "warm": warm}
        (folder / "job.json").write_text(json.dumps(job))
        for arm in ARMS:
            task = progress.add_task(arm.title, total=2 * images)
            advance = partial(progress.advance, task)
            runs[arm.name] = watch(arm.name, folder, 2 * images, advance, COMMAND)
    return runs


def tell(console: Console, runs: Mapping[str, Run]) -> None:
    """The table, and how to read it."""
    from rich.table import Table

    from .report import MIB

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("renderer")
    for heading in ("growth", "at the end", "time", "images processed"):
        table.add_column(heading, justify="right")
    for arm in ARMS:
        run = runs[arm.name]
        sizes = (f"{run.peak / MIB:.0f} MiB", f"{run.end / MIB:.0f} MiB")
        table.add_row(arm.title, *sizes, f"{run.seconds:.1f} s", run.digests[PROCESSED])
    console.print()
    console.print(table)
    for paragraph in READING:
        console.print(f"\n{paragraph}")
    console.print()


def claims(runs: Mapping[str, Run], rollouts: int) -> Iterator[Claim]:
    """What memweir's renderers promise, and whether it held."""
    from .report import MIB, Claim

    theirs, images = runs[UPSTREAM].digests, rollouts * TURNS
    kinds = ("prompt", "pixels")
    for arm in ARMS:
        run = runs[arm.name]
        if arm.budget is None:
            continue
        for kind in kinds:
            keys = [key for key in theirs if key.endswith(kind)]
            equal = sum(run.digests.get(key) == theirs[key] for key in keys)
            text = f"{arm.title}: {kind.rstrip('s')}s are upstream's, bit for bit"
            yield Claim(text, f"{equal} of {len(keys)}", equal == len(keys) == images)
        calls = int(run.digests[PROCESSED])
        text = f"{arm.title}: rollouts have each image processed once"
        yield Claim(text, f"{calls} of {images}", calls == images)
        # Where all have room, in the eighth of their floats that they take.
        most = min(arm.budget, images * BYTES_PER_IMAGE // 8 // MIB) + BESIDE
        text = f"{arm.title}: grows by at most {most} MiB"
        yield Claim(text, f"{run.peak / MIB:.0f} MiB", run.peak <= most * MIB)
