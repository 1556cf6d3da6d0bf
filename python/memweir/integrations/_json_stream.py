"""JSON whose long texts are made while it is sent."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final, Protocol, runtime_checkable

__all__ = ["JsonStream", "LongText", "ReadyText"]

_ENOUGH: Final = 64 << 10
"""Bytes that are worth a turn of their own."""


@runtime_checkable
class LongText(Protocol):
    """Text that JSON needs no escapes for, in pieces that are made when they are asked for."""

    @property
    def length(self) -> int:
        """Bytes of all pieces."""

    def pieces(self) -> Iterator[bytes]:
        """The text from its beginning, ASCII without quotes, backslashes and control characters."""


class ReadyText:
    """A :class:`LongText` that is there already: no thread has to make it."""

    def __init__(self, text: str | bytes) -> None:
        self._text = text
        self.length = len(text)

    def pieces(self) -> Iterator[bytes]:
        """The text in pieces of at most 1 MiB, and whole where it is no longer or bytes already."""
        if isinstance(self._text, bytes):
            yield self._text
            return
        for start in range(0, len(self._text), 1 << 20):
            yield self._text[start : start + (1 << 20)].encode("ascii")


class JsonStream:
    """An object as JSON, UTF-8, with :class:`LongText` anywhere in place of a string.

    ``length`` is the number of bytes, known beforehand. :meth:`pieces` gives them as often as one
    likes, and ``async for`` too, with each piece made in a worker thread. What a text raises goes
    through to whoever iterates and is kept as ``failure``, because HTTP clients wrap it.

    Raises ``TypeError`` and ``ValueError`` for what JSON has not, NaN included.
    """

    __slots__ = ("_parts", "_value", "failure", "length")

    def __init__(self, value: Mapping[str, Any]) -> None:
        texts: list[LongText] = []
        mark = os.urandom(16).hex()

        def stand_in(other: object) -> str:
            if not isinstance(other, LongText):
                raise TypeError(f"{type(other).__name__} cannot be written as JSON")
            texts.append(other)
            return mark

        encoder = json.JSONEncoder(
            ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=stand_in
        )
        between = encoder.encode(value).split(mark)
        parts: list[bytes | LongText] = [between[0].encode()]
        for text, after in zip(texts, between[1:], strict=True):
            parts += [text, after.encode()]
        self._value = value
        self._parts = parts
        self.length = sum(len(p) if isinstance(p, bytes) else p.length for p in parts)
        self.failure: BaseException | None = None

    def plain(self) -> dict[str, Any]:
        """The same object with the whole texts in it, for clients that write JSON themselves."""
        plain: dict[str, Any] = _whole(self._value)
        return plain

    # Not __iter__: an HTTP client would take that for a body that it must not wait for.
    def pieces(self) -> Iterator[bytes]:
        """The bytes, in pieces."""
        self.failure = None
        small = b""
        try:
            for part in self._parts:
                for piece in [part] if isinstance(part, bytes) else part.pieces():
                    if len(piece) >= _ENOUGH:  # copied nowhere
                        if small:
                            yield small
                            small = b""
                        yield piece
                        continue
                    small += piece
                    if len(small) >= _ENOUGH:
                        yield small
                        small = b""
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                self.failure = error
            raise
        if small:
            yield small

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if all(isinstance(part, bytes | ReadyText) for part in self._parts):
            for piece in self.pieces():
                yield piece
            return
        pieces = self.pieces()
        while piece := await asyncio.to_thread(_next, pieces):
            yield piece


def _next(pieces: Iterator[bytes]) -> bytes:
    return next(pieces, b"")


def _whole(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        # Token ids are many and plain.
        return value if not any(map(_holds, value)) else [_whole(item) for item in value]
    return b"".join(value.pieces()).decode() if isinstance(value, LongText) else value


def _holds(value: object) -> bool:
    return not isinstance(value, int | float | str) and value is not None
