"""Answers of real processors in the compact form: every bit comes back, and how little they take.

`benches/processors.py` does the same to all classes, with a larger photograph.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from processor_kit import bench, photo, stored

PHOTOS = [photo(480, 400), photo(480, 400, "coffee")]

# How the largest array is stored, and the least that an entry's arrays are larger than the entry.
EXPECTED = {
    "CLIPImageProcessor": ("u8 affine ×3", 3.8),
    "CLIPImageProcessorPil": ("u8 affine ×3", 3.8),
    "DetrImageProcessor": ("u8 affine ×3", 6.5),  # an int64 mask of one run
    "FuyuImageProcessorPil": ("u8 affine ×1", 3.8),  # padded before it is normalised
    "Gemma4ImageProcessor": ("u8 affine ×1", 3.8),  # int64 positions of few values
    "Idefics2ImageProcessorPil": ("u8 affine ×1", 6.5),
    "LlavaOnevisionImageProcessorPil": ("u8 affine ×3", 3.8),
    "MiniCPMV4_6ImageProcessor": ("u8 affine ×1", 3.8),  # a view of something else
    "MllamaImageProcessor": ("u8 affine ×1", 3.8),
    "PixtralImageProcessorPil": ("u8 affine ×3", 3.8),
    "Qwen2VLImageProcessor": ("u8 affine ×3, repeated plane dropped", 7.9),
    "Qwen2VLImageProcessorPil": ("u8 affine ×3, repeated plane dropped", 7.9),
    "SamImageProcessorPil": ("u8 affine ×3", 3.8),
    "Siglip2ImageProcessor": ("u8 affine ×1, 1 escape", 3.8),  # an int32 mask
    "SmolVLMImageProcessorPil": ("u8 affine ×1", 6.5),
}


def kept_of(name: str) -> dict[str, Any]:
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[str, Any] = bench.store(getattr(transformers, name), PHOTOS)
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_an_answer_comes_back_and_is_small(name: str) -> None:
    form, least = EXPECTED[name]
    kept = kept_of(name)
    assert list(kept) == list(stored.TYPES)
    for one in kept.values():
        assert one.different == []
    assert kept["f32"].form.startswith(form)
    assert kept["f32"].ratio >= least
    for half in ("f16", "bf16"):
        assert kept[half].ratio >= 1.9
    assert list(stored.shortfalls(kept)) == []


@pytest.mark.parametrize("name", ["Owlv2ImageProcessor", "ZoeDepthImageProcessorPil"])
def test_an_answer_with_many_values_stays_as_it_is(name: str) -> None:
    kept = kept_of(name)
    assert kept["f32"].form == "raw"
    assert kept["f32"].values is not None
    assert kept["f32"].values > 1000
    assert kept["f32"].ratio > 0.99
    assert all(one.different == [] for one in kept.values())


def test_an_answer_of_bfloat16_needs_no_cast() -> None:
    kept = kept_of("Llama4ImageProcessor")
    assert list(kept) == ["bf16"]
    assert kept["bf16"].form.startswith("u8 palette ×1")
    assert kept["bf16"].ratio >= 1.9


def test_an_entry_that_takes_too_much_is_told() -> None:
    framed = stored.Stored(7.8, "u8 affine ×3, repeated plane dropped", 1_000_000, None, [])
    assert list(stored.shortfalls({"f32": framed})) == ["f32: 7.80 of 7.9"]
    few = stored.Stored(1.0, "raw", 1_000_000, 257, [])
    assert list(stored.shortfalls({"f32": few})) == ["f32: raw with 257 values"]
    assert list(stored.shortfalls({"f32": few._replace(values=258)})) == []
    assert list(stored.shortfalls({"f16": framed._replace(ratio=1.8)})) == ["f16: 1.80 of 1.9"]
    assert list(stored.shortfalls({"f32": framed._replace(nbytes=499_999)})) == []


def test_a_changed_bit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import memweir as mw

    table = np.linspace(-2, 2, 256, dtype=np.float32)
    array = table[np.random.default_rng(0).integers(256, size=(3, 100, 100))]

    class Flipping(mw.PixelCache):
        def put(self, key: Any, arrays: Any) -> bool:
            given = {name: one.copy() for name, one in arrays.items()}
            given[".pixels"].view("u4")[1, 2, 3] ^= 1
            return super().put(key, given)

    monkeypatch.setattr(mw, "PixelCache", Flipping)
    kept = stored.keep({".pixels": array}, {".pixels": array}, "f32")
    assert kept is not None
    ways = ("px[name]", "decode()", "copy_into()")
    assert kept.different == [f"f32 .pixels by {way}" for way in ways]


def test_values_are_counted_by_channel() -> None:
    planes = np.arange(12, dtype=np.float32).reshape(1, 3, 4).repeat(5, axis=2)
    assert stored.values(planes) == 4
    assert stored.values(planes.transpose(0, 2, 1)) == 4
    assert stored.values(np.zeros((), np.float32)) == 1
