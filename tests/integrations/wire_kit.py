"""vLLM's token endpoint as far as images go: caches, answers and errors, written down plainly."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from ledger_kit import NaiveLru
from memweir.integrations._vllm_images import TOKEN_BYTES

GENERATE = "http://engine/inference/v1/generate"
ROW = 6
"""Elements of a patch in these tests."""

MISS = 500, "InternalServerError", "Internal server error"
LOST = 400, "BadRequestError", "Cache miss for image at index {} but data is not provided."
POOLING = 503, "ServiceUnavailableError", "Multi-modal processor cache miss."


def error(status: int, kind: str, message: str) -> tuple[int, dict[str, Any]]:
    """An error as the endpoint writes it."""
    body = {"message": message, "type": kind, "param": None, "code": status}
    return status, {"error": body}


def pixels(name: str, rows: int = 4) -> np.ndarray[Any, Any]:
    """The patches of an image, other ones for every name."""
    seed = int.from_bytes(name.encode()[:8].ljust(8), "big")
    return np.random.default_rng(seed).random((rows, ROW), dtype=np.float32)


def image(name: str, rows: int = 4) -> dict[str, Any]:
    """A processed image as ``renderers`` holds it."""
    return {"pixel_values": pixels(name, rows), "image_grid_thw": np.array([[1, 2, rows // 2]])}


def data_of(names: str | list[str], rows: Callable[[str], int] = lambda _: 4) -> dict[str, Any]:
    """The ``MultiModalData`` of a prompt with these images, one after another."""
    places = [{"offset": 10 * at, "length": rows(name) // 4} for at, name in enumerate(names)]
    return {
        "mm_hashes": {"image": list(names)},
        "mm_placeholders": {"image": places},
        "mm_items": {"image": [image(name, rows(name)) for name in names]},
    }


def source(name: str, tokens: int = 1) -> str:
    """A data URI of an image that has so many placeholder tokens."""
    content = base64.b64encode(f"{name}:{tokens}".encode()).decode()
    return f"data:image/fake;base64,{content}"


def parts_of(names: str | list[str]) -> list[dict[str, Any]]:
    """The ``content_parts`` of a prompt with these images."""
    return [{"type": "image_url", "url": source(name)} for name in names]


def size_of(names: int, rows: int = 4) -> int:
    """Bytes of so many images in the engine: pixels and a grid of three int64."""
    return names * (rows * ROW * 4 + 24)


class Miss(Exception):
    """The engine process has lost images that came without data."""


class Unknown(Exception):
    """The API process does not know an image that came without a source: its number."""


class NaiveCaches:
    """What the API process remembers of sources, and what the engine process holds."""

    def __init__(self, capacity: int) -> None:
        self.front = NaiveLru(capacity)
        self.engine = NaiveLru(capacity)
        self.arrays: dict[str, dict[str, np.ndarray[Any, Any]]] = {}

    def features(self, features: dict[str, Any]) -> None:
        names = features["mm_hashes"]["image"]
        request = []
        for name, text in zip(names, texts_of(features), strict=True):
            arrays = {} if text is None else tensors(text)
            request.append((name, sum(a.nbytes for a in arrays.values()), text is not None))
            self.arrays |= {name: arrays} if arrays else {}
        if self.engine.serve(request):
            raise Miss

    def parts(self, parts: list[dict[str, Any]]) -> list[int]:
        names = [part.get("uuid") or part["url"] for part in parts]
        known = [name in self.front.names for name in names]
        sizes = dict(self.front.held)
        for number, (name, part) in enumerate(zip(names, parts, strict=True)):
            if part.get("url"):
                sizes[name] = tokens_of(part) * TOKEN_BYTES
            elif not known[number]:
                raise Unknown(number)
        request = [(name, sizes[name], not is_in) for name, is_in in zip(names, known, strict=True)]
        assert not self.front.serve(request) or sum(sizes.values()) > self.front.capacity
        lost = self.engine.serve(request)
        for name in lost:
            self.front.drop(name)
        if lost:
            raise Miss
        return [sizes[name] // TOKEN_BYTES for name in names]

    def evict(self, name: str) -> None:
        self.engine.drop(name)

    def clear(self) -> None:
        self.front.held.clear()
        self.engine.held.clear()

    def held(self) -> dict[str, int]:
        """What the engine process holds, least recently used first, with its sizes."""
        return dict(self.engine.held)

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        assert name in self.engine.names
        return self.arrays[name]["pixel_values"]


class Engine:
    """Answers requests one at a time; ``bodies`` are those that came, ``faults`` come first."""

    def __init__(self, caches: Any) -> None:
        self.caches = caches
        self.bodies: list[dict[str, Any]] = []
        self.sizes: list[int] = []
        self.faults: list[tuple[int, dict[str, Any]]] = []
        self.version: str | None = "0.33.0"

    def answer(self, content: bytes) -> tuple[int, dict[str, Any]]:
        body = json.loads(content)
        self.bodies.append(body)
        self.sizes.append(len(content))
        if self.faults:
            return self.faults.pop(0)
        places: dict[str, Any] = {}
        try:
            if body.get("features"):
                self.caches.features(body["features"])
                places = body["features"]["mm_placeholders"]
            elif body.get("content_parts"):
                lengths = self.caches.parts(body["content_parts"])
                places = {"image": [{"offset": 0, "length": length} for length in lengths]}
        except Miss:
            return error(*MISS)
        except Unknown as unknown:
            status, kind, message = LOST
            return error(status, kind, message.format(unknown.args[0]))
        logprobs = [{"token": "token_id:1", "logprob": -0.5}]
        choice = {"index": 0, "token_ids": [1], "finish_reason": "stop"}
        return 200, {
            "request_id": "r",
            "prompt_token_ids": body.get("token_ids", []),
            "mm_placeholders": places,
            "choices": [{**choice, "logprobs": {"content": logprobs}}],
        }

    def sent(self) -> list[str]:
        """For every request: each image as ``+`` with data or ``-`` without."""
        return [sent_in(body) for body in self.bodies]


def sent_in(body: dict[str, Any]) -> str:
    if "content_parts" in body:
        return "".join("+" if part.get("url") else "-" for part in body["content_parts"])
    if "features" not in body:
        return ""
    return "".join("-" if text is None else "+" for text in texts_of(body["features"]))


def texts_of(features: dict[str, Any]) -> list[str | None]:
    """Each image's record, or ``None`` for a reference."""
    texts: list[str | None] = [None] * len(features["mm_hashes"]["image"])
    return features["kwargs_data"]["image"] if features.get("kwargs_data") else texts


def tokens_of(part: dict[str, Any]) -> int:
    return int(base64.b64decode(part["url"].partition(",")[2]).decode().rpartition(":")[2])


def tensors(text: str) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays in a record; bfloat16 as its bits."""
    record = Unpacker(base64.b64decode(text, validate=True)).all()
    arrays = {}
    for name, elem in record.items():
        dtype, shape, content = elem["data"]
        kind = "<u2" if dtype == "bfloat16" else np.dtype(dtype)
        arrays[name] = np.frombuffer(content, kind).reshape(shape)
    return arrays


class Unpacker:
    """Reads MessagePack; extensions of kind 3 as bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def all(self) -> Any:
        value = self.value()
        assert self.at == len(self.content)
        return value

    def take(self, count: int) -> bytes:
        assert self.at + count <= len(self.content)
        self.at += count
        return self.content[self.at - count : self.at]

    def number(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def value(self) -> Any:
        code = self.number("B")
        if code < 0x80:
            return code
        if code < 0x90:
            return self.mapping(code & 15)
        if code < 0xA0:
            return [self.value() for _ in range(code & 15)]
        if code < 0xC0:
            return self.take(code & 31).decode()
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if 0xD4 <= code <= 0xD8:
            return self.extension(1 << code - 0xD4)
        sized = {0xC7: "B", 0xC8: ">H", 0xC9: ">I", 0xCC: "B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
        sized |= {0xD9: "B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I"}
        number = self.number(sized[code])
        if code <= 0xC9:
            return self.extension(number)
        if code <= 0xCF:
            return number
        if code <= 0xDB:
            return self.take(number).decode()
        return [self.value() for _ in range(number)] if code <= 0xDD else self.mapping(number)

    def mapping(self, count: int) -> dict[str, Any]:
        return {self.value(): self.value() for _ in range(count)}

    def extension(self, count: int) -> bytes:
        assert self.number("B") == 3
        return self.take(count)
