"""The live caches of this process: where references look before anywhere else."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memweir._core import Digest, Pixels
    from memweir.pixels.cache import PixelCache

__all__ = ["held", "live_caches", "register", "stored"]

# Changed by single operations on the dict only: no lock that a fork could catch.
_caches: dict[int, weakref.ref[PixelCache]] = {}


def register(cache: PixelCache) -> None:
    """Lets references look into ``cache`` for as long as it lives."""
    number = id(cache)

    def forget(dead: weakref.ref[PixelCache]) -> None:
        if _caches.get(number) is dead:
            del _caches[number]

    _caches[number] = weakref.ref(cache, forget)


def live_caches() -> list[PixelCache]:
    """The caches of this process, oldest first."""
    found = [cache() for cache in _caches.copy().values()]
    return [cache for cache in found if cache is not None]


def held(key: Digest) -> Iterator[Pixels]:
    """The entries of ``key`` in the live caches; asking counts as neither hit nor miss."""
    for cache in live_caches():
        pixels = cache._peek(key)
        if pixels is not None:
            yield pixels


def stored(digest: Digest) -> Iterator[Pixels]:
    """The array of ``digest`` in every live cache that has it by its content."""
    for cache in live_caches():
        pixels = cache.get_array(digest)
        if pixels is not None:
            yield pixels
