"""Prompts as upstream renders them, with the placeholders of each image put in at once.

Upstream emits placeholders one by one, thousands for a prompt. While a prompt is rendered here
each image is told to have one, and what upstream made of it is spread out afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from memweir.integrations._renderers_items import ImageItem
from memweir.pixels.refs import PixelRef

if TYPE_CHECKING:
    from memweir.integrations._renderers_images import Prompt

__all__ = ["Now", "finish"]

_BY_TOKEN: Final = ("token_ids", "message_indices", "sampled_mask", "is_content")


class Now(threading.local):
    """What each thread is rendering."""

    images: Prompt | None = None
    lengths: list[int] | None = None

    def __deepcopy__(self, memo: object) -> Now:
        return Now()

    def __reduce__(self) -> tuple[Any, ...]:
        return Now, ()

    @contextmanager
    def prompt(self) -> Iterator[list[int]]:
        """While a prompt is rendered: the lengths of its images, as they come."""
        outer = self.images, self.lengths
        self.images, self.lengths = None, []
        try:
            yield self.lengths
        finally:
            self.images, self.lengths = outer

    def length(self, tokens: int) -> int:
        """How many placeholders upstream is told that the next image has."""
        if self.lengths is None:
            return tokens
        self.lengths.append(tokens)
        return 1


def finish(rendered: Any, lengths: Sequence[int]) -> Any:
    """What upstream rendered, with its placeholders spread out and its images kept as items."""
    data = None if rendered is None else rendered.multi_modal_data
    if data is None:
        return rendered
    if lengths:
        _spread(rendered, data.mm_placeholders["image"], lengths)
    for items in data.mm_items.values():
        for at, item in enumerate(items):
            if type(item) is dict and any(isinstance(v, PixelRef) for v in item.values()):
                items[at] = ImageItem(item)
    return rendered


def _spread(rendered: Any, places: list[Any], lengths: Sequence[int]) -> None:
    """Makes a run of each of the last placeholders, which upstream emitted as single ones."""
    first = len(places) - len(lengths)
    if first < 0 or any(place.length != 1 for place in places[first:]):
        raise RuntimeError("renderers placed images elsewhere than they were asked for")
    offsets = [place.offset for place in places[first:]]
    for name in _BY_TOKEN:
        values = getattr(rendered, name)
        if values:  # empty where the renderer does not tell
            setattr(rendered, name, _repeated(values, offsets, lengths))
    before = 0
    for at, (offset, length) in enumerate(zip(offsets, lengths, strict=True), first):
        places[at] = type(places[at])(offset=offset + before, length=length)
        before += length - 1


def _repeated(values: list[Any], offsets: Sequence[int], lengths: Sequence[int]) -> list[Any]:
    """``values`` with those at ``offsets``, in order, repeated."""
    out: list[Any] = []
    at = 0
    for offset, length in zip(offsets, lengths, strict=True):
        out += values[at:offset]
        out += [values[offset]] * length
        at = offset + 1
    out += values[at:]
    return out
