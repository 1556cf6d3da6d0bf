"""The pool of ``verifiers``: many renderers of one config, one cache."""

from __future__ import annotations

import asyncio
import copy
from functools import partial
from typing import Any

import pytest
import transformers
from renderers.configs import CustomRendererConfig
from renderers_kit import TOKENIZER, count_calls, parts, pixels_of, qwen, qwen_processor, uri

train: Any = pytest.importorskip("verifiers.v1.clients.train", reason="verifiers is not installed")

ROLLOUTS = 64
IMAGES = 9


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Stands in for the hub; what each processor that came from there is called with."""
    made: list[list[int]] = []
    one = qwen_processor()

    def load_processor(name: str, **options: Any) -> Any:
        own = copy.deepcopy(one)
        made.append(count_calls(own.image_processor))
        return own

    def load_tokenizer(name: str) -> Any:
        own = copy.deepcopy(TOKENIZER)
        own.name_or_path = name
        return own

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", load_processor)
    monkeypatch.setattr("renderers.base.load_tokenizer", load_tokenizer)
    return made


def test_slots_share_a_cache(calls: list[list[int]]) -> None:
    config = CustomRendererConfig(
        name="custom",
        import_path="memweir.integrations.renderers:Qwen3VLRenderer",
        byte_budget="48 KiB",
    )
    outs: dict[int, Any] = {}
    slots: set[Any] = set()
    begun: list[int] = []
    all_began = asyncio.Event()

    async def rollout(number: int) -> None:
        # A pool object for each rollout, as clients have one each.
        pool = train.ElasticRendererPool("some/model", config, multiplex=8)
        messages: list[Any] = []
        for turn in range(3):
            messages += parts(uri((number // 8 + turn) % IMAGES))
            async with pool.acquire() as slot:
                slots.add(slot.renderer)
                if turn == 0:  # a slot for every eight of them, on the slowest machine, too
                    begun.append(number)
                    if len(begun) == ROLLOUTS:
                        all_began.set()
                    await all_began.wait()
                outs[number] = await slot.run(partial(slot.renderer.render, list(messages)))
                await asyncio.sleep(0.001)

    async def main() -> None:
        await asyncio.gather(*[rollout(number) for number in range(ROLLOUTS)])

    asyncio.run(main())
    assert len(slots) == ROLLOUTS // 8
    caches = {id(renderer.pixel_cache) for renderer in slots}
    assert len(caches) == 1
    assert sum(map(len, calls)) == IMAGES
    cache = next(iter(slots)).pixel_cache
    assert cache.stats().peak_bytes <= cache.stats().budget == 48 << 10

    plain = qwen(processor=qwen_processor())
    for number, out in outs.items():
        wanted = [uri((number // 8 + turn) % IMAGES) for turn in range(3)]
        want = plain.render([each for source in wanted for each in parts(source)])
        assert want.token_ids == out.token_ids
        for a, b in zip(pixels_of(out), pixels_of(want), strict=True):
            assert a["pixel_values"].tobytes() == b["pixel_values"].tobytes()


def test_a_config_keys_the_pool() -> None:
    path = "memweir.integrations.renderers:Qwen3VLRenderer"
    keys = {
        train.ElasticRendererPool(
            "some/model",
            CustomRendererConfig(name="custom", import_path=path, byte_budget=budget),
            multiplex=8,
        ).key
        for budget in ("1 GiB", "2 GiB", "1 GiB")
    }
    assert len(keys) == 2
