"""References in upstream's hands: its feature builder and client, and a cache in its renderers."""

from __future__ import annotations

import asyncio
import copy
import json
import sys
import types
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import renderers.client
import torch
from renderers_kit import QWEN, count_calls, parts, qwen, same, upstream_of, uri
from wire_kit import Engine, NaiveCaches

import memweir as mw
from memweir.integrations.renderers import attach, send_once_client


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of vLLM as the feature builder imports, handing through what it is given."""
    for name in (
        "vllm",
        "vllm.entrypoints",
        "vllm.entrypoints.scale_out",
        "vllm.entrypoints.scale_out.token_in_token_out",
        "vllm.entrypoints.scale_out.token_in_token_out.mm_serde",
        "vllm.model_executor",
        "vllm.model_executor.models",
        "vllm.model_executor.models.qwen2_vl",
        "vllm.multimodal",
        "vllm.multimodal.inputs",
    ):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    serde: Any = sys.modules["vllm.entrypoints.scale_out.token_in_token_out.mm_serde"]
    serde.encode_mm_kwargs_item = lambda item: item
    models: Any = sys.modules["vllm.model_executor.models.qwen2_vl"]
    models._create_qwen2vl_field_factory = lambda merge: lambda inputs: merge
    inputs: Any = sys.modules["vllm.multimodal.inputs"]

    class Items:
        @staticmethod
        def from_hf_inputs(inputs: Any, config: Any) -> dict[str, list[Any]]:
            return {"image": [dict(inputs)]}

    inputs.MultiModalKwargsItems = Items


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize("name", QWEN)
def test_upstreams_feature_builder_takes_references(name: str) -> None:
    mine = qwen(name, mm_hash="upstream")
    theirs = upstream_of(mine)
    messages = parts(uri(1), uri(2))
    rendered = mine.render(messages).multi_modal_data
    mine.pixel_cache.clear()
    ours = renderers.client._build_mm_features(mine, rendered)
    other = renderers.client._build_mm_features(theirs, theirs.render(messages).multi_modal_data)
    assert ours["mm_hashes"] == other["mm_hashes"]
    assert ours["mm_placeholders"] == other["mm_placeholders"]
    [mine_data], [their_data] = ours["kwargs_data"]["image"], other["kwargs_data"]["image"]
    for key in ("pixel_values", "image_grid_thw"):
        assert torch.equal(mine_data[key], their_data[key])


def rollout(client_of: Any, turns: int = 4) -> tuple[Engine, list[Any]]:
    """A rollout through upstream's ``generate()``, its images carried by the client."""
    engine = Engine(NaiveCaches(1 << 30))
    renderer = qwen(byte_budget=0)
    kept: list[Any] = []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        status, body = engine.answer(request.content)
        return httpx.Response(status, json=body)

    async def main() -> None:
        http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
        async with openai.AsyncOpenAI(api_key="k", base_url="http://e/v1", http_client=http) as c:
            client = client_of(c)
            for turn in range(turns):
                new = parts(uri(turn))
                if kept:
                    out = renderer.bridge_to_next_turn(
                        kept[-1].token_ids,
                        [1, renderer._im_end],
                        new,
                        previous_multi_modal_data=kept[-1].multi_modal_data,
                    )
                else:
                    out = renderer.render(new, add_generation_prompt=True)
                kept.append(out)
                await renderers.client.generate(
                    client=client.carrying(out.multi_modal_data),
                    renderer=renderer,
                    messages=new,
                    model="m",
                    prompt_ids=out.token_ids,
                )

    asyncio.run(main())
    return engine, kept


def test_a_switched_on_client_sends_references_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDERERS_MM_HASH_CACHE", "1")
    engine, kept = rollout(send_once_client)
    assert engine.sent() == ["+", "-+", "--+", "---+"]
    data = kept[-1].multi_modal_data
    for name, item in zip(data.mm_hashes["image"], data.mm_items["image"], strict=True):
        assert np.array_equal(engine.caches.tensor(name), np.asarray(item["pixel_values"]))


def test_a_client_that_is_not_switched_on_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    client = object()
    assert send_once_client(client) is client
    monkeypatch.setenv("RENDERERS_MM_HASH_CACHE", "1")
    monkeypatch.setenv("MEMWEIR_MM_HASH_CACHE", "off")
    assert send_once_client(client) is client
    with pytest.raises(mw.Refused):
        send_once_client(client, enabled=True, api_server_count=2)


class TestAttach:
    @pytest.mark.parametrize("name", QWEN)
    def test_renders_the_same_within_the_budget(self, name: str) -> None:
        theirs = upstream_of(qwen(name))
        plain = copy.copy(theirs)
        plain._image_cache = {}
        cache = mw.PixelCache("64 KiB", name="attached")
        attach(theirs, cache)
        for seeds in ((1, 2), (1, 2, 3, 4, 5, 6), (1,), (6, 5)):
            messages = parts(*map(uri, seeds))
            same(theirs.render(messages), plain.render(messages))
        assert cache.stats().hits > 0
        assert cache.stats().evictions > 0
        assert cache.stats().peak_bytes <= 64 << 10

    def test_renderers_share_a_cache_and_what_they_know(self) -> None:
        first = upstream_of(qwen())
        second = copy.copy(first)
        calls = count_calls(first._processor.image_processor)
        cache = mw.PixelCache("1 MiB", name="attached")
        for one in (first, second):
            attach(one, cache)
        same(first.render(parts(uri(1))), second.render(parts(uri(1))))
        assert calls == [1]
        first._processor.image_processor.image_mean = [0.4] * 3
        first.render(parts(uri(1)))
        assert calls == [1, 1], "another configuration is another image"

    def test_an_array_in_use_is_not_made_twice(self) -> None:
        theirs = upstream_of(qwen())
        attach(theirs, mw.PixelCache("1 MiB", name="attached"))
        out = theirs.render(parts(uri(1)))
        again = theirs.render(parts(uri(1)))
        [a], [b] = (one.multi_modal_data.mm_items["image"] for one in (out, again))
        assert a["pixel_values"] is b["pixel_values"]

    def test_no_images_at_all_may_be_kept(self) -> None:
        theirs = upstream_of(qwen(), image_cache_max=0)
        attach(theirs, mw.PixelCache("1 MiB", name="attached"))
        assert theirs.render(parts(uri(1), uri(2))).multi_modal_data is not None

    def test_says_what_it_cannot_attach_to(self) -> None:
        cache = mw.PixelCache("1 MiB", name="attached")
        with pytest.raises(TypeError, match="byte_budget"):
            attach(qwen(), cache)
        with pytest.raises(TypeError, match="PixelCache"):
            attach(upstream_of(qwen()), {})  # type: ignore[arg-type]
        with pytest.raises(ImportError, match=r"renderers \S+ has no object\._image_cache"):
            attach(object(), cache)


class TestSourceRefs:
    """Messages whose sources were moved into a store, rendered as they are."""

    def test_are_sources(self) -> None:
        store = mw.PixelCache("1 MiB", name="sources")
        mine = qwen()
        want = mine.render(parts(uri(1), uri(2)))
        stored = mw.intern_sources(parts(uri(1), uri(2)), store=store, threshold=64)
        assert len(stored.refs) == 2
        for data in (stored.data, json.loads(json.dumps(stored.data))):
            out = mine.render(data)
            same(out, want)
            mine.pixel_cache.clear()
            same(out, want)

    def test_without_their_source_say_so(self) -> None:
        store = mw.PixelCache("1 MiB", name="sources")
        stored = mw.intern_sources(parts(uri(1)), store=store, threshold=64)
        data = json.loads(json.dumps(stored.data))
        del stored
        store.clear()
        with pytest.raises(mw.MissingPixels, match="SourceRef"):
            qwen().render(data)
        with pytest.raises(ValueError, match="malformed source reference"):
            qwen().render(parts("memweir-source:abc"))
