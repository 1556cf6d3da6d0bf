"""One image all the way: rendered, replied, made into a sample, and trained on."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from renderers_kit import parts, qwen, same, upstream_of, uri

import memweir as mw
from memweir.integrations.prime_rl import encode_images, guard_items, model_kwargs, rehydrate
from memweir.integrations.verifiers import adopt_images, export_images

SEEDS = range(3)


@dataclass
class Encoded:
    dtype: str
    shape: list[int]
    data: bytes


@pytest.fixture
def rendered() -> Any:
    """Upstream's prompt and ours."""
    renderer = qwen(mm_hash="upstream", byte_budget="1 MiB")
    messages = parts(*[uri(seed) for seed in SEEDS])
    theirs, mine = upstream_of(renderer).render(messages), renderer.render(messages)
    same(theirs, mine)
    return theirs.multi_modal_data.mm_items, mine.multi_modal_data.mm_items


def joined(items: dict[str, Any], name: str) -> Any:
    return np.concatenate([image[name] for image in items["image"]])


def test_references_of_a_prompt_stay_references_up_to_the_trainer(rendered: Any) -> None:
    theirs, mine = rendered
    sealed = encode_images(mine, Encoded)
    assert sealed is not None
    assert sealed["pixel_values"].dtype == "memweir:float32"
    assert sealed["pixel_values"].shape == list(joined(theirs, "pixel_values").shape)
    assert len(sealed["pixel_values"].data) < 1024
    plain = rehydrate({"mm_kwargs": sealed})["mm_kwargs"]["pixel_values"]
    assert plain.data == joined(theirs, "pixel_values").tobytes()
    got = model_kwargs({"mm_items": mine})
    for name in ("pixel_values", "image_grid_thw"):
        assert torch.equal(got[name], torch.from_numpy(joined(theirs, name)))


def test_replies_of_prompts_are_compact(rendered: Any) -> None:
    theirs, mine = rendered
    sent = export_images({"mm_items": mine})["mm_items"]
    nbytes = sum(image["pixel_values"].nbytes for image in sent["image"])
    assert nbytes < joined(theirs, "pixel_values").nbytes / 4
    got = adopt_images(pickle.loads(pickle.dumps({"mm_items": sent})), mw.PixelCache("1 MiB"))
    assert all(isinstance(image["pixel_values"], mw.PixelRef) for image in got["mm_items"]["image"])
    assert np.array_equal(joined(got["mm_items"], "pixel_values"), joined(theirs, "pixel_values"))


def test_who_walks_the_items_of_a_prompt_loses_no_image(rendered: Any) -> None:
    theirs, mine = rendered
    for image, other in zip(mine["image"], theirs["image"], strict=True):
        arrays = {name: value for name, value in image.items() if isinstance(value, np.ndarray)}
        assert arrays.keys() == other.keys()
        assert all(np.array_equal(arrays[name], other[name]) for name in other)
    guarded = guard_items(copy.deepcopy(mine))
    assert isinstance(guarded["image"][0]["pixel_values"], mw.PixelRef)
    with pytest.raises(ValueError, match="negative"):
        torch.as_tensor(guarded["image"][0]["image_grid_thw"])
