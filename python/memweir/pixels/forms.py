"""A processor's answer as named arrays and back: what is an array, a list, a plain value.

With ``return_tensors="np"`` or ``"pt"`` an answer is mostly a mapping of arrays, and its entry in
the cache holds just those. Anything else (lists of arrays, image sizes as tuples, row counts)
is written down as a form, JSON in a small array beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers.feature_extraction_utils import BatchFeature as _FeatureBatch
from transformers.image_processing_base import BatchFeature as _ImageBatch

FORM = "#form"  # the name of the array that holds a form

_KINDS: dict[str, type[Any]] = {"image": _ImageBatch, "feature": _FeatureBatch}
_SCALARS = (bool, int, float, str, type(None))


class Unrepresentable(Exception):
    """An answer with something in it that an entry cannot carry; the message names it."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """An array of the entry, returned as a torch tensor or as an ndarray."""

    name: str
    tensor: bool


@dataclass(frozen=True, slots=True)
class Form:
    """The structure of one answer: values are leaves, lists, tuples and plain scalars."""

    batch: str
    skip: tuple[str, ...] | None
    values: dict[str, Any]

    def with_values(self, values: dict[str, Any]) -> Form:
        return replace(self, values=values)

    def fill(self, values: dict[str, Any]) -> Any:
        """The answer itself, a ``BatchFeature`` of the processor's own kind."""
        skip = None if self.skip is None else list(self.skip)
        return _KINDS[self.batch](data=values, skip_tensor_conversion=skip)


def take_apart(answer: object, tensors: str | None) -> dict[str, Any]:
    """The arrays of ``answer`` by name, with its form where ``tensors`` does not imply it.

    ``tensors`` is the call's ``return_tensors``. Raises ``Unrepresentable``.
    """
    batch = next((name for name, kind in _KINDS.items() if type(answer) is kind), None)
    if batch is None:
        raise Unrepresentable(f"answers with a {type(answer).__name__}")
    skip = answer.skip_tensor_conversion  # type: ignore[attr-defined]
    if skip is not None and type(skip) is not list:
        raise Unrepresentable(f"answers with a {type(skip).__name__} of names")
    arrays: dict[str, Any] = {}
    values = {}
    for key, value in answer.data.items():  # type: ignore[attr-defined]
        if type(key) is not str or key == FORM:
            raise Unrepresentable(f"answers with a key {key!r}")
        values[key] = _take_value(key, value, arrays)
    form = Form(batch, None if skip is None else tuple(skip), values)
    if form != _implied(arrays, tensors):
        text = json.dumps({"batch": batch, "skip": form.skip, "values": _encode(values)})
        arrays[FORM] = np.frombuffer(text.encode(), np.uint8)
    return arrays


def form_of(entry: Mapping[str, Any], names: list[str], tensors: str | None) -> Form:
    """The form of an entry whose arrays are called ``names``."""
    if FORM not in names:
        return _implied(names, tensors)
    text = json.loads(entry[FORM].tobytes())
    skip = text["skip"]
    return Form(text["batch"], None if skip is None else tuple(skip), _decode(text["values"]))


def same(one: object, other: object, tensors: str | None) -> bool:
    """Whether two answers agree in structure, types and every bit."""
    try:
        a, b = take_apart(one, tensors), take_apart(other, tensors)
    except Unrepresentable:
        return False
    return list(a) == list(b) and all(_same_bits(a[name], b[name]) for name in a)


def leaves(value: object) -> Iterator[Leaf]:
    """The leaves below ``value``, in order."""
    if isinstance(value, Leaf):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)


def _implied(names: Mapping[str, Any] | list[str], tensors: str | None) -> Form:
    return Form("image", None, {name: Leaf(name, tensors == "pt") for name in names})


def _take_value(key: str, value: object, arrays: dict[str, Any]) -> Any:
    """``value`` with its arrays moved to ``arrays``, called ``key``, or numbered when several."""
    count = sum(1 for _ in _arrays_in(value))
    names = iter([f"{key}/{number}" for number in range(count)] if count > 1 else [key])
    return _take(key, value, names, arrays)


# Not a closure: one that calls itself is a cycle, and would keep the arrays until the next
# collection.
def _take(key: str, item: Any, names: Iterator[str], arrays: dict[str, Any]) -> Any:
    kind = type(item)
    if kind is list:
        return [_take(key, each, names, arrays) for each in item]
    if kind is tuple or _is_size(kind):
        return kind([_take(key, each, names, arrays) for each in item])
    if kind in _SCALARS:
        return item
    tensor = _is_tensor(item)
    if not tensor and not _is_array(item):
        raise Unrepresentable(f"answers with a {kind.__name__} in {key}")
    name = next(names)
    arrays[name] = item.detach() if tensor else item
    return Leaf(name, tensor)


def _arrays_in(value: object) -> Iterator[object]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _arrays_in(item)
    elif _is_array(value) or _is_tensor(value):
        yield value


def _same_bits(one: Any, other: Any) -> bool:
    if type(one) is not type(other) or one.dtype != other.dtype or one.shape != other.shape:
        return False
    if _is_tensor(one):
        one, other = (each.contiguous().flatten().view(_bytes()) for each in (one, other))
        return bool((one == other).all())
    return bool(one.tobytes() == other.tobytes())


def _bytes() -> Any:
    import torch

    return torch.uint8


def _is_size(kind: type[Any]) -> bool:
    """Whether this is ``torch.Size``, a tuple of int."""
    return kind.__module__ == "torch" and kind.__name__ == "Size"


def _is_array(item: Any) -> bool:
    return type(item) is np.ndarray and item.dtype != object


def _is_tensor(item: Any) -> bool:
    kind = type(item)
    return kind.__module__ == "torch" and kind.__name__ == "Tensor" and item.device.type == "cpu"


def _encode(value: Any) -> Any:
    if isinstance(value, Leaf):
        return {"array": value.name, "tensor": value.tensor}
    if type(value) is tuple:
        return {"tuple": [_encode(item) for item in value]}
    if _is_size(type(value)):
        return {"size": list(value)}
    if type(value) is list:
        return [_encode(item) for item in value]
    if type(value) is dict:
        return {"dict": [[key, _encode(item)] for key, item in value.items()]}
    return value


def _decode(value: Any) -> Any:
    if type(value) is list:
        return [_decode(item) for item in value]
    if type(value) is not dict:
        return value
    if "array" in value:
        return Leaf(value["array"], value["tensor"])
    if "size" in value:
        import torch

        return torch.Size(value["size"])
    if "tuple" in value:
        return tuple([_decode(item) for item in value["tuple"]])
    return {key: _decode(item) for key, item in value["dict"]}
