"""One image as vLLM's token endpoint takes it, made piece by piece while it is sent.

The text is base64 of a MessagePack record of tensors, as ``encode_mm_kwargs_item`` of vLLM 0.22
to 0.33 writes it. Nothing of vLLM or torch is needed here.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from memweir.errors import UnsupportedType
from memweir.integrations._msgpack import extension, pack
from memweir.pixels.found import raw
from memweir.pixels.provenance import is_tensor
from memweir.pixels.refs import PixelRef, dtype_name

__all__ = ["WireItem", "WireType"]

WireType = Literal["exact", "bfloat16"]

BLOCK: Final = 768 << 10
"""Bytes that are encoded at once, a multiple of 3: what a thread holds of an image."""

_RAW_VIEW: Final = 3  # the kind of extension that vLLM keeps tensors' bytes in
_TYPES: Final = re.compile(r"bool|uint8|int(8|16|32|64)|bfloat16|float(16|32|64)")


class Field(NamedTuple):
    """A tensor of an image: its key in the processor's output, and what vLLM makes of it.

    ``batched`` tensors have an axis of length 1 before the image's own, which is not sent; the
    others are the image's rows. ``cpu``: vLLM leaves it on the CPU. ``pixels``: it may be cast.
    """

    key: str
    name: str
    batched: bool
    cpu: bool = False
    pixels: bool = False


_QWEN_VL: Final = (
    Field("image_grid_thw", "image_grid_thw", batched=True, cpu=True),
    Field("pixel_values", "pixel_values", batched=False, pixels=True),
)
_GEMMA_4: Final = (
    Field("image_position_ids", "pixel_position_ids", batched=True),
    Field("pixel_values", "pixel_values", batched=True, pixels=True),
)


class WireItem:
    """An image that is encoded when it is read, anew each time.

    ``hash`` is its name in the engine and ``nbytes`` the size of its tensors there. ``values``
    are the processor's arrays by name: numpy, CPU tensors, or references, which are restored
    and verified one at a time, while they are read. ``"bfloat16"`` halves floating-point pixels,
    rounded as torch does; since the engine then holds other tensors, so is the hash another.

    Raises ``UnsupportedType`` for arrays of families that are not known here and for element
    types that torch has not, ``ValueError`` for shapes that do not fit together.
    """

    __slots__ = ("_segments", "hash", "length", "nbytes")

    def __init__(self, name: str, values: Mapping[str, Any], wire: WireType = "exact") -> None:
        if wire not in ("exact", "bfloat16"):
            raise ValueError(f'wire is "exact" or "bfloat16", not {wire!r}')
        tensors = [_Tensor(field, values[field.key], wire) for field in _family(values)]
        _check_grid(values)
        self.hash = name if wire == "exact" else f"{name}-bf16"
        self.nbytes = sum(tensor.nbytes for tensor in tensors)
        self._segments: list[bytes | _Tensor] = [bytes([0x80 + len(tensors)])]
        for tensor in tensors:
            before, after = tensor.frame()
            self._segments += [before, tensor, after]
        size = sum(s.nbytes if isinstance(s, _Tensor) else len(s) for s in self._segments)
        self.length = 4 * -(-size // 3)

    def pieces(self) -> Iterator[bytes]:
        """The text, ASCII, in pieces of at most 1 MiB."""
        return _base64(self._blocks())

    def _blocks(self) -> Iterator[memoryview]:
        for segment in self._segments:
            if isinstance(segment, bytes):
                yield memoryview(segment)
            else:
                yield from segment.blocks()


class _Tensor:
    """One array of an image, not looked into before it is sent."""

    __slots__ = ("_cast", "_dtype", "_field", "_shape", "_source", "nbytes")

    def __init__(self, field: Field, source: Any, wire: WireType) -> None:
        if not (isinstance(source, np.ndarray | PixelRef) or is_tensor(source)):
            source = np.asarray(source)
        name = _type_name(source)
        if not _TYPES.fullmatch(name):
            raise UnsupportedType(f"{field.key} holds {name}, which torch has no type for")
        shape = tuple(source.shape)
        if field.batched:
            if shape[:1] != (1,):
                raise ValueError(f"{field.key} of one image begins with an axis of 1, not {shape}")
            shape = shape[1:]
        self._cast = field.pixels and wire == "bfloat16" and name != "bfloat16"
        if self._cast and not name.startswith("float"):
            raise UnsupportedType(f"{field.key} holds {name}: only floats are sent as bfloat16")
        self._field = field
        self._source = source
        self._shape = shape
        self._dtype = "bfloat16" if self._cast else name
        self.nbytes: int = source.nbytes
        if self._cast:
            self.nbytes = self.nbytes // source.dtype.itemsize * 2

    def frame(self) -> tuple[bytes, bytes]:
        """What stands before the elements in the record, and after them."""
        field: list[Any] = ["batched", {"keep_on_cpu": self._field.cpu}]
        if not self._field.batched:
            rows = [[[0, self._shape[0], None]]]
            field = ["flat", {"keep_on_cpu": self._field.cpu, "slices": rows, "dim": 0}]
        before = [pack(self._field.name), b"\x82", pack("data"), b"\x93", pack(self._dtype)]
        before += [pack(list(self._shape)), extension(_RAW_VIEW, self.nbytes)]
        return b"".join(before), pack("field") + pack(field)

    def blocks(self) -> Iterator[memoryview]:
        """The elements in C order; the array lives no longer than this is read."""
        elements = _elements(self._source)
        if not self._cast:
            yield elements.view(np.uint8).data
            return
        floats = elements.view(f"<f{elements.itemsize}")
        for start in range(0, len(floats), BLOCK // 2):
            rounded = _to_bfloat16(floats[start : start + BLOCK // 2])
            yield rounded.view(np.uint8).data


def _family(values: Mapping[str, Any]) -> tuple[Field, ...]:
    for family in (_QWEN_VL, _GEMMA_4):
        if all(field.key in values for field in family):
            return family
    raise UnsupportedType(
        f"no way is known to send an image of {', '.join(map(str, values)) or 'no arrays'}: let "
        "renderers encode it, or send its source as content_parts"
    )


def _check_grid(values: Mapping[str, Any]) -> None:
    """Raises where rows do not match the grid: the engine would cut them elsewhere, or stop."""
    grid = values.get("image_grid_thw")
    if grid is None:
        return
    cells = np.asarray(grid).reshape(-1)
    rows = values["pixel_values"].shape[0]
    if cells.shape != (3,) or int(cells.prod()) != rows:
        raise ValueError(f"an image of {rows} rows has the grid {cells.tolist()}")


def _type_name(source: Any) -> str:
    if isinstance(source, PixelRef):
        return dtype_name(source.descriptor)
    if isinstance(source, np.ndarray):
        return str(source.dtype.name)
    return str(source.dtype).removeprefix("torch.")


def _elements(source: Any) -> np.ndarray[Any, Any]:
    """All elements in one row, contiguous and little-endian, as opaque bytes."""
    array = source if is_tensor(source) else np.asarray(source)
    if isinstance(array, np.ndarray) and array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(raw(array)).reshape(-1)


def _to_bfloat16(floats: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The upper halves of floats, rounded to nearest, ties to even."""
    single = floats.astype(np.float32, copy=False)
    bits = single.view(np.uint32)
    halves = bits >> 16
    halves &= 1
    halves += 0x7FFF
    halves += bits
    halves >>= 16
    strange = np.isnan(single)
    if strange.any():  # rounding can carry out of a NaN
        halves[strange] = 0x7FC0
    return halves.astype("<u2")


def _base64(blocks: Iterable[memoryview]) -> Iterator[bytes]:
    encode = _encoder()
    rest = b""
    for block in blocks:
        start = 0
        if rest:
            start = min(3 - len(rest), len(block))
            rest += block[:start]
            if len(rest) < 3:
                continue
            yield encode(rest)
        end = start + (len(block) - start) // 3 * 3
        for at in range(start, end, BLOCK):
            yield encode(block[at : min(at + BLOCK, end)])
        rest = bytes(block[end:])
    if rest:
        yield encode(rest)


@cache
def _encoder() -> Callable[[bytes | memoryview], bytes]:
    try:
        encode: Callable[[bytes | memoryview], bytes] = import_module("pybase64").b64encode
    except ImportError:
        # Holds the interpreter's lock, which is why a piece is not larger.
        return lambda data: binascii.b2a_base64(data, newline=False)
    return encode
