"""Arrays that numpy reads as ever and torch refuses: they stand beside references.

Some code turns arrays into tensors and passes over whatever else an image holds. A reference
among them would be lost without a word; an array whose strides are negative is refused by torch.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from memweir.pixels.walk import Trail, rebuild

__all__ = ["Guarded", "opened"]


class Guarded(np.ndarray[Any, Any]):
    """A view of an array with its last axis laid out backwards.

    What ``copy()`` and arithmetic give are ordinary arrays; with its items it is copied guarded.
    """

    @classmethod
    def of(cls, array: np.ndarray[Any, Any]) -> Self | np.ndarray[Any, Any]:
        """``array`` guarded; itself when its last axis has no direction."""
        if array.ndim == 0 or array.shape[-1] < 2:
            return array
        return np.ascontiguousarray(np.asarray(array)[..., ::-1])[..., ::-1].view(cls)

    def copy(self, order: Any = "C") -> Any:
        return np.array(self, order=order)

    def __copy__(self) -> Any:
        return Guarded.of(np.array(self, order="C"))

    def __deepcopy__(self, memo: object) -> Any:
        return self.__copy__()

    def __reduce__(self) -> Any:
        return Guarded.of, (np.array(self, order="C"),)


def opened(data: Any) -> Any:
    """``data`` with ordinary arrays in place of guarded ones."""

    def leaf(value: object, trail: Trail) -> object:
        return np.array(value, order="C") if isinstance(value, Guarded) else value

    return rebuild(data, leaf)
