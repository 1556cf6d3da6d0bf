"""The pictures of docs/compact.md: ``python -m benches.charts`` draws both anew.

What a channel's values are, and how many images a gibibyte holds.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import numpy as np
import transformers
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from memweir.cli.demo.chart import FAINT, INK, RULE, SIZE

from .kernel import GIB
from .processors import answer, large
from .stored import keep

if TYPE_CHECKING:
    from typing import Any

    from matplotlib.axes import Axes

DOCS = Path(__file__).parent.parent / "docs"
BLUE, RED, GREY = "#0b62b8", "#cf3f2e", "#8c959f"
FAMILIES = {
    "Qwen2-VL": "Qwen2VLImageProcessorPil",
    "GLM-4.6V": "Glm46VImageProcessorPil",
    "SmolVLM": "SmolVLMImageProcessorPil",
    "LLaVA-OneVision": "LlavaOnevisionImageProcessorPil",
    "DETR": "DetrImageProcessorPil",
    "SAM": "SamImageProcessorPil",
    "MiniCPM-V 4.6": "MiniCPMV4_6ImageProcessorPil",
    "Pixtral": "PixtralImageProcessorPil",
    "VideoLLaMA 3": "VideoLlama3ImageProcessorPil",
    "Gemma 4": "Gemma4ImageProcessorPil",
    "Llama 4, bfloat16": "Llama4ImageProcessor",
    "Mllama": "MllamaImageProcessorPil",
    "SigLIP 2": "Siglip2ImageProcessorPil",
    "CLIP": "CLIPImageProcessorPil",
    "OWLv2": "Owlv2ImageProcessorPil",
    "ZoeDepth": "ZoeDepthImageProcessorPil",
}


def main() -> None:
    warnings.simplefilter("ignore")
    draw_values(DOCS / "compact.png")
    draw_families(DOCS / "families.png")


def draw_values(out: Path) -> None:
    """Some pixels of a channel, and all values that the channel has."""
    processor = transformers.SamImageProcessorPil()
    blue = processor(large()[1], return_tensors="np")["pixel_values"][0, 2]
    padding = blue == 0
    levels = np.unique(blue[~padding])
    step = np.median(np.diff(levels))
    codes = np.round((levels - levels[0]) / step).astype(int)
    figure = new_figure(
        "A channel of floats, one byte for each",
        f"SAM's blue channel for a photograph of 1000×800: {number(blue.size)} float32, "
        f"{len(levels)} different values and the padding's.",
    )
    some, every = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.055, right=0.985, top=0.77, bottom=0.11, wspace=0.14)

    line = gentle(blue, 48, 24 * step)
    plain(some, "48 neighbours: each is one of the values")
    near = levels[(levels > line.min() - 2 * step) & (levels < line.max() + 2 * step)]
    some.hlines(near, 0, len(line) - 1, color=RULE, lw=0.8)
    some.plot(range(len(line)), line, "o-", color=BLUE, lw=0.8, ms=4)
    some.set_xlabel("pixel", size=SIZE, color=FAINT, loc="right", labelpad=1)

    plain(every, "all values, by the code that stands for them")
    every.plot(codes, levels, ".", color=BLUE, ms=3)
    every.set_xlabel("code", size=SIZE, color=FAINT, loc="right", labelpad=1)
    zoom = every.inset_axes((0.56, 0.12, 0.42, 0.42))
    plain(zoom, "")
    around = np.abs(levels) < 4 * step
    zoom.plot(codes[around], levels[around], ".", color=BLUE, ms=7)
    zoom.axhline(0, color=RED, lw=1.2)
    zoom.set_yticks([0])
    share = f"0.0, the padding: {padding.mean():.0%} of the\narray, on none of the values"
    every.text(2, levels[-1], share, color=RED, size=SIZE, va="top")
    every.indicate_inset_zoom(zoom, edgecolor=GREY)
    figure.savefig(out)


def gentle(channel: np.ndarray[Any, Any], length: int, most: float) -> np.ndarray[Any, Any]:
    """Neighbours that differ by up to ``most``, as different as that lets them be."""
    lines = np.lib.stride_tricks.sliding_window_view(channel[::8], length, axis=1)[:, ::8]
    lines = lines.reshape(-1, length)
    ranges = np.ptp(lines, axis=1)
    changes = np.count_nonzero(np.diff(lines, axis=1), axis=1)
    found: np.ndarray[Any, Any] = lines[np.argmax(np.where(ranges < most, changes + ranges, 0))]
    return found


def draw_families(out: Path) -> None:
    """Images in a gibibyte of floats, and in a cache of a gibibyte."""
    rows = sorted((held(name) for name in FAMILIES), key=lambda row: -row[1])
    figure = new_figure(
        "Images in a gibibyte, as floats and in a PixelCache",
        "A photograph of 1000×800, everything that the processor returns for it.",
        height=6.2,
    )
    axes = figure.subplots()
    figure.subplots_adjust(left=0.17, right=0.97, top=0.83, bottom=0.08)
    plain(axes, "")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=RULE, lw=0.8)
    axes.set_xscale("log")
    for place, (_, floats, cached) in enumerate(rows):
        raw = cached < floats * 1.01
        axes.plot([floats, cached], [place, place], color=GREY if raw else BLUE, lw=2, zorder=1)
        axes.plot(floats, place, "o", color=GREY, ms=7)
        if not raw:
            axes.plot(cached, place, "o", color=BLUE, ms=7)
        after = "stays as it is" if raw else f"{number(cached)}   ×{cached / floats:.1f}"
        colour = FAINT if raw else BLUE
        axes.text(cached * 1.08, place, after, color=colour, size=SIZE, va="center")
        axes.text(
            floats / 1.08, place, number(floats), color=FAINT, size=SIZE, va="center", ha="right"
        )
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], color=INK)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlim(min(row[1] for row in rows) / 1.5, max(row[2] for row in rows) * 2.4)
    axes.xaxis.set_major_formatter(lambda value, _: number(value))
    axes.set_xlabel("images, logarithmic", size=SIZE, color=FAINT, loc="right", labelpad=1)
    figure.savefig(out)


def held(name: str) -> tuple[str, float, float]:
    """A family, its images in a gibibyte of floats, and in a cache of one."""
    kind = getattr(transformers, FAMILIES[name])
    before, given = (answer(kind(), [photo]) for photo in large())
    assert before is not None
    assert given is not None
    stored = next(filter(None, (keep(before, given, dtype) for dtype in ("f32", "bf16"))))
    assert not stored.different
    floats = GIB / sum(array.nbytes for array in given.values())
    return name, floats, floats * stored.ratio


def number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def new_figure(title: str, subtitle: str, height: float = 4.5) -> Figure:
    figure = Figure(figsize=(10, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    at = 1 - 0.29 / height
    figure.text(0.012, at, title, size=15, weight="bold", color=INK)
    figure.text(0.012, at - 0.28 / height, subtitle, size=SIZE, color=FAINT)
    return figure


def plain(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", size=SIZE, color=FAINT)
    axes.tick_params(colors=FAINT, labelsize=SIZE, length=0, which="both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#d0d7de")


if __name__ == "__main__":
    main()
