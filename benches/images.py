"""256 images of 1024² as Qwen3-VL's processor makes them, 6 GiB of floats, in a cache of 1 GiB."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

import memweir as mw
from memweir.cli.demo.workload import SUBJECTS

from .harness import Table
from .kernel import GIB, Reader, play, watch
from .memory import COLUMNS, WIDTHS, mib

IMAGES, SIDE, PATCH, MERGE = 256, 1024, 16, 2
SAMPLE = (0, 37, 74, 111, 148, 185, 222, 255)
"""Images that the real processor makes too, to be compared."""
MOST = 0.86 * GIB

Array = np.ndarray[Any, Any]


def main() -> None:
    seen = watch("benches.images", "play")
    found = seen["result"]
    table = Table(f"{IMAGES} images of {SIDE}² in a cache of 1 GiB", COLUMNS, WIDTHS)
    grown = seen["anon"], seen["charge"]
    holds = max(seen["anon"], seen["charge"] or 0) <= MOST
    table.row("growth", *map(mib, grown), "", f"≤ {mib(MOST)}", holds=holds)
    logical, owned = found["logical_bytes"], found["bytes"]
    table.row("as floats", "", "", mib(logical), f"≥ {mib(6 * GIB)}", holds=logical >= 6 * GIB)
    table.row("owned", "", "", mib(owned), f"≤ {mib(GIB)}", holds=owned <= GIB)
    kept = found["equal"]
    table.row("kept, and equal bit for bit", "", "", f"{kept}", f"= {IMAGES}", holds=kept == IMAGES)
    real = sum(real_digest(number) == digest for number, digest in found["digests"].items())
    want = len(SAMPLE)
    what = "of a sample, equal to the processor's"
    table.row(what, "", "", f"{real}", f"= {want}", holds=real == want)


def photograph(bases: list[Array], number: int) -> Array:
    """An image that no other number has: a photograph, turned, with noise of its own."""
    turned = np.rot90(bases[number % len(bases)], number // len(bases))
    if number // len(bases) // 4 % 2:
        turned = turned[:, ::-1]
    noise = np.random.default_rng(number).integers(8, size=turned.shape, dtype=np.uint8)
    return turned // 2 + turned // 4 + noise * 4  # at most 127 + 63 + 28


def photographs() -> list[Array]:
    found = []
    for subject in SUBJECTS:
        pixels: Any = getattr(data, subject)()
        pixels = pixels[0] if isinstance(pixels, tuple) else pixels
        image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        found.append(np.asarray(image))
    return found


class Patches:
    """The processor's floats for images of one size, made in memory that is there already."""

    def __init__(self) -> None:
        side = SIDE // PATCH
        blocks = side // MERGE
        # As rescaling and normalising round: each in float32, from a scale in float64.
        scaled = (np.arange(256).astype(np.float64) * (1 / 255)).astype(np.float32)
        self.table = (scaled - np.float32(0.5)) / np.float32(0.5)
        self.codes = np.empty((blocks, blocks, MERGE, MERGE, 3, PATCH, PATCH), np.uint8)
        self.plane = np.empty(self.codes.shape, np.float32)
        self.values = np.empty((side * side, 3 * 2 * PATCH * PATCH), np.float32)
        self.grid = np.array([[1, side, side]])

    def fill(self, image: Array) -> dict[str, Array]:
        """What the processor makes of an image; valid until the next call."""
        blocks = len(self.codes)
        rows = image.reshape(blocks, MERGE, PATCH, blocks, MERGE, PATCH, 3)
        self.codes[...] = rows.transpose(0, 3, 1, 4, 6, 2, 5)
        np.take(self.table, self.codes, out=self.plane, mode="clip")
        frames = self.values.reshape(*self.codes.shape[:5], 2, PATCH, PATCH)
        frames[...] = self.plane[..., None, :, :]
        return {"pixel_values": self.values, "image_grid_thw": self.grid}


def real_digest(number: str) -> str:
    """Of the floats that the real processor makes of an image."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    half = [0.5] * 3
    processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        image_mean=half,
        image_std=half,
        size={"shortest_edge": 1 << 16, "longest_edge": 1 << 24},
    )
    image = Image.fromarray(photograph(photographs(), int(number)))
    return mw.hash_array(processor(image, return_tensors="np")["pixel_values"]).hex()


def prepare(_: Reader) -> Callable[[], dict[str, Any]]:
    bases, patches = photographs(), Patches()
    back = np.zeros_like(patches.values)
    patches.fill(photograph(bases, 0))

    def work() -> dict[str, Any]:
        cache = mw.PixelCache("1 GiB", name="bench")
        digests = {}
        for number in range(IMAGES):
            arrays = patches.fill(photograph(bases, number))
            assert cache.put(f"{number}", arrays)
            if number in SAMPLE:
                digests[number] = mw.hash_array(arrays["pixel_values"]).hex()
        equal = 0
        for number in range(IMAGES):
            pixels = cache.get(f"{number}")
            if pixels is not None:
                pixels.copy_into("pixel_values", back)
                expected = patches.fill(photograph(bases, number))["pixel_values"]
                equal += bool((back.view("u4") == expected.view("u4")).all())
        stats = cache.stats()
        return {
            "digests": digests,
            "equal": equal,
            "bytes": stats.bytes,
            "logical_bytes": stats.logical_bytes,
        }

    return work


if __name__ == "__main__":
    if len(sys.argv) > 1:
        play(prepare, sys.argv[2])
    else:
        main()
