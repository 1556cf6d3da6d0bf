"""Every image processor of transformers against its cached self, bit for bit.

Each class that builds with default arguments, both back ends, meets three photographs (512²,
1400×400, 160×400) one by one, as a pair and as a triple, for each `return_tensors`. Every call
is made plainly, then cached, then cached again; answers and errors must be equal. Prints what
differs, and writes `docs/processors.md`: who joins how, what goes through and why.

    python benches/processors.py                    # everything, several minutes
    python benches/processors.py --class Qwen2VL    # names that contain this
    python benches/processors.py --resume run.jsonl # continue an interrupted run

Exits 1 if anything differs, or if less than 65 % of the calls that succeed are served from
the cache the second time.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import numpy as np
import PIL.Image
import torch
import torchvision
import transformers
from transformers.image_processing_base import ImageProcessingMixin

import memweir as mw
from memweir.pixels import families

DOCS = Path(__file__).parent.parent / "docs" / "processors.md"
GOAL = 0.65
TENSORS = (None, "np", "pt")


class Row(NamedTuple):
    """What one class did: calls that succeeded, those served the second time, and oddities."""

    name: str
    backend: str
    how: str | None
    raised: int
    succeeded: int
    served: int
    through: dict[str, int]
    different: list[str]


def classes() -> Iterator[type[Any]]:
    """The image processor classes that transformers defines."""
    models = Path(transformers.__file__).parent / "models"
    for file in sorted(models.glob("*/image_processing*.py")):
        name = f"transformers.models.{file.parent.name}.{file.stem}"
        for kind in vars(importlib.import_module(name)).values():
            ours = inspect.isclass(kind) and kind.__module__ == name
            if ours and issubclass(kind, ImageProcessingMixin):
                yield kind


def photographs() -> list[PIL.Image.Image]:
    from skimage import data

    return [
        PIL.Image.fromarray(data.astronaut()),
        PIL.Image.fromarray(data.coffee()).resize((1400, 400)),
        PIL.Image.fromarray(data.rocket()).resize((160, 400)),
    ]


def calls(photos: list[PIL.Image.Image]) -> Iterator[tuple[str, list[PIL.Image.Image]]]:
    for photo in photos:
        yield f"{photo.width}x{photo.height}", [photo]
    yield "pair", photos[:2]
    yield "triple", photos


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """The first place where two answers differ in type, layout or bits."""
    if type(one) is not type(other):
        return f"{where}: {type(one).__name__} is not {type(other).__name__}"
    if hasattr(one, "keys"):
        if list(one) != list(other):
            return f"{where}: keys {list(one)} are not {list(other)}"
        pairs = ((one[key], other[key], f"{where}.{key}") for key in one)
        return next(filter(None, (difference(*pair) for pair in pairs)), None)
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return f"{where}: {len(one)} items are not {len(other)}"
        numbered = enumerate(zip(one, other, strict=True))
        return next(
            filter(None, (difference(a, b, f"{where}[{i}]") for i, (a, b) in numbered)), None
        )
    if hasattr(one, "dtype"):
        if one.dtype != other.dtype or one.shape != other.shape:
            return (
                f"{where}: {one.dtype}{tuple(one.shape)} is not {other.dtype}{tuple(other.shape)}"
            )
        if isinstance(one, np.ndarray) and one.dtype == object:
            return difference(list(one.flat), list(other.flat), where)
        return None if _bits(one) == _bits(other) else f"{where}: values"
    return None if one == other else f"{where}: {one!r} is not {other!r}"


def _bits(array: Any) -> bytes:
    if isinstance(array, np.ndarray | np.generic):
        return array.tobytes()
    return bytes(array.contiguous().flatten().view(torch.uint8).numpy().tobytes())


def attempt(processor: Any, images: Any, tensors: str | None) -> tuple[Any, str | None]:
    """The answer, or the error as text."""
    try:
        return processor(images, return_tensors=tensors), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def measure(kind: type[Any], photos: list[PIL.Image.Image]) -> Row | None:
    """`kind` through all calls; None if it does not build with default arguments."""
    try:
        plain = kind()
    except Exception:
        return None
    backend = getattr(plain, "backend", None)
    raised = succeeded = served = 0
    different = []
    through: dict[str, int] = {}
    for tensors in TENSORS:
        cached = mw.CachedProcessor(kind(), mw.PixelCache("1 GiB"))
        for name, images in calls(photos):
            expected, error = attempt(plain, images, tensors)
            for turn in ("first", "second"):
                before = cached.stats()
                got, failed = attempt(cached, images, tensors)
                after = cached.stats()
                if failed != error:
                    different.append(f"{tensors} {name} {turn}: {failed} is not {error}")
                elif error is None and (place := difference(expected, got, "answer")):
                    different.append(f"{tensors} {name} {turn}: {place}")
            if error is not None:
                raised += 1
                continue
            succeeded += 1
            if after.through == before.through and after.misses == before.misses:
                served += 1
            for reason, count in after.through.items():
                if count > before.through.get(reason, 0):
                    through[reason] = through.get(reason, 0) + 1
    return Row(
        kind.__name__,
        backend if isinstance(backend, str) else "numpy",
        families.how(kind),
        raised,
        succeeded,
        served,
        through,
        different,
    )


def page(rows: list[Row]) -> str:
    """The table as Markdown."""
    succeeded, served = sum(r.succeeded for r in rows), sum(r.served for r in rows)
    lines = [
        "# Which image processors are cached",
        "",
        f"transformers {transformers.__version__}, Pillow {PIL.__version__}, "
        f"numpy {np.__version__}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}; written by `python benches/processors.py`.",
        "",
        f"{len(rows)} classes build with default arguments. Each was called with photographs of "
        "512×512, 1400×400 and 160×400, one by one, as a pair and as a triple, for "
        "`return_tensors` None, np and pt, plainly and twice through `CachedProcessor`: "
        f"{sum(bool(r.different) for r in rows)} gave a different answer or error. "
        f"Of {succeeded} calls that succeed, {served} ({served / succeeded:.0%}) are served from "
        "the cache the second time. The others go to the wrapped processor.",
        "",
        "*concat*: joined along axis 0; images whose results differ in shape go through, since "
        "some of these families pad such a batch in their own way, and others refuse it. *pad*: "
        "the same, with zeros up to the largest image of the batch. *nest*: the images of one "
        "sample along axis 1. *alone*: only calls with one image are served, since the others of "
        "a batch show in an image's result, or no join is known. *–*: never served.",
        "",
        "Through, whatever the class: `device=` other than the CPU, further positional arguments, "
        "arguments that are not settings of the processor (annotations, boxes, prompts), lists "
        "that may hold one item per image, values or attributes that cannot be compared, "
        "training-time randomness, images whose pixels differ in type, batches given as one "
        "array, arrays with negative strides, tensors with gradients, subclasses of images, and "
        "classes outside transformers that were given no `fingerprint=`. With another minor "
        f"version of transformers than {families.REVIEWED}, a class joins after its first batch "
        "was processed both ways and agreed bit for bit.",
        "",
        "| class | back end | joins | served | raise | goes through |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows):
        reasons = "; ".join(f"{why} ({count})" for why, count in row.through.items())
        lines.append(
            f"| {row.name} | {row.backend} | {row.how or '–'} | {row.served} of {row.succeeded} "
            f"| {row.raised or ''} | {reasons} |"
        )
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--class", dest="name", default="", help="part of the class name")
    parser.add_argument("--backend", choices=("pil", "torchvision", "numpy"))
    parser.add_argument("--resume", type=Path, help="file of finished classes, read and appended")
    parser.add_argument("--out", type=Path, help="where the table goes; docs/ for a full run")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("memweir").addHandler(logging.NullHandler())
    rows = []
    if chosen.resume and chosen.resume.exists():
        rows = [Row(*json.loads(line)) for line in chosen.resume.read_text().splitlines()]
    done = {row.name for row in rows}
    photos = photographs()
    for kind in classes():
        if chosen.name not in kind.__name__ or kind.__name__ in done:
            continue
        row = measure(kind, photos)
        if row is None or chosen.backend not in (None, row.backend):
            continue
        print(f"{row.name:44} {row.how or '-':7} {row.served:3} of {row.succeeded}", flush=True)
        for text in row.different:
            print(f"    DIFFERS {text[:300]}", flush=True)
        if chosen.resume:
            with chosen.resume.open("a") as file:
                print(json.dumps(row), file=file)
        rows.append(row)
    whole = not chosen.name and chosen.backend is None
    if whole or chosen.out:
        (chosen.out or DOCS).write_text(page(rows))
    succeeded, served = sum(r.succeeded for r in rows), sum(r.served for r in rows)
    differ = sum(bool(row.different) for row in rows)
    print(f"{len(rows)} classes, {differ} differ; {served} of {succeeded} calls served")
    return int(bool(differ) or (whole and served < GOAL * succeeded))


if __name__ == "__main__":
    sys.exit(main())
