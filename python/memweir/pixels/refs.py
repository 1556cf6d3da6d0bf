"""References: typed handles that name pixels by content and leave the bytes where they are."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np

from memweir._core import Descriptor, Digest
from memweir.identity import hash_value
from memweir.pixels._dtypes import dtype_of
from memweir.pixels.joiners import HOWS, place
from memweir.pixels.walk import is_label

if TYPE_CHECKING:
    from torch import Tensor

    from memweir._core import Pixels

__all__ = ["JoinedRef", "PixelRef", "RefRecipe"]

ALONE: Final = "alone"
_JSON: Final = "memweir"


class RefRecipe(NamedTuple):
    """What a reference knows of how its array was made.

    ``key`` is the cache key and ``fingerprint`` names the processor with its arguments. The image
    is named once: by ``source``, the digest of its encoded form, or where pixels were passed by
    ``image``. ``origin`` is the source itself, or where it is, when it was let travel.
    ``arguments`` are the call's keyword arguments, ``None`` when they could not be written down.
    """

    key: Digest
    fingerprint: Digest
    image: Digest | None
    source: Digest | None
    origin: str | bytes | None
    arguments: dict[str, Any] | None

    def __repr__(self) -> str:
        names = {"source": self.source, "image": self.image}
        shown = [f"{name}={digest.hex()[:12]}…" for name, digest in names.items() if digest]
        kept = "with its origin" if self.origin is not None else "without origin"
        return f"RefRecipe({', '.join([*shown, kept])})"


class PixelRef:
    """Names one array by its content; ``np.asarray`` and ``torch()`` bring it back, verified.

    Made by ``strip``. Immutable, equal and hashed by content, always true, and free to copy. It
    pickles and JSON-encodes without pixels, in at most 256 bytes unless asked for more. Without
    a recipe it keeps its cache entry from being evicted while it lives in this process.
    """

    __slots__ = ("__weakref__", "_descriptor", "_pin")

    def __init__(self, descriptor: Descriptor, pin: Pixels | None = None) -> None:
        self._descriptor = descriptor
        self._pin = pin

    @property
    def name(self) -> str:
        """What the array is called where it came from."""
        return self._descriptor.name

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type; ``bfloat16`` and its like need ``ml_dtypes``."""
        return numpy_dtype(self._descriptor)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self._descriptor.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self._descriptor.nbytes

    @property
    def tensor(self) -> bool:
        """Whether ``materialize`` gives a torch tensor instead of an array."""
        return self._descriptor.torch

    @property
    def digest(self) -> Digest:
        """Identity of the content: ``hash_array`` of the array."""
        return Digest(self._descriptor.digest)

    @property
    def recipe(self) -> RefRecipe | None:
        """How to make the array again, or ``None``: then the cache entry is pinned."""
        d = self._descriptor
        if d.key is None or d.fingerprint is None:
            return None
        return RefRecipe(
            key=Digest(d.key),
            fingerprint=Digest(d.fingerprint),
            image=None if d.image is None else Digest(d.image),
            source=None if d.source is None else Digest(d.source),
            origin=d.origin,
            arguments={} if d.arguments is None else _arguments(d.arguments),
        )

    @property
    def how(self) -> str:
        """How the :attr:`parts` lie in the array: there is one, alone."""
        return ALONE

    @property
    def parts(self) -> tuple[PixelRef, ...]:
        """One reference for each image: itself."""
        return (self,)

    @property
    def descriptor(self) -> Descriptor:
        """The record that travels."""
        return self._descriptor

    @property
    def pinned(self) -> Pixels | None:
        """The cache entry that this reference keeps, or ``None``."""
        return self._pin

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> np.ndarray[Any, Any]:
        """The array, verified; a read-only view of the cache where ``copy`` allows one.

        Raises ``MissingPixels`` or ``PixelMismatch``.
        """
        from memweir.pixels.resolve import restore_array

        array = restore_array(self, writable=bool(copy))
        if dtype is None or array.dtype == dtype:
            return array
        if copy is False:
            raise ValueError(f"{array.dtype} cannot become {dtype} without a copy")
        return array.astype(dtype)

    def __dlpack__(self, **kwargs: Any) -> Any:
        """The array for ``torch.as_tensor`` and ``from_dlpack``: a copy of its own, verified.

        Raises ``MissingPixels`` or ``PixelMismatch``.
        """
        from memweir.pixels.resolve import restore_array

        array = self.torch() if self.tensor else restore_array(self, writable=True)
        return array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU

    def torch(self) -> Tensor:
        """The array as a CPU tensor that owns its memory, verified.

        Raises ``MissingPixels`` or ``PixelMismatch``.
        """
        from memweir.pixels.resolve import restore_tensor

        return restore_tensor(self)

    def to_json(self) -> dict[str, Any]:
        """A small object of plain JSON types, without pixels; :meth:`from_json` reads it."""
        return {_JSON: _to_text(self._descriptor)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | str) -> PixelRef:
        """The reference that :meth:`to_json` wrote, as the object or as its text.

        Raises ``ValueError`` for anything else.
        """
        record = json.loads(value) if isinstance(value, str) else value
        if not isinstance(record, Mapping) or _JSON not in record:
            raise ValueError(f"malformed reference: no object with {_JSON!r}")
        rest = {key: value for key, value in record.items() if key != _JSON}
        texts = record[_JSON]
        if not isinstance(texts, list | tuple):
            ref = PixelRef(_from_text(texts))
        else:
            ref = JoinedRef(rest.pop("join", ""), [PixelRef(_from_text(text)) for text in texts])
        if rest:
            raise ValueError(f"malformed reference: {len(rest)} unknown members")
        return ref

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a reference to a 0-d array")
        return self.shape[0]

    def __bool__(self) -> bool:
        """Always true: a reference is never "no image", not even when its array is empty."""
        return True

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PixelRef):
            return self._descriptor.digest == other._descriptor.digest
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._descriptor.digest)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (ALONE, self._descriptor.encode())

    def __repr__(self) -> str:
        """Decodes nothing, and shows nothing of the source."""
        return f"{type(self).__name__}({self._shown()}, {self._descriptor.digest.hex()[:12]}…)"

    def _shown(self) -> str:
        name = self.name if is_label(self.name) else "array"
        return f"{name!r}, {dtype_name(self._descriptor)}, {self.shape}"


class JoinedRef(PixelRef):
    """Names an array that a processor joined from several images: a reference for each, and how.

    ``how`` is one of :data:`memweir.pixels.joiners.HOWS`. Each part is verified by its own digest;
    the ``digest`` of the whole names theirs and is not its ``hash_array``.
    """

    __slots__ = ("_how", "_parts")

    def __init__(self, how: str, parts: Sequence[PixelRef]) -> None:
        super().__init__(_joined(how, parts))
        self._how = how
        self._parts = tuple(parts)

    @property
    def recipe(self) -> None:
        """``None``: each of the :attr:`parts` has its own."""
        return

    @property
    def how(self) -> str:
        """How the parts lie in the whole."""
        return self._how

    @property
    def parts(self) -> tuple[PixelRef, ...]:
        """One reference for each image, in order."""
        return self._parts

    def to_json(self) -> dict[str, Any]:
        """See :meth:`PixelRef.to_json`."""
        return {_JSON: [_to_text(part.descriptor) for part in self._parts], "join": self._how}

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self._how, *[part.descriptor.encode() for part in self._parts])

    def _shown(self) -> str:
        return f"{super()._shown()}, {len(self._parts)} images"


def numpy_dtype(descriptor: Descriptor) -> np.dtype[Any]:
    """The numpy type that a record names. Raises ``ValueError`` when there is none."""
    token = descriptor.dtype
    try:
        dtype = dtype_of(token, descriptor.itemsize)
    except Exception as error:  # numpy's own parser, fed with anything
        raise ValueError(f"malformed reference: no element type {token[:80]!r}") from error
    plain = token.isidentifier() or token.startswith("[") or dtype.str == token
    if not plain or dtype.hasobject or dtype.itemsize != descriptor.itemsize:
        raise ValueError(f"malformed reference: element type {token[:80]!r}")
    return dtype


def dtype_name(descriptor: Descriptor) -> str:
    """The element type for people; never raises."""
    if descriptor.dtype.isidentifier():
        return descriptor.dtype
    try:
        return numpy_dtype(descriptor).name
    except ValueError:
        return "unknown type"


def _joined(how: str, parts: Sequence[PixelRef]) -> Descriptor:
    """The record of the whole. Raises ``ValueError`` when ``parts`` do not make one."""
    if how not in HOWS or how == ALONE or any(isinstance(part, JoinedRef) for part in parts):
        raise ValueError("malformed reference: no known way to join its parts")
    alike = {(p.name, p.tensor, p.descriptor.dtype, p.descriptor.itemsize) for p in parts}
    if len(alike) != 1:
        raise ValueError("malformed reference: no parts, or parts of different names or types")
    name, torch, dtype, itemsize = alike.pop()
    digest = hash_value([how, *[part.digest for part in parts]])
    try:
        shape, _ = place(how, [part.shape for part in parts])
        return Descriptor(name, dtype, itemsize, shape, bytes(digest), torch=torch)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"malformed reference: {error}") from error


def _arguments(text: str) -> dict[str, Any] | None:
    arguments = json.loads(text)
    if arguments is None or isinstance(arguments, dict):
        return arguments
    raise ValueError("malformed reference: arguments that are no object")


def _to_text(descriptor: Descriptor) -> str:
    # Base 85 keeps the text of a usual record under 256 bytes too, and needs no escapes in JSON.
    return base64.b85encode(descriptor.encode()).decode()


def _from_text(text: object) -> Descriptor:
    if not isinstance(text, str):
        raise ValueError(f"malformed reference: {type(text).__name__} where text was expected")
    try:
        record = base64.b85decode(text)
    except ValueError as error:
        raise ValueError("malformed reference: not base 85") from error
    descriptor = Descriptor.decode(record)
    if _to_text(descriptor) != text:
        raise ValueError("malformed reference: not the only way to write it")
    return descriptor


def _unpickle(how: str, *records: bytes) -> PixelRef:
    parts = [PixelRef(Descriptor.decode(record)) for record in records]
    return parts[0] if how == ALONE and len(parts) == 1 else JoinedRef(how, parts)
