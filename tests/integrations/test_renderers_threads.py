"""Many rollouts at once, on threads and event loops, over one pool of renderers."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from renderers_kit import (
    TOKENIZER,
    count_calls,
    parts,
    picture,
    qwen,
    qwen_processor,
    upstream_of,
    uri,
)

ROLLOUTS = 64
IMAGES = 12
SOURCES = [uri(seed) for seed in range(IMAGES)]

schedules = st.lists(
    st.lists(st.lists(st.integers(0, IMAGES - 1), min_size=1, max_size=3), min_size=1, max_size=3),
    min_size=ROLLOUTS,
    max_size=ROLLOUTS,
)


class Slot:
    """A renderer and the lock that serializes its encoding, as upstream's pools have them."""

    def __init__(self, processor: Any, budget: str) -> None:
        own = SimpleNamespace(image_processor=copy.deepcopy(processor.image_processor))
        self.calls = count_calls(own.image_processor)
        tokenizer = copy.deepcopy(TOKENIZER)
        self.renderer = qwen(processor=own, tokenizer=tokenizer, byte_budget=budget)
        self.lock = threading.Lock()


def play(slot: Slot, turns: list[list[int]]) -> list[Any]:
    """A rollout: what each turn's prompt holds. Each has copies of its own of all sources."""
    outs: list[Any] = []
    renderer = slot.renderer
    for images in turns:
        new = parts(*["".join([SOURCES[image][:30], SOURCES[image][30:]]) for image in images])
        with slot.lock:
            if not outs:
                outs.append(renderer.render(new, add_generation_prompt=True))
                continue
            said = [*renderer._encode("ok"), renderer._im_end]
            before = outs[-1].multi_modal_data
            outs.append(
                renderer.bridge_to_next_turn(
                    outs[-1].token_ids, said, new, previous_multi_modal_data=before
                )
            )
    return outs


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedule=schedules, budget=st.sampled_from(["48 KiB", "64 KiB", "8 MiB"]))
def test_rollouts_at_once(schedule: list[list[list[int]]], budget: str) -> None:
    processor = qwen_processor()
    slots = [Slot(processor, budget) for _ in range(3)]
    caches = {id(slot.renderer.pixel_cache) for slot in slots}
    assert len(caches) == 1

    async def tasks(numbers: range) -> list[list[Any]]:
        return await asyncio.gather(
            *[asyncio.to_thread(play, slots[n % 3], schedule[n]) for n in numbers]
        )

    with ThreadPoolExecutor(9) as threads:
        loop = threads.submit(lambda: asyncio.run(tasks(range(0, ROLLOUTS, 2))))
        others = [threads.submit(play, slots[n % 3], schedule[n]) for n in range(1, ROLLOUTS, 2)]
        played = dict(zip(range(0, ROLLOUTS, 2), loop.result(), strict=True))
        played |= {n: one.result() for n, one in zip(range(1, ROLLOUTS, 2), others, strict=True)}

    used = {image for turns in schedule for images in turns for image in images}
    assert sum(len(slot.calls) for slot in slots) == len(used), "each image once"
    cache = slots[0].renderer.pixel_cache
    assert cache.stats().peak_bytes <= cache.stats().budget

    theirs = upstream_of(slots[0].renderer)
    want = {
        image: theirs.render(parts(SOURCES[image])).multi_modal_data.mm_items["image"][0]
        for image in used
    }
    restored: dict[int, Any] = {}

    def check(number: int) -> None:
        wanted = [image for images in schedule[number] for image in images]
        items = played[number][-1].multi_modal_data.mm_items["image"]
        for image, item in zip(wanted, items, strict=True):
            again = np.asarray(item["pixel_values"])
            assert again.tobytes() == want[image]["pixel_values"].tobytes()
            assert np.array_equal(item["image_grid_thw"], want[image]["image_grid_thw"])
            restored[image] = again

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(check, range(ROLLOUTS)))
    assert set(restored) == used
    assert cache.stats().peak_bytes <= cache.stats().budget


def test_a_new_image_at_once_is_processed_once() -> None:
    processor = qwen_processor()
    slots = [Slot(processor, "8 MiB") for _ in range(8)]
    for seed in range(20, 30):
        gate = threading.Barrier(len(slots))

        def render(slot: Slot, seed: int = seed, gate: threading.Barrier = gate) -> Any:
            gate.wait()
            return slot.renderer.render(parts(uri(seed))).multi_modal_data.mm_hashes

        with ThreadPoolExecutor(len(slots)) as threads:
            hashes = list(threads.map(render, slots))
        assert all(one == hashes[0] for one in hashes)
    assert sum(len(slot.calls) for slot in slots) == 10


def pair(first: dict[str, str], second: dict[str, str]) -> tuple[Any, Any, threading.Event]:
    """Two renderers of one processor, and what is set when it is asked for the first image."""
    processor = qwen_processor()
    kind = type(processor.image_processor)
    began = threading.Event()

    class Slow(kind):  # type: ignore[misc, valid-type]
        def preprocess(self, *args: Any, **kwargs: Any) -> Any:
            began.set()
            time.sleep(0.2)
            return super().preprocess(*args, **kwargs)

    Slow.__name__, Slow.__qualname__ = kind.__name__, kind.__qualname__
    Slow.__module__ = kind.__module__
    processor.image_processor.__class__ = Slow
    return qwen(processor=processor, **first), qwen(processor=processor, **second), began


def test_renderers_that_name_images_differently_may_want_one_at_once() -> None:
    first, second, began = pair({}, {"mm_hash": "upstream"})
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(first.render, parts(uri(40)))
        began.wait()
        mine = second.render(parts(uri(40)))
        assert other.result().multi_modal_data.mm_hashes != mine.multi_modal_data.mm_hashes
    want = upstream_of(second).render(parts(uri(40)))
    assert mine.multi_modal_data.mm_hashes == want.multi_modal_data.mm_hashes


def test_who_waits_for_what_is_refused_gets_upstreams_error() -> None:
    first, second, began = pair({}, {})
    sliver = parts(picture(1, (2000, 2)))
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(first.render, sliver)
        began.wait()
        with pytest.raises(ValueError, match="aspect ratio"):
            second.render(sliver)
        with pytest.raises(ValueError, match="aspect ratio"):
            other.result()
