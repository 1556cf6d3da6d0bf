"""The bytes of a model, counted: tensors and arrays wherever its containers and attributes lead.

Nothing is imported for that: a tensor of a library that nobody imported does not exist.
"""

from __future__ import annotations

import functools
import mmap
import sys
import types
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from memweir.models.adapters.protocol import Sizes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Weights", "find_weights"]

MOST = 200_000
"""Objects looked at; what has more of them is not counted."""
_SHOWN = 5
_ATOMS = frozenset({str, int, float, bool, complex, type(None), type(Ellipsis), range, slice})
_CONTAINERS = (list, tuple, set, frozenset, deque)
# Their attributes do not belong to the model, though it may refer to them.
_FOREIGN = (type, types.ModuleType, types.CodeType, types.FrameType, types.GeneratorType)
_PARTS = (
    "_indices",
    "_values",
    "crow_indices",
    "ccol_indices",
    "col_indices",
    "row_indices",
    "values",
)


@dataclass(slots=True)
class Weights:
    """What was found in a model."""

    sizes: Sizes = field(default_factory=Sizes)
    count: int = 0
    """Tensors, arrays and buffers."""
    meta: list[str] = field(default_factory=list)
    """Where tensors without data are: some of them."""
    complete: bool = True
    """Whether everything was looked at."""


def find_weights(model: Any) -> Weights:
    """Counts each byte once, whatever shares it: ties, views and slices of one storage."""
    found = Weights()
    torch = sys.modules.get("torch")
    tensor: Any = getattr(torch, "Tensor", None)
    tensor = tensor if isinstance(tensor, type) else ()
    spans: dict[str, list[tuple[int, int]]] = {}
    # The object, and how one gets to it: the step and the way before it.
    waiting: deque[tuple[Any, Any]] = deque([(model, None)])
    seen = {id(model): model}
    while waiting:
        each, way = waiting.popleft()
        if tensor and isinstance(each, tensor):
            found.count += 1
            if each.is_meta:
                if len(found.meta) < _SHOWN:
                    found.meta.append(_spelled(way))
                inside: Iterable[tuple[Any, Any]] = ()
            else:
                inside = _tensor(each, spans)
        elif (span := _buffer(each)) is not None:
            found.count += 1
            spans.setdefault("cpu", []).append(span)
            inside = ()
        else:
            inside = _inside(each)
        for step, part in inside:
            if type(part) in _ATOMS or id(part) in seen:
                continue
            if len(seen) >= MOST:
                found.complete = False
                waiting.clear()
                break
            seen[id(part)] = part
            waiting.append((part, (step, way)))
    found.sizes = _sized(spans)
    return found


def _spelled(way: Any) -> str:
    steps = []
    while way is not None:
        step, way = way
        # Where modules keep theirs is nothing that a user would write.
        if step not in ("_modules", "_parameters", "_buffers"):
            steps.append(str(step))
    return ".".join(reversed(steps)) or "the model itself"


def _tensor(tensor: Any, spans: dict[str, list[tuple[int, int]]]) -> Iterator[tuple[Any, Any]]:
    """Notes the storage, and gives what else a tensor has: its gradient, a subclass's parts."""
    kept = getattr(tensor, "__dict__", None)
    if kept:
        yield from list(kept.items())
    flatten = getattr(type(tensor), "__tensor_flatten__", None)
    if flatten is not None:
        try:
            for name in flatten(tensor)[0]:
                yield name, getattr(tensor, name)
            return
        except Exception:
            pass
    try:
        storage = tensor.untyped_storage()
        start, size, device = storage.data_ptr(), storage.nbytes(), storage.device.type
        if start and size:
            index = "" if device == "cpu" else f":{storage.device.index}"
            spans.setdefault(device + index, []).append((start, start + size))
    except Exception:  # sparse and other layouts are made of tensors
        for name in _PARTS:
            try:
                yield name, getattr(tensor, name)()
            except Exception:
                continue
    if tensor.is_leaf and tensor.grad is not None:
        yield "grad", tensor.grad


def _buffer(each: Any) -> tuple[int, int] | None:
    """Where an array or a buffer of bytes lies."""
    if isinstance(each, np.ndarray):
        while isinstance(each.base, np.ndarray):
            each = each.base
        start: int = each.__array_interface__["data"][0]
        return start, start + each.nbytes
    if isinstance(each, bytes | bytearray | memoryview | mmap.mmap):
        try:
            view = np.frombuffer(each, np.uint8)
        except (ValueError, BufferError):
            return None  # empty, closed, or in no order
        first: int = view.__array_interface__["data"][0]
        return first, first + view.nbytes
    return None


def _inside(each: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(each, _FOREIGN):
        return
    if isinstance(each, dict):
        yield from list(each.items())
    elif isinstance(each, _CONTAINERS):
        yield from enumerate(list(each))
    elif isinstance(each, types.MethodType):
        yield "__self__", each.__self__
    elif isinstance(each, types.FunctionType):
        for cell in each.__closure__ or ():
            try:
                yield "a closure", cell.cell_contents
            except ValueError:
                continue  # nothing in it yet
        return
    elif isinstance(each, functools.partial):
        yield from enumerate((each.func, *each.args))
        yield from each.keywords.items()
    elif _standard(type(each)):
        return
    elif _scripted(each):
        yield from each.named_parameters()
        yield from each.named_buffers()
    yield from _attributes(each)


def _standard(kind: type) -> bool:
    """Locks, loggers, threads and what else leads out of the model."""
    if kind is types.SimpleNamespace:
        return False
    return (
        kind.__module__.partition(".")[0] in sys.stdlib_module_names
        and kind.__module__ != "__main__"
    )


def _scripted(each: Any) -> bool:
    script = getattr(getattr(sys.modules.get("torch"), "jit", None), "ScriptModule", None)
    return isinstance(script, type) and isinstance(each, script)


def _attributes(each: Any) -> Iterator[tuple[Any, Any]]:
    """What the object has itself; no property is asked."""
    kept = getattr(each, "__dict__", None)
    if type(kept) is dict:
        yield from list(kept.items())
    for kind in type(each).__mro__:
        for value in list(vars(kind).values()) if "__slots__" in vars(kind) else ():
            if isinstance(value, types.MemberDescriptorType):
                try:
                    yield value.__name__, value.__get__(each)
                except AttributeError:
                    continue


def _sized(spans: dict[str, list[tuple[int, int]]]) -> Sizes:
    host = file = device = 0
    for where, found in spans.items():
        merged = _merged(found)
        if where != "cpu":
            device += sum(end - start for start, end in merged)
            continue
        mapped = _mapped_files() if merged else []
        starts = [start for start, _ in mapped]
        for start, end in merged:
            at = bisect_right(starts, start) - 1
            if at >= 0 and start < mapped[at][1]:
                file += end - start
            else:
                host += end - start
    return Sizes(host, device, file)


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        elif end > start:
            merged.append((start, end))
    return merged


def _mapped_files() -> list[tuple[int, int]]:
    """Address ranges of this process that are a file's, in order; empty where none are told."""
    found = []
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:  # noqa: PTH123
            for line in maps:
                parts = line.split(None, 5)
                # Memory that is shared without a file has a name, too, which says so.
                if (
                    len(parts) == 6
                    and parts[4] != "0"
                    and not parts[5].startswith(("/dev/", "/memfd:"))
                ):
                    start, _, end = parts[0].partition("-")
                    found.append((int(start, 16), int(end, 16)))
    except OSError:
        return []
    return found
