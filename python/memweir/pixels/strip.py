"""Big arrays out of nested data, references in their place."""

from __future__ import annotations

import sys
from collections.abc import Collection
from datetime import date, time, timedelta, tzinfo
from enum import Enum
from numbers import Number
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

import numpy as np

from memweir._core import Digest
from memweir.errors import UnsupportedType
from memweir.pixels.live import stored
from memweir.pixels.provenance import is_tensor, reference_by_recipe
from memweir.pixels.records import Layout, SourcePolicy, record
from memweir.pixels.refs import PixelRef
from memweir.pixels.resolve import CONTENT
from memweir.pixels.walk import PLAIN, Trail, is_label, rebuild
from memweir.sizes import format_size, parse_size

if TYPE_CHECKING:
    from memweir.pixels.cache import PixelCache

__all__ = ["Left", "Stripped", "strip"]


class Left(NamedTuple):
    """Something that :func:`strip` left where it was.

    ``path`` leads to it, ``type`` is its type's name, ``nbytes`` its size where it has one, and
    ``why`` it was left.
    """

    path: str
    type: str
    nbytes: int | None
    why: str


class Stripped(NamedTuple):
    """What :func:`strip` returns.

    ``data`` is the structure without its big arrays, ``refs`` every reference in it, once and in
    order. ``bytes_removed`` are those of the arrays taken out, and ``left`` is what stayed in
    place though it may hold pixels.
    """

    data: Any
    refs: tuple[PixelRef, ...]
    bytes_removed: int
    left: tuple[Left, ...]

    def __repr__(self) -> str:
        """Counts alone: the data may hold anything."""
        size = format_size(self.bytes_removed)
        return f"Stripped({len(self.refs)} refs, {size} removed, {len(self.left)} left)"


def strip(
    data: object,
    cache: PixelCache,
    *,
    threshold: int | str = "16 KiB",
    keys: Collection[str] | str | None = None,
    sources: SourcePolicy = "small",
) -> Stripped:
    """``data`` with a :class:`~memweir.PixelRef` in place of every big array.

    Arrays and CPU tensors of at least ``threshold`` bytes are replaced; with ``keys``, only those
    whose nearest mapping key or attribute is one of them. Smaller ones are copied, so that they
    keep no big buffer alive. ``data`` itself stays as it is; what holds no array is shared with
    it. Subclasses of arrays and tensors, object arrays, tensors that require a gradient or live
    on a device, and objects of unknown types stay in place and are listed.

    An array of a ``CachedProcessor`` becomes a reference with a recipe when its bytes are still
    the processor's. Any other is copied into ``cache`` and pinned there while its reference lives
    in this process; when it does not fit it stays in place and is listed.

    ``sources`` says which origins travel inside references: ``"small"``, paths and URIs without
    credentials that fit into 256 bytes with the rest; ``"never"``; or ``"all"``, data URIs and
    encoded bytes included. Digests of sources always do.

    Raises ``ValueError`` when a container holds itself.
    """
    if sources not in get_args(SourcePolicy):
        raise ValueError(f'sources is "small", "never" or "all", not {sources!r}')
    wanted = [keys] if isinstance(keys, str) else keys
    work = _Strip(cache, parse_size(threshold), wanted, sources)
    stripped = rebuild(data, work.leaf, named=wanted is not None)
    return Stripped(stripped, tuple(work.refs.values()), work.removed, tuple(work.left))


class _Strip:
    """One call of :func:`strip`."""

    def __init__(
        self,
        cache: PixelCache,
        threshold: int,
        keys: Collection[str] | None,
        sources: SourcePolicy,
    ) -> None:
        self._cache = cache
        self._threshold = threshold
        self._keys = None if keys is None else frozenset(keys)
        self._sources = sources
        # By the id of what they stand for, which the caller's data keeps alive.
        self.refs: dict[int, PixelRef] = {}
        self.removed = 0
        self.left: list[Left] = []

    def leaf(self, value: Any, trail: Trail) -> object:
        if isinstance(value, PixelRef):
            return self.refs.setdefault(id(value), value)
        why = _unfit(value)
        if why is not None:
            return self._leave(value, trail, why)
        return self._array(value, trail) if _is_array(value) else value

    def _array(self, array: Any, trail: Trail) -> object:
        if array.nbytes < self._threshold:
            return array.clone() if is_tensor(array) else array.copy(order="K")
        if self._keys is not None and trail.name not in self._keys:
            return array
        return self.refs.get(id(array)) or self._replace(array, trail)

    def _replace(self, array: Any, trail: Trail) -> object:
        try:
            ref = reference_by_recipe(array, self._sources) or self._pinned(array, trail.name)
        except UnsupportedType as error:
            return self._leave(array, trail, str(error))
        if ref is None:
            return self._leave(array, trail, "does not fit into the cache")
        self.refs[id(array)] = ref
        self.removed += array.nbytes
        return ref

    def _pinned(self, array: Any, name: str | None) -> PixelRef | None:
        """A reference to a copy that stays in the cache while the reference lives."""
        digest, pixels = self._cache.put_array(array)
        if pixels is None:
            pixels = next(stored(digest), None)  # another cache may have it
        if pixels is None:
            return None
        spec = pixels.spec[CONTENT]
        label = name if name is not None and is_label(name) else CONTENT
        layout = Layout(spec.dtype, array.itemsize, spec.shape)
        return PixelRef(record(label, layout, digest, torch=is_tensor(array)), pixels)

    def _leave(self, value: Any, trail: Trail, why: str) -> object:
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        self.left.append(Left(str(trail), name, _size(value), why))
        return value


_HARMLESS: Final = (
    *(Number, str, bytes, Enum, date, time, timedelta, tzinfo, PurePath, range, slice, type),
    *(np.generic, np.dtype, Digest),
)


def _unfit(value: Any) -> str | None:
    """Why a leaf can neither be stripped nor passed over in silence; ``None`` when it can."""
    if isinstance(value, np.ndarray):
        if type(value) is not np.ndarray:
            return "a subclass of ndarray"
        return "holds Python objects" if value.dtype.hasobject else None
    if is_tensor(value):
        return _unfit_tensor(value)
    members = value if isinstance(value, set | frozenset) else [value]
    harmless = all(type(item) in PLAIN or isinstance(item, _HARMLESS) for item in members)
    return None if harmless else "an unknown type"


def _unfit_tensor(value: Any) -> str | None:
    if not _is_array(value):
        return "a subclass of Tensor"
    if value.device.type != "cpu":
        return f"on {value.device}"
    if str(value.layout) != "torch.strided" or value.is_quantized:
        return "not plain strided memory"
    return "requires a gradient" if value.requires_grad else None


def _is_array(value: object) -> bool:
    """Whether it is an array or tensor of the very class, with nothing added to it."""
    torch = sys.modules.get("torch")
    return type(value) is np.ndarray or (torch is not None and type(value) is torch.Tensor)


def _size(value: Any) -> int | None:
    """Bytes of a value, for types whose answer is no computation of their own."""
    if isinstance(value, np.ndarray | memoryview):
        return value.nbytes
    if isinstance(value, bytearray):
        return len(value)
    strided = _is_array(value) and str(value.layout) == "torch.strided"
    return int(value.nbytes) if strided else None
