"""The little of MessagePack that vLLM's records are made of."""

from __future__ import annotations

import struct

__all__ = ["extension", "pack"]


def pack(value: object) -> bytes:
    """Plain data, each value in its shortest form.

    ``None``, bool, ints from 0 to 2**64 - 1, str, list and dict. Raises ``TypeError`` for others.
    """
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _unsigned(value)
    if isinstance(value, str):
        text = value.encode()
        return _counted(len(text), (0xA0, 32), (0xD9, 0xDA, 0xDB)) + text
    if isinstance(value, list):
        return _counted(len(value), (0x90, 16), (None, 0xDC, 0xDD)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        head = _counted(len(value), (0x80, 16), (None, 0xDE, 0xDF))
        return head + b"".join(pack(part) for pair in value.items() for part in pair)
    raise TypeError(f"{type(value).__name__} is not written here")


def extension(kind: int, nbytes: int) -> bytes:
    """What stands before ``nbytes`` of opaque data of this ``kind``."""
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(nbytes)
    head = bytes([fixed]) if fixed else _counted(nbytes, (0, 0), (0xC7, 0xC8, 0xC9))
    return head + bytes([kind])


def _unsigned(value: int) -> bytes:
    if value < 0:
        raise TypeError("negative numbers are not written here")
    if value < 128:
        return bytes([value])
    for code, form in ((0xCC, "B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q")):
        size = struct.calcsize(form)
        if value < 1 << 8 * size:
            return bytes([code]) + struct.pack(form, value)
    raise TypeError(f"{value} does not fit into 64 bits")


def _counted(count: int, short: tuple[int, int], codes: tuple[int | None, int, int]) -> bytes:
    """A count in its shortest form: in the code itself, or in the 1, 2 or 4 bytes after it."""
    base, below = short
    if count < below:
        return bytes([base + count])
    for code, form in zip(codes, ("B", ">H", ">I"), strict=True):
        if code is not None and count < 1 << 8 * struct.calcsize(form):
            return bytes([code]) + struct.pack(form, count)
    raise TypeError(f"{count} bytes or elements are more than a record holds")
