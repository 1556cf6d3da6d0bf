"""Gemma 4, whose items hold two big arrays."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from renderers_kit import (
    QWEN,
    TOKENIZER,
    count_calls,
    gemma_processor,
    parts,
    picture,
    qwen,
    qwen_processor,
    same,
    upstream_of,
    uri,
)

import memweir as mw
from memweir.integrations.renderers import ImageItem, attach


@pytest.fixture(params=["pil", "torchvision"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    mine = qwen("Gemma4Renderer", gemma_processor(request.param), mm_hash="upstream")
    return mine, upstream_of(mine)


def test_renders_and_bridges_what_upstream_does(pair: tuple[Any, Any]) -> None:
    said = TOKENIZER.encode("ok")
    turns: list[list[Any]] = []
    for renderer in pair:
        outs = [renderer.render(parts(uri(1), picture(2)), add_generation_prompt=True)]
        for seed in (3, 1):
            outs.append(
                renderer.bridge_to_next_turn(
                    outs[-1].token_ids,
                    [*said, renderer._turn_end],
                    parts(uri(seed), uri(seed + 10)),
                    previous_multi_modal_data=outs[-1].multi_modal_data,
                )
            )
        turns.append(outs)
    for ours, other in zip(*turns, strict=True):
        same(ours, other)
    assert len(turns[0][-1].multi_modal_data.mm_items["image"]) == 6


def test_both_arrays_come_back_after_eviction(pair: tuple[Any, Any]) -> None:
    mine, theirs = pair
    messages = parts(uri(1), uri(2))
    items = mine.render(messages).multi_modal_data.mm_items["image"]
    want = theirs.render(messages).multi_modal_data.mm_items["image"]
    mine.pixel_cache.clear()
    calls = count_calls(mine._processor.image_processor)
    for item, wanted in zip(items, want, strict=True):
        assert type(item) is ImageItem
        assert list(item.refs) == ["pixel_values", "image_position_ids"]
        for key in item:
            assert np.asarray(item[key]).tobytes() == wanted[key].tobytes()
            assert torch.equal(torch.as_tensor(item[key]), torch.as_tensor(wanted[key]))
    assert len(calls) == 2


def test_a_cache_attaches(pair: tuple[Any, Any]) -> None:
    mine, theirs = pair
    cache = mw.PixelCache("4 MiB", name="attached")
    attach(theirs, cache)
    for _ in range(2):
        same(theirs.render(parts(uri(1), uri(2))), mine.render(parts(uri(1), uri(2))))
    assert cache.stats().hits == 2


def test_a_cache_goes_with_copies_of_a_renderer(pair: tuple[Any, Any]) -> None:
    mine = pair[0]
    theirs = upstream_of(mine)
    cache = mw.PixelCache("4 MiB", name="attached")
    attach(theirs, cache)
    want = mine.render(parts(uri(1)))
    same(theirs.render(parts(uri(1))), want)
    twins = [copy.copy(theirs), copy.deepcopy(theirs)]
    del theirs
    for number, twin in enumerate(twins, 1):
        same(twin.render(parts(uri(1))), want)
        assert cache.stats().hits == number


@pytest.mark.parametrize("name", ["Qwen3VLRenderer", "Gemma4Renderer"])
def test_renderers_travel_between_processes_as_upstreams_do(name: str) -> None:
    processor = qwen_processor() if name in QWEN else gemma_processor()
    mine = qwen(name, processor, mm_hash="upstream", byte_budget="3 MiB")
    want = mine.render(parts(uri(1)))
    text = pickle.dumps(mine)
    del mine
    other = pickle.loads(text)
    same(other.render(parts(uri(1))), want)
    assert other.pixel_cache.stats().budget == 3 << 20
