"""The demo's picture: memory over time, all arms in full and the small ones up close."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .report import ARMS, MIB, ArmInfo
from .watch import Run
from .workload import SIDE, Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

INK, FAINT, RULE = "#24292f", "#6e7781", "#e6e8eb"
COLOURS = {"own": "#cf3f2e", "dict": "#a86a10", "256 MiB": "#0b62b8", "16 MiB": "#12805c"}
SIZE = 10.5
BINS = 160
"""Points of a curve: each is the highest growth in its part of the panel's time."""


def draw(plan: Plan, runs: Mapping[str, Run], out: Path) -> None:
    """Writes the chart as a PNG to ``out``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        0.012,
        0.935,
        "Memory growth of the same rollouts, held four ways",
        size=15,
        weight="bold",
        color=INK,
    )
    subtitle = (
        f"{plan.rollouts} rollouts × {plan.turns} turns over {plan.images} photographs of {SIDE}²,"
        " Qwen2-VL's image processor. Growth of each process's resident memory."
    )
    figure.text(0.012, 0.873, subtitle, size=SIZE, color=FAINT)
    whole, close = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.045, right=0.985, top=0.77, bottom=0.11, wspace=0.13)
    _whole(whole, runs)
    _close(close, runs)
    figure.savefig(out)


def _whole(axes: Axes, runs: Mapping[str, Run]) -> None:
    """All arms on one scale."""
    gib = 1024 * MIB
    own = runs["own"]
    seconds = max(run.seconds for run in runs.values())
    _style(axes, "GiB", seconds, max(run.peak for run in runs.values()) / gib * 1.12)
    for arm in ARMS:
        _curve(axes, arm, runs[arm.name], gib, seconds)
    _label(axes, ARMS[0], own, (0.02 * seconds, own.peak / gib * 1.02))
    small = max(run.peak for name, run in runs.items() if name != "own") / gib
    axes.text(
        max(run.seconds for name, run in runs.items() if name != "own") + 0.02 * seconds,
        small / 2,
        "(b), (c), (d): on the right, up close",
        color=FAINT,
        size=SIZE,
        va="center",
    )


def _close(axes: Axes, runs: Mapping[str, Run]) -> None:
    """The arms that (a) dwarfs, with their budgets."""
    shown = {arm: runs[arm.name] for arm in ARMS if arm.name != "own"}
    seconds = max(run.seconds for run in shown.values()) * 1.02
    top = max(run.peak for run in shown.values()) / MIB * 1.2
    _style(axes, "MiB", seconds, top)
    above = 0.0
    for arm, run in sorted(shown.items(), key=lambda item: item[1].peak):
        _curve(axes, arm, run, MIB, seconds)
        left = arm.budget is None
        height = run.peak / MIB + 0.025 * top
        if not left:  # a line of text over the last one
            above = height = max(height, above + 0.075 * top)
        at = 0.02 * seconds if left else seconds
        _label(axes, arm, run, (at, height), align="left" if left else "right")
        if arm.budget is not None:
            colour, over = COLOURS[arm.name], arm.budget + 0.012 * top
            axes.axhline(arm.budget, color=colour, lw=1, ls=(0, (4, 4)))
            text = f"budget of ({arm.letter})"
            axes.text(seconds, over, text, color=colour, size=SIZE, ha="right")
    note = "above it: the trainer's batch"
    axes.text(seconds, 0.13 * top, note, color=FAINT, size=SIZE, ha="right")


def _curve(axes: Axes, arm: ArmInfo, run: Run, unit: int, seconds: float) -> None:
    highest: dict[int, float] = {}
    for time, growth in zip(run.times, run.growth, strict=True):
        place = int(time / seconds * BINS)
        highest[place] = max(highest.get(place, 0.0), growth / unit)
    times = [0.0, *((place + 0.5) * seconds / BINS for place in highest)]
    axes.plot(times, [0.0, *highest.values()], color=COLOURS[arm.name], lw=2)


def _label(
    axes: Axes, arm: ArmInfo, run: Run, at: tuple[float, float], *, align: str = "left"
) -> None:
    mib = run.peak / MIB
    peak = f"{mib / 1024:.2f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
    text = f"({arm.letter}) {arm.title}: {peak}, {run.seconds:.1f} s"
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.text(
        *at,
        text,
        color=COLOURS[arm.name],
        size=SIZE,
        weight="bold",
        ha=align,
        bbox=behind,
        zorder=1.5,
    )


def _style(axes: Axes, unit: str, seconds: float, top: float) -> None:
    axes.set_xlim(0, seconds)
    axes.set_ylim(0, top)
    axes.set_title(unit, loc="left", size=SIZE, color=FAINT, x=-0.045)
    axes.set_xlabel("seconds", size=SIZE, color=FAINT, loc="right", labelpad=1)
    axes.tick_params(colors=FAINT, labelsize=SIZE, length=0)
    axes.grid(axis="y", color=RULE, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#d0d7de")
