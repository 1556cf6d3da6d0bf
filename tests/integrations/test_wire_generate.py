"""Rollouts through the real ``generate()`` of ``renderers``, as it is."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from benches.qwen3_vl import make_renderer, message, screenshot
from renderers.client import generate
from wire_kit import Engine, NaiveCaches

import memweir as mw
from memweir.integrations.vllm import SendOnceClient

pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")

TURNS = 4


@pytest.fixture(scope="module")
def renderer() -> Any:
    return make_renderer()


@pytest.fixture
def engine() -> Engine:
    return Engine(NaiveCaches(1 << 30))


def run(engine: Engine, ledger: mw.SendOnce | None, work: Any, **options: Any) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        status, body = engine.answer(request.content)
        return httpx.Response(status, json=body)

    async def main() -> None:
        http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
        async with openai.AsyncOpenAI(api_key="k", base_url="http://e/v1", http_client=http) as c:
            await work(c if ledger is None else SendOnceClient(c, ledger, **options))

    asyncio.run(main())


class Rollout:
    """A rollout that bridges from turn to turn and hands its images to the client."""

    def __init__(self, renderer: Any, cache: mw.PixelCache | None = None) -> None:
        self.renderer = renderer
        self.cache = cache
        self.last: Any = None
        self.data: Any = None

    def render(self, seed: int) -> tuple[list[Any], Any]:
        new = [message(screenshot(seed))]
        if self.last is None:
            return new, self.renderer.render(new, add_generation_prompt=True)
        ids = self.last["prompt_ids"], self.last["completion_ids"]
        return new, self.renderer.bridge_to_next_turn(
            *ids, new, previous_multi_modal_data=self.data
        )

    async def turn(self, client: Any, seed: int) -> None:
        new, out = self.render(seed)
        self.data = out.multi_modal_data
        if self.cache is not None:
            self.data = mw.strip(self.data, self.cache).data
        given: dict[str, Any] = {"multi_modal_data": self.data}
        if isinstance(client, SendOnceClient):
            client, given = client.carrying(self.data), {}
        self.last = await generate(
            client=client,
            renderer=self.renderer,
            messages=new,
            model="m",
            prompt_ids=out.token_ids,
            prompt_attribution=out,
            **given,
        )


def tensors(engine: Engine) -> dict[str, bytes]:
    return {name: engine.caches.tensor(name).tobytes() for name in engine.caches.held()}


@pytest.mark.parametrize("stripped", [False, True])
def test_a_rollout_of_pixels(renderer: Any, engine: Engine, stripped: bool) -> None:
    cache = mw.PixelCache("16 MiB") if stripped else None
    rollout = Rollout(renderer, cache)

    async def work(client: Any) -> None:
        for seed in range(TURNS):
            await rollout.turn(client, seed)
        engine.caches.evict(next(iter(engine.caches.held())))
        await rollout.turn(client, TURNS)

    run(engine, mw.SendOnce(engine="lru"), work)
    assert engine.sent() == ["+", "-+", "--+", "---+", "----+", "+++++"]
    held = tensors(engine)
    hashes, items = rollout.data.mm_hashes["image"], rollout.data.mm_items["image"]
    for name, item in zip(hashes, items, strict=True):
        assert held[name] == np.asarray(item["pixel_values"]).tobytes()
        assert isinstance(item["pixel_values"], mw.PixelRef) == stripped
    tokens = [body["token_ids"] for body in engine.bodies]
    assert tokens[-1] == tokens[-2] == rollout.last["prompt_ids"]


def test_a_rollout_of_sources(renderer: Any, engine: Engine, monkeypatch: Any) -> None:
    monkeypatch.setattr("wire_kit.tokens_of", lambda part: 16)
    messages: list[Any] = []

    async def turn(client: Any, seed: int) -> Any:
        messages.append(message(screenshot(seed)))
        result = await generate(
            client=client, renderer=renderer, messages=messages, model="m", process_multimodal=False
        )
        messages.append({"role": "assistant", "content": "ok"})
        return result

    async def work(client: Any) -> None:
        for seed in range(TURNS):
            result = await turn(client, seed)
            assert len(result["mm_placeholders"]["image"]) == seed + 1
        engine.caches.clear()
        await turn(client, TURNS)

    ledger = mw.SendOnce(engine="lru", route="content_parts")
    run(engine, ledger, work)
    assert engine.sent() == ["+", "-+", "--+", "---+", "----+", "+++++"]
    assert ledger.stats().bytes == sum(engine.caches.held().values())
    today = Engine(NaiveCaches(1 << 30))
    messages.clear()
    run(today, None, work)
    before_the_miss = slice(None, TURNS)
    urls = [len(part["url"]) for part in today.bodies[TURNS - 1]["content_parts"]]
    assert sum(urls) < sum(engine.sizes[before_the_miss]) < sum(urls) + 2000 * TURNS
    assert sum(today.sizes[before_the_miss]) > 2 * sum(engine.sizes[before_the_miss])


def test_what_renderers_encodes_itself_travels_once(renderer: Any, vllm: Any) -> None:
    plain, ours, encoded, half = (Engine(vllm.RealCaches(1 << 30, 1)) for _ in range(4))

    async def rollout(client: Any) -> None:
        state = Rollout(renderer)
        for seed in range(TURNS):
            await state.turn(client, seed)

    class Theirs:
        """A client that is no SendOnceClient to the rollout, but one to the requests."""

        def __init__(self, client: SendOnceClient) -> None:
            self.post = client.post
            self.get = client.get
            self.base_url = client.base_url

    run(plain, None, rollout)
    run(ours, mw.SendOnce(engine="lru"), rollout)
    run(encoded, mw.SendOnce(engine="lru"), lambda client: rollout(Theirs(client)))
    assert plain.sent() == ["+", "++", "+++", "++++"]
    assert ours.sent() == encoded.sent() == ["+", "-+", "--+", "---+"]
    assert tensors(ours) == tensors(encoded) == tensors(plain)
    assert sum(ours.sizes) < 0.45 * sum(plain.sizes)
    run(half, mw.SendOnce(engine="lru"), rollout, wire="bfloat16")
    assert half.sent() == ours.sent()
    assert sum(half.sizes) < 0.23 * sum(plain.sizes)
    rounded = tensors(half)
    for name, content in tensors(plain).items():
        floats = torch.frombuffer(bytearray(content), dtype=torch.float32)
        bits = floats.to(torch.bfloat16).view(torch.int16)
        assert rounded.pop(f"{name}-bf16") == bits.numpy().tobytes()
    assert not rounded
