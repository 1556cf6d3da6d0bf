"""Pixels made again: the processor that made them, run on the source that their recipe names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from memweir.errors import PixelMismatch, UnsupportedType
from memweir.identity import hash_bytes, hash_file
from memweir.pixels.cards import disagreement
from memweir.pixels.recipe import recall

if TYPE_CHECKING:
    from memweir._core import Digest
    from memweir.pixels.recipe import Recipe
    from memweir.pixels.refs import PixelRef, RefRecipe

__all__ = ["Recompute"]


class Recompute:
    """A resolver that runs ``processor`` on the image that a reference's recipe names.

    ``processor`` is a ``CachedProcessor`` or what one can wrap. ``fetch(ref)`` returns the image
    (path, URI, encoded bytes, PIL image or array) or ``None`` when it has none; without it only
    origins that travelled inside references are used. ``ref.recipe.source`` is the digest of the
    encoded image, ``hash_bytes`` of the URI or bytes or ``hash_file`` of the file; where pixels
    were passed, ``ref.recipe.image`` is theirs.

    Raises ``PixelMismatch`` when the image, the processor or its arguments are not the ones that
    made the pixels.
    """

    def __init__(self, processor: Any, fetch: Callable[[PixelRef], Any] | None = None) -> None:
        from memweir.pixels.cache import PixelCache
        from memweir.pixels.processor import CachedProcessor

        if not isinstance(processor, CachedProcessor):
            processor = CachedProcessor(processor, PixelCache(0, name="recompute"))
        self._processor = processor
        self._fetch = fetch

    def __call__(self, ref: PixelRef) -> dict[str, Any] | None:
        recipe = ref.recipe
        if recipe is None:
            return None
        image = self._fetch(ref) if self._fetch is not None else None
        if image is None:
            image = recipe.origin
        if image is None:
            return None
        _check_source(ref, recipe, image)
        if recipe.arguments is None:
            raise PixelMismatch(
                f"the processor's arguments were too long to travel with {ref!r}; "
                'strip with sources="all"',
                expected=ref.digest.hex(),
            )
        _check_processor(ref, recipe.fingerprint, self._processor, recipe.arguments)
        answer = self._processor([image], **recipe.arguments)
        for array in _arrays(answer):
            join = recall(array)
            if join is not None and len(join.parts) == 1:
                _check_making(ref, recipe, join.parts[0])
                if join.name == ref.name:
                    return {ref.name: array}
        # Not served from the cache: named as the processor names it.
        return {ref.name: answer[ref.name]} if ref.name in answer else {}


def _check_source(ref: PixelRef, recipe: RefRecipe, image: object) -> None:
    from memweir.pixels.source_id import path_of

    if recipe.source is None:
        return
    if isinstance(image, str):
        path = path_of(image)
        got = hash_bytes(image) if path is None else hash_file(path)
    elif isinstance(image, bytes):
        got = hash_bytes(image)
    elif hasattr(image, "__fspath__"):
        got = hash_file(image)
    else:
        return
    if got != recipe.source:
        why = "fetch() gave another source than the one that was processed"
        raise _mismatch(ref, why, recipe.source, got)


def _check_processor(
    ref: PixelRef, expected: Digest, processor: Any, arguments: Mapping[str, Any]
) -> None:
    """Compares processors before one runs: it costs less, and holds for uncached calls too."""
    from memweir.pixels.fingerprint import processor_card

    try:
        got = processor_card(processor, **arguments).fingerprint
    except UnsupportedType:
        return  # then its arrays are compared alone
    if got != expected:
        raise _mismatch(ref, _another(expected, got), expected, got)


def _another(expected: Digest, got: Digest) -> str:
    return f"the processor is another: {disagreement(expected, got)}"


def _check_making(ref: PixelRef, recipe: RefRecipe, got: Recipe) -> None:
    """Compares how an array was made with how it should have been, before its bytes are."""
    if recipe.image is not None and got.image != recipe.image:
        why = "fetch() gave another image than the one that was processed"
        raise _mismatch(ref, why, recipe.image, got.image)
    if got.fingerprint != recipe.fingerprint:
        why = _another(recipe.fingerprint, got.fingerprint)
        raise _mismatch(ref, why, recipe.fingerprint, got.fingerprint)


def _mismatch(ref: PixelRef, why: str, expected: Digest, got: Digest) -> PixelMismatch:
    return PixelMismatch(
        f"{ref!r} cannot be made again: {why} (expected {expected.hex()}, got {got.hex()})",
        expected=expected.hex(),
        got=got.hex(),
    )


def _arrays(answer: Mapping[str, Any]) -> Iterator[object]:
    pending = list(answer.values())
    while pending:
        value = pending.pop(0)
        if isinstance(value, list | tuple):
            pending[:0] = value
        else:
            yield value
