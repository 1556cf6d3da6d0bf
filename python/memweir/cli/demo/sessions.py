"""``memweir demo sessions``: a model that comes and goes, and what it leaves behind."""

from __future__ import annotations

import subprocess
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

__all__ = ["run"]

NEEDS: Final = ("onnx", "onnxruntime", "psutil", "matplotlib")
COMMAND: Final = [sys.executable, "-m", "memweir.cli.demo.session_arms"]
STEPS: Final = 13
HELD: Final = 16
"""MiB that may be held after one request and a quiet time."""

PREPARE: Final = """
import sys
from pathlib import Path
import memweir as mw
from memweir.cli.demo import encoder
folder = Path(sys.argv[1])
encoder.save(folder / "model.onnx")
mw.ort.prepack(folder / "model.onnx", folder / "cache")
"""


class Arm(NamedTuple):
    """A way to open a model; ``most`` is what it may hold in the end, in MiB."""

    name: str
    title: str
    colour: str
    most: int | None = None


ARMS: Final = (
    Arm("plain", "ONNX Runtime's own", "#cf3f2e"),
    Arm("balanced", "memweir, balanced", "#0b62b8", HELD),
    Arm("lean", "memweir, lean", "#12805c", HELD),
)
READING: Final = (
    "An encoder of 199 MiB with random weights: six times loaded, run on six requests and dropped"
    " or closed, then loaded for one request and left alone. What is held then, after a quiet time"
    " that the demo shortens to 3 seconds, is anonymous memory over the process's own baseline.",
    "Lean maps its weights, pre-packed beforehand, from a file of 361 MiB: its pages are clean, and"
    " shared by all workers.",
)


def run(out: Path) -> int:
    """The demo, with its chart written to ``out``; the exit code: 1 when a claim does not hold."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        names = ", ".join(map(repr, missing))
        print(
            f"memweir demo sessions: no module {names}: pip install 'memweir[demo]'",
            file=sys.stderr,
        )
        return 2

    from rich.console import Console

    from .watch import ArmError

    console = Console(highlight=False)
    try:
        runs = run_arms(console)
    except ArmError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    tell(console, runs)
    draw(runs, out)
    console.print(f"Chart: {out}\n")
    verdicts = list(claims(runs))
    for claim in verdicts:
        mark = "[green]holds [/green]" if claim.holds else "[red]BROKEN[/red]"
        console.print(f"{mark} {claim.text}: {claim.seen}")
    return 0 if all(claim.holds for claim in verdicts) else 1


def run_arms(console: Console) -> dict[str, Run]:
    """Each arm in a process of its own, by name; raises ``ArmError``."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from .watch import watch

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    runs = {}
    with tempfile.TemporaryDirectory() as name, Progress(*columns, console=console) as progress:
        folder = Path(name)
        subprocess.run([sys.executable, "-c", PREPARE, name], check=True)
        for arm in ARMS:
            task = progress.add_task(arm.title, total=STEPS)
            advance = partial(progress.advance, task)
            runs[arm.name] = watch(arm.name, folder, STEPS, advance, COMMAND, anonymous=True)
    return runs


def tell(console: Console, runs: Mapping[str, Run]) -> None:
    """The table, and how to read it."""
    from rich.table import Table

    from .report import MIB

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("session")
    for heading in ("highest", "held after a quiet time", "time"):
        table.add_column(heading, justify="right")
    for arm in ARMS:
        run = runs[arm.name]
        sizes = (f"{run.peak / MIB:.0f} MiB", f"{run.end / MIB:.0f} MiB")
        table.add_row(arm.title, *sizes, f"{run.seconds:.1f} s")
    console.print()
    console.print(table)
    for paragraph in READING:
        console.print(f"\n{paragraph}")
    console.print()


def claims(runs: Mapping[str, Run]) -> Iterator[Claim]:
    """What sessions promise, and whether it held."""
    from .report import MIB, Claim

    plain = runs["plain"].digests
    for arm in ARMS:
        if arm.most is None:
            continue
        run = runs[arm.name]
        text = f"{arm.title}: holds at most {arm.most} MiB after one request and a quiet time"
        yield Claim(text, f"{run.end / MIB:.0f} MiB", run.end <= arm.most * MIB)
        equal = sum(run.digests.get(key) == digest for key, digest in plain.items())
        text = f"{arm.title}: outputs are ONNX Runtime's own, bit for bit"
        yield Claim(text, f"{equal} of {len(plain)}", 0 < len(plain) == equal)


def draw(runs: Mapping[str, Run], out: Path) -> None:
    """Anonymous memory over the time of each arm, one above the other, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from .report import MIB

    figure = Figure(figsize=(10, 4.5), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    title = "Anonymous memory of a model that comes and goes, MiB over the baseline"
    figure.text(0.012, 0.94, title, size=15, weight="bold", color="#24292f")
    top = max(run.peak for run in runs.values()) / MIB * 1.1
    for arm, axes in zip(ARMS, figure.subplots(1, len(ARMS), sharey=True), strict=True):
        run = runs[arm.name]
        grown = [one / MIB for one in run.growth]
        # By the sampler's clock: the arm's own stands still while it loads.
        axes.plot([0.02 * number for number in range(len(grown))], grown, color=arm.colour, lw=1.5)
        axes.set_ylim(0, top)
        axes.set_title(
            f"{arm.title}: {run.end / MIB:.0f} MiB held", loc="left", size=10.5, color=arm.colour
        )
        axes.set_xlabel("seconds", size=9, color="#6e7781", loc="right")
        axes.grid(axis="y", color="#e6e8eb", lw=0.8)
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.subplots_adjust(left=0.05, right=0.985, top=0.83, bottom=0.12, wspace=0.08)
    figure.savefig(out)
