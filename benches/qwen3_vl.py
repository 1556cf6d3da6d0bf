"""A real Qwen3-VL renderer that needs no network: real processor, a tokenizer of single bytes."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from renderers.qwen3_vl import Qwen3VLRenderer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
]
QWEN3_VL = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 4096, "longest_edge": 16_777_216},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def make_renderer(processor: Any = Qwen2VLImageProcessorPil) -> Qwen3VLRenderer:
    """A renderer with an image processor of this class, configured as Qwen3-VL's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "<unk>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL,
    )
    images = SimpleNamespace(image_processor=processor(**QWEN3_VL))
    return Qwen3VLRenderer(fast, None, processor=images)


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
