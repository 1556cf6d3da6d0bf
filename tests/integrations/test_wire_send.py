"""Requests through a real OpenAI client: what is sent, what is sent again, and what is not."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from wire_kit import (
    GENERATE,
    LOST,
    MISS,
    POOLING,
    Engine,
    NaiveCaches,
    data_of,
    error,
    parts_of,
    pixels,
    sent_in,
    size_of,
    source,
)

import memweir as mw
from memweir.integrations._json_stream import JsonStream
from memweir.integrations._vllm_images import TOKEN_BYTES
from memweir.integrations.vllm import ContentParts, Features, SendOnceClient, is_miss, send
from memweir.pixels import unique

BODY = {"model": "m", "token_ids": list(range(40)), "sampling_params": {"n": 1}}


@pytest.fixture
def engine() -> Engine:
    return Engine(NaiveCaches(1 << 20))


def lru(budget: int = 1 << 20, **options: Any) -> mw.SendOnce:
    return mw.SendOnce(budget, engine="lru", **options)


Hook = Callable[[httpx.Request], Any]


@asynccontextmanager
async def openai_client(
    engine: Engine, hook: Hook | None = None, **options: Any
) -> AsyncIterator[openai.AsyncOpenAI]:
    async def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/version":
            known = engine.version is not None
            return httpx.Response(200 if known else 404, json={"version": engine.version})
        if hook is not None:
            await hook(request)
        assert len(request.content) == int(request.headers["content-length"])
        status, body = engine.answer(request.content)
        return httpx.Response(status, json=body)

    transport = httpx.MockTransport(handle)
    async with openai.AsyncOpenAI(
        api_key="k",
        base_url="http://engine/v1",
        http_client=httpx.AsyncClient(transport=transport),
        **options,
    ) as client:
        yield client


def post(client: Any, body: Any, **options: Any) -> Any:
    return client.post(GENERATE, cast_to=httpx.Response, body=body, options=options)


async def features(client: SendOnceClient, names: str) -> httpx.Response:
    reply: httpx.Response = await post(client.carrying(data_of(names)), BODY)
    return reply


async def parts(client: SendOnceClient, names: str) -> httpx.Response:
    body = {**BODY, "content_parts": parts_of(names), "return_token_ids": True}
    reply: httpx.Response = await post(client, body)
    return reply


ROUTES = pytest.mark.parametrize(
    ("route", "turn"), [("features", features), ("content_parts", parts)]
)


def run(
    engine: Engine,
    ledger: mw.SendOnce,
    work: Callable[[SendOnceClient], Any],
    hook: Hook | None = None,
    client_options: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    async def main() -> Any:
        async with openai_client(engine, hook, **(client_options or {})) as client:
            return await work(SendOnceClient(client, ledger, **options))

    return asyncio.run(main())


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


@ROUTES
def test_a_forced_eviction_is_recovered_by_exactly_one_resend(
    engine: Engine, route: Any, turn: Any
) -> None:
    async def rollout(client: SendOnceClient) -> None:
        await turn(client, "ab")
        engine.caches.clear()
        await turn(client, "abc")
        await turn(client, "abc")

    ledger = lru(route=route)
    run(engine, ledger, rollout)
    assert engine.sent() == ["++", "--+", "+++", "---"]
    assert ledger.stats().misses == 1


def test_an_engine_process_that_lost_what_its_front_still_names(engine: Engine) -> None:
    async def rollout(client: SendOnceClient) -> None:
        await parts(client, "ab")
        engine.caches.engine.held.clear()
        await parts(client, "ab")

    run(engine, lru(route="content_parts"), rollout)
    assert engine.sent() == ["++", "--", "++"]


def test_a_resend_is_whole_though_others_claim_its_images_meanwhile(engine: Engine) -> None:
    class Raced(mw.SendOnce):
        def miss(self, lost: Any = None) -> None:
            super().miss(lost)
            self.confirm(self.plan(lost.items, whole=True))

    async def post(stream: JsonStream, whole: bool) -> Any:
        status, answer = engine.answer(b"".join(stream.pieces()))
        return httpx.Response(status, json=answer)

    async def main() -> None:
        ledger = Raced(1 << 20, engine="lru")
        await send(post, BODY, Features(data_of("ab")), ledger)
        engine.caches.clear()
        await send(post, BODY, Features(data_of("ab")), ledger)

    asyncio.run(main())
    assert engine.sent() == ["++", "--", "++"]


@ROUTES
def test_a_second_miss_goes_through(engine: Engine, route: Any, turn: Any) -> None:
    async def rollout(client: SendOnceClient) -> None:
        await turn(client, "a")
        engine.faults += [error(*MISS)] * 2
        with pytest.raises(openai.InternalServerError):
            await turn(client, "a")
        await turn(client, "a")

    run(engine, lru(route=route), rollout, client_options={"max_retries": 0})
    assert engine.sent() == ["+", "-", "+", "+"]


OTHERS = [
    (400, "BadRequestError", "token_ids must not contain negative values"),
    (400, "BadRequestError", "About a Cache miss for image at index 0 but data is not provided."),
    (400, "NotFoundError", LOST[2].format(0)),
    (401, "InternalServerError", "Internal server error"),
    (404, "NotFoundError", "The model `m` does not exist."),
    (413, "RequestTooLarge", "too large"),
    (422, "UnprocessableEntityError", LOST[2].format(0)),
    (429, "RateLimit", "slow down"),
    (500, "InternalServerError", "The server had an error while processing your request."),
    (500, "InternalServerError", "Internal server error: out of memory"),
    (503, "Service Unavailable", "The engine is currently busy and cannot accept new requests."),
    (503, "ServiceUnavailableError", "Generation is paused. Please retry after it resumes."),
]


@pytest.mark.parametrize("fault", OTHERS, ids=lambda fault: f"{fault[0]} {fault[2][:20]}")
def test_every_other_error_goes_through_and_changes_nothing(engine: Engine, fault: Any) -> None:
    async def rollout(client: SendOnceClient) -> None:
        await features(client, "a")
        engine.faults.append(error(*fault))
        with pytest.raises(openai.APIStatusError) as caught:
            await features(client, "ab")
        assert caught.value.status_code == fault[0]
        assert caught.value.body["message"] == fault[2]  # type: ignore[index]
        await features(client, "ab")

    ledger = lru()
    run(engine, ledger, rollout, client_options={"max_retries": 0})
    assert engine.sent() == ["+", "-+", "-+"]
    assert ledger.stats().misses == 0


def test_errors_that_are_no_json_or_no_objects_go_through(engine: Engine) -> None:
    for content in (b"<html>Internal server error</html>", b'"error"', b"[1]", b'{"error":3}', b""):
        assert not is_miss(httpx.Response(500, content=content))


@pytest.mark.parametrize("signal", [MISS, (*LOST[:2], LOST[2].format(3)), POOLING])
def test_the_real_signals_are_known_raised_and_returned(signal: Any) -> None:
    status, body = error(*signal)
    response = httpx.Response(status, json=body, request=httpx.Request("POST", GENERATE))
    assert is_miss(response)
    assert is_miss(openai.APIStatusError("m", response=response, body=body["error"]))
    assert is_miss(openai.APIStatusError("m", response=response, body=None)) is False
    assert not is_miss(httpx.Response(200, json=body))


def test_a_failure_of_a_whole_request_is_no_miss(engine: Engine) -> None:
    async def rollout(client: SendOnceClient) -> None:
        engine.faults.append(error(*MISS))
        with pytest.raises(openai.InternalServerError):
            await features(client, "a")

    ledger = lru()
    run(engine, ledger, rollout, client_options={"max_retries": 0})
    assert engine.sent() == ["+"]
    assert ledger.stats().misses == ledger.stats().claims == 0


def test_the_clients_own_retries_do_not_repeat_a_lost_reference(engine: Engine) -> None:
    async def rollout(client: SendOnceClient) -> None:
        await features(client, "a")
        engine.caches.clear()
        await features(client, "a")

    run(engine, lru(), rollout, client_options={"max_retries": 5})
    assert engine.sent() == ["+", "-", "+"]


def test_the_clients_own_retries_do_repeat_whole_requests(engine: Engine) -> None:
    engine.faults.append(error(*OTHERS[-1]))
    run(engine, lru(), lambda client: features(client, "a"), client_options={"max_retries": 1})
    assert engine.sent() == ["+", "+"]
    assert engine.caches.tensor("a").tobytes() == pixels("a").tobytes()


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


# Concurrency and cancellation.


def test_two_tasks_with_the_same_new_image_both_send_it(engine: Engine) -> None:
    arrived = 0
    both = asyncio.Event()

    async def hook(request: httpx.Request) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 2:
            both.set()
        await both.wait()

    async def work(client: SendOnceClient) -> None:
        await asyncio.gather(features(client, "a"), features(client, "a"))
        await features(client, "a")

    run(engine, lru(), work, hook)
    assert engine.sent() == ["+", "+", "-"]


def test_threads_with_loops_of_their_own_share_a_ledger() -> None:
    engine, ledger, lock = Engine(NaiveCaches(1 << 20)), lru(), threading.Lock()
    answer = engine.answer

    def one_at_a_time(content: bytes) -> Any:
        with lock:
            return answer(content)

    engine.answer = one_at_a_time  # type: ignore[method-assign]
    start = threading.Barrier(4)

    def rollout(seed: int) -> None:
        async def work(client: SendOnceClient) -> None:
            for step in range(1, 6):
                reply = await features(client, "abcdefgh"[seed : seed + step])
                assert reply.status_code == 200

        start.wait()
        run(engine, ledger, work)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(rollout, range(4)))
    assert ledger.stats().misses == 0
    assert ledger.stats().claims == 8
    for name in "abcdefgh":
        assert engine.caches.tensor(name).tobytes() == pixels(name).tobytes()


@pytest.mark.parametrize("resending", [False, True])
def test_cancellation_leaves_the_ledger_with_what_was_accepted(
    engine: Engine, resending: bool
) -> None:
    hang, hung = asyncio.Event(), asyncio.Event()
    hanging = False

    async def hook(request: httpx.Request) -> None:
        if hanging and "+" in sent_in(json.loads(request.content)):
            hung.set()
            await hang.wait()

    async def work(client: SendOnceClient) -> None:
        nonlocal hanging
        await features(client, "a")
        if resending:
            engine.caches.clear()
        hanging = True
        task = asyncio.ensure_future(features(client, "a" if resending else "ab"))
        await hung.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        hanging = False
        assert ledger.stats().claims == (0 if resending else 1)
        await features(client, "ab")
        await features(client, "ab")

    ledger = lru()
    run(engine, ledger, work, hook)
    expected = ["+", "-", "++", "--"] if resending else ["+", "-+", "--"]
    assert engine.sent() == expected


def test_nothing_is_restored_or_encoded_on_the_event_loop(engine: Engine) -> None:
    cache = mw.PixelCache("1 MiB")
    data = mw.strip(data_of("ab", lambda _: 800), cache).data
    refs = [item["pixel_values"] for item in data["mm_items"]["image"]]
    names = dict(zip([ref.digest for ref in refs], "ab", strict=True))
    for item, ref in zip(data["mm_items"]["image"], refs, strict=True):
        item["pixel_values"] = mw.PixelRef(ref.descriptor)
    del refs
    cache.clear()
    threads = []

    def resolver(ref: mw.PixelRef) -> Any:
        threads.append(threading.get_ident())
        return pixels(names[ref.digest], 800)

    async def work(client: SendOnceClient) -> None:
        with mw.resolvers(resolver):
            await post(client.carrying(data), BODY)

    run(engine, lru(), work)
    assert len(threads) == 2
    assert threading.get_ident() not in threads
    assert engine.caches.tensor("b").tobytes() == pixels("b", 800).tobytes()


def test_missing_pixels_are_said_to_be_missing_and_nothing_is_claimed(engine: Engine) -> None:
    cache = mw.PixelCache("1 MiB")
    data = mw.strip(data_of("a", lambda _: 800), cache).data
    item = data["mm_items"]["image"][0]
    item["pixel_values"] = mw.PixelRef(item["pixel_values"].descriptor)
    cache.clear()
    ledger = lru()
    with pytest.raises(mw.MissingPixels):
        run(
            engine,
            ledger,
            lambda client: post(client.carrying(data), BODY),
            client_options={"max_retries": 0},
        )
    assert engine.bodies == []
    assert ledger.stats().claims == 0


@pytest.mark.parametrize(
    "change",
    [
        {"mm_hashes": {"image": ["a"]}},
        {"mm_placeholders": {}},
        {"mm_items": {}},
        {"mm_items": {"image": [{}, {}]}},
        {"mm_hashes": {"video": []}, "mm_items": {"video": [1]}},
    ],
)
def test_images_that_are_not_whole_are_an_error_and_never_left_out(change: Any) -> None:
    with pytest.raises((ValueError, mw.UnsupportedType)):
        Features({**data_of("ab"), **change})
    with pytest.raises(ValueError, match="URL"):
        ContentParts([{"type": "image_url", "uuid": "a"}])


# Other clients.


def test_a_client_without_streams_gets_plain_objects(engine: Engine) -> None:
    class Plain:
        base_url = "http://engine/v1"

        async def post(self, path: str, *, cast_to: Any, body: Any, options: Any = None) -> Any:
            status, answer = engine.answer(json.dumps(body).encode())
            return httpx.Response(status, json=answer)

    async def main() -> None:
        client = SendOnceClient(Plain(), lru())
        await features(client, "a")
        engine.caches.clear()
        reply = await features(client, "ab")
        assert reply.status_code == 200
        engine.faults.append(error(*OTHERS[0]))
        reply = await features(client, "abc")
        assert reply.status_code == 400
        await features(client, "abc")

    asyncio.run(main())
    assert engine.sent() == ["+", "-+", "++", "--+", "--+"]


def test_any_function_that_posts_will_do(engine: Engine) -> None:
    wholes = []

    async def post(stream: Any, whole: bool) -> Any:
        wholes.append(whole)
        status, answer = engine.answer(b"".join(stream.pieces()))
        assert status == 200
        return answer

    async def main() -> None:
        ledger = lru()
        for _ in range(2):
            await send(post, BODY, Features(data_of("a")), ledger)
        await send(
            post, BODY, Features({"mm_hashes": {}, "mm_items": {}, "mm_placeholders": {}}), ledger
        )

    asyncio.run(main())
    assert wholes == [True, False, True]
    assert "features" not in engine.bodies[-1]


def test_over_a_real_connection_the_length_is_right(engine: Engine) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            assert self.headers["Transfer-Encoding"] is None
            status, body = engine.answer(self.rfile.read(length))
            self.reply(status, json.dumps(body).encode())

        def do_GET(self) -> None:
            self.reply(200, b'{"version": "0.33.0"}')

        def reply(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    async def main(url: str) -> None:
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1") as plain:
            client = SendOnceClient(plain, lru(64 << 20))
            path = f"{url}/inference/v1/generate"
            for names in ("a", "ab"):
                data = client.carrying(data_of(names, lambda _: 200_000))
                await data.post(path, cast_to=httpx.Response, body=BODY)

    engine.caches = NaiveCaches(64 << 20)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        asyncio.run(main(f"http://127.0.0.1:{server.server_port}"))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert engine.sent() == ["+", "-+"]
    assert engine.caches.held() == {name: size_of(1, 200_000) for name in "ab"}
    assert engine.caches.tensor("b").tobytes() == pixels("b", 200_000).tobytes()
