"""Images to vLLM's token endpoint, each of them once.

Made for vLLM 0.28 to 0.33 and clients such as that of ``renderers`` 0.1.12; ``docs/wire.md`` says
what an engine must be configured for.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Self

from memweir.errors import Refused
from memweir.integrations._json_stream import JsonStream
from memweir.integrations._vllm_images import TOKEN_BYTES, ContentParts, Features
from memweir.integrations._vllm_items import WireType
from memweir.pixels.ledger import Engine, Plan, Route, SendOnce

__all__ = ["ContentParts", "Features", "SendOnceClient", "is_miss", "send", "send_once"]

OLDEST: Final = (0, 28)
"""The first vLLM that answers a reference to a lost image, instead of failing an assertion."""

Post = Callable[[JsonStream, bool], Awaitable[Any]]
"""Sends a body; the flag says that it is whole, so that the same one may be tried again."""

_GENERATE: Final = "/inference/v1/generate"
_LOST: Final = re.compile(r"Cache miss for \w+ at index \d+ but data is not provided\.")
_MISSES: Final = (
    (500, "InternalServerError", re.compile("Internal server error")),
    (400, "BadRequestError", _LOST),
    (503, "ServiceUnavailableError", re.compile(r"Multi-modal processor cache miss\.")),
)


def send_once(
    *,
    route: Route = "features",
    version: str | None = None,
    mm_processor_cache_gb: float = 4,
    mm_processor_cache_type: Engine = "lru",
    api_server_count: int = 1,
    data_parallel_size: int = 1,
    data_parallel_external_lb: bool = False,
    is_encoder_decoder: bool = False,
) -> SendOnce:
    """A ledger for engines that were started with these options, named as vLLM names them.

    Raises ``Refused``, saying what to change, where such an engine cannot take references on this
    ``route``, and for a ``version`` that cannot.
    """
    if version is not None:
        _check_version(version)
    engine = mm_processor_cache_type
    alone = data_parallel_size == 1 or data_parallel_external_lb
    if mm_processor_cache_gb <= 0 or is_encoder_decoder:
        engine = "none"
    elif api_server_count != 1 or not alone:
        engine = "processor_only"
    return SendOnce(int(mm_processor_cache_gb * (1 << 30)), engine=engine, route=route)


async def send(
    post: Post, body: Mapping[str, Any], images: Features | ContentParts, ledger: SendOnce
) -> Any:
    """Posts ``body`` with ``images`` in it, as data or as references, and returns the answer.

    When the engine says that it does not know a reference, the request is sent once more, with
    all data. Every other error, and whatever the second request brings, goes through unchanged.
    The body is encoded in worker threads while it is sent. ``ledger`` learns only what an engine
    accepted, so that a call may be cancelled anywhere.
    """
    if ledger.route != images.route:
        raise ValueError(f"the ledger is for {ledger.route}, and these images go as {images.route}")

    def prepare(whole: bool) -> tuple[Plan, JsonStream]:
        plan = ledger.plan(images.items, whole=whole)
        return plan, JsonStream(images.fill(body, plan))

    plan, stream = prepare(False) if images.light else await asyncio.to_thread(prepare, False)
    answer = await _attempt(post, stream, whole=not plan.references)
    if plan.references and is_miss(answer):
        ledger.miss(plan)
        plan, stream = await asyncio.to_thread(prepare, True)
        answer = await _attempt(post, stream, whole=True)
    if isinstance(answer, Exception):
        raise answer
    status = getattr(answer, "status_code", 200)
    if not isinstance(status, int) or status < 400:
        ledger.confirm(images.measured(plan, answer))
    return answer


async def _attempt(post: Post, stream: JsonStream, *, whole: bool) -> Any:
    """The answer, or the error that there was instead."""
    try:
        return await post(stream, whole)
    except Exception as error:
        failure = stream.failure
        return failure if isinstance(failure, Exception) else error


def is_miss(answer: object) -> bool:
    """Whether an HTTP error, raised or returned, says that the engine lost an image.

    A request that fails inside the engine for another reason looks like this on the token
    endpoint, too.
    """
    status = getattr(answer, "status_code", None)
    error = _error(answer) if isinstance(status, int) and status >= 400 else {}
    kind, message = error.get("type"), error.get("message")
    return isinstance(message, str) and any(
        status == code and kind == name and text.fullmatch(message) for code, name, text in _MISSES
    )


class SendOnceClient:
    """An ``AsyncOpenAI`` client, or one like it, whose requests carry each image once.

    In place of the wrapped ``client`` wherever requests to ``/inference/v1/generate`` are made;
    everything else is the client's own. What is handled follows from ``ledger.route``: on
    ``"content_parts"`` the sources of a request. On ``"features"`` what :meth:`carrying` gave, a
    :class:`Features` object in the body, or what was encoded already: then each image still
    travels once, but has cost its encoding.

    ``identity`` names the engine among those behind the client's base URL: a string, or a function
    of the request's headers. Requests with references are not repeated by the client's own
    retries. Before the first of them the engine is asked for its version, if it tells.

    Raises ``Refused`` from :meth:`post` for an engine that is too old.
    """

    def __init__(
        self,
        client: Any,
        ledger: SendOnce,
        *,
        identity: str | Callable[[Mapping[str, str]], str] = "",
        wire: WireType = "exact",
        identify: Callable[[str], str] | None = None,
        token_bytes: int = TOKEN_BYTES,
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._identity = identity
        self._wire: WireType = wire
        self._identify = identify
        self._token_bytes = token_bytes
        self._streams = "content" in inspect.signature(client.post).parameters
        self._asked: set[str] = set()  # shared with the copies for single requests
        self._carried: Features | None = None

    def carrying(self, data: object) -> Self:
        """This client for one request, into whose ``features`` the images of ``data`` go.

        ``data`` is what :class:`Features` takes. For callers that give ``generate()`` a finished
        prompt and no ``multi_modal_data``, which it would encode itself.
        """
        one = copy.copy(self)
        one._carried = Features(data, self._wire)
        return one

    async def post(
        self, path: str, *, body: Any = None, options: Mapping[str, Any] | None = None, **more: Any
    ) -> Any:
        """The client's ``post``; see the class and :func:`send`."""
        options = dict(options or {})
        images = self._images(path, body)
        if images is None:
            return await self._client.post(path, body=body, options=options, **more)
        headers = options.get("headers") or {}
        identity = self._identity if isinstance(self._identity, str) else self._identity(headers)
        ledger = self._ledger.at(str(self._client.base_url), identity)
        if ledger.engine != "safe":
            await self._ask_version()

        async def post(stream: JsonStream, whole: bool) -> Any:
            with_headers = dict(options) if whole else {**options, "max_retries": 0}
            if not self._streams:
                plain = await asyncio.to_thread(stream.plain)
                return await self._client.post(path, body=plain, options=with_headers, **more)
            about = {"Content-Type": "application/json", "Content-Length": str(stream.length)}
            # Under another spelling a header would be there twice.
            others = {k: v for k, v in headers.items() if k.title() not in about}
            with_headers["headers"] = {**others, **about}
            return await self._client.post(path, content=stream, options=with_headers, **more)

        return await send(post, body, images, ledger)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_client":  # a copy in the making has no client yet
            raise AttributeError(name)
        return getattr(self._client, name)

    def _images(self, path: str, body: Any) -> Features | ContentParts | None:
        """The images of a request, where they are this client's business."""
        if not isinstance(body, Mapping) or not path.endswith(_GENERATE):
            return None
        features, parts = body.get("features"), body.get("content_parts")
        if self._carried is not None:
            if features or parts:
                raise ValueError("a client that carries images got a request with others in it")
            return self._carried
        if isinstance(features, Features):
            return features
        if self._ledger.engine == "safe":
            return None
        if self._ledger.route == "content_parts" and parts:
            return ContentParts(parts, identify=self._identify, token_bytes=self._token_bytes)
        if self._ledger.route == "features" and isinstance(features, Mapping):
            texts = [text for each in (features.get("kwargs_data") or {}).values() for text in each]
            return Features.encoded(features) if texts and None not in texts else None
        return None

    async def _ask_version(self) -> None:
        root = str(self._client.base_url).rstrip("/").removesuffix("/v1")
        if root in self._asked or not hasattr(self._client, "get"):
            return
        try:
            reply = await self._client.get(f"{root}/version", cast_to=dict[str, Any])
        except Exception as error:
            if getattr(error, "status_code", None) is None:
                raise
            reply = None  # a server that does not tell
        if isinstance(reply, Mapping) and isinstance(reply.get("version"), str):
            _check_version(reply["version"])
        self._asked.add(root)


def _check_version(version: str) -> None:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or version.startswith("0.1.dev"):  # built from a tree without tags
        return
    if tuple(map(int, numbers.groups())) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise Refused(
            f"images cannot be sent once to vLLM {version}, which fails where it has lost one: "
            f'use {oldest} or newer, or engine="safe"'
        )


def _error(answer: Any) -> Mapping[str, Any]:
    """The error object of an answer; SDKs keep it as ``body``, with or without what is around."""
    body = getattr(answer, "body", None)
    if not isinstance(body, Mapping):
        try:
            body = answer.json()
        except (AttributeError, ValueError):
            return {}
    error = body.get("error", body) if isinstance(body, Mapping) else {}
    return error if isinstance(error, Mapping) else {}
