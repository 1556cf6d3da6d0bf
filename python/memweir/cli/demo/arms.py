"""The four ways to hold pixels that the demo compares. Each runs alone in a process of its own.

``python -m memweir.cli.demo.arms NAME FOLDER`` plays the plan in FOLDER/job.json and leaves the
digests of its tensors in FOLDER/NAME.json. On stdout it says ``ready``, waits for a line while its
baseline is taken, and reports its seconds after every step. Then it says ``done``, and waits with
all that the rollouts keep and without the trainer's batch, while its end is taken.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

import memweir as mw

from .workload import Plan, Step, data_uri

# transformers would load torch where it is installed, and the demo measures pixels.
sys.modules["torch"] = sys.modules["torchvision"] = None  # type: ignore[assignment]

Tensors = Mapping[str, "np.ndarray[Any, Any]"]
"""What the processor makes of one image: ``pixel_values`` and ``image_grid_thw``."""


class Arm(Protocol):
    """A way to hold pixels between the rollouts that look and the trainer that learns."""

    def look(self, uri: str) -> Any:
        """A rollout's turn: processes the image; returns what the rollout keeps of it."""

    def samples(self, kept: Sequence[Any]) -> Sequence[Tensors]:
        """The trainer's side: the tensors of what rollouts kept."""


class OwnPixels:
    """Every rollout processes what it sees, and keeps the tensors."""

    def __init__(self) -> None:
        self.processor = image_processor()

    def look(self, uri: str) -> Tensors:
        tensors: Tensors = self.processor(images=[uri], return_tensors="np")
        return tensors

    def samples(self, kept: Sequence[Tensors]) -> Sequence[Tensors]:
        return kept


class SharedDict(OwnPixels):
    """One dict for all rollouts: each image is processed once, and nothing is ever let go."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Tensors] = {}

    def look(self, uri: str) -> Tensors:
        if uri not in self.seen:
            self.seen[uri] = super().look(uri)
        return self.seen[uri]


class Budgeted:
    """memweir: tensors in a cache with a byte budget, descriptors in the rollouts."""

    def __init__(self, budget: str, sources: Sequence[str]) -> None:
        self.cache = mw.PixelCache(budget)
        self.processor = mw.CachedProcessor(image_processor(), self.cache)
        self.sources: dict[mw.Digest | None, str] = {mw.hash_bytes(uri): uri for uri in sources}
        self.recompute = mw.Recompute(self.processor, self.source_of)

    def look(self, uri: str) -> Any:
        tensors = self.processor(images=[uri], return_tensors="np")
        return mw.strip(tensors, self.cache).data

    def source_of(self, ref: mw.PixelRef) -> str | None:
        recipe = ref.recipe
        return None if recipe is None else self.sources.get(recipe.source)

    def samples(self, kept: Sequence[Any]) -> Sequence[Tensors]:
        tensors: Sequence[Tensors] = mw.materialize(list(kept), self.recompute)
        return tensors


def image_processor() -> Any:
    """The real processor of Qwen2-VL, on Pillow and numpy."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil()


def make_arm(name: str, sources: Sequence[str]) -> Arm:
    """The arm called ``name``: ``own``, ``dict``, or a byte budget."""
    if name == "own":
        return OwnPixels()
    return SharedDict() if name == "dict" else Budgeted(name, sources)


class Staging:
    """The trainer's batch: a buffer for each tensor, filled anew every time."""

    def __init__(self) -> None:
        self.buffers: dict[str, np.ndarray[Any, Any]] = {}

    def fill(self, samples: Sequence[Tensors]) -> Tensors:
        """The tensors of all samples joined; valid until the next call. The first is largest."""
        batch = {}
        for name, first in samples[0].items():
            parts = [sample[name] for sample in samples]
            rows = sum(map(len, parts))
            if name not in self.buffers:
                self.buffers[name] = np.empty((rows, *first.shape[1:]), first.dtype)
            batch[name] = np.concatenate(parts, out=self.buffers[name][:rows])
        return batch


class Clock:
    """Seconds spent in ``running`` blocks; what the demo does for its own proof stays out."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds += perf_counter() - start


def play(
    arm: Arm, plan: Plan, uris: Sequence[str], kept: dict[Step, Any]
) -> Iterator[tuple[float, dict[str, str]]]:
    """All rollouts, which keep what they do in ``kept``, then the trainer over all of that.

    Yields after every step: the seconds so far, and the digests of the tensors that the trainer
    had in its batch, by rollout, turn and name.
    """
    clock = Clock()
    for step in plan.steps():
        with clock.running():
            kept[step] = arm.look(uris[step.image])
        yield clock.seconds, {}
    staging = Staging()
    for steps in plan.batches():
        with clock.running():
            batch = staging.fill(arm.samples([kept[step] for step in steps]))
        yield clock.seconds, digests(batch, steps)


def digests(batch: Tensors, steps: Sequence[Step]) -> dict[str, str]:
    """The digest of each step's part of each tensor in the batch."""
    found = {}
    for name, joined in batch.items():
        for step, part in zip(steps, np.split(joined, len(steps)), strict=True):
            found[f"{step.rollout}/{step.turn}/{name}"] = mw.hash_array(part).hex()
    return found


def main(name: str, folder: Path) -> None:
    """Plays the plan in ``folder`` with the arm called ``name``."""
    job = json.loads((folder / "job.json").read_text())
    plan, uris = Plan(**job["plan"]), job["uris"]

    # Imports, code paths and the heap's working memory belong to the baseline, pixels do not.
    rehearse(make_arm(name, []))
    gc.collect()
    arm = make_arm(name, uris)
    print("ready", flush=True)
    sys.stdin.readline()

    found: dict[str, str] = {}
    kept: dict[Step, Any] = {}
    for seconds, some in play(arm, plan, uris, kept):
        found.update(some)
        print(seconds, flush=True)
    print("done", flush=True)
    sys.stdin.readline()
    (folder / f"{name}.json").write_text(json.dumps(found))


def rehearse(arm: Arm) -> None:
    """One look at an image that the plan does not have, there and back."""
    from PIL import Image

    grey = Image.linear_gradient("L").resize((768, 768)).convert("RGB")
    for _ in play(arm, Plan(rollouts=1, turns=1, group=1, images=1), [data_uri(grey)], {}):
        pass


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
