"""What the answers of an image processor take in a cache, and whether they come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import torch

import memweir as mw

__all__ = ["TYPES", "Stored", "arrays", "keep", "short", "shortfalls"]

Arrays = dict[str, "np.ndarray[Any, Any]"]

TYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
BIG = 500_000
"""Bytes of float32 from which an entry's ratio is judged."""
FEW = 257
"""Values of a channel that a table and one kind of padding hold: with more, an array stays raw."""


class Stored(NamedTuple):
    """An entry: what it takes, how its largest array of floats is stored, what came back wrong."""

    ratio: float
    """Bytes of all arrays, over the bytes that the cache owns more for having them."""
    form: str
    nbytes: int
    """Of the largest array."""
    values: int | None
    """Of the largest array of floats that is stored as it is, if one of some size is: its different
    values, in the channel with most."""
    different: list[str]


def arrays(answer: Any, path: str = "") -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Every array and tensor in an answer, by the path to it."""
    if isinstance(answer, torch.Tensor):
        half = answer.dtype == torch.bfloat16
        plain = answer.view(torch.int16).numpy() if half else answer.numpy()
        yield path, plain.view(ml_dtypes.bfloat16) if half else plain
    elif isinstance(answer, np.ndarray) and answer.dtype != object:
        yield path, answer
    elif hasattr(answer, "keys"):
        for key in answer:
            yield from arrays(answer[key], f"{path}.{key}")
    elif isinstance(answer, list | tuple | np.ndarray):
        for number, item in enumerate(answer):
            yield from arrays(item, f"{path}[{number}]")


def keep(before: Arrays, given: Arrays, dtype: str) -> Stored | None:
    """The answer ``given``, its float32 cast to ``dtype``, in a cache that has one like it.

    What entries share is there by then. ``None`` where the answer has no floats of that kind.
    """
    cache = mw.PixelCache("1 GiB", name="bench")
    cache.put("before", cast(before, dtype))
    owned = cache.stats().bytes
    given = cast(given, dtype)
    floats = {name: array for name, array in given.items() if array.dtype == TYPES[dtype]}
    if not floats:
        return None
    name, largest = max(floats.items(), key=lambda item: item[1].nbytes)
    assert cache.put("given", given)
    took = cache.stats().bytes - owned
    pixels = cache.get("given")
    assert pixels is not None
    encoding = pixels.encoding
    big = BIG * np.dtype(TYPES[dtype]).itemsize // 4
    raw = [
        array
        for each, array in floats.items()
        if encoding[each] == "raw" and (each == name or array.nbytes >= big)
    ]
    return Stored(
        sum(array.nbytes for array in given.values()) / took,
        encoding[name],
        largest.nbytes,
        values(max(raw, key=lambda array: array.nbytes)) if raw else None,
        [f"{dtype} {place}" for place in differences(pixels, given)],
    )


def cast(given: Arrays, dtype: str) -> Arrays:
    to = TYPES[dtype]
    with np.errstate(over="ignore"):
        return {
            name: array.astype(to) if array.dtype == np.float32 else array
            for name, array in given.items()
        }


def differences(pixels: Any, given: Arrays) -> Iterator[str]:
    """Each array by each way out of the cache, where it is not bit for bit what was put in."""
    decoded = pixels.decode()
    for name, array in given.items():
        batch = np.zeros((3, *array.shape), array.dtype)
        pixels.copy_into(name, batch[1, ...])
        ways = {"px[name]": pixels[name], "decode()": decoded[name], "copy_into()": batch[1]}
        for way, got in ways.items():
            alike = got.dtype == array.dtype and got.shape == array.shape
            if not alike or not np.array_equal(opaque(got), opaque(array)):
                yield f"{name} by {way}"
        if opaque(batch[0]).any() or opaque(batch[2]).any():
            yield f"{name} beside copy_into()"


def opaque(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The elements as integers of their bits."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")


def values(array: np.ndarray[Any, Any]) -> int:
    """Different values in the channel that has most, for the channels that make this least."""
    flat = opaque(array)
    layouts = [(1, flat.size)]
    inner = flat.size
    for axis in array.shape:
        inner //= max(axis, 1)
        if 2 <= axis <= 4:
            layouts.append((axis, inner))
    if array.ndim and array.shape[-1] % 3 == 0:
        layouts += [(3, array.shape[-1] // 3), (3, 1)]
    return min(
        max(len(np.unique(flat.reshape(-1, channels, inner)[:, one])) for one in range(channels))
        for channels, inner in layouts
    )


def wanted(stored: Stored, dtype: str) -> float | None:
    """The ratio that such an entry has to reach; ``None`` for those that none is asked of."""
    if stored.values is not None or stored.nbytes * (4 // np.dtype(TYPES[dtype]).itemsize) < BIG:
        return None
    if dtype != "f32":
        return 1.9
    # Frames that were padded after they were normalised have escapes beside their codes.
    framed = "repeated plane" in stored.form and "escape" not in stored.form
    return 7.9 if framed else 3.8


def short(stored: Stored) -> str:
    """How the largest array is stored, in a column's width."""
    raw = "" if stored.values is None else f"raw, {stored.values:_} values".replace("_", " ")
    if stored.form == "raw":
        return raw
    words = stored.form.replace("u8 affine ", "").replace("u8 palette ", "palette ")
    words = words.replace("repeated plane dropped", "half")
    return f"{words}; another {raw}" if raw else words


def shortfalls(kept: dict[str, Stored]) -> Iterator[str]:
    """Where the entries of one class take more than they may, or are raw without a reason."""
    for dtype, stored in kept.items():
        least = wanted(stored, dtype)
        if least is not None and stored.ratio < least:
            yield f"{dtype}: {stored.ratio:.2f} of {least}"
        if stored.values is not None and stored.values <= FEW and stored.nbytes >= BIG:
            yield f"{dtype}: raw with {stored.values} values"
