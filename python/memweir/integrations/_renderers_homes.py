"""One cache for each image processor of this process, whoever renders with it.

Renderers come and go, in pools and beside them; a processor is told by its fingerprint. What it
made lives here for as long as a renderer or a reference is left that needs it.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import PIL.Image
import PIL.ImageFile

from memweir._core import Digest
from memweir._flight import Flights
from memweir.integrations._renderers_items import ImageRef
from memweir.pixels.cache import PixelCache
from memweir.pixels.engine import Engine
from memweir.pixels.processor import CachedProcessor
from memweir.pixels.recompute import Recompute
from memweir.pixels.resolve import resolvers
from memweir.pixels.source_id import Memo
from memweir.pixels.source_refs import SourceRef, find_source
from memweir.sizes import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from PIL.Image import Image

    from memweir._core import Descriptor
    from memweir.pixels.refs import PixelRef

__all__ = ["Compact", "Home", "Known", "home_of"]

Compact = Literal["auto", "off"]

_KNOWN: Final = 32_768  # two for each image, which has about 1.5 KiB


class Known(NamedTuple):
    """What is remembered of an image beside its pixels, whether or not they are still cached.

    ``source`` is the digest of the encoded source that ``big`` names, ``None`` where there was
    none. An image that comes from several sources is known once for each.
    """

    big: dict[str, Descriptor]
    small: dict[str, np.ndarray[Any, Any]]
    tokens: int
    upstream_hash: str | None
    source: Digest | None


class Home:
    """A processor with the cache of its answers, and what is known of the images it has seen."""

    def __init__(
        self, fingerprint: Digest, processor: CachedProcessor, opens: Callable[[Any], Image]
    ) -> None:
        self.fingerprint = fingerprint
        self.processor = processor
        self.cache = processor.cache
        self.known = Memo(_KNOWN)
        self.flights = Flights()
        self.arrays: weakref.WeakValueDictionary[tuple[Digest, str], Any] = (
            weakref.WeakValueDictionary()
        )
        self._recent: weakref.WeakValueDictionary[int, ImageRef] = weakref.WeakValueDictionary()
        self._switches: tuple[object, ...] = ()
        self._opens = opens
        self._asked: int | None = None

    @property
    def engine(self) -> Engine:
        return self.processor._engine

    def adopt(self, processor: Any, code: str | None) -> None:
        """Goes on with another processor of the same fingerprint."""
        self.processor = CachedProcessor(processor, self.cache, fingerprint=code, fetch=self._opens)

    def ask(self, budget: int | None) -> None:
        """Notes a budget that somebody asks for: the largest is to hold."""
        if budget is not None:
            self._asked = max(budget, self._asked or 0)

    def settle(self) -> None:
        """Gives the cache the largest budget that was asked for."""
        while self._asked is not None and self.cache.stats().budget != self._asked:
            self.cache.resize(self._asked)

    def reference(self, descriptor: Descriptor, source: object) -> ImageRef:
        """A reference to an image of this home that is made from ``source``."""
        ref = ImageRef(descriptor, source, self)
        if _immutable(source):
            self._recent.setdefault(id(source), ref)
        return ref

    def recent(self, source: object) -> tuple[Digest, Digest | None] | None:
        """Key and digest of a source that a living reference was made from: that needs no hash.

        While the reference lives so does its source, and nothing else has its id.
        """
        switches = PIL.ImageFile.LOAD_TRUNCATED_IMAGES, PIL.Image.MAX_IMAGE_PIXELS
        if switches != self._switches:  # by which an image may not be opened any more
            self._switches = switches
            self._recent.clear()
        ref = self._recent.get(id(source))
        if ref is None or ref.source is not source:
            return None
        key, named = ref.descriptor.key, ref.descriptor.source
        return None if key is None else (Digest(key), None if named is None else Digest(named))

    def restore(self, ref: PixelRef) -> Any:
        """The arrays of ``ref`` made again, ``None`` when its source is nowhere to be found."""
        source = ref.source if isinstance(ref, ImageRef) else find_source(ref)
        if isinstance(source, SourceRef):
            source = source.load()
        elif isinstance(source, str):
            elsewhere = source.startswith(("data:", "http:", "https:"))
            if not elsewhere and not os.path.isfile(source):  # noqa: PTH113
                return None
        elif not isinstance(source, bytes | None):
            source = self._opens(source)
        return Recompute(self.processor, lambda _: source)(ref)


def _immutable(source: object) -> bool:
    """Whether a source is its content, which a path or URL is not."""
    return type(source) is bytes or (type(source) is str and source.startswith("data:"))


_homes: Final[weakref.WeakValueDictionary[Digest, Home]] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def home_of(
    fingerprint: Digest,
    processor: Any,
    opens: Callable[[Any], Image],
    *,
    budget: int | str | None,
    compact: Compact | None,
    code: str | None,
) -> Home:
    """The home of the processor with this fingerprint, opened now if there is none.

    Of several budgets the largest holds, and that of ``Settings`` where none is given. ``compact``
    cannot be changed any more, and another one than it is, is a ``ValueError``.
    """
    asked = None if budget is None else parse_size(budget)
    with _lock:
        home = _homes.get(fingerprint)
        if home is None:
            cache = PixelCache(asked, name="renderers", compact=compact or "auto")
            cached = CachedProcessor(processor, cache, fingerprint=code, fetch=opens)
            home = Home(fingerprint, cached, opens)
            _homes[fingerprint] = home
        home.ask(asked)
    home.settle()
    if compact is not None and compact != home.cache.compact:
        raise ValueError(
            f"compact={compact!r}, but the images of this processor are cached with "
            f"compact={home.cache.compact!r} in this process already: give all of its renderers "
            f"the same (their cache has {format_size(home.cache.stats().budget)})"
        )
    return home


def _restore(ref: PixelRef) -> Any:
    """Makes the pixels of any reference whose processor this process has a renderer for."""
    home = ref.home if isinstance(ref, ImageRef) else None
    if home is None and ref.recipe is not None:
        home = _homes.get(ref.recipe.fingerprint)
    return None if home is None else home.restore(ref)  # type: ignore[attr-defined]


def _after_fork() -> None:
    global _lock  # noqa: PLW0603  a thread that is not here may have held it
    _lock = threading.Lock()


resolvers(_restore)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
