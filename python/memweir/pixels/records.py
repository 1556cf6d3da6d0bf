"""What of a recipe goes into a reference's record: enough to find and make the pixels again."""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from memweir._core import Descriptor, Digest

if TYPE_CHECKING:
    from memweir.pixels.recipe import Recipe

__all__ = ["LIMIT", "Layout", "SourcePolicy", "record"]

SourcePolicy = Literal["small", "never", "all"]

LIMIT: Final = 256
"""Bytes of a record, unless all sources were asked for."""

UNWRITTEN: Final = "null"
"""Arguments that the record could not hold; without arguments there is no such field."""


class Layout(NamedTuple):
    """Numpy's token of a type, its size in bytes, and a shape."""

    dtype: str
    itemsize: int
    shape: tuple[int, ...]


def record(
    name: str,
    layout: Layout,
    digest: Digest,
    *,
    torch: bool,
    recipe: Recipe | None = None,
    sources: SourcePolicy = "small",
) -> Descriptor:
    """The record of an array.

    The image is named once, by its encoded source where there was one. The call's arguments
    travel as far as they are plain and fit, then the origin, as far as ``sources`` lets it.
    """
    fields: dict[str, Any] = {"name": name, **layout._asdict(), "digest": bytes(digest)}
    fields["torch"] = torch
    if recipe is None:
        return Descriptor(**fields)
    fields["key"] = recipe.key
    fields["fingerprint"] = bytes(recipe.fingerprint)
    if recipe.source is None:
        fields["image"] = bytes(recipe.image)
    else:
        fields["source"] = bytes(recipe.source)

    def with_more(name: str, value: str | bytes) -> bool:
        """Adds a field where there is room for it."""
        more = {**fields, name: value}
        fits = sources == "all" or len(Descriptor(**more).encode()) <= LIMIT
        if fits:
            fields[name] = value
        return fits

    arguments = _written(recipe.kwargs)
    if arguments is not None and not with_more("arguments", arguments):
        fields["arguments"] = UNWRITTEN
    if recipe.origin is not None and _travels(recipe.origin, sources):
        with_more("origin", recipe.origin)
    return Descriptor(**fields)


def _travels(origin: str | bytes, sources: SourcePolicy) -> bool:
    if isinstance(origin, str) and not _is_text(origin):
        return False  # the name of a file that is not UTF-8
    if sources != "small":
        return sources == "all"
    if isinstance(origin, bytes) or origin.startswith("data:"):
        return False
    # Queries hold signatures, and user information passwords.
    return "://" not in origin or not any(mark in origin for mark in "?@#")


def _is_text(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _written(kwargs: tuple[tuple[str, object], ...]) -> str | None:
    """Call arguments as JSON that reads back as equal ones; ``None`` when there are none."""
    if not kwargs:
        return None
    try:
        plain = {name: _plain(value) for name, value in kwargs}
    except TypeError:
        return UNWRITTEN
    return json.dumps(plain, separators=(",", ":"))


def _plain(value: object) -> object:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if kind.__name__ == "SizeDict":
        # Of transformers: it equals the dict of what is set.
        return {key: item for key, item in vars(value).items() if item is not None}
    raise TypeError(f"{kind.__name__} has no plain form")
