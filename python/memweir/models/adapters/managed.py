"""Which objects adapters have taken in: none is let go twice."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from memweir.errors import LoadFailed

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Managed", "checked_release"]

# Values that many may return: one of them says nothing about who has it.
_COMMON = (str, bytes, int, float, bool, type)

# By the model's id, which is its own while an adapter has it; the adapters are the pools'.
_managed: WeakValueDictionary[int, Managed] = WeakValueDictionary()


class Managed:
    """An adapter that has its model alone."""

    def __init__(self) -> None:
        self._id: int | None = None

    def _claim(self, model: Any) -> None:
        self._forget()
        if isinstance(model, _COMMON):
            return
        if _managed.setdefault(id(model), self) is not self:
            raise LoadFailed(
                "the loader returned an object that is managed already, under another key or by "
                "another pool: it would be let go twice; make a new one in each load"
            )
        self._id = id(model)

    def _forget(self) -> None:
        mine, self._id = self._id, None
        if mine is not None and _managed.get(mine) is self:
            _managed.pop(mine, None)


def checked_release(release: Any) -> Callable[[Any], object] | None:
    """A user's release, if it can be called where models are let go."""
    from memweir._flight import is_async

    if release is not None and not callable(release):
        raise TypeError(f"release is called, and {type(release).__name__} cannot be")
    if release is not None and is_async(release):
        raise TypeError("release is called without an event loop: give a plain function")
    return release  # type: ignore[no-any-return]


if hasattr(os, "register_at_fork"):
    # A child's pools are empty.
    os.register_at_fork(after_in_child=_managed.clear)
