"""Exceptions without what they keep: the variables of the frames they came through."""

from __future__ import annotations

import traceback

__all__ = ["unpin"]


def unpin(error: BaseException | None) -> None:
    """Empties the finished frames of the exception and of those it came from; running ones stay.

    A model that a frame had, or that an attribute was looked for in, would live as long as the
    exception, which somebody may keep.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)
        if isinstance(each, AttributeError):
            each.obj = None
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
