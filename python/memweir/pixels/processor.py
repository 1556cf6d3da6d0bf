"""``CachedProcessor``: a Hugging Face image processor that processes each image once."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NoReturn

from transformers.image_processing_base import ImageProcessingMixin

from memweir.pixels.engine import Engine, ProcessorStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from memweir._core import Digest, Pixels
    from memweir.pixels.cache import PixelCache

__all__ = ["CachedProcessor", "ProcessorStats"]

_MEMO = 32_768  # sources, about 0.5 KiB each


class CachedProcessor(ImageProcessingMixin):
    """An image processor whose single-image results live in a ``PixelCache``.

    Called like ``image_processor``, it gives the same ``BatchFeature``, bit for bit and in type,
    with arrays that are the caller's own. Attributes are read from and written to the wrapped
    processor, and it takes the wrapped processor's place in a multimodal one::

        processor.image_processor = CachedProcessor(processor.image_processor, cache)

    Besides what the wrapped processor takes, images may be bytes, paths and ``file://`` URIs.
    Calls that cannot be served exactly go to the wrapped processor; ``stats().through`` counts
    them by reason, and each reason is logged once. An error is always the processor's own.

    Args:
        image_processor: the processor to wrap.
        cache: where results are kept; may be shared between processors.
        fingerprint: names the code of a processor that is not part of transformers; without
            it, calls of such a processor are never cached. Change it when the code changes.
        join: how such a processor joins images ("concat", "pad", "nest"); by default only
            calls with one image are cached.
        memo: how many encoded sources are remembered, at about 0.5 KiB each.
        fetch: opens URIs and paths in place of the wrapped processor's ``fetch_images``; results
            are kept by what it gives.
    """

    _engine: Engine

    def __init__(
        self,
        image_processor: Any,
        cache: PixelCache,
        *,
        fingerprint: bytes | str | Digest | None = None,
        join: str | None = None,
        memo: int = _MEMO,
        fetch: Callable[[str], Any] | None = None,
    ) -> None:
        if not isinstance(image_processor, ImageProcessingMixin):
            kind = type(image_processor).__name__
            raise TypeError(f"image_processor must be an image processor, not {kind}")
        if isinstance(image_processor, CachedProcessor):
            raise TypeError("image_processor is cached already")
        if memo < 1:
            raise ValueError(f"memo must be at least 1, not {memo}")
        self.__dict__["_engine"] = Engine(image_processor, cache, fingerprint, join, memo, fetch)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped processor's answer to the same call."""
        return self._engine.run("__call__", args, kwargs)

    def preprocess(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped processor's ``preprocess``, cached like a call."""
        return self._engine.run("preprocess", args, kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Images for URLs, URIs, paths and bytes, of the kind that the wrapped one fetches.

        Those from known sources are opened when their pixels are first touched.
        """
        return self._engine.fetch(image_url_or_urls)

    def lookup(self, images: Any, **kwargs: Any) -> list[Pixels | None]:
        """The cached results of ``images`` under these arguments, None where there is none.

        Identity and look-up only: nothing is decoded, fetched or processed.
        """
        return self._engine.lookup(images, kwargs)

    def stats(self) -> ProcessorStats:
        """What was served from the cache since the processor was wrapped, and what was not."""
        return self._engine.stats()

    @property
    def wrapped(self) -> Any:
        """The processor that does the work."""
        return self._engine.wrapped

    @property
    def cache(self) -> PixelCache:
        return self._engine.cache

    # What ImageProcessingMixin defines itself would otherwise hide the wrapped processor's.

    @property
    def _auto_class(self) -> str | None:  # type: ignore[override]
        return getattr(self._engine.wrapped, "_auto_class", None)

    def to_dict(self) -> dict[str, Any]:
        return self._engine.wrapped.to_dict()  # type: ignore[no-any-return]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine.wrapped.save_pretrained(*args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine.wrapped.push_to_hub(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if "_engine" not in self.__dict__:  # being copied or unpickled
            raise AttributeError(name)
        return getattr(self._engine.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("cache", "wrapped"):
            raise AttributeError(f"{name} is fixed; wrap the processor anew")
        setattr(self._engine.wrapped, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._engine.wrapped, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._engine.wrapped)})

    def __repr__(self) -> str:
        return f"CachedProcessor({self._engine.wrapped!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedProcessor:
        """The wrapped processor is copied, the cache is shared."""
        engine = self._engine
        wrapped = copy.deepcopy(engine.wrapped, memo)
        return CachedProcessor(wrapped, engine.cache, **engine.options)

    def __copy__(self) -> CachedProcessor:
        engine = self._engine
        return CachedProcessor(copy.copy(engine.wrapped), engine.cache, **engine.options)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a CachedProcessor holds this process's cache; pickle its .wrapped")
