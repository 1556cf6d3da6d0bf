"""Images that know where they came from and are decoded only when someone looks at them.

A full multimodal processor fetches its images before it calls the image processor. What
``CachedProcessor.fetch_images`` hands it for a known source is one of these: type, size and
mode are right, and the first touch of the pixels opens the source like any fetch would.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING, Any

import PIL.Image

if TYPE_CHECKING:
    from memweir.pixels.sources import Seen

__all__ = ["BrokenImage", "LazyImage", "defer", "resolve", "seen_behind"]


class LazyImage(PIL.Image.Image):
    """A PIL image whose pixels are fetched at first use. Copies and pickles are plain images."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen
        self._mode, self._size = seen.id.layout

    def load(self) -> Any:
        if self._im is None:
            image = self._seen.image()
            image.load()
            self._info = image.info
            self._exif = image._exif
            self._im = image.im
        return super().load()

    # Everything in Pillow that reads pixels calls load() first, except what takes the core
    # image or the metadata directly.
    @property
    def im(self) -> Any:
        if self._im is None:
            self.load()
        return PIL.Image.Image.im.fget(self)  # type: ignore[attr-defined]

    @im.setter
    def im(self, im: Any) -> None:
        self._im = im

    @property
    def info(self) -> dict[Any, Any]:
        if self._im is None:
            self.load()
        info: dict[Any, Any] = self._info
        return info

    @info.setter
    def info(self, info: dict[Any, Any]) -> None:
        self._info = info

    def plain(self) -> PIL.Image.Image:
        """The same image as an ordinary one that shares its pixels."""
        self.load()
        return self._new(self.im)

    def __eq__(self, other: object) -> bool:
        return self.plain() == (other.plain() if isinstance(other, LazyImage) else other)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return _itself, (self.plain(),)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()


def _itself(image: PIL.Image.Image) -> PIL.Image.Image:
    return image


class BrokenImage(PIL.Image.Image):
    """Stands in for an image whose pixels could not be loaded, and fails in the same way.

    Pillow reports some faults once: a second load returns what little was decoded.
    """

    def __init__(self, image: PIL.Image.Image, error: Exception) -> None:
        super().__init__()
        self._mode, self._size, self._error = image.mode, image.size, error
        self.info = image.info

    def load(self) -> Any:
        raise self._error


@functools.cache
def _lazy_tensor() -> type[Any]:
    torch: Any = import_module("torch")
    tree_map_only = import_module("torch.utils._pytree").tree_map_only
    # Answered from the wrapper's own metadata: none of these needs a pixel.
    known = ("shape", "dtype", "device", "layout", "ndim", "requires_grad")
    shapely = {getattr(torch.Tensor, name).__get__ for name in known}
    shapely |= {torch.Tensor.dim, torch.Tensor.size, torch.Tensor.numel}

    class LazyTensor(torch.Tensor):  # type: ignore[misc]
        """A uint8 tensor (C, H, W) whose pixels are fetched at first use."""

        _seen: Seen
        _real: Any

        @staticmethod
        def __new__(cls: Any, seen: Seen) -> Any:
            tensor = torch.Tensor._make_wrapper_subclass(cls, seen.id.layout, dtype=torch.uint8)
            tensor._seen = seen
            tensor._real = None
            return tensor

        def plain(self) -> Any:
            """The same image as an ordinary tensor."""
            if self._real is None:
                self._real = self._seen.image()
            return self._real

        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in shapely:
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*args, **kwargs or {})
            return cls.__torch_dispatch__(func, types, args, kwargs)

        @classmethod
        def __torch_dispatch__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            args, kwargs = tree_map_only(cls, cls.plain, (args, kwargs or {}))
            return func(*args, **kwargs)

    return LazyTensor


def defer(seen: Seen) -> Any:
    """An image of the kind that the wrapped processor fetches, opened when it is looked at."""
    return LazyImage(seen) if seen.id.kind == "pil" else _lazy_tensor()(seen)


def seen_behind(image: object) -> tuple[Seen | None, bool]:
    """What a lazy image stands for (None for any other image), and whether it was looked at.

    Once its pixels are out, somebody may have written to them.
    """
    if isinstance(image, LazyImage):
        return image._seen, image._im is not None
    if _is_lazy_tensor(image):
        return image._seen, image._real is not None  # type: ignore[attr-defined]
    return None, True


def resolve(image: Any) -> Any:
    """``image``, or the ordinary image that a lazy one stands for."""
    if isinstance(image, LazyImage) or _is_lazy_tensor(image):
        return image.plain()
    return image


def _is_lazy_tensor(image: object) -> bool:
    return type(image).__name__ == "LazyTensor" and isinstance(image, _lazy_tensor())
