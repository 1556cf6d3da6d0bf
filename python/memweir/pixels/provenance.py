"""From an array back to its recipe, provided that the recipe still makes the bytes it has."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from memweir._core import Digest
from memweir.identity import hash_array
from memweir.pixels.found import raw
from memweir.pixels.joiners import axis_of, place, window
from memweir.pixels.live import held
from memweir.pixels.recipe import recall
from memweir.pixels.records import Layout, SourcePolicy, record
from memweir.pixels.refs import ALONE, JoinedRef, PixelRef

if TYPE_CHECKING:
    from memweir._core import Pixels
    from memweir.pixels.recipe import Recipe

__all__ = ["Known", "is_tensor", "known_in", "note", "reference_by_recipe"]


def reference_by_recipe(array: Any, sources: SourcePolicy) -> PixelRef | None:
    """A reference that knows how to make ``array``, or ``None`` where that is not certain.

    Arrays are written in place, so every byte is compared with the entries that it came from, or,
    where one was evicted, with its digest.
    """
    join = recall(array)
    if join is None:
        return None
    found = [seen for part in join.parts if (seen := _entry(part, join.name)) is not None]
    if len(found) < len(join.parts):
        return None
    entries = [entry for entry, _ in found]
    try:
        shape, offsets = place(join.how, [entry.shape for entry in entries])
    except ValueError:
        return None
    if shape != tuple(array.shape) or not _zero_between(array, join.how, entries, offsets):
        return None
    for (entry, pixels), offset in zip(found, offsets, strict=True):
        if not _equal(array[(*window(offset, entry.shape), ...)], join.name, entry, pixels):
            return None
    parts = [
        PixelRef(
            record(
                join.name,
                Layout(entry.dtype, array.itemsize, entry.shape),
                entry.digest,
                torch=is_tensor(array),
                recipe=recipe,
                sources=sources,
            )
        )
        for entry, recipe in zip(entries, join.parts, strict=True)
    ]
    return parts[0] if join.how == ALONE else JoinedRef(join.how, parts)


def note(key: bytes, pixels: Pixels) -> None:
    """Keeps the digests of an entry that the cache has no room for: nobody could look later."""
    for name, spec in pixels.spec.items():
        digest = pixels.digest(name)
        _entries.put((key, name), Known(spec.dtype, spec.shape, digest, pixels._serial))


def known_in(pixels: Pixels, key: bytes, name: str) -> Known:
    """The array ``name`` of the entry of ``key``, hashed now if it was not."""
    known = _entries.get((key, name))
    if known is None or known.serial != pixels._serial:
        spec = pixels.spec[name]
        known = Known(spec.dtype, spec.shape, pixels.digest(name), pixels._serial)
        _entries.put((key, name), known)
    return known


def is_tensor(value: object) -> bool:
    """Whether ``value`` is a torch tensor; loads no torch to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


class Known(NamedTuple):
    """An array of a cache entry."""

    dtype: str
    shape: tuple[int, ...]
    digest: Digest
    serial: int
    """The number of the entry that was hashed: another entry may have other bytes."""


class _Generations:
    """A bounded map without a lock: what was used since half of it filled up stays."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._young: dict[tuple[bytes, str], Known] = {}
        self._old: dict[tuple[bytes, str], Known] = {}

    def get(self, key: tuple[bytes, str]) -> Known | None:
        known = self._young.get(key)
        if known is None:
            known = self._old.get(key)
            if known is not None:
                self.put(key, known)
        return known

    def put(self, key: tuple[bytes, str], known: Known) -> None:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[key] = known


# Keys name content, so this holds for all caches, and for entries that were evicted since.
_entries: Final = _Generations(16_384)


def _entry(recipe: Recipe, name: str) -> tuple[Known, Pixels | None] | None:
    """What the entry of ``recipe`` holds under ``name``, if it was ever seen, and the entry.

    The digest is that of the entry, if there is one now, or of the last one that was seen.
    """
    pixels = next(held(Digest(recipe.key)), None)
    if pixels is None or name not in pixels:
        known = _entries.get((recipe.key, name))
        return None if known is None else (known, None)
    return known_in(pixels, recipe.key, name), pixels


def _equal(part: Any, name: str, entry: Known, pixels: Pixels | None) -> bool:
    """Whether ``part`` of an array is what was hashed."""
    return hash_array(part) == entry.digest if pixels is None else pixels.equals(name, part)


def _zero_between(array: Any, how: str, parts: list[Known], offsets: list[tuple[int, ...]]) -> bool:
    """Whether every byte of ``array`` outside its parts is zero."""
    axis = axis_of(how)
    for part, offset in zip(parts, offsets, strict=True):
        for padded, (used, length) in enumerate(zip(part.shape, array.shape, strict=True)):
            if padded == axis or used == length:
                continue
            gap = [slice(None)] * array.ndim
            gap[axis] = slice(offset[axis], offset[axis] + part.shape[axis])
            gap[padded] = slice(used, None)
            if np.ascontiguousarray(raw(array[tuple(gap)])).view(np.uint8).any():
                return False
    return True
