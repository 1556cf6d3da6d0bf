"""Which image a caller means, and whether it is known, without decoding it.

Encoded sources (data URIs, base64, bytes, files) are identified by the digest of what is
encoded; a bounded memo maps that to the identity of the pixels. Only the wrapped processor's
own ``fetch_images`` ever decodes one: other decoders shift pixels.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFile

from memweir._core import Digest
from memweir.errors import UnsupportedType
from memweir.identity import hash_array, hash_bytes, hash_image
from memweir.pixels.lazy import resolve, seen_behind
from memweir.pixels.source_id import Files, Memo, path_of, signature_of

# Modes whose arrays are uint8.
_BYTE_MODES = frozenset(
    ("L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")
)


class Unidentified(UnsupportedType):
    """An input with no identity here; the message says what it is."""


class Unloadable(Exception):
    """A PIL image whose pixels do not load, for the reason given as ``error``."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{type(error).__name__} in loading")
        self.error = error


class SourceChanged(Exception):
    """A source gave other pixels than the ones it is known for."""


@dataclass(frozen=True, slots=True)
class PixelId:
    """Identity of an image as a processor takes it.

    ``kind`` is "pil", "array" or "tensor"; ``layout`` is (mode, size) of a PIL image and the
    shape of the others; ``depth`` the type of a pixel.
    """

    kind: str
    digest: Digest
    layout: tuple[Any, ...]
    depth: str

    @staticmethod
    def of(image: Any) -> PixelId:
        """Identity of a decoded image.

        Raises ``UnsupportedType`` for what is no PIL image, array of two or three dimensions or
        CPU tensor, and whatever loading a PIL image raises.
        """
        try:
            return identify_pixels(image)
        except Unloadable as broken:
            raise broken.error from None

    @property
    def mode(self) -> str | None:
        """Pillow's name of a PIL image's mode; None for arrays and tensors."""
        return self.layout[0] if self.kind == "pil" else None

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of a PIL image; None for arrays and tensors."""
        return self.layout[1] if self.kind == "pil" else None

    @property
    def mixes(self) -> tuple[int, str]:
        """What images of one call must have in common to be processed independently.

        torchvision stacks images of one shape, which would promote types, and only the first
        image tells a batch of images from one.
        """
        return 3 if self.kind == "pil" else len(self.layout), self.depth


@dataclass(frozen=True, slots=True)
class Source:
    """An encoded image: the caller's own object and the digest of what is encoded.

    ``text`` tells a URI or base64 from raw bytes and files: equal content means another image.
    """

    origin: str | bytes
    digest: Digest | None
    text: bool = False

    def fetchable(self) -> str:
        """What ``fetch_images`` takes for it."""
        if isinstance(self.origin, bytes):
            return "data:image/;base64," + base64.b64encode(self.origin).decode("ascii")
        return self.origin


class Seen:
    """One input of a call: its identity, where it came from, and the way to its pixels."""

    __slots__ = ("_image", "_sources", "id", "private", "source")

    def __init__(
        self, sources: Sources, pixel_id: PixelId, source: Source | None, image: Any, private: bool
    ) -> None:
        self._sources = sources
        self.id = pixel_id
        self.source = source
        self._image = image
        self.private = private  # nobody else holds the image: it cannot change under us

    def image(self) -> Any:
        """The image, decoded now if it was not. Raises what decoding raises."""
        if self._image is not None:
            return self._image
        assert self.source is not None
        image = self._sources.fetch(self.source.fetchable())
        if identify_pixels(image) != self.id:
            raise SourceChanged("a source was replaced while its image was in use")
        self._image = image
        return image


class SourceMemo:
    """What pixels the last ``limit`` sources decoded to, at about 0.5 KiB each.

    An answer holds under Pillow's switches of the moment: after ``LOAD_TRUNCATED_IMAGES`` was
    turned or ``MAX_IMAGE_PIXELS`` lowered, decoding decides anew. Threads may share a memo.
    """

    __slots__ = ("_known",)

    def __init__(self, limit: int = 16_384) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self._known = Memo(limit)

    def get(self, source: Digest, *, text: bool = False) -> PixelId | None:
        """The pixels of a source, or None; ``text`` as it was put."""
        pixel_id: PixelId | None = self._known.get(_switched(source, text))
        return None if pixel_id is None or _bomb(pixel_id) else pixel_id

    def put(self, source: Digest, pixels: PixelId, *, text: bool = False) -> None:
        """Notes what ``source`` decodes to. A digest does not tell ``text`` from its bytes."""
        self._known.put(_switched(source, text), pixels)

    def __len__(self) -> int:
        return len(self._known)


class Sources:
    """Identifies the inputs of one processor. ``fetch`` is its own ``fetch_images``."""

    def __init__(self, fetch: Callable[[str], Any], limit: int) -> None:
        self.fetch = fetch
        self._pixels = SourceMemo(limit)
        self._files = Files(limit)

    def see(self, item: object, *, known: bool = False) -> Seen | None:
        """Identify ``item``, decoding it if need be; with ``known=True`` rather return None.

        Raises ``Unidentified`` for what only the processor can judge, and whatever reading or
        decoding the item raises.
        """
        if isinstance(item, str):
            if item.startswith(("http://", "https://")):
                if known:
                    return None
                image = self.fetch(item)  # the content behind a URL may change: never by URL
                return Seen(self, identify_pixels(image), Source(item, None), image, True)
            path = path_of(item)
            return self._encoded(item, known) if path is None else self._file(path, known)
        if isinstance(item, bytes):
            return self._encoded(item, known)
        if isinstance(item, os.PathLike):
            return self._file(os.fspath(item), known)
        seen, touched = seen_behind(item)
        if seen is not None and not touched:
            return seen
        image = resolve(item)
        pixel_id = identify_pixels(image)
        unchanged = seen is not None and seen.id == pixel_id
        return Seen(self, pixel_id, seen.source if seen and unchanged else None, image, False)

    def _encoded(self, origin: str | bytes, known: bool) -> Seen | None:
        source = Source(origin, hash_bytes(origin), text=isinstance(origin, str))
        return self._remembered(source) or (None if known else self._decoded(source))

    def _file(self, path: str, known: bool) -> Seen | None:
        digest, signature = self._files.digest(path)
        source = Source(path, digest)
        seen = self._remembered(source)
        if seen is not None or known:
            return seen
        return self._decoded(source, lambda: signature_of(path) == signature)

    def _remembered(self, source: Source) -> Seen | None:
        assert source.digest is not None
        pixel_id = self._pixels.get(source.digest, text=source.text)
        return None if pixel_id is None else Seen(self, pixel_id, source, None, True)

    def _decoded(self, source: Source, still: Callable[[], bool] = lambda: True) -> Seen:
        image = self.fetch(source.fetchable())
        pixel_id = identify_pixels(image)
        assert source.digest is not None
        if still():
            self._pixels.put(source.digest, pixel_id, text=source.text)
        else:  # decoded from something else than was hashed
            source = Source(source.origin, None)
        return Seen(self, pixel_id, source, image, True)


def identify_pixels(image: Any) -> PixelId:
    """Identity of an image that is already decoded. Raises ``Unidentified``.

    Only the plainest inputs have one: what a back end might refuse or read differently
    (negative strides, gradients, subclasses with a mind of their own) is for it to judge.
    ``Unloadable`` where a PIL image fails to load.
    """
    kind = type(image)
    if kind is np.ndarray:
        if image.ndim not in (2, 3) or image.dtype == object or min(image.strides) < 0:
            raise Unidentified(f"array of {image.dtype}, {image.ndim} dimensions")
        return PixelId("array", hash_array(image), image.shape, image.dtype.name)
    if isinstance(image, PIL.Image.Image) and kind.__module__.startswith(("PIL.", "memweir.")):
        try:
            image.load()
        except Exception as error:
            raise Unloadable(error) from error
        depth = "uint8" if image.mode in _BYTE_MODES else image.mode
        return PixelId("pil", hash_image(image), (image.mode, image.size), depth)
    if kind.__module__ == "torch" and kind.__name__ == "Tensor":
        if image.ndim not in (2, 3) or image.device.type != "cpu" or image.requires_grad:
            raise Unidentified(f"tensor on {image.device}, {image.ndim} dimensions")
        depth = str(image.dtype).removeprefix("torch.")
        return PixelId("tensor", hash_array(image), tuple(image.shape), depth)
    raise Unidentified(f"image of type {kind.__module__}.{kind.__qualname__}")


def _switched(source: Digest, text: bool) -> tuple[Digest, bool, bool]:
    return source, text, PIL.ImageFile.LOAD_TRUNCATED_IMAGES


def _bomb(pixel_id: PixelId) -> bool:
    """Whether Pillow would object to the size, by today's limit: opening decides then."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is None or pixel_id.kind != "pil":
        return False
    width, height = pixel_id.layout[1]
    return bool(width * height > limit)
