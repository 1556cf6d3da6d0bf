"""A real Qwen3-VL renderer that needs no network: real processor, a tokenizer of single bytes."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from renderers.qwen3_vl import Qwen3VLRenderer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from memweir.cli.demo.offline import make_processor, make_tokenizer


def make_renderer(processor: Any = Qwen2VLImageProcessorPil) -> Qwen3VLRenderer:
    """A renderer with an image processor of this class, configured as Qwen3-VL's."""
    return Qwen3VLRenderer(make_tokenizer(), None, processor=make_processor(processor))


def screenshot(seed: int, side: int = 64) -> str:
    """A data URI of a PNG: a gradient with a band of noise, as compressible as a screen is."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side]
    pixels = np.stack([x + seed, y + 2 * seed, x + y], -1).astype(np.uint8)
    pixels[: side // 8] = random.integers(0, 256, (side // 8, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def message(url: str) -> dict[str, Any]:
    """A turn of the user: an image and a word."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "step"}]
    return {"role": "user", "content": parts}
