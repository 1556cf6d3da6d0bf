"""A cache of ours in place of the table that an upstream renderer keeps processed images in."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from memweir._core import Digest
from memweir.errors import UnsupportedType
from memweir.identity import hash_value
from memweir.pixels.cache import PixelCache
from memweir.pixels.fingerprint import Fingerprinter, Unfingerprintable
from memweir.pixels.forms import Leaf, form_of, take_apart

__all__ = ["ImageTable"]

_TOKENS: Final = "#tokens"


class ImageTable:
    """What upstream's ``_image_cache`` is asked for: processed images by upstream's hash.

    Entries are kept by hash and configuration of the processor, so that renderers can share a
    cache. An array that somebody still holds is handed out again instead of decoded anew.
    """

    def __init__(self, renderer: Any, cache: PixelCache, fingerprint: str | None) -> None:
        self._renderer = renderer
        self._cache = cache
        self._code = fingerprint
        self._fingerprinter: tuple[object, Fingerprinter] | None = None
        self._alive: weakref.WeakValueDictionary[tuple[Digest, str], Any] = (
            weakref.WeakValueDictionary()
        )

    def get(self, name: str, default: Any = None) -> Any:
        key = self._key(name)
        pixels = self._cache.get(key)
        if pixels is None:
            return default
        form = form_of(pixels, [each for each in pixels.spec if each != _TOKENS], "np")
        values = {each: self._filled(key, pixels, value) for each, value in form.values.items()}
        return form.fill(values), int(pixels[_TOKENS][0])

    def __setitem__(self, name: str, value: tuple[Any, int]) -> None:
        out, tokens = value
        key = self._key(name)
        arrays = take_apart(out, "np")
        for each, array in arrays.items():
            if not each.startswith("#"):
                self._alive[key, each] = array
        self._cache.put(key, {**arrays, _TOKENS: np.array([tokens], np.int64)})

    def __deepcopy__(self, memo: dict[int, Any]) -> ImageTable:
        """A table for the copy of the renderer, over the same cache."""
        return ImageTable(copy.deepcopy(self._renderer, memo), self._cache, self._code)

    def __len__(self) -> int:
        return 0  # never full: the cache itself lets go of what is too much

    def __iter__(self) -> Iterator[str]:
        # A bound of 0 images makes upstream look for one to let go of.
        return iter([""])

    def pop(self, name: str, default: Any = None) -> Any:
        return default

    def clear(self) -> None:
        """Clears the whole cache."""
        self._cache.clear()

    def _key(self, name: str) -> Digest:
        renderer = self._renderer
        processor = renderer._get_processor().image_processor
        if self._fingerprinter is None or self._fingerprinter[0] is not processor:
            self._fingerprinter = processor, Fingerprinter(processor, self._code)
        try:
            fingerprint = self._fingerprinter[1].digest({})
        except Unfingerprintable as unknown:
            raise UnsupportedType(
                f"{type(processor).__name__} cannot be cached: {unknown}; give attach() a "
                "fingerprint= that changes when the processor does"
            ) from None
        return hash_value(["memweir renderers image", type(renderer).__name__, fingerprint, name])

    def _filled(self, key: Digest, pixels: Any, value: Any) -> Any:
        """The value with its arrays, each an array of the caller's own or one that is alive."""
        if isinstance(value, list | tuple):
            return type(value)([self._filled(key, pixels, each) for each in value])
        if not isinstance(value, Leaf):
            return value
        array = self._alive.get((key, value.name))
        if array is None:
            array = np.array(pixels[value.name])
            if value.tensor:
                import torch

                array = torch.from_numpy(array)
            self._alive[key, value.name] = array
        return array
