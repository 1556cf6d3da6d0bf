"""Anything with a load and perhaps a release: what it is made of is found out, not asked for."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from memweir.errors import LoadFailed, UnsupportedType
from memweir.models.adapters.managed import Managed, checked_release
from memweir.models.adapters.weights import find_weights
from memweir.models.ladder import Rung

if TYPE_CHECKING:
    from collections.abc import Callable

    from memweir.models.adapters.protocol import Sizes

__all__ = ["Opaque"]


class Opaque(Managed):
    """The adapter of an object that is loaded and let go as a whole.

    ``release`` is called with the model when it goes. The model rests where its loader put it: on
    a device where one is named or its bytes are found there, else on the host.
    """

    name = "opaque"

    def __init__(self, release: Callable[..., object] | None = None) -> None:
        super().__init__()
        self._release = checked_release(release)
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
