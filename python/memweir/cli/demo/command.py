"""Runs the arms one after another, then judges, draws and tells."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from .watch import Run
    from .workload import Plan

__all__ = ["run"]

NEEDS = ("transformers", "PIL", "skimage", "psutil", "matplotlib")


def run(out: Path, rollouts: int, turns: int) -> int:
    """The demo, with its chart written to ``out``; the exit code.

    0 when every claim holds, 1 when one does not, 2 when packages are missing.
    """
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        names = ", ".join(map(repr, missing))
        print(f"memweir demo: no module {names}: pip install 'memweir[demo]'", file=sys.stderr)
        return 2

    from rich.console import Console

    from .chart import draw
    from .report import claims
    from .watch import ArmError
    from .workload import Plan

    console = Console(highlight=False)
    plan = fitted(console, Plan(rollouts=rollouts, turns=turns))
    try:
        runs = run_arms(console, plan)
    except ArmError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    tell(console, runs)
    draw(plan, runs, out)
    console.print(f"\nChart: {out}\n")

    verdicts = list(claims(plan, runs))
    for claim in verdicts:
        mark = "[green]holds [/green]" if claim.holds else "[red]BROKEN[/red]"
        console.print(f"{mark} {claim.text}: {claim.seen}")
    return 0 if all(claim.holds for claim in verdicts) else 1


def fitted(console: Console, wanted: Plan) -> Plan:
    """The plan with as many rollouts as this machine has memory for; says so first."""
    from memweir.cli.machine import available
    from memweir.sizes import format_size

    free = available()
    plan = wanted if free is None else wanted.scaled_to(free // 3)
    size = f"{plan.rollouts} rollouts × {plan.turns} turns"
    console.print(f"{size}: {format_size(plan.pixel_bytes)} of pixels if every turn keeps its own.")
    if free is not None:
        third = f"a third of the {format_size(free)} available"
        if plan.rollouts < wanted.rollouts:
            console.print(f"Scaled down from {wanted.rollouts} rollouts to stay under {third}.")
        else:
            console.print(f"That is under {third}.")
    return plan


def run_arms(console: Console, plan: Plan) -> dict[str, Run]:
    """Each arm in a process of its own, by name; raises ``ArmError``."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from .report import ARMS
    from .watch import watch
    from .workload import photographs

    steps = len(list(plan.steps())) + len(list(plan.batches()))
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    runs = {}
    with tempfile.TemporaryDirectory() as name, Progress(*columns, console=console) as progress:
        folder = Path(name)
        job = {"plan": asdict(plan), "uris": photographs()}
        (folder / "job.json").write_text(json.dumps(job))
        for arm in ARMS:
            task = progress.add_task(f"({arm.letter}) {arm.title}", total=steps)
            advance = partial(progress.advance, task)
            runs[arm.name] = watch(arm.name, folder, steps, advance)
    return runs


def tell(console: Console, runs: Mapping[str, Run]) -> None:
    """The table, and how to read it."""
    from rich.table import Table

    from .report import ARMS, MIB, READING

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column("arm")
    for heading in ("growth", "at the end", "time"):
        table.add_column(heading, justify="right")
    for arm in ARMS:
        run = runs[arm.name]
        table.add_row(
            f"({arm.letter})",
            arm.title,
            f"{run.peak / MIB:.0f} MiB",
            f"{run.end / MIB:.0f} MiB",
            f"{run.seconds:.1f} s",
        )
    console.print()
    console.print(table)
    for paragraph in READING:
        console.print(f"\n{paragraph}")
