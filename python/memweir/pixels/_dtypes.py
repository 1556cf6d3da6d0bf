"""Arrays of element types that the buffer protocol cannot carry."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["dtype_of", "typed"]


def dtype_of(token: str, itemsize: int) -> np.dtype[Any]:
    """The numpy dtype that a token names.

    ``bfloat16`` and its like are ml_dtypes' types where that is installed, else unsigned
    integers of their bits.
    """
    if token.startswith("["):
        return np.dtype(np.lib.format.descr_to_dtype(ast.literal_eval(token)))
    try:
        return np.dtype(token)
    except TypeError:
        pass
    try:
        import ml_dtypes  # registers its names with numpy
    except ImportError:
        return np.dtype(f"u{itemsize}")
    extra: Any = getattr(ml_dtypes, token, None)
    return np.dtype(f"u{itemsize}" if extra is None else extra)


def typed(flat: Any, token: str, itemsize: int, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """A read-only array of this dtype and shape over the bytes of the buffer ``flat``."""
    dtype = dtype_of(token, itemsize)
    if 0 in shape or itemsize == 0:
        array = np.empty(tuple(shape), dtype)
        array.flags.writeable = False
        return array
    bits: np.ndarray[Any, Any] = np.frombuffer(flat, np.uint8).view(f"V{itemsize}")
    return bits.view(dtype).reshape(tuple(shape))
