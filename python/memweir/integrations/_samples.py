"""What training samples say of their images, and whether it fits together.

An image is a mapping of the processor's arrays by name (``pixel_values``, ``image_grid_thw``), in
lists by modality: the ``mm_items`` of renderers. Arrays may be references.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isqrt, prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from memweir.errors import MissingPixels, PixelMismatch
from memweir.identity import hash_bytes, hash_file
from memweir.pixels.refs import PixelRef
from memweir.pixels.source_refs import PREFIX, SourceRef, find_source
from memweir.pixels.walk import PLAIN, Trail, rebuild

if TYPE_CHECKING:
    from collections.abc import Callable

    from memweir._core import Digest

__all__ = ["GRIDS", "PIXELS", "Sources", "check_items", "check_tokens", "items_of", "patches"]

PIXELS: Final = ("pixel_values", "pixel_values_videos")
"""The names that the pixels of an image go by; without one of them it is no image."""

GRIDS: Final = {
    "image_grid_thw": "pixel_values",
    "grid_thws": "pixel_values",
    "video_grid_thw": "pixel_values_videos",
}
"""Grids of patches, int64 (images, 3): frames, rows and columns of what the pixels are rows of."""


def items_of(data: Any) -> Mapping[str, Sequence[Mapping[str, Any]]] | None:
    """The ``mm_items`` of something that has them, or is them; ``None`` where there are none."""
    items = getattr(data, "mm_items", None)
    if items is None and isinstance(data, Mapping):
        items = data.get("mm_items", data)
    if not isinstance(items, Mapping):
        return None
    lists = all(
        isinstance(each, Sequence) and all(isinstance(item, Mapping) for item in each)
        for each in items.values()
    )
    return items if lists else None


def check_items(items: Mapping[str, Sequence[Mapping[str, Any]]], where: str = "data") -> None:
    """Raises where an image has no pixels, or not as many as its grid says.

    ``MissingPixels`` and ``PixelMismatch``, which say where.
    """
    for modality, images in items.items():
        for number, item in enumerate(images):
            check_arrays(item, f"{where}: {modality} {number}")


def check_arrays(arrays: Mapping[str, Any], where: str) -> None:
    """The same for the arrays of one image, or for those of several that were joined."""
    if not any(arrays.get(name) is not None for name in PIXELS):
        raise MissingPixels(f"{where} has {_names(arrays)} and no pixels")
    for grid, pixels in GRIDS.items():
        if arrays.get(grid) is None:
            continue
        if arrays.get(pixels) is None:
            raise MissingPixels(f"{where} has a grid and no {pixels}")
        rows, wanted = arrays[pixels].shape[0], sum(patches(arrays[grid]))
        if rows != wanted:
            raise PixelMismatch(f"{where} has {rows} rows of pixels where its grid has {wanted}")


def patches(grid: Any) -> list[int]:
    """Patches of each image of a grid. Raises ``PixelMismatch`` for what is none."""
    cells = np.asarray(grid)
    if cells.ndim == 1:
        cells = cells[None]
    if cells.ndim != 2 or cells.shape[1] != 3 or cells.dtype.kind not in "iu":
        raise PixelMismatch(f"a grid of patches is integers in rows of 3, not {cells.shape}")
    rows: list[list[int]] = cells.tolist()
    if any(min(row) < 1 for row in rows):
        raise PixelMismatch("a grid has an axis without patches")
    return [prod(row) for row in rows]


def check_tokens(
    token_types: Sequence[int],
    counts: Sequence[int] | int,
    *,
    where: str = "data",
    merge_size: int | None = None,
    kind: int = 1,
) -> None:
    """Raises where the placeholders among the tokens are not those of the images.

    ``counts`` are the patches of each image, or how many images there are where they have none.
    Each run of placeholders must be that of whole images, of ``merge_size`` squared patches for
    each token; without it, of any square that fits all of them.
    """
    runs = list(_runs(token_types, kind))
    if isinstance(counts, int):
        if bool(runs) != bool(counts):
            raise MissingPixels(f"{where} has {counts} images and {len(runs)} places for them")
        return
    tokens, total = sum(runs), sum(counts)
    if not total and not tokens:
        return
    if not total or not tokens:
        raise MissingPixels(f"{where} has {len(counts)} images and {len(runs)} places for them")
    unit = total // tokens
    fits = tokens * unit == total and isqrt(unit) ** 2 == unit
    if merge_size is not None and unit != merge_size**2:
        fits = False
    if not fits or not _cover(runs, [count / unit for count in counts]):
        raise PixelMismatch(
            f"{where} has {tokens} placeholder tokens in {len(runs)} runs, which are not those of "
            f"its {len(counts)} images of {total} patches"
        )


def _cover(runs: Sequence[int], lengths: Sequence[float]) -> bool:
    """Whether each run is made of whole images, in order."""
    pending = iter(lengths)
    for run in runs:
        rest: float = run
        while rest > 0:
            rest -= next(pending, run + 1)
        if rest:
            return False
    return next(pending, None) is None


def _runs(token_types: Sequence[int], kind: int) -> Iterator[int]:
    length = 0
    for each in token_types:
        if each == kind:
            length += 1
        elif length:
            yield length
            length = 0
    if length:
        yield length


def _names(arrays: Mapping[str, Any]) -> str:
    return ", ".join(str(name)[:40] for name in list(arrays)[:8]) or "no arrays"


class Sources:
    """The encoded images in ``data`` by digest, as a ``fetch`` for ``mw.Recompute``.

    Data URIs, ``bytes``, ``file:`` URIs and references to sources, wherever they are in messages;
    then what the live caches of the process have, then ``fetch``. Nothing is decoded, and nothing
    is hashed before the first image is asked for.
    """

    def __init__(self, data: object, fetch: Callable[[PixelRef], Any] | None = None) -> None:
        self._data = data
        self._fetch = fetch
        self._found: dict[Digest, Any] | None = None

    def __call__(self, ref: PixelRef) -> Any:
        wanted = None if ref.recipe is None else ref.recipe.source
        if wanted is not None:
            if self._found is None:
                self._found = self._collect()
            found = self._found.get(wanted)
            if isinstance(found, SourceRef):
                found = found.load()
            if found is None:
                found = find_source(wanted)
            if found is not None:
                return found
        return None if self._fetch is None else self._fetch(ref)

    def _collect(self) -> dict[Digest, Any]:
        found: dict[Digest, Any] = {}

        def leaf(value: object, trail: Trail) -> object:
            digest = _digest_of(value)
            if digest is not None:
                found.setdefault(digest, value)
            return value

        rebuild(self._data, leaf, plain=PLAIN - {str, bytes})
        return {
            digest: SourceRef(value) if _is_reference(value) else value
            for digest, value in found.items()
        }


def _is_reference(value: object) -> bool:
    return isinstance(value, str) and value.startswith(PREFIX)


def _digest_of(value: object) -> Digest | None:
    """What a recipe names a source by; ``None`` for what is none."""
    if isinstance(value, bytes):
        return hash_bytes(value)
    if not isinstance(value, str):
        return None
    if _is_reference(value):
        try:
            return SourceRef(value).digest
        except ValueError:
            return None
    scheme = value[:5].lower()
    if scheme == "data:":
        return hash_bytes(value)
    if scheme == "file:":
        from memweir.pixels.source_id import path_of

        try:
            path = path_of(value)
            return None if path is None else hash_file(path)
        except (OSError, ValueError):
            return None
    return None
