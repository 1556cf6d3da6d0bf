"""Images in the samples of prime-rl's trainer.

Two designs of prime-rl are met here, told apart by what a sample holds.

Samples with ``mm_kwargs`` carry arrays: names to ``EncodedTensor``s of type, shape and bytes.
:func:`encode_images` fills these with references instead of pixels, some 200 bytes for each
image, and :func:`rehydrate` puts the pixels in where the trainer wants them. In between samples
are packed and sent as usual; what slices or decodes the bytes meets a type that neither numpy nor
torch knows.

Samples with ``mm_refs`` carry image URLs and the places of their placeholders; the trainer runs a
processor on them. :func:`model_kwargs` does, through a cache, and checks grids, placeholders and
the processor against the card of the one that sampled.

``model_kwargs(sample, processor)`` serves both, and gives what a model's ``forward`` takes.
"""

from __future__ import annotations

import copy
import operator
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from memweir._core import Descriptor
from memweir.errors import MissingPixels, PixelMismatch, UnsupportedType
from memweir.integrations import _samples
from memweir.integrations._guard import Guarded, opened
from memweir.pixels.cards import ProcessorCard, disagreement
from memweir.pixels.joiners import place, window
from memweir.pixels.refs import PixelRef, dtype_name
from memweir.pixels.resolve import Recompute, Resolver, materialize, restore_into

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "check_sample",
    "encode_images",
    "guard_items",
    "guard_model",
    "model_kwargs",
    "plain_items",
    "rehydrate",
]

T = TypeVar("T")
Items = Mapping[str, Sequence[Mapping[str, Any]]]

_PREFIX: Final = "memweir:"
_PART: Final = struct.Struct("<4sI")
_MAGIC: Final = b"mwr\x01"


def encode_images(
    mm_items: Any, make: Callable[..., T], *, sources: bool = True
) -> dict[str, T] | None:
    """``mm_items`` as a sample's ``mm_kwargs``: arrays in bytes, references as references.

    ``make(dtype=, shape=, data=)`` is prime-rl's ``EncodedTensor``. Arrays of one name are joined
    along axis 0, in order. A name whose values are all references is written as their records, of
    the type ``"memweir:float32"`` and the shape that the pixels have; samples may then be packed
    (``data`` and rows added up), and fail loudly where they are sliced or decoded before
    :func:`rehydrate`. ``None`` for no images, as upstream has it.

    Raises ``MissingPixels`` and ``PixelMismatch`` for images without pixels or with other grids,
    and ``UnsupportedType`` for what is neither an array nor a reference.
    """
    items = _items(mm_items)
    _samples.check_items(items)
    named = _by_name(items)
    return {name: make(**_encoded(name, parts)) for name, parts in named.items()} or None


def rehydrate(
    sample: T,
    processor: Any = None,
    *,
    sources: object = None,
    fetch: Callable[[PixelRef], Any] | None = None,
    resolvers: Iterable[Resolver] = (),
    merge_size: int | None = None,
) -> T:
    """A copy of ``sample`` whose ``mm_kwargs`` hold pixels, bit for bit, as upstream has them.

    Samples are prime-rl's ``TrainingSample``, ``MicroBatch`` or mappings. Pixels come from the live
    caches of the process, then ``resolvers``; else ``processor``, the one that made them, is run on
    the source: found in ``sources`` (messages or traces, of any nesting), in a cache that interned
    it, or by ``fetch(ref)``. What was already pixels stays as it is.

    Raises ``MissingPixels`` when nobody has an image, ``PixelMismatch`` for another image or
    processor, both sides named, ``ValueError`` for damaged references, and what
    :func:`check_sample` raises.
    """
    kwargs = _get(sample, "mm_kwargs")
    check_sample(sample, merge_size=merge_size)
    if not kwargs or not any(_is_sealed(value) for value in kwargs.values()):
        return sample
    ways = _ways(processor, sources, fetch, resolvers)
    plain = {name: _unsealed(name, value, ways) for name, value in kwargs.items()}
    result: T = _with(sample, "mm_kwargs", plain)
    return result


def model_kwargs(
    sample: Any,
    processor: Any = None,
    *,
    sources: object = None,
    fetch: Callable[[PixelRef], Any] | None = None,
    resolvers: Iterable[Resolver] = (),
    expect: ProcessorCard | None = None,
    merge_size: int | None = None,
) -> dict[str, Tensor]:
    """The images of ``sample`` as CPU tensors by name, in memory of their own; {} for no images.

    ``sample`` has ``mm_kwargs``, ``mm_refs`` or ``mm_items``, or is a mapping with one of them.
    Pixels are found as in :func:`rehydrate`. URLs of ``mm_refs`` are processed by ``processor``, a
    ``CachedProcessor`` or what one wraps, with ``return_tensors="pt"``, and ``fetch(url)`` opens
    those that the processor does not, such as ``http``. ``expect`` is the ``processor_card`` of the
    one that sampled, for calls with ``return_tensors="pt"``.

    Raises what :func:`rehydrate` raises; ``PixelMismatch`` also for a processor that is not the
    expected one, and for images whose grids do not match their placeholders.
    """
    refs = _get(sample, "mm_refs")
    if expect is not None and processor is not None:
        _check_expected(processor, expect)
    if refs is not None:
        return _process(sample, refs, processor, fetch, merge_size)
    check_sample(sample, merge_size=merge_size)
    ways = _ways(processor, sources, fetch, resolvers)
    kwargs = _get(sample, "mm_kwargs")
    if kwargs:
        return {name: _tensor(name, value, ways) for name, value in kwargs.items()}
    items = _samples.items_of(sample)
    named = {} if items is None or kwargs is not None else _by_name(items)
    return {name: _joined(name, parts, ways) for name, parts in named.items()}


def check_sample(sample: Any, *, merge_size: int | None = None) -> None:
    """Raises where the images of a sample are not those of its grids and placeholders.

    ``MissingPixels`` where placeholders have no images or images no pixels, ``PixelMismatch`` where
    rows, grids and tokens differ. Samples without ``mm_token_type_ids`` have no placeholders to be
    compared.
    """
    types = _get(sample, "mm_token_type_ids")
    kwargs, refs = _get(sample, "mm_kwargs"), _get(sample, "mm_refs")
    items = None
    if kwargs is None and refs is None:
        items = _samples.items_of(sample)
    counts: Sequence[int] | int = 0
    if kwargs:
        _samples.check_arrays({name: _Shaped(value) for name, value in kwargs.items()}, "a sample")
        grid = kwargs.get("image_grid_thw")
        if grid is None:
            counts = int(kwargs.get(_samples.PIXELS[0]) is not None)
        else:
            counts = _samples.patches(np.asarray(_Shaped(grid)))
    elif refs is not None:
        counts = len(refs.images)
        _check_places(refs.images, types)
    elif items:
        _samples.check_items(items, "a sample")
        images = items.get("image", ())
        grids = [item.get("image_grid_thw") for item in images]
        known = bool(grids) and all(grid is not None for grid in grids)
        counts = [n for grid in grids for n in _samples.patches(grid)] if known else len(images)
    if types is not None:
        listed = np.asarray(types).reshape(-1).tolist()
        _samples.check_tokens(listed, counts, where="a sample", merge_size=merge_size)


def plain_items(data: T, *resolvers: Resolver) -> T:
    """``data`` (``MultiModalData`` or ``mm_items``) with arrays, for code that skips references.

    Call it before supervised fine-tuning folds items into tensors: that keeps arrays and tensors
    and passes over anything else without a word. Arrays are writable and the caller's own.

    Raises ``MissingPixels`` and ``PixelMismatch``.
    """
    items = _samples.items_of(data)
    if items is not None:
        _samples.check_items(items)
    result: T = opened(materialize(data, *resolvers, writable=True))
    return result


def guard_items(mm_items: T) -> T:
    """``mm_items`` that torch refuses, for as long as they hold references.

    Every small array beside a reference is turned into a view that numpy reads as ever and that
    ``torch.as_tensor`` refuses, so that whoever folds items into tensors and skips references
    fails on their grids. :func:`plain_items` brings ordinary arrays, and so does whatever else
    restores images here. Arrays of one column have no direction and stay as they are.
    """
    items = _samples.items_of(mm_items)
    for images in (items or {}).values():
        for item in images:
            values = {name: item[name] for name in item}
            if any(isinstance(value, PixelRef) for value in values.values()):
                for name, value in values.items():
                    if isinstance(value, np.ndarray) and value.size:
                        item[name] = Guarded.of(value)  # type: ignore[index]
    return mm_items


def guard_model(model: Any, image_tokens: int | Iterable[int]) -> Any:
    """Makes ``model``, a torch module, refuse batches whose images were lost on the way.

    Before each ``forward`` a batch with ``image_tokens`` among its ``input_ids`` must have
    ``pixel_values`` (or ``inputs_embeds``, when images were put in already): a model would
    otherwise take placeholders for words. Costs one comparison of the ids. Returns torch's handle;
    ``.remove()`` takes the guard away.

    The ``forward`` raises ``MissingPixels``.
    """
    several = image_tokens if isinstance(image_tokens, Iterable) else [image_tokens]
    guard = _ModelGuard(tuple(operator.index(token) for token in several))
    return model.register_forward_pre_hook(guard, with_kwargs=True)


class _ModelGuard:
    """A hook that is pickled with its model."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self._tokens = tokens

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(kwargs.get(name) is not None for name in (*_samples.PIXELS, "inputs_embeds")):
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None and any(bool((ids == token).any()) for token in self._tokens):
            raise MissingPixels("a batch has placeholders of images and no pixel_values")


class _Shaped:
    """The shape of an encoded tensor, and its content where that is no reference."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self.shape = tuple(value.shape)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        value = self._value
        if not hasattr(value, "data") or not isinstance(value.dtype, str):
            return np.asarray(value)
        if _is_sealed(value):
            raise PixelMismatch("a grid was written as a reference")
        return np.frombuffer(value.data, np.dtype(value.dtype)).reshape(self.shape)


def _items(mm_items: Any) -> Items:
    items = _samples.items_of(mm_items)
    if items is None:
        raise UnsupportedType(f"{type(mm_items).__name__} has no lists of images")
    return items


def _by_name(items: Items) -> dict[str, list[Any]]:
    named: dict[str, list[Any]] = {}
    for images in items.values():
        for item in images:
            for name in item:  # by name: walked by items() some kinds of items are restored
                named.setdefault(name, []).append(item[name])
    return named


def _encoded(name: str, parts: list[Any]) -> dict[str, Any]:
    """The fields of an encoded tensor."""
    known = name in _samples.GRIDS  # looked into before anybody brings pixels back
    if parts and not known and all(isinstance(part, PixelRef) and part.ndim for part in parts):
        kinds = {dtype_name(part.descriptor) for part in parts}
        rows = {part.shape[1:] for part in parts}
        if len(kinds) != 1 or len(rows) != 1:
            raise UnsupportedType(f"{name} is of several types or shapes, which do not join")
        shape = [sum(part.shape[0] for part in parts), *rows.pop()]
        records = [each.descriptor.encode() for part in parts for each in _alone(name, part)]
        data = b"".join(_PART.pack(_MAGIC, len(record)) + record for record in records)
        return {"dtype": _PREFIX + kinds.pop(), "shape": shape, "data": data}
    arrays = [_array(name, part) for part in parts]
    whole = np.ascontiguousarray(np.concatenate(arrays, axis=0))
    return {"dtype": str(whole.dtype), "shape": [*whole.shape], "data": whole.tobytes()}


def _alone(name: str, ref: PixelRef) -> Sequence[PixelRef]:
    if ref.how not in ("alone", "concat"):
        raise UnsupportedType(f"{name} is joined by {ref.how}, which a sample cannot say")
    return ref.parts


def _array(name: str, part: Any) -> np.ndarray[Any, Any]:
    if hasattr(part, "detach"):
        part = part.detach().cpu().numpy()
    if not isinstance(part, np.ndarray | PixelRef):
        raise UnsupportedType(f"{name} holds {type(part).__name__}, which is no array")
    return np.asarray(part)


def _is_sealed(value: Any) -> bool:
    kind = getattr(value, "dtype", None)
    return isinstance(kind, str) and kind.startswith(_PREFIX)


def _refs(name: str, value: Any) -> list[PixelRef]:
    """The references of an encoded tensor. Raises ``ValueError`` when they are not of its shape."""
    data, refs = memoryview(value.data), []
    while data:
        if len(data) < _PART.size:
            raise ValueError(f"malformed references in {name}: truncated")
        magic, length = _PART.unpack(data[: _PART.size])
        record = data[_PART.size :][:length]
        if magic != _MAGIC or len(record) != length:
            raise ValueError(f"malformed references in {name}: damaged, or of another version")
        refs.append(PixelRef(Descriptor.decode(bytes(record))))
        data = data[_PART.size + length :]
    shape = tuple(value.shape)
    rows = sum(ref.shape[0] if ref.ndim else 0 for ref in refs)
    kinds = {dtype_name(ref.descriptor) for ref in refs}
    wanted = value.dtype.removeprefix(_PREFIX)
    if not refs or any(ref.shape[1:] != shape[1:] for ref in refs) or kinds != {wanted}:
        raise ValueError(f"malformed references in {name}: of other shapes or types than it says")
    if shape[:1] != (rows,):
        raise MissingPixels(f"{name} has {shape[0]} rows and references to {rows}")
    return refs


def _unsealed(name: str, value: Any, ways: Sequence[Resolver]) -> Any:
    if not _is_sealed(value):
        return value
    refs = _refs(name, value)
    dtype = refs[0].dtype
    whole = np.empty(tuple(value.shape), dtype)
    _fill(whole, refs, ways)
    return type(value)(dtype=str(dtype), shape=[*whole.shape], data=whole.tobytes())


def _tensor(name: str, value: Any, ways: Sequence[Resolver]) -> Tensor:
    if _is_sealed(value):
        return _joined(name, list(_refs(name, value)), ways)
    if isinstance(getattr(value, "data", None), bytes | bytearray | memoryview):
        import torch

        # A number of torch's own where there is one: numpy has no bfloat16.
        dtype = getattr(torch, str(value.dtype), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{name} is of type {str(value.dtype)[:40]!r}, which torch has not")
        return torch.frombuffer(bytearray(value.data), dtype=dtype).reshape(tuple(value.shape))
    return _joined(name, [value], ways)


def _joined(name: str, parts: Sequence[Any], ways: Sequence[Resolver]) -> Tensor:
    """One tensor of all parts, along axis 0."""
    import torch

    from memweir.integrations.torch import Collate

    def one(ref: PixelRef) -> Any:
        return next((given for way in ways if (given := way(ref)) is not None), None)

    joined = Collate(one, check=False)([{"mm_kwargs": {name: part}} for part in parts])
    tensor = joined["mm_kwargs"][name]
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _fill(whole: np.ndarray[Any, Any], refs: Sequence[PixelRef], ways: Sequence[Resolver]) -> None:
    _, offsets = place("concat", [ref.shape for ref in refs])
    for ref, offset in zip(refs, offsets, strict=True):
        cut: Any = (*window(offset, ref.shape), ...)
        restore_into(ref, whole[cut], *ways)


def _ways(
    processor: Any,
    sources: object,
    fetch: Callable[[PixelRef], Any] | None,
    resolvers: Iterable[Resolver],
) -> list[Resolver]:
    ways = list(resolvers)
    if processor is not None:
        ways.append(Recompute(processor, _samples.Sources(sources, fetch)))
    return ways


def _get(sample: Any, name: str) -> Any:
    return sample.get(name) if isinstance(sample, Mapping) else getattr(sample, name, None)


def _with(sample: Any, name: str, value: Any) -> Any:
    if isinstance(sample, Mapping):
        return {**sample, name: value}
    new = copy.copy(sample)
    setattr(new, name, value)
    return new


def _check_places(images: Sequence[Any], types: Any) -> None:
    """Raises where an image's placeholders are not where the sample says."""
    listed = None if types is None else np.asarray(types).reshape(-1)
    end = 0
    for number, image in enumerate(images):
        start, stop = image.offset, image.offset + image.length
        if start < end or image.length < 1 or (listed is not None and stop > len(listed)):
            raise PixelMismatch(f"the placeholders of image {number} overlap others, or the end")
        if listed is not None and not (listed[start:stop] == 1).all():
            raise PixelMismatch(f"image {number} lies where the tokens are of no image")
        end = stop
    if listed is not None and int((listed == 1).sum()) != sum(image.length for image in images):
        raise MissingPixels(f"a sample has placeholders of more than its {len(images)} images")


def _process(
    sample: Any,
    refs: Any,
    processor: Any,
    fetch: Callable[[Any], Any] | None,
    merge_size: int | None,
) -> dict[str, Tensor]:
    """The images that a sample names by URL."""
    from memweir.pixels.cache import PixelCache
    from memweir.pixels.processor import CachedProcessor

    images = list(refs.images)
    _check_places(images, _get(sample, "mm_token_type_ids"))
    if not images:
        return {}
    if processor is None:
        raise MissingPixels(f"a sample names {len(images)} images, and no processor was given")
    if not isinstance(processor, CachedProcessor):
        processor = CachedProcessor(processor, PixelCache(0, name="images of a sample"))
    found = []
    for image in images:
        given = None if fetch is None else fetch(image.url)
        found.append(image.url if given is None else given)
    answer = dict(processor(found, return_tensors="pt"))
    _samples.check_arrays(answer, "a sample")
    _check_lengths(answer, images, merge_size or getattr(processor, "merge_size", None))
    return answer


def _check_expected(processor: Any, expect: ProcessorCard) -> None:
    from memweir.pixels.fingerprint import processor_card

    card = processor_card(processor, return_tensors="pt")
    if card.fingerprint != expect.fingerprint:
        raise PixelMismatch(
            f"the processor is not the one that sampled: {disagreement(expect, card)}",
            expected=expect.fingerprint.hex(),
            got=card.fingerprint.hex(),
        )


def _check_lengths(answer: Mapping[str, Any], images: Sequence[Any], merge_size: Any) -> None:
    grid = next((answer[name] for name in _samples.GRIDS if name in answer), None)
    if grid is None:
        return
    counts = _samples.patches(grid)
    if len(counts) != len(images):
        raise PixelMismatch(f"{len(images)} images have {len(counts)} grids")
    if isinstance(merge_size, int):
        for number, (count, image) in enumerate(zip(counts, images, strict=True)):
            if count != image.length * merge_size**2:
                raise PixelMismatch(
                    f"image {number} has {image.length} placeholders and {count} patches, of which "
                    f"{merge_size**2} make a token: it was not processed like this when sampled"
                )
