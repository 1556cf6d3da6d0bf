"""The compiled part of memweir."""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any, Self, TypeAlias, final

import numpy as np
from typing_extensions import Buffer, disjoint_base

from .pixels.cache import Spec

__version__: str

_Part: TypeAlias = Digest | bytes | str
_Key: TypeAlias = _Part | tuple[_Part, ...]
_Array: TypeAlias = np.ndarray[Any, Any]

@disjoint_base
class Cache:
    """The compiled part of :class:`memweir.PixelCache`."""

    def __new__(cls, budget: int) -> Self: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: _Key, /) -> bool: ...
    @property
    def budget(self) -> int:
        """Bytes that may be owned."""

    def get(self, key: _Key) -> Pixels | None:
        """The entry of a key, kept in memory while the handle lives; decodes nothing."""

    def put(self, key: _Key, arrays: Any) -> bool:
        """Stores an array, or a mapping of names to arrays, copied.

        ``False``: it did not fit, nothing is kept under ``key``, and it is counted. Nothing is
        evicted for what then does not fit.

        Raises ``UnsupportedType`` for what is no array or holds Python objects, ``TypeError`` for
        other kinds of key or name, ``ValueError`` for an empty mapping.
        """

    def put_array(self, array: Any) -> tuple[Digest, Pixels | None]:
        """Stores an array under its own digest, copied and hashed in one pass.

        Returns ``hash_array(array)`` of the bytes that were stored and a handle on them; ``None``
        when they did not fit. An array that is there already is not stored twice.
        """

    def remove(self, key: _Key) -> bool:
        """Removes an entry; what is in use goes with its last user. Whether there was one."""

    def _peek(self, key: _Key) -> Pixels | None: ...
    def _key(self, key: _Key) -> bytes: ...
    def _serve(
        self,
        key: _Key,
        arrays: Any,
        generation: int | None,
        reservation: Reservation | None = None,
    ) -> Pixels: ...
    def _reserve(self, nbytes: int) -> Reservation | None: ...
    @property
    def _generation(self) -> int: ...
    def _evict(self, to: int) -> int: ...
    def _resize(self, budget: int) -> int: ...
    def _clear(self) -> int: ...
    def _stats(self) -> dict[str, int]: ...

@final
class Reservation:
    """Bytes put aside for a load in flight."""

    def release(self) -> None:
        """Gives the bytes back, if they were not used."""

@final
class Pixels(Mapping[str, _Array]):
    """An entry of a cache: arrays by name, kept in memory while this handle lives.

    ``px[name]`` is a read-only array. One of more than 4 KiB keeps the whole entry in memory
    while it, or any slice of it, lives; smaller ones are copies that keep nothing.
    """

    def __getitem__(self, name: str, /) -> _Array: ...
    def __len__(self) -> int: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def keys(self) -> KeysView[str]: ...
    def values(self) -> ValuesView[_Array]: ...
    def items(self) -> ItemsView[str, _Array]: ...
    @property
    def spec(self) -> dict[str, Spec]:
        """Dtype token, shape and bytes of every array; decodes nothing."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, decoded."""

    @property
    def kept(self) -> bool:
        """Whether these bytes are in the cache's budget, or did not fit and are only lent."""

    def view(self, name: str) -> View:
        """An array as a read-only buffer."""

    def decode(self) -> dict[str, _Array]:
        """All arrays by name, as ``px[name]`` gives them."""

    def copy_into(self, name: str, out: Any) -> None:
        """Writes an array into ``out``: a writable numpy array, torch tensor on the CPU or buffer.

        Same dtype (``TypeError``) and shape (``ValueError``), any strides: a row of a batch, a
        transposed view. Off the GIL.
        """

    def digest(self, name: str) -> Digest:
        """``hash_array(px[name])``, from private memory and off the GIL; computed anew each time."""

    def _layouts(self) -> dict[str, tuple[str, int, tuple[int, ...], int]]: ...

@final
class View(Buffer):
    """One array of an entry as a read-only buffer.

    Dtypes that the buffer protocol has no letter for are exported as flat bytes.
    """

    @property
    def nbytes(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Descriptor:
    """What a reference says of one array; ``docs/refs.md`` gives the bytes.

    Digests are their 32 bytes. ``dtype`` is numpy's token, ``origin`` a path or URI or the encoded
    image, ``arguments`` JSON text that is not read here.

    Raises ``ValueError`` for digests of other lengths and arrays larger than the address space.
    """

    def __new__(
        cls,
        name: str,
        dtype: str,
        itemsize: int,
        shape: Sequence[int],
        digest: bytes,
        *,
        torch: bool = False,
        key: bytes | None = None,
        fingerprint: bytes | None = None,
        image: bytes | None = None,
        source: bytes | None = None,
        origin: str | bytes | None = None,
        arguments: str | None = None,
    ) -> Self: ...
    @staticmethod
    def decode(record: bytes) -> Descriptor:
        """Reads a record. Raises ``ValueError`` for anything that :meth:`encode` never gives."""

    def encode(self) -> bytes:
        """The record: the same bytes for the same values."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def torch(self) -> bool: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def fingerprint(self) -> bytes | None: ...
    @property
    def image(self) -> bytes | None: ...
    @property
    def source(self) -> bytes | None: ...
    @property
    def origin(self) -> str | bytes | None: ...
    @property
    def arguments(self) -> str | None: ...

def _before_fork() -> None: ...
def _after_fork_in_parent() -> None: ...
def _after_fork_in_child() -> None: ...
