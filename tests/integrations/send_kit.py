"""A client of a naive engine, and the ways to send images through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from wire_kit import (
    GENERATE,
    LOST,
    Engine,
    data_of,
    parts_of,
)

import memweir as mw
from memweir.integrations.vllm import SendOnceClient

BODY = {"model": "m", "token_ids": list(range(40)), "sampling_params": {"n": 1}}


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
