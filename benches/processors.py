"""Every image processor of transformers against its cached self, bit for bit.

Each class that builds with default arguments, both back ends, meets three photographs (512²,
1400×400, 160×400) one by one, as a pair and as a triple, for each `return_tensors`. Every call
is made plainly, then cached, then cached again; answers and errors must be equal. Then its answer
for a photograph of 1000×800, as float32 and cast to 16 bits, goes into a cache and comes back.
Prints what differs, and writes `docs/processors.md`: who joins how, what goes through and why,
and what entries take.

    python -m benches.processors                    # everything, a quarter of an hour
    python -m benches.processors --class Qwen2VL    # names that contain this
    python -m benches.processors --resume run.jsonl # continue an interrupted run

Exits 1 if anything differs, if less than 65 % of the calls that succeed are served from the cache
the second time, or if an entry takes more of its arrays' bytes than its kind may.
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

from .stored import TYPES, Stored, arrays, keep, short, shortfalls

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
    stored: dict[str, Stored]
    """What its answer takes, by element type: see `benches.stored`."""

    @classmethod
    def read(cls, line: str) -> Row:
        """The row that was written as JSON."""
        *fields, stored = json.loads(line)
        return cls(*fields, {name: Stored(*one) for name, one in stored.items()})


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


def large() -> list[PIL.Image.Image]:
    from skimage import data

    return [
        PIL.Image.fromarray(photo()).resize((1000, 800)) for photo in (data.astronaut, data.coffee)
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
        {},
    )


def store(kind: type[Any], photos: list[PIL.Image.Image]) -> dict[str, Stored]:
    """What the answer for the last of two photographs takes, by element type."""
    answers = [answer(kind(), [photo]) or answer(kind(), photos) for photo in photos]
    before, given = answers
    if before is None or given is None:
        return {}
    kept = {dtype: keep(before, given, dtype) for dtype in TYPES}
    return {dtype: stored for dtype, stored in kept.items() if stored is not None}


def answer(processor: Any, images: list[PIL.Image.Image]) -> dict[str, Any] | None:
    """All arrays of an answer, or `None` for images that the processor does not take."""
    for tensors in ("np", "pt", None):
        got, error = attempt(processor, images, tensors)
        if error is None:
            return dict(arrays(got))
    return None


def page(rows: list[Row]) -> str:
    """The table as Markdown."""
    succeeded, served = sum(r.succeeded for r in rows), sum(r.served for r in rows)
    lines = [
        "# Which image processors are cached",
        "",
        f"transformers {transformers.__version__}, Pillow {PIL.__version__}, "
        f"numpy {np.__version__}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}; written by `python -m benches.processors`.",
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
        "The last columns are the answer for a photograph of 1000×800: how its largest array of "
        "floats is stored, and the bytes of all its arrays over those that the cache owns more for "
        "having them, in float32 and with its float32 cast to float16 and bfloat16. Every array "
        f"came back bit for bit, for {sum(bool(r.stored) for r in rows)} classes. *×3*: a byte for "
        "each element, and a table for each of three channels; *half*: a repeated frame is stored "
        "once; *escapes*: runs of elements that no table has, such as padding. *raw*: stored as it "
        "is, because the channel with most values has so many; a table holds 256. "
        "[compact.md](compact.md) says more.",
        "",
        "| class | back end | joins | served | raise | goes through | stored | f32 | f16 | bf16 |",
        "|---|---|---|---|---|---|---|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: row.name):
        reasons = "; ".join(f"{why} ({count})" for why, count in row.through.items())
        form = next(map(short, row.stored.values()), "")
        ratios = [f"{row.stored[name].ratio:.2f}" if name in row.stored else "" for name in TYPES]
        lines.append(
            f"| {row.name} | {row.backend} | {row.how or '–'} | {row.served} of {row.succeeded} "
            f"| {row.raised or ''} | {reasons} | {form} | {' | '.join(ratios)} |"
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
        rows = [Row.read(line) for line in chosen.resume.read_text().splitlines()]
    done = {row.name for row in rows}
    photos, larger = photographs(), large()
    for kind in classes():
        if chosen.name not in kind.__name__ or kind.__name__ in done:
            continue
        row = measure(kind, photos)
        if row is None or chosen.backend not in (None, row.backend):
            continue
        row = row._replace(stored=store(kind, larger))
        row.different.extend(place for one in row.stored.values() for place in one.different)
        first = next(iter(row.stored.values()), None)
        form = "" if first is None else f"{first.ratio:.2f} {short(first)}"
        print(
            f"{row.name:44} {row.how or '-':7} {row.served:3} of {row.succeeded:2}  {form}",
            flush=True,
        )
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
    large_entries = [f"{row.name} {text}" for row in rows for text in shortfalls(row.stored)]
    for text in large_entries:
        print(f"TAKES TOO MUCH {text}")
    print(f"{len(rows)} classes, {differ} differ; {served} of {succeeded} calls served")
    return int(bool(differ or large_entries) or (whole and served < GOAL * succeeded))


if __name__ == "__main__":
    sys.exit(main())
