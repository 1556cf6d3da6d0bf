"""Tasks, threads, cancellation and other clients, on a real event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest
from send_kit import BODY, OTHERS, features, lru, post, run
from wire_kit import (
    Engine,
    NaiveCaches,
    data_of,
    error,
    pixels,
    sent_in,
    size_of,
)

import memweir as mw
from memweir.integrations.vllm import ContentParts, Features, SendOnceClient, send


@pytest.fixture
def engine() -> Engine:
    return Engine(NaiveCaches(1 << 20))


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
