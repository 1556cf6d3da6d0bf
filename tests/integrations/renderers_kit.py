"""Upstream's renderers and ours, side by side, with real processors and a tokenizer of bytes."""

from __future__ import annotations

import base64
import io
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import renderers.configs
from benches.qwen3_vl import make_renderer, screenshot
from transformers import Qwen2VLImageProcessor
from transformers.models.gemma4.image_processing_gemma4 import Gemma4ImageProcessor
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import memweir.integrations.renderers as ours
from memweir.cli.demo.offline import QWEN3_VL

QWEN = {
    "Qwen3VLRenderer": "qwen3_vl",
    "Qwen35Renderer": "qwen35",
    "Qwen36Renderer": "qwen36",
    "Qwen38Renderer": "qwen38",
}
BACKENDS = {"pil": Qwen2VLImageProcessorPil, "torchvision": Qwen2VLImageProcessor}

GEMMA_TOKENS = [
    *("<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"),
    *("<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
    *("<|image>", "<|image|>", "<image|>"),
]
GEMMA_BACKENDS = {"pil": Gemma4ImageProcessorPil, "torchvision": Gemma4ImageProcessor}

TOKENIZER = make_renderer()._tokenizer
TOKENIZER.add_special_tokens({"extra_special_tokens": GEMMA_TOKENS})
_edges = itertools.count(16_777_216)


def qwen_processor(backend: str = "pil", **settings: Any) -> Any:
    """A processor that no other test has: another limit, which no image here reaches."""
    size = {"shortest_edge": 4096, "longest_edge": next(_edges)}
    images = BACKENDS[backend](**{**QWEN3_VL, "size": size, **settings})
    return SimpleNamespace(image_processor=images)


def gemma_processor(backend: str = "pil") -> Any:
    """As :func:`qwen_processor`, with means that no other test has."""
    means = [1 / next(_edges), 0.0, 0.0]
    return SimpleNamespace(image_processor=GEMMA_BACKENDS[backend](image_mean=means))


def qwen(
    name: str = "Qwen3VLRenderer", processor: Any = None, tokenizer: Any = None, **config: Any
) -> Any:
    kind = getattr(ours, name)
    return kind(
        tokenizer or TOKENIZER,
        kind.config_class(**config),
        processor=processor or qwen_processor(),
    )


def upstream_of(renderer: Any, **config: Any) -> Any:
    """Upstream's renderer of the same name and processor."""
    name = type(renderer).__name__
    kind = next(c for c in type(renderer).__mro__ if c.__module__.startswith("renderers."))
    assert kind.__name__ == name
    given = getattr(renderers.configs, f"{name}Config")(**config)
    return kind(renderer._tokenizer, given, processor=renderer._processor)


def parts(*sources: Any, text: str = "look") -> list[dict[str, Any]]:
    """A message of the user with these images."""
    images = [{"type": "image_url", "image_url": {"url": source}} for source in sources]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def picture(seed: int, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> PIL.Image.Image:
    depth = len(mode)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], depth), np.uint8)
    return PIL.Image.fromarray(pixels if depth > 1 else pixels[..., 0], mode)


def encoded(image: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def uri(content: bytes | int, kind: str = "png") -> str:
    if isinstance(content, int):
        return screenshot(content)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def pixels_of(rendered: Any) -> list[dict[str, np.ndarray[Any, Any]]]:
    """All arrays of all images, restored."""
    items = rendered.multi_modal_data.mm_items["image"]
    return [{key: np.asarray(item[key]) for key in item} for item in items]


def same(one: Any, other: Any, *, hashes: bool = True) -> None:
    """Two renderings agree in everything, arrays bit for bit."""
    for name in ("token_ids", "message_indices", "sampled_mask", "is_content", "message_roles"):
        assert getattr(one, name) == getattr(other, name), name
    a, b = one.multi_modal_data, other.multi_modal_data
    assert (a is None) == (b is None)
    if a is None:
        return
    assert a.mm_placeholders == b.mm_placeholders
    if hashes:
        assert a.mm_hashes == b.mm_hashes
    for mine, theirs in zip(pixels_of(one), pixels_of(other), strict=True):
        assert list(mine) == list(theirs)
        for key in mine:
            assert mine[key].dtype == theirs[key].dtype
            assert mine[key].shape == theirs[key].shape
            assert mine[key].tobytes() == theirs[key].tobytes()


def count_calls(processor: Any) -> list[int]:
    """How many images each call of a processor is given, from now on."""
    calls: list[int] = []
    kind = type(processor)

    class Counted(kind):  # type: ignore[misc, valid-type]
        def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(len(images))
            return super().preprocess(images, *args, **kwargs)

    Counted.__name__, Counted.__qualname__ = kind.__name__, kind.__qualname__
    Counted.__module__ = kind.__module__
    processor.__class__ = Counted
    return calls
