"""Rollouts with images as the trainer's tests need them: sources, a processor, references."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import memweir as mw

PAD = 9
"""The token that stands for a part of an image."""


def processor(**settings: Any) -> Any:
    """Qwen3-VL's image processor, without torch."""
    given = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 4096, "longest_edge": 1 << 24},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Qwen2VLImageProcessorPil(**{**given, **settings})


def image(seed: int, size: tuple[int, int] | None = None) -> Image.Image:
    rng = np.random.default_rng(seed)
    width, height = size or [(96, 64), (64, 64), (128, 96)][seed % 3]
    pixels = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def uri(seed: int, size: tuple[int, int] | None = None) -> str:
    out = io.BytesIO()
    image(seed, size).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def truth(seed: int, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The arrays of an image as the processor itself makes them."""
    return dict(processor()([Image.open(io.BytesIO(decoded(seed, size)))], return_tensors="np"))


def decoded(seed: int, size: tuple[int, int] | None = None) -> bytes:
    return base64.b64decode(uri(seed, size).partition(",")[2])


def item(cache: mw.PixelCache, seed: int, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """One image as renderers keep it, its pixels replaced by a reference with a recipe."""
    made = mw.CachedProcessor(processor(), cache)([uri(seed, size)], return_tensors="np")
    stripped: dict[str, Any] = mw.strip(dict(made), cache, threshold=1 << 10).data
    return stripped


def tokens(*items: dict[str, Any]) -> list[int]:
    """Placeholder tokens of images, with text between them."""
    found = [1, 2]
    for each in items:
        found += [PAD] * (int(np.prod(each["image_grid_thw"])) // 4) + [3]
    return found


def types(token_ids: list[int]) -> list[int]:
    return [int(token == PAD) for token in token_ids]


class ByDigest:
    """A ``fetch`` that goes into a spawned worker."""

    def __init__(self, seeds: range, size: tuple[int, int] | None = None) -> None:
        self._uris = [uri(seed, size) for seed in seeds]

    def __call__(self, ref: mw.PixelRef) -> str | None:
        wanted = ref.recipe and ref.recipe.source
        return next((text for text in self._uris if mw.hash_bytes(text) == wanted), None)
