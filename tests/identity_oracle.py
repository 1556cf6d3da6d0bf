"""The preimage of ``docs/identity.md``, written a second time in plain Python."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Hash = Callable[[bytes], bytes]

HASHES: dict[str, Hash] = {"sha256": lambda data: hashlib.sha256(data).digest()}
try:
    import blake3
except ImportError:
    pass
else:
    HASHES["blake3"] = lambda data: blake3.blake3(data).digest()


def u64(n: int) -> bytes:
    return n.to_bytes(8, "little")


def field(data: bytes) -> bytes:
    return u64(len(data)) + data


def name(h: Hash, kind: int, fields: bytes, content: bytes) -> bytes:
    head = b"memweir identity" + bytes([1, kind])
    return h(head + fields + u64(len(content)) + h(content))


def hash_bytes(h: Hash, data: bytes) -> bytes:
    return name(h, 1, b"", data)


def hash_array(h: Hash, array: np.ndarray, token: str | None = None) -> bytes:
    return hash_packed(h, token or array.dtype.str, array.shape, array.tobytes())


def hash_packed(h: Hash, token: str, shape: Sequence[int], content: bytes) -> bytes:
    return name(h, 2, field(token.encode()) + field(b"".join(map(u64, shape))), content)


def hash_image(
    h: Hash,
    mode: str,
    size: tuple[int, int],
    pixels: bytes,
    *,
    palette: tuple[str, bytes] | None = None,
    transparency: Any = None,
    orientation: int = 1,
) -> bytes:
    fields = [
        mode.encode(),
        u64(size[0]) + u64(size[1]),
        b"" if palette is None else field(palette[0].encode()) + field(palette[1]),
        b"" if transparency is None else frames(h, transparency),
        bytes([orientation]),
    ]
    return name(h, 3, b"".join(map(field, fields)), pixels)


def hash_value(h: Hash, value: Any) -> bytes:
    return name(h, 4, b"", frames(h, value))


def frames(h: Hash, value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"B" + bytes([value])
        case int():
            bits = (value if value >= 0 else ~value).bit_length()
            return b"I" + field(value.to_bytes(bits // 8 + 1, "little", signed=True))
        case float():
            return b"F" + struct.pack("<d", value)
        case str():
            return b"S" + field(value.encode())
        case bytes():
            return b"Y" + field(value)
        case list():
            return b"L" + _items(h, value)
        case tuple():
            return b"T" + _items(h, value)
        case dict():
            items = sorted((frames(h, key), frames(h, item)) for key, item in value.items())
            return b"M" + u64(len(items)) + b"".join(key + item for key, item in items)
        case np.ndarray():
            return b"A" + hash_array(h, value)
        case _:
            raise TypeError(type(value))


def _items(h: Hash, items: Sequence[Any]) -> bytes:
    return u64(len(items)) + b"".join(frames(h, item) for item in items)
