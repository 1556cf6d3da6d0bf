"""A tokenizer and an image processor like those of Qwen3-VL that need no network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

__all__ = ["QWEN3_VL", "count_calls", "image_processor", "make_processor", "make_tokenizer"]

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


def make_tokenizer() -> Any:
    """One token for each byte, and Qwen's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "<unk>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL,
    )


def image_processor() -> Any:
    """The real class, on Pillow and numpy."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil


def make_processor(kind: Any = None) -> Any:
    """What renderers take for the whole processor, with an image processor of class ``kind``."""
    return SimpleNamespace(image_processor=(kind or image_processor())(**QWEN3_VL))


def count_calls(kind: Any) -> list[None]:
    """Notes each image that a processor of this class processes from now on."""
    calls: list[None] = []
    plain = kind.preprocess

    def preprocess(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return plain(self, *args, **kwargs)

    kind.preprocess = preprocess
    return calls
