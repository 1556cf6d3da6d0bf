"""What a rendered image is kept as: references by name, beside the processor's small arrays."""

from __future__ import annotations

from collections.abc import ItemsView, Mapping, ValuesView
from typing import TYPE_CHECKING, Any

import numpy as np

from memweir.pixels.refs import PixelRef

if TYPE_CHECKING:
    from memweir._core import Descriptor

__all__ = ["ImageItem", "ImageRef"]


class ImageRef(PixelRef):
    """A reference that, in the process that rendered it, keeps what its pixels can be made from.

    ``source`` is the very object that the message holds: a URI, path, bytes or PIL image.
    ``home`` has the processor. Neither travels: copies out of pickles and JSON are plain.
    """

    __slots__ = ("home", "source")

    def __init__(self, descriptor: Descriptor, source: object, home: object) -> None:
        super().__init__(descriptor)
        self.source = source
        self.home = home


class ImageItem(dict[str, Any]):
    """One image of ``mm_items``: looked up by key, what is big is a ``PixelRef``.

    ``items()`` and ``values()`` give arrays in their place, restored and verified. Whoever walks
    an item takes what is an array and passes over the rest, and an image would be lost unnoticed.
    """

    __slots__ = ()

    @property
    def refs(self) -> dict[str, PixelRef]:
        """The references by name."""
        return {k: v for k, v in dict.items(self) if isinstance(v, PixelRef)}

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        return self._arrays().items()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        return self._arrays().values()

    def copy(self) -> ImageItem:
        return ImageItem(self)

    def __copy__(self) -> ImageItem:
        return ImageItem(self)

    def __deepcopy__(self, memo: object) -> ImageItem:
        held = dict.items(self)
        return ImageItem({k: v.copy() if isinstance(v, np.ndarray) else v for k, v in held})

    def __or__(self, other: Mapping[str, Any]) -> ImageItem:  # type: ignore[override]
        both = ImageItem(self)
        both.update(other)
        return both

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageItem, (dict(dict.items(self)),)

    def _arrays(self) -> dict[str, Any]:
        return {k: _array(v) if isinstance(v, PixelRef) else v for k, v in dict.items(self)}


def _array(ref: PixelRef) -> Any:
    return ref.torch() if ref.tensor else np.asarray(ref)
