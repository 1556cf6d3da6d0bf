"""Anything with a load and perhaps a release: what it is made of is found out, not asked for."""

from __future__ import annotations

import os
import types
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from memweir.errors import LoadFailed, UnsupportedType
from memweir.models.adapters.weights import find_weights
from memweir.models.ladder import Rung

if TYPE_CHECKING:
    from collections.abc import Callable

    from memweir.models.adapters.protocol import Sizes

__all__ = ["Opaque"]

# Values that many may return: one of them says nothing about who has it.
_COMMON = (str, bytes, int, float, bool, type)

# By the model's id, which is its own while an adapter has it; the adapters are the pools'.
_managed: WeakValueDictionary[int, Opaque] = WeakValueDictionary()


class Opaque:
    """The adapter of an object that is loaded and let go as a whole.

    ``release`` is called with the model when it goes. The model rests where its loader put it: on
    a device where one is named or its bytes are found there, else on the host.
    """

    name = "opaque"

    def __init__(self, release: Callable[..., object] | None = None) -> None:
        from memweir._flight import is_async

        if release is not None and not callable(release):
            raise TypeError(f"release is called, and {type(release).__name__} cannot be")
        if release is not None and is_async(release):
            raise TypeError("release is called without an event loop: give a plain function")
        self._release = release
        self._id: int | None = None
        self._rungs: tuple[Rung, ...] = (Rung.HOST,)

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The one where the loader put the model."""
        return self._rungs

    def adopt(self, model: Any, device: str | None) -> None:
        """Refuses what is no model, one with weights that have no data, and one that is managed."""
        if model is None:
            raise LoadFailed("the loader returned None: it has to return the model")
        if isinstance(model, types.CoroutineType):
            model.close()
            raise UnsupportedType("the loader is asynchronous: give a plain function")
        weights = find_weights(model)
        if weights.meta:
            raise LoadFailed(
                "the loader returned a model with tensors on the meta device, which have no data: "
                + ", ".join(weights.meta)
            )
        self._claim(model)
        on_device = device is not None and device.partition(":")[0] != "cpu"
        self._rungs = (Rung.DEVICE if on_device or weights.sizes.device else Rung.HOST,)

    def nbytes(self, model: Any) -> Sizes | None:
        """The bytes of its tensors, arrays and buffers, each once; ``None`` if it has none."""
        weights = find_weights(model)
        return weights.sizes if weights.count and weights.complete else None

    def move(self, model: Any, to: Rung, device: str | None) -> None:
        """There is one rung, so nowhere to go."""
        raise UnsupportedType("an opaque model stays where its loader put it until it goes")

    def dispose(self, model: Any) -> None:
        """Calls the user's release, if there is one."""
        self._forget()
        if self._release is not None:
            self._release(model)

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


if hasattr(os, "register_at_fork"):
    # A child's pools are empty.
    os.register_at_fork(after_in_child=_managed.clear)
