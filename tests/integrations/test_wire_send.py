"""Requests through a real OpenAI client: what is sent, and what only named."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from send_kit import BODY, ROUTES, features, lru, parts, post, run
from wire_kit import (
    Engine,
    NaiveCaches,
    data_of,
    parts_of,
    pixels,
    source,
)

import memweir as mw
from memweir.integrations._json_stream import JsonStream
from memweir.integrations._vllm_images import TOKEN_BYTES
from memweir.integrations.vllm import ContentParts, Features, SendOnceClient, send
from memweir.pixels import unique


@pytest.fixture
def engine() -> Engine:
    return Engine(NaiveCaches(1 << 20))


@ROUTES
def test_a_rollout_sends_each_image_once(engine: Engine, route: Any, turn: Any) -> None:
    async def rollout(client: SendOnceClient) -> None:
        for step in range(1, 5):
            reply = await turn(client, "abcd"[:step])
            assert reply.json()["prompt_token_ids"] == BODY["token_ids"]

    ledger = lru(route=route)
    run(engine, ledger, rollout)
    assert engine.sent() == ["+", "-+", "--+", "---+"]
    assert (ledger.stats().sent, ledger.stats().referenced, ledger.stats().misses) == (4, 6, 0)
    assert ledger.stats().bytes == sum(engine.caches.held().values())


def test_the_engine_ends_with_the_same_pixels(engine: Engine) -> None:
    async def rollout(client: SendOnceClient) -> None:
        for names in ("a", "ab", "abc"):
            await features(client, names)

    run(engine, lru(), rollout)
    for name in "abc":
        assert engine.caches.tensor(name).tobytes() == pixels(name).tobytes()


def test_a_request_of_references_has_no_data_field_at_all(engine: Engine) -> None:
    async def twice(client: SendOnceClient) -> None:
        await features(client, "a")
        await features(client, "a")

    run(engine, lru(), twice)
    assert engine.bodies[1]["features"] == {
        "mm_hashes": {"image": ["a"]},
        "mm_placeholders": {"image": [{"offset": 0, "length": 1}]},
    }
    assert {k: v for k, v in engine.bodies[1].items() if k != "features"} == BODY


def test_sources_are_named_by_content_and_come_with_their_name_first(engine: Engine) -> None:
    async def twice(client: SendOnceClient) -> None:
        await parts(client, "a")
        await parts(client, "a")

    run(engine, lru(route="content_parts"), twice)
    name = mw.hash_bytes(source("a")).hex()
    part = {"type": "image_url", "uuid": name}
    first, second = (body["content_parts"] for body in engine.bodies)
    assert first == [{**part, "url": source("a")}]
    assert second == [part]
    assert engine.bodies[1]["return_token_ids"] is True


def test_only_data_uris_and_what_has_a_name_is_named(engine: Engine) -> None:
    web = {"type": "image_url", "url": "http://host/a.png?sig=1"}
    sound = {"type": "audio_url", "url": "data:audio/wav;base64,AAAA"}
    named = {"type": "image_url", "url": "file:///a.png", "uuid": "mine"}
    images = ContentParts([web, sound, named, *parts_of("a")], identify=lambda url: "id")
    assert [item.hash for item in images.items] == ["mine", "id"]
    ledger = lru(route="content_parts")
    plan = ledger.plan(images.items)
    full = JsonStream(images.fill({}, plan)).plain()["content_parts"]
    assert full == [web, sound, named, {**parts_of("a")[0], "uuid": "id"}]
    ledger.confirm(plan)
    filled = images.fill({}, ledger.plan(images.items))["content_parts"]
    short = [{"type": "image_url", "uuid": "mine"}, {"type": "image_url", "uuid": "id"}]
    assert filled == [web, sound, *short]
    places = {"mm_placeholders": {"image": [{"length": n, "offset": 0} for n in (7, 2, 3)]}}
    sizes = [item.nbytes for item in images.measured(plan, places).items]
    assert sizes == [2 * TOKEN_BYTES, 3 * TOKEN_BYTES]


@pytest.mark.parametrize("odd", ["", '"', "\\", "\n", "\x1f", "\x7f", "é", "\ud800"])
def test_sources_are_written_as_json_writes_them(odd: str) -> None:
    parts = [{"type": "image_url", "url": "data:" + "A" * 40_000 + odd + "B", "uuid": "u"}]
    images = ContentParts(parts)
    body = images.fill({"model": "m"}, mw.SendOnce(route="content_parts").plan(images.items))
    if odd == "\ud800":
        with pytest.raises(UnicodeEncodeError):
            JsonStream(body)
        return
    stream = JsonStream(body)
    assert json.loads(b"".join(stream.pieces())) == {"model": "m", "content_parts": parts}
    assert stream.plain() == {"model": "m", "content_parts": parts}


def test_an_engine_that_does_not_tell_sizes_is_taken_to_hold_little() -> None:
    ledger = mw.SendOnce("100 MiB", engine="lru", route="content_parts")
    images = ContentParts(parts_of("abcdef"))
    for reply in ({}, {"mm_placeholders": None}, httpx.Response(200, content=b"text"), None):
        ledger.confirm(images.measured(ledger.plan(images.items), reply))
        assert ledger.stats().claims == 3


@pytest.mark.parametrize(
    "places",
    [
        [1],
        {"image": 3},
        {"image": [None]},
        {"image": [{"offset": 0}]},
        {"image": [{"length": "many"}]},
        {"image": [{"length": -1}]},
    ],
)
def test_an_accepted_answer_is_never_lost_by_what_it_says_of_placeholders(places: Any) -> None:
    ledger = lru(1 << 30, route="content_parts")
    content = json.dumps({"mm_placeholders": places}).encode()
    for reply in (
        {"mm_placeholders": places},
        httpx.Response(200, content=content),
        httpx.Response(200, content=content[:-2]),
        httpx.Response(200, content=content[:20] + b"\xff"),
        SimpleNamespace(content="text"),
        SimpleNamespace(status_code="200"),
    ):

        async def post(stream: Any, whole: bool, reply: Any = reply) -> Any:
            return reply

        images = ContentParts(parts_of("a"))
        assert asyncio.run(send(post, BODY, images, ledger)) is reply
        assert source_name("a") in ledger


def source_name(name: str) -> str:
    return mw.hash_bytes(source(name)).hex()


def test_a_source_that_is_sent_in_every_turn_is_hashed_once(monkeypatch: Any) -> None:
    hashed = []
    monkeypatch.setattr(unique, "hash_bytes", lambda text: hashed.append(1) or mw.hash_bytes(text))
    url = "data:image/png;base64," + "A" * 40_000
    part = {"type": "image_url", "url": url}
    names = {ContentParts([part]).items[0].hash for _ in range(3)}
    assert (names, len(hashed)) == ({mw.hash_bytes(url).hex()}, 1)
    same = bytes(url, "ascii").decode()
    assert ContentParts([{**part, "url": same}]).items[0].hash in names
    assert len(hashed) == 2
    length = len(url)
    assert length in {len(text) for text, _ in unique._digests.values()}
    del part, url, same
    gc.collect()
    assert length not in {len(text) for text, _ in unique._digests.values()}


def test_large_sources_and_other_names_are_worked_out_in_a_thread(engine: Engine) -> None:
    threads = []

    def identify(url: str) -> str:
        threads.append(threading.get_ident())
        return str(len(url))

    url = "data:image/fake;base64," + "A" * (2 << 20)
    assert not ContentParts([{"type": "image_url", "url": url}]).light
    assert not ContentParts(parts_of("a"), identify=identify).light
    assert ContentParts(parts_of("a")).light
    ledger = lru(route="content_parts")
    run(engine, ledger, lambda client: parts(client, "a"), identify=identify)
    assert threads
    assert threading.get_ident() not in threads


def test_safe_mode_always_sends_everything(engine: Engine) -> None:
    async def rollout(client: SendOnceClient) -> None:
        await features(client, "a")
        await features(client, "ab")
        plain = {**BODY, "content_parts": parts_of("a")}
        await post(client, plain)
        assert engine.bodies[-1] == plain

    run(engine, mw.SendOnce(), rollout)
    assert engine.sent()[:2] == ["+", "++"]


def test_requests_of_the_other_route_and_others_are_the_clients_own(engine: Engine) -> None:
    async def work(client: SendOnceClient) -> None:
        body = {**BODY, "content_parts": parts_of("a")}
        for _ in range(2):
            await post(client, body)
            assert engine.bodies[-1] == body
        await post(client, BODY)
        assert engine.bodies[-1] == BODY
        assert client.base_url == "http://engine/v1/"
        assert client.max_retries == 2

    run(engine, lru(), work)


def test_what_others_encoded_travels_once_too(engine: Engine) -> None:
    ledger, data = mw.SendOnce(), data_of("ab")
    images = Features(data)
    whole = JsonStream(images.fill(BODY, ledger.plan(images.items))).plain()

    async def work(client: SendOnceClient) -> None:
        for _ in range(2):
            await post(client, whole)
        hash_only = {**whole, "features": {**whole["features"], "kwargs_data": None}}
        await post(client, hash_only)
        assert engine.bodies[-1] == hash_only

    run(engine, lru(), work)
    assert engine.sent()[:2] == ["++", "--"]
    for name in "ab":
        assert engine.caches.tensor(name).tobytes() == pixels(name).tobytes()


def test_images_in_a_body_and_carried_ones_do_not_mix(engine: Engine) -> None:
    async def work(client: SendOnceClient) -> None:
        body = {**BODY, "content_parts": parts_of("a")}
        with pytest.raises(ValueError, match="others"):
            await post(client.carrying(data_of("b")), body)
        other = SendOnceClient(client._client, lru(route="content_parts"))
        with pytest.raises(ValueError, match="content_parts"):
            await features(other, "a")

    run(engine, lru(), work)
    assert engine.bodies == []


def test_features_in_the_body_are_for_this_client_alone(engine: Engine) -> None:
    async def work(client: SendOnceClient) -> None:
        await post(client, {**BODY, "features": Features(data_of("a"))})
        with pytest.raises(TypeError, match="Features"):
            await post(client._client, {**BODY, "features": Features(data_of("a"))})

    run(engine, lru(), work)
    assert engine.sent() == ["+"]


def test_bfloat16_is_half_and_has_its_own_name(engine: Engine) -> None:
    async def work(client: SendOnceClient) -> None:
        await features(client, "a")

    run(engine, lru(), work)
    run(engine, lru(), work, wire="bfloat16")
    assert list(engine.caches.held()) == ["a", "a-bf16"]
    upper = pixels("a").view(np.uint32) >> 16
    assert np.abs(engine.caches.tensor("a-bf16").astype(int) - upper.astype(int)).max() <= 1


def test_engines_behind_one_endpoint_are_told_apart_by_a_header() -> None:
    engines = {name: Engine(NaiveCaches(1 << 20)) for name in ("one", "two")}
    ledger = lru()

    async def main() -> None:
        async def handle(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/version":
                return httpx.Response(404)
            status, body = engines[request.headers["x-session-id"]].answer(request.content)
            return httpx.Response(status, json=body)

        http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
        async with openai.AsyncOpenAI(api_key="k", base_url="http://r/v1", http_client=http) as c:
            client = SendOnceClient(c, ledger, identity=lambda headers: headers["x-session-id"])
            for name in ("one", "two", "one", "two"):
                data = client.carrying(data_of("a"))
                await post(data, BODY, headers={"x-session-id": name})

    asyncio.run(main())
    assert [each.sent() for each in engines.values()] == [["+", "-"], ["+", "-"]]
    assert ledger.stats().misses == 0


@pytest.mark.parametrize("version", ["0.22.1", "0.27.0", "0.9.2"])
def test_an_engine_that_would_break_is_refused_before_anything_is_sent(
    engine: Engine, version: str
) -> None:
    engine.version = version
    with pytest.raises(mw.Refused, match=r"0\.28"):
        run(engine, lru(), lambda client: features(client, "a"))
    assert engine.bodies == []
    run(engine, mw.SendOnce(), lambda client: features(client, "a"))


@pytest.mark.parametrize(
    "version", [None, "0.28.0", "0.28.1.dev126+g2bae550c0", "1.0", "0.1.dev7", "?"]
)
def test_other_engines_are_taken_at_their_word(engine: Engine, version: str | None) -> None:
    engine.version = version
    run(engine, lru(), lambda client: features(client, "a"))
    assert engine.sent() == ["+"]


def test_an_engine_is_asked_for_its_version_once(engine: Engine) -> None:
    asked = []

    async def rollout(client: SendOnceClient) -> None:
        get = client._client.get
        client._client.get = lambda *args, **options: asked.append(1) or get(*args, **options)
        for names in ("a", "ab", "abc"):
            await features(client, names)

    run(engine, lru(), rollout)
    assert len(asked) == 1


def test_headers_in_other_spellings_are_not_there_twice(engine: Engine) -> None:
    async def hook(request: httpx.Request) -> None:
        assert request.headers.get_list("content-type") == ["application/json"]
        assert request.headers.get_list("content-length") == [str(len(request.content))]
        assert request.headers["x-session-id"] == "s"

    async def work(client: SendOnceClient) -> None:
        headers = {"content-type": "text/plain", "CONTENT-LENGTH": "3", "X-Session-ID": "s"}
        await post(client.carrying(data_of("a")), BODY, headers=headers)

    run(engine, lru(), work, hook)
    assert engine.sent() == ["+"]
