"""How single-image results become a batch: where each part goes, and what is zero.

A joiner is arithmetic on shapes, so that the same plan serves fresh outputs (copied straight
out of the cache) and references that are put together again elsewhere.

alone   one part, as it is
concat  along axis 0; all other lengths must agree
pad     along axis 0; other axes grow to the longest part, zeros after a part's own end
nest    along axis 1 of parts that start with 1 (the images of one sample), padded likewise

Channels, third from the end, are never padded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["HOWS", "Unjoinable", "axis_of", "join", "largest", "place", "window"]

HOWS = ("alone", "concat", "pad", "nest")

Shape = tuple[int, ...]


class Unjoinable(ValueError):
    """These parts do not join in this way."""


def axis_of(how: str) -> int:
    """The axis that ``how`` joins along."""
    return 1 if how == "nest" else 0


def place(how: str, shapes: Sequence[Shape]) -> tuple[Shape, list[Shape]]:
    """The shape of the whole and the offset of each part in it.

    Raises ``Unjoinable`` when ``how`` does not apply, ``ValueError`` when there is no such join.
    """
    if how not in HOWS:
        raise ValueError(f"unknown joiner {how!r}; known: {', '.join(HOWS)}")
    first = shapes[0]
    if how == "alone":
        if len(shapes) != 1:
            raise Unjoinable("more than one part")
        return first, [(0,) * len(first)]
    axis = axis_of(how)
    if len(first) <= axis:
        raise Unjoinable("the parts differ in rank")
    if how == "nest" and any(shape[0] != 1 for shape in shapes):
        raise Unjoinable("a part holds more than one sample")
    whole = list(largest(shapes, axis))
    if how == "concat" and any(shape[1:] != first[1:] for shape in shapes):
        raise Unjoinable("the parts differ in shape")
    offsets, end = [], 0
    for shape in shapes:
        offset = [0] * len(first)
        offset[axis] = end
        offsets.append(tuple(offset))
        end += shape[axis]
    whole[axis] = end
    return tuple(whole), offsets


def largest(shapes: Collection[Shape], joined: int | None) -> Shape:
    """The smallest shape that holds all of ``shapes``, whose axis ``joined`` may differ in any way.

    Raises ``Unjoinable`` when they differ in rank or in channels.
    """
    ranks = {len(shape) for shape in shapes}
    if len(ranks) != 1:
        raise Unjoinable("the parts differ in rank")
    channels = ranks.pop() - 3
    if channels >= 0 and channels != joined and len({shape[channels] for shape in shapes}) > 1:
        raise Unjoinable("the parts differ in channels")
    return tuple([max(lengths) for lengths in zip(*shapes, strict=True)])


def window(offset: Shape, shape: Shape) -> tuple[slice, ...]:
    """The part of the whole that starts at ``offset``."""
    return tuple([slice(o, o + n) for o, n in zip(offset, shape, strict=True)])


def join(
    how: str, entries: Sequence[Mapping[str, NDArray[np.generic]]]
) -> dict[str, NDArray[np.generic]]:
    """Fresh arrays, joined from those that carry the same names in ``entries``.

    Names differ between entries or types between arrays: ``Unjoinable``.
    """
    names = list(entries[0])
    if any(list(entry) != names for entry in entries):
        raise Unjoinable("the parts differ in names")
    joined = {}
    for name in names:
        parts = [entry[name] for entry in entries]
        if any(part.dtype != parts[0].dtype for part in parts):
            raise Unjoinable("the parts differ in dtype")
        shape, offsets = place(how, [part.shape for part in parts])
        out = np.zeros(shape, parts[0].dtype)
        for part, offset in zip(parts, offsets, strict=True):
            out[window(offset, part.shape)] = part
        joined[name] = out
    return joined
