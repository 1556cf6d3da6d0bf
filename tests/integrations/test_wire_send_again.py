"""Requests that an engine refuses: which are sent again, whole, and which are not."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest
from send_kit import BODY, OTHERS, ROUTES, features, lru, parts, run
from wire_kit import (
    GENERATE,
    LOST,
    MISS,
    POOLING,
    Engine,
    NaiveCaches,
    data_of,
    error,
    pixels,
)

import memweir as mw
from memweir.integrations._json_stream import JsonStream
from memweir.integrations.vllm import Features, SendOnceClient, is_miss, send


@pytest.fixture
def engine() -> Engine:
    return Engine(NaiveCaches(1 << 20))


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
