"""An image's pixels as one run of bytes: the records of its references and of their entries.

A frame lies in an array of ``void``: whoever carries arrays carries it, and whoever computes with
it fails, numpy and torch alike. Integers are little-endian.

======================  ==========================================================
``b"memweir\\x01"``      magic and version
u8                      how the parts are joined, an index into ``HOWS``
u32                     bytes of a card of the processor, as JSON; 0 for none
u16                     parts
the card                UTF-8
each part: u32, u64     bytes of the reference's record and of the entry's
each part               the reference's record, then the entry's
======================  ==========================================================
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from memweir._core import Descriptor
from memweir.errors import BudgetExceeded
from memweir.identity import hash_bytes
from memweir.pixels.cards import ProcessorCard, card_of, learn
from memweir.pixels.joiners import HOWS
from memweir.pixels.live import held, stored
from memweir.pixels.refs import ALONE, JoinedRef, PixelRef
from memweir.pixels.resolve import materialize
from memweir.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memweir._core import Pixels
    from memweir.pixels.cache import PixelCache

__all__ = ["adopt", "is_frame", "write"]

_MAGIC: Final = b"memweir\x01"
_HEAD: Final = struct.Struct("<BIH")
_PART: Final = struct.Struct("<IQ")
VOID: Final = np.dtype("V1")


def is_frame(value: object) -> bool:
    """Whether ``value`` is an array that :func:`write` made, here or elsewhere."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype == VOID
        and value.ndim == 1
        and bytes(value[: len(_MAGIC)]) == _MAGIC
    )


def write(ref: PixelRef, scratch: PixelCache) -> np.ndarray[Any, Any] | None:
    """The frame of ``ref``: void, (bytes,); ``None`` when ``scratch`` has no room for its pixels.

    Raises ``MissingPixels`` or ``PixelMismatch`` when nobody has them.
    """
    parts, card = [], None
    for part in ref.parts:
        pixels = _entry(part, scratch)
        if pixels is None:
            return None
        parts.append((part.descriptor.encode(), pixels.export()))
        if card is None and part.recipe is not None:
            card = card_of(part.recipe.fingerprint)
    said = b"" if card is None else json.dumps(card.to_json()).encode()
    whole = [_MAGIC, _HEAD.pack(HOWS.index(ref.how), len(said), len(parts)), said]
    whole += [_PART.pack(len(name), len(record)) for name, record in parts]
    whole += [piece for part in parts for piece in part]
    return np.frombuffer(b"".join(whole), VOID)


def _entry(part: PixelRef, scratch: PixelCache) -> Pixels | None:
    """The entry that has the pixels of ``part``, or one made for the purpose."""
    found: list[Pixels] = [] if part.pinned is None else [part.pinned]
    if part.recipe is not None:
        found += held(part.recipe.key)
    found += stored(part.digest)
    for pixels in found:
        if part.name in pixels or len(pixels) == 1:
            return pixels
    return scratch.put_array(materialize(part))[1]


def adopt(frame: np.ndarray[Any, Any], cache: PixelCache) -> PixelRef:
    """The reference that a frame was made of, its pixels in ``cache`` while it lives.

    Nothing of the frame is kept, trusted, or stored under a key that a processor could ask for.
    Raises ``ValueError`` for a frame that is damaged, and ``BudgetExceeded``.
    """
    data = np.ascontiguousarray(frame).view(np.uint8).data
    how, card, pieces = _split(data)
    if card:
        _learn(bytes(card))
    parts = []
    for name, record in pieces:
        descriptor = Descriptor.decode(bytes(name))
        # Of both: another's record that lies about this image must not stand in for it.
        key = hash_bytes(b"memweir frame\x01" + descriptor.digest + bytes(hash_bytes(record)))
        if key not in cache and not cache.put_exported(key, record):
            raise BudgetExceeded(
                f"an image of {format_size(len(record))} does not fit into cache {cache.name!r}"
            )
        pixels = cache._peek(key)
        if pixels is None:
            raise BudgetExceeded(f"cache {cache.name!r} has room for less than the images in use")
        parts.append(PixelRef(descriptor, pixels))
    return parts[0] if how == ALONE else JoinedRef(how, parts)


def _split(data: memoryview) -> tuple[str, memoryview, list[tuple[memoryview, memoryview]]]:
    """Cuts a frame. Raises ``ValueError`` when its lengths are not those of its pieces."""
    at = len(_MAGIC) + _HEAD.size
    if len(data) < at or bytes(data[: len(_MAGIC)]) != _MAGIC:
        raise ValueError("malformed frame of an image: too short")
    how, said, count = _HEAD.unpack(data[len(_MAGIC) : at])
    table = at + said
    bodies = table + count * _PART.size
    if how >= len(HOWS) or not count or bodies > len(data) or (HOWS[how] == ALONE and count != 1):
        raise ValueError("malformed frame of an image: damaged")
    lengths = list(_PART.iter_unpack(data[table:bodies]))
    if bodies + sum(map(sum, lengths)) != len(data):
        raise ValueError("malformed frame of an image: truncated, or longer than it says")
    return HOWS[how], data[at:table], list(_pieces(data[bodies:], lengths))


def _pieces(
    data: memoryview, lengths: list[tuple[int, ...]]
) -> Iterator[tuple[memoryview, memoryview]]:
    for name, record in lengths:
        yield data[:name], data[name : name + record]
        data = data[name + record :]


def _learn(text: bytes) -> None:
    try:
        learn(ProcessorCard.from_json(text.decode()))
    except (ValueError, RecursionError):
        raise ValueError("malformed frame of an image: a card that is none") from None
