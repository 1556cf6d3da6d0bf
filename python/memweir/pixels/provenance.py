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

__all__ = ["is_tensor", "note", "reference_by_recipe"]


def reference_by_recipe(array: Any, sources: SourcePolicy) -> PixelRef | None:
    """A reference that knows how to make ``array``, or ``None`` where that is not certain.

    Arrays are written in place, so every byte is compared with the entries that it came from, or,
    where one was evicted, with its digest.
    """
    join = recall(array)
    if join is None:
        return None
    entries = [entry for part in join.parts if (entry := _entry(part, join.name)) is not None]
    if len(entries) < len(join.parts):
        return None
    try:
        shape, offsets = place(join.how, [entry.shape for entry in entries])
    except ValueError:
        return None
    if shape != tuple(array.shape) or not _zero_between(array, join.how, entries, offsets):
        return None
    for recipe, entry, offset in zip(join.parts, entries, offsets, strict=True):
        if not _equal(array[(*window(offset, entry.shape), ...)], recipe, join.name, entry):
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
        _entries.put((key, name), _Known(spec.dtype, spec.shape, pixels.digest(name)))


def is_tensor(value: object) -> bool:
    """Whether ``value`` is a torch tensor; loads no torch to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


class _Known(NamedTuple):
    """An array of a cache entry."""

    dtype: str
    shape: tuple[int, ...]
    digest: Digest


class _Generations:
    """A bounded map without a lock: what was used since half of it filled up stays."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._young: dict[tuple[bytes, str], _Known] = {}
        self._old: dict[tuple[bytes, str], _Known] = {}

    def get(self, key: tuple[bytes, str]) -> _Known | None:
        known = self._young.get(key)
        if known is None:
            known = self._old.get(key)
            if known is not None:
                self.put(key, known)
        return known

    def put(self, key: tuple[bytes, str], known: _Known) -> None:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[key] = known


# Keys name content, so this holds for all caches, and for entries that were evicted since.
_entries: Final = _Generations(16_384)


def _entry(recipe: Recipe, name: str) -> _Known | None:
    """What the entry of ``recipe`` holds under ``name``, if it was ever seen."""
    known = _entries.get((recipe.key, name))
    if known is None:
        pixels = next(held(Digest(recipe.key)), None)
        if pixels is None or name not in pixels:
            return None
        spec = pixels.spec[name]
        known = _Known(spec.dtype, spec.shape, pixels.digest(name))
        _entries.put((recipe.key, name), known)
    return known


def _equal(part: Any, recipe: Recipe, name: str, entry: _Known) -> bool:
    """Whether ``part`` of an array is what the recipe made."""
    pixels = next(held(Digest(recipe.key)), None)
    if pixels is not None and name in pixels:
        return pixels.equals(name, part)
    return hash_array(part) == entry.digest


def _zero_between(
    array: Any, how: str, parts: list[_Known], offsets: list[tuple[int, ...]]
) -> bool:
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
