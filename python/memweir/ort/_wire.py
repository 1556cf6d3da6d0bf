"""What an ONNX file says of itself, read from its protobuf without loading it.

Only lengths and names are looked at, so that a file of weights takes as long as one without; the
runtime reads the rest. What is missing or cut off is found here, where it can be named.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from memweir.errors import BadModel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["MOST", "Facts", "read_bytes", "read_file"]

MOST = (1 << 31) - 1
"""Bytes that a protobuf message may have."""

_DEPTH = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_Data: TypeAlias = "memoryview[Any]"

# What models come in besides, by how files begin.
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS: the model itself was not fetched"),
    (b"GGUF", "GGUF"),
    (b"PK\x03\x04", "a zip archive, such as PyTorch writes"),
    (b"\x80\x02", "a pickle"),
    (b"\x89HDF", "HDF5"),
    (b"<", "markup: perhaps the page of an error"),
    (b"{", "JSON"),
)


@dataclass(slots=True)
class Facts:
    """What stands in a model: operators, and files that it needs beside it."""

    ort_format: bool = False
    ops: set[tuple[str, str]] = field(default_factory=set)
    """Domain and name of every operator, those of subgraphs and functions included."""
    functions: set[tuple[str, str]] = field(default_factory=set)
    """Operators that the model defines itself."""
    external: dict[str, int] = field(default_factory=dict)
    """Files with weights, by the name in the model, and how long each must be at least."""

    def foreign_ops(self) -> list[str]:
        """Operators of domains that are not the runtime's own, nor the model's."""
        return sorted(
            f"{domain}:{name}"
            for domain, name in self.ops - self.functions
            if domain not in _DOMAINS
        )

    def random_ops(self) -> list[str]:
        """Operators whose outputs differ from run to run."""
        return sorted({name for _, name in self.ops if name in _RANDOM})


_DOMAINS = frozenset(
    {
        *("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview"),
        *("ai.onnx.preview.training", "com.microsoft", "com.microsoft.nchwc"),
        *("com.microsoft.experimental", "com.ms.internal.nhwc", "org.pytorch.aten"),
    }
)
_RANDOM = frozenset(
    {
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Bernoulli", "Multinomial"),
    }
)


def read_file(path: Path) -> Facts:
    """Reads a model file. Raises ``OSError`` or :class:`~memweir.BadModel`."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise BadModel(f"{path}: the file is empty", kind="corrupt")
        # Goes with the last view of it: what an exception still refers to cannot be closed.
        return _read(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), str(path))


def read_bytes(data: bytes) -> Facts:
    """Reads a model in memory. Raises :class:`~memweir.BadModel`."""
    if not data:
        raise BadModel("the model is empty", kind="corrupt")
    return _read(memoryview(data), "the model")


def _read(data: _Data, name: str) -> Facts:
    start = bytes(data[:64])
    if start[4:8] == b"ORTM":
        return Facts(ort_format=True)
    if (what := _other(start)) is not None:
        raise BadModel(f"{name} is no ONNX model but {what}", kind="foreign")
    if len(data) > MOST:
        raise BadModel(
            f"{name} has {len(data)} bytes, and a protobuf message at most {MOST}: save the "
            "model with external data, and give its path",
            kind="too-large",
        )
    facts = Facts()
    seen: set[int] = set()
    why = _walk(data, facts, seen)
    # Every ONNX file begins with the version of its representation.
    kind = "corrupt" if start[0] == 0x08 and 1 in seen else "foreign"
    if why is None and 7 not in seen:
        why = "it holds no graph"
    if why is not None:
        word = "is cut off or damaged" if kind == "corrupt" else "is no ONNX model"
        raise BadModel(f"{name} {word}: {why}", kind=kind)
    return facts


def _other(start: bytes) -> str | None:
    if start[8:9] == b"{":
        return "safetensors"
    return next((what for magic, what in _OTHERS if start.startswith(magic)), None)


def _walk(data: _Data, facts: Facts, seen: set[int]) -> str | None:
    """Reads all of it; what is wrong with it, in words that hold no part of it."""
    try:
        for number, kind, value in _fields(data):
            seen.add(number)
            if number == 7 and kind == _BYTES:
                _graph(value, facts, 0)
            elif number == 25 and kind == _BYTES:
                _function(value, facts)
    except _Cut as cut:
        return str(cut)
    return None


def _function(data: _Data, facts: Facts) -> None:
    name = domain = ""
    for number, kind, value in _fields(data):
        if kind == _BYTES:
            if number == 1:
                name = _text(value)
            elif number == 10:
                domain = _text(value)
            elif number == 7:
                _node(value, facts, 0)
    facts.functions.add((domain, name))


def _graph(data: _Data, facts: Facts, depth: int) -> None:
    if depth > _DEPTH:
        raise _Cut("subgraphs are nested too deep")
    for number, kind, value in _fields(data):
        if kind != _BYTES:
            continue
        if number == 1:
            _node(value, facts, depth)
        elif number == 5:
            _tensor(value, facts)
        elif number == 15:
            for part, form, inner in _fields(value):
                if part in (1, 2) and form == _BYTES:
                    _tensor(inner, facts)


def _node(data: _Data, facts: Facts, depth: int) -> None:
    op = domain = ""
    for number, kind, value in _fields(data):
        if kind != _BYTES:
            continue
        if number == 4:
            op = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            for part, form, inner in _fields(value):
                if form == _BYTES and part in (5, 10):
                    _tensor(inner, facts)
                elif form == _BYTES and part in (6, 11):
                    _graph(inner, facts, depth + 1)
    facts.ops.add((domain, op))


def _tensor(data: _Data, facts: Facts) -> None:
    entries: dict[str, str] = {}
    for number, kind, value in _fields(data):
        if number == 13 and kind == _BYTES:
            parts = {n: _text(v) for n, k, v in _fields(value) if k == _BYTES and n in (1, 2)}
            entries[parts.get(1, "")] = parts.get(2, "")
    location = entries.get("location")
    if location is not None:
        try:
            end = int(entries.get("offset") or 0) + int(entries.get("length") or 0)
        except ValueError:
            raise _Cut("the place of a tensor is no number") from None
        facts.external[location] = max(facts.external.get(location, 0), end)


class _Cut(ValueError):
    """The message ends in the middle, or is none."""


def _fields(data: _Data) -> Iterator[tuple[int, int, Any]]:
    """Number, wire type and value of each field; values of others than bytes are not decoded."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at, end)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise _Cut(f"no field at byte {at}")
        if kind == _BYTES:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise _Cut(f"{length} bytes are announced where {end - at} are left")
            yield number, kind, data[at : at + length]
            at += length
            continue
        if kind == _VARINT:
            value, at = _varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            value, at = 0, at + (8 if kind == _FIXED64 else 4)
            if at > end:
                raise _Cut("a number is cut off")
        else:
            raise _Cut(f"no such kind of field: {kind}")
        yield number, kind, value


def _varint(data: _Data, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Cut("a number is cut off")


def _text(data: _Data) -> str:
    return bytes(data).decode("utf-8", "replace")
