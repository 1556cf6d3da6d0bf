"""Beside vLLM's own encoder, caches and errors."""

from __future__ import annotations

import asyncio
import base64
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from wire_kit import (
    LOST,
    MISS,
    POOLING,
    Engine,
    Unpacker,
    data_of,
    error,
    image,
    parts_of,
    pixels,
    source,
)

import memweir as mw
from memweir.integrations._vllm_images import TOKEN_BYTES
from memweir.integrations._vllm_items import WireItem
from memweir.integrations.vllm import ContentParts, Features, send, send_once

pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")

BODY: dict[str, Any] = {"model": "m", "token_ids": list(range(40)), "sampling_params": {"n": 1}}


def text_of(item: WireItem) -> str:
    return b"".join(item.pieces()).decode()


def record_of(text: str) -> Any:
    return Unpacker(base64.b64decode(text)).all()


def test_records_are_the_ones_vllm_writes(vllm: Any) -> None:
    for name, rows in (("a", 4), ("b", 8), ("c", 70_000)):
        values = image(name, rows)
        (theirs,) = vllm.qwen_texts([values["pixel_values"]], [values["image_grid_thw"]])
        ours = text_of(WireItem(name, values))
        # vLLM's order of fields changes from process to process.
        assert record_of(ours) == record_of(theirs)
        assert len(ours) == len(theirs)


def test_bfloat16_records_are_the_ones_vllm_writes(vllm: Any) -> None:
    values = image("a", 70_000)
    cast = torch.from_numpy(values["pixel_values"]).to(torch.bfloat16)
    (theirs,) = vllm.qwen_texts([cast], [values["image_grid_thw"]])
    assert record_of(text_of(WireItem("a", values, "bfloat16"))) == record_of(theirs)


def test_gemma_records_are_the_ones_vllm_writes(vllm: Any) -> None:
    places = np.arange(8).reshape(1, 4, 2)
    values = {"pixel_values": pixels("a")[None], "image_position_ids": places}
    (theirs,) = vllm.gemma_texts([values["pixel_values"]], [places])
    assert record_of(text_of(WireItem("a", values))) == record_of(theirs)


@pytest.mark.parametrize("wire", ["exact", "bfloat16"])
def test_vllm_reads_the_same_tensors_and_counts_the_same_bytes(vllm: Any, wire: Any) -> None:
    values = image("a", 1000)
    item = WireItem("a", values, wire)
    decoded = vllm.decode_mm_kwargs_item(text_of(item))
    expected = torch.from_numpy(values["pixel_values"])
    if wire == "bfloat16":
        expected = expected.to(torch.bfloat16)
    assert torch.equal(decoded["pixel_values"].data, expected)
    assert decoded["pixel_values"].data.dtype == expected.dtype
    assert decoded["image_grid_thw"].data.tolist() == values["image_grid_thw"][0].tolist()
    assert vllm.MultiModalCache.get_item_size(decoded) == item.nbytes


def test_vllm_takes_the_requests(vllm: Any) -> None:
    ledger, images = mw.SendOnce(engine="lru"), Features(data_of("ab"))
    parts = ContentParts(parts_of("ab"))
    plan, named = ledger.plan(images.items), ledger.plan(parts.items)
    ledger.confirm(plan)
    ledger.confirm(named)
    for request in (
        {**images.fill(BODY, ledger.plan(images.items))},
        {**parts.fill(BODY, named)},
        {**parts.fill(BODY, ledger.plan(parts.items))},
    ):
        vllm.GenerateRequest.model_validate(request)


def test_errors_are_the_ones_vllm_answers(vllm: Any) -> None:
    status, kind, message = LOST
    caches = vllm.RealCaches(1 << 20, TOKEN_BYTES)
    with pytest.raises(ValueError, match="data is not provided") as lost:
        vllm.BaseMultiModalProcessor._get_cache_missing_items(
            None, caches.front, {"image": [None]}, {"image": ["a"]}
        )
    for raised, expected in (
        (vllm.GenerationError(), MISS),
        (vllm.RetryableRequestError(POOLING[2]), POOLING),
        (lost.value, (status, kind, message.format(0))),
    ):
        answer = vllm.create_error_response(raised).model_dump()
        assert (answer["error"]["code"], answer) == error(*expected)


def options() -> Any:
    values = {
        "mm_processor_cache_gb": [0, 4],
        "mm_processor_cache_type": ["lru", "shm"],
        "api_server_count": [1, 2],
        "data_parallel_size": [1, 2],
        "data_parallel_external_lb": [False, True],
    }
    for each in itertools.product(*values.values()):
        yield dict(zip(values, each, strict=True))


def test_kinds_of_cache_are_the_ones_vllm_chooses(vllm: Any) -> None:
    for given in options():
        multimodal = SimpleNamespace(
            mm_processor_cache_gb=given["mm_processor_cache_gb"],
            mm_processor_cache_type=given["mm_processor_cache_type"],
        )
        config = SimpleNamespace(
            model_config=SimpleNamespace(
                supports_multimodal_inputs=True, get_multimodal_config=lambda m=multimodal: m
            ),
            parallel_config=SimpleNamespace(
                _api_process_count=given["api_server_count"],
                data_parallel_size=given["data_parallel_size"],
                data_parallel_external_lb=given["data_parallel_external_lb"],
            ),
        )
        kind = vllm._get_cache_type(config)
        for route in ("features", "content_parts"):
            try:
                chosen: Any = send_once(route=route, **given).engine
            except mw.Refused:
                assert kind is None or (route == "features" and kind != "lru")
            else:
                assert chosen == kind


def test_a_rollout_through_vllms_own_caches(vllm: Any) -> None:
    engine = Engine(vllm.RealCaches(1 << 30, TOKEN_BYTES))

    async def post(stream: Any, whole: bool) -> Any:
        body = b"".join(stream.pieces())
        vllm.GenerateRequest.model_validate_json(body)
        status, answer = engine.answer(body)
        return SimpleNamespace(status_code=status, body=answer, mm=answer.get("mm_placeholders"))

    async def main() -> None:
        ledger = mw.SendOnce("1 GiB", engine="lru")
        for names in ("a", "ab", "abc"):
            await send(post, BODY, Features(data_of(names)), ledger)
        engine.caches.evict("b")
        await send(post, BODY, Features(data_of("abcd")), ledger)
        assert ledger.stats().bytes == sum(engine.caches.held().values())

    asyncio.run(main())
    assert engine.sent() == ["+", "-+", "--+", "---+", "++++"]
    for name in "abcd":
        assert engine.caches.tensor(name).tobytes() == pixels(name).tobytes()


def test_sources_through_vllms_own_caches(vllm: Any) -> None:
    engine = Engine(vllm.RealCaches(1 << 20, 1000))
    ledger = mw.SendOnce(1 << 20, engine="lru", route="content_parts")
    urls = [source(name, tokens) for name, tokens in (("a", 3), ("b", 2))]

    async def post(stream: Any, whole: bool) -> Any:
        status, answer = engine.answer(b"".join(stream.pieces()))
        return answer if status == 200 else SimpleNamespace(status_code=status, body=answer)

    async def main() -> None:
        for count in (1, 2, 2):
            parts = [{"type": "image_url", "url": url} for url in urls[:count]]
            await send(post, BODY, ContentParts(parts, token_bytes=1000), ledger)
        assert ledger.stats().bytes == sum(engine.caches.held().values()) == 5000
        engine.caches.engine.clear_cache()
        await send(post, BODY, ContentParts(parts, token_bytes=1000), ledger)
        engine.caches.clear()
        await send(post, BODY, ContentParts(parts, token_bytes=1000), ledger)

    asyncio.run(main())
    assert engine.sent() == ["+", "-+", "--", "--", "++", "--", "++"]
