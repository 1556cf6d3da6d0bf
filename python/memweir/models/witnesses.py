"""What in a model can be referred to weakly, to see it die."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import numpy as np

__all__ = ["witnesses"]

_MOST = 64


def witnesses(model: Any) -> tuple[weakref.ref[Any], ...]:
    """A weak reference to the model; for dicts, lists and tuples, which have none, to the modules,
    tensors and arrays that they hold. Nothing where there is no such thing either.
    """
    try:
        return (weakref.ref(model),)
    except TypeError:
        pass
    found: list[weakref.ref[Any]] = []
    kinds = _kinds()
    waiting, seen = [model], {id(model)}
    while waiting and len(found) < _MOST and len(seen) < 100 * _MOST:
        each = waiting.pop()
        if isinstance(each, kinds):
            found.append(weakref.ref(each))
            continue
        if isinstance(each, dict):
            inside = list(each.values())
        elif isinstance(each, list | tuple | set | frozenset):
            inside = list(each)
        else:
            continue
        for part in inside:
            if id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)
    return tuple(found)


def _kinds() -> tuple[type, ...]:
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    module = getattr(getattr(torch, "nn", None), "Module", None)
    return (np.ndarray, *(kind for kind in (tensor, module) if isinstance(kind, type)))
