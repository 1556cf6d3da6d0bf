"""How a returned array came to be: which images, through which processor, joined how."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memweir._core import Digest


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one image's cache entry came to be.

    ``key`` is the cache key, ``fingerprint`` names the processor and the call's keyword
    arguments, ``image`` the pixels. ``source`` is the digest of the encoded source and ``origin``
    the source itself (URI, path or bytes), both None where pixels were passed. ``kwargs`` are
    the call's keyword arguments as plain data.
    """

    key: bytes
    fingerprint: Digest
    image: Digest
    source: Digest | None
    origin: str | bytes | None
    kwargs: tuple[tuple[str, object], ...]


@dataclass(frozen=True, slots=True)
class Join:
    """What a returned array is made of: the array ``name`` of each part's entry, joined ``how``.

    ``how`` is a name that ``memweir.pixels.joiners.join`` knows. ``rows[i]`` is the length of part
    ``i`` along the axis that was joined.
    """

    how: str
    name: str
    parts: tuple[Recipe, ...]
    rows: tuple[int, ...]


# Weak, and never under a lock: callbacks run wherever the last reference is dropped.
_joins: dict[int, tuple[weakref.ref[object], Join]] = {}


def remember(array: object, join: Join) -> None:
    """Note what ``array`` (ndarray or torch tensor) is made of, for as long as it lives.

    Nothing trusts the note: arrays are written in place, so whoever uses it checks the bytes.
    """
    number = id(array)

    def forget(ref: weakref.ref[object]) -> None:
        entry = _joins.get(number)
        if entry is not None and entry[0] is ref:
            del _joins[number]

    _joins[number] = (weakref.ref(array, forget), join)


def recall(array: object) -> Join | None:
    """What ``array`` was made of, or None."""
    entry = _joins.get(id(array))
    return entry[1] if entry is not None and entry[0]() is array else None
