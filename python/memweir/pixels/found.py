"""Pixels that may be the ones a reference names, and the memory they are brought back into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from memweir._core import Digest
from memweir.errors import PixelMismatch
from memweir.identity import hash_array
from memweir.pixels.refs import dtype_name, numpy_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from memweir._core import Descriptor, Pixels

__all__ = ["Entry", "Loose", "blank_array", "blank_tensor"]


class Entry:
    """An array in a cache entry."""

    __slots__ = ("_descriptor", "_name", "_pixels")

    def __init__(self, descriptor: Descriptor, pixels: Pixels, name: str) -> None:
        self._descriptor = descriptor
        self._pixels = pixels
        self._name = name

    def difference(self) -> PixelMismatch | None:
        """What is wrong with it, or ``None`` when it is what the record names."""
        if self._name not in self._pixels:
            return no_such_array(self._descriptor, self._pixels)
        return compare(self._descriptor, self._pixels.digest(self._name), "a cache entry")

    def array(self) -> np.ndarray[Any, Any]:
        """Read-only: a view of the entry, or decoded from it."""
        return self._pixels[self._name]

    def copy_into(self, out: np.ndarray[Any, Any] | Tensor) -> None:
        """Copies the array to ``out``, of its type and shape."""
        self._pixels.copy_into(self._name, out)


class Loose:
    """An array that a resolver gave, by itself or among the arrays of its entry."""

    __slots__ = ("_array", "_descriptor", "_given")

    def __init__(self, descriptor: Descriptor, given: Any) -> None:
        self._descriptor = descriptor
        self._given = given
        self._array: Any = given.get(descriptor.name) if isinstance(given, Mapping) else given

    def difference(self) -> PixelMismatch | None:
        """What is wrong with it, or ``None`` when it is what the record names."""
        if self._array is None:
            return no_such_array(self._descriptor, self._given)
        return compare(self._descriptor, hash_array(self._array), "a resolver's array")

    def array(self) -> np.ndarray[Any, Any]:
        """The array as it was given, or the memory of a tensor as an array."""
        if isinstance(self._array, np.ndarray):
            return self._array
        return raw(self._array).view(numpy_dtype(self._descriptor))

    def copy_into(self, out: np.ndarray[Any, Any] | Tensor) -> None:
        """Copies the array to ``out``, of its type and shape."""
        if self._descriptor.nbytes:
            np.copyto(raw(out), raw(self._array))


def compare(descriptor: Descriptor, got: Digest, what: str) -> PixelMismatch | None:
    """``None`` when ``got`` is the digest that the record names."""
    expected = Digest(descriptor.digest)
    if got == expected:
        return None
    return PixelMismatch(
        f"{what} for {describe(descriptor)} holds other pixels: "
        f"expected {expected.hex()}, got {got.hex()}",
        expected=expected.hex(),
        got=got.hex(),
    )


def no_such_array(descriptor: Descriptor, entry: Mapping[str, Any] | Pixels) -> PixelMismatch:
    """The error for an entry without the array that the record names."""
    return PixelMismatch(
        f"{describe(descriptor)} is not among the {len(entry)} arrays that were found for it",
        expected=Digest(descriptor.digest).hex(),
    )


def describe(descriptor: Descriptor) -> str:
    """``float32 (4096, 1536)``, for messages."""
    return f"{dtype_name(descriptor)} {descriptor.shape}"


def blank_array(descriptor: Descriptor, *, zeros: bool) -> np.ndarray[Any, Any]:
    """Memory for the array that a record names."""
    make: Any = np.zeros if zeros else np.empty
    return make(descriptor.shape, numpy_dtype(descriptor))  # type: ignore[no-any-return]


def blank_tensor(descriptor: Descriptor, *, zeros: bool) -> Tensor:
    """Memory for the tensor that a record names. Raises ``ValueError`` for types torch has not."""
    import torch

    token = descriptor.dtype
    name = token if token.isidentifier() else numpy_dtype(descriptor).name
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or token.startswith(">"):
        raise ValueError(f"torch has no type for {describe(descriptor)}")
    make: Any = torch.zeros if zeros else torch.empty
    return make(descriptor.shape, dtype=dtype)  # type: ignore[no-any-return]


def raw(array: np.ndarray[Any, Any] | Tensor) -> np.ndarray[Any, Any]:
    """The elements of an array or CPU tensor as opaque bytes, in the same memory."""
    if isinstance(array, np.ndarray):
        return array.view(np.dtype((np.void, array.dtype.itemsize)))
    import torch

    tensor = array.detach().resolve_conj().resolve_neg()
    if tensor.is_complex():
        # Numpy has no way to say "two floats, one element" but by the last axis.
        pairs = torch.view_as_real(tensor).numpy()
        return pairs.view(np.dtype((np.void, tensor.itemsize)))[..., 0]
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return raw(tensor.view(integers[tensor.itemsize]).numpy())
