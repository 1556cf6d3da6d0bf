"""Representatives of every way to join, both back ends, against their own batches.

`benches/processors.py` does the same to all classes, and writes docs/processors.md.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from processor_kit import bench, photo

from memweir.pixels import families

# How many of the 15 calls per class (three photographs, a pair, a triple; None, np, pt) are
# served the second time, of those that succeed.
EXPECTED = {
    "AriaImageProcessorPil": 9,  # alone
    "Cohere2VisionImageProcessor": 15,  # tiles
    "DetrImageProcessor": 15,  # pad, masks
    "FuyuImageProcessorPil": 15,  # nested lists
    "Gemma3ImageProcessor": 15,
    "Idefics2ImageProcessorPil": 15,  # nest, padded
    "Idefics3ImageProcessor": 15,  # nest, tiles
    "IdeficsImageProcessor": 0,  # answers with a bare array
    "Llama4ImageProcessor": 10,  # bfloat16, uneven lists, cannot do np
    "LlavaNextImageProcessorPil": 15,
    "LlavaOnevisionImageProcessor": 15,
    "MllamaImageProcessor": 15,
    "PixtralImageProcessor": 15,
    "SamImageProcessor": 15,  # torch.Size
    "Siglip2ImageProcessorPil": 15,
    "SmolVLMImageProcessorPil": 15,
    "SuperGlueImageProcessorPil": 0,  # pairs of images
    "VideoMAEImageProcessor": 13,
    "ViltImageProcessorPil": 9,  # pads in its own way
}
PHOTOS = [photo(128, 128), photo(350, 100, "coffee"), photo(40, 100, "rocket")]


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def classes() -> dict[str, Any]:
    import transformers

    return {name: getattr(transformers, name) for name in EXPECTED}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_class_equals_its_cached_self(name: str) -> None:
    row = bench.measure(classes()[name], PHOTOS)
    assert row.different == []
    assert row.served == EXPECTED[name], row.through


def test_the_table_names_families_once_and_only_existing_ones() -> None:
    tables = (families._CONCAT, families._PAD, families._NEST, families._ALONE)
    names = [name for table in tables for name in table.split()]
    assert len(names) == len(set(names)) == len(families._HOW)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        existing = {families.family(kind) for kind in bench.classes()}
    assert set(names) <= existing
    assert set(names) >= families.ONE_EACH | families.FILLED_SAMPLES | families.UNEVEN
