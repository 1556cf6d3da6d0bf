"""References in a ``DataLoader``: workers are handed names and write pixels into the batch.

::

    restore = Restorer(image_processor, fetch=sources.get)
    DataLoader(samples, collate_fn=Collate(restore), num_workers=4)

Samples hold ``PixelRef``s where they held arrays (``mw.strip``), so that what goes to a worker is
some hundred bytes for each image. :class:`Collate` runs in the worker and writes each image into
its place in the batch, which lies in shared memory: what comes back is a handle on that memory.
Neither way is a pixel pickled; what would be is refused.

A forked worker finds pixels in the caches that it was born with. A spawned one has none of them,
and until caches are shared between processes all it can do is to make pixels anew: give it a
processor and a way to the sources.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate, get_worker_info

from memweir.errors import MissingPixels, PixelMismatch, UnsupportedType
from memweir.integrations import _samples
from memweir.pixels.cache import PixelCache
from memweir.pixels.found import blank_tensor
from memweir.pixels.joiners import HOWS, place, window
from memweir.pixels.processor import CachedProcessor
from memweir.pixels.provenance import is_tensor
from memweir.pixels.recompute import Recompute
from memweir.pixels.refs import ALONE, PixelRef, numpy_dtype
from memweir.pixels.resolve import Resolver, restore_into
from memweir.pixels.walk import Trail, rebuild

__all__ = ["Collate", "RestoredDataset", "Restorer"]

LARGE: Final = 16 << 10
"""From this size on an array is taken for pixels, as ``mw.strip`` does."""


class Restorer:
    """A resolver that each process makes for itself, so that it goes into any worker.

    ``processor`` is an image processor of transformers, or a ``CachedProcessor``, of which the
    wrapped processor travels; ``fetch(ref)`` gives the source of an image, as for
    ``mw.Recompute``, and is pickled for spawned workers. ``budget`` is that of the cache in which
    each process keeps what it made. ``resolvers`` are asked before, and have to pickle too.

    Calling it raises what ``mw.Recompute`` raises.
    """

    def __init__(
        self,
        processor: Any = None,
        *,
        fetch: Callable[[PixelRef], Any] | None = None,
        budget: int | str = 0,
        resolvers: Sequence[Resolver] = (),
    ) -> None:
        if processor is None and fetch is not None:
            raise ValueError("fetch gives sources, and no processor makes pixels of them")
        self._processor = processor
        self._fetch = fetch
        self._budget = budget
        self._resolvers = tuple(resolvers)
        self._made: tuple[int, Recompute] | None = None

    def __call__(self, ref: PixelRef) -> Any:
        for resolver in self._resolvers:
            given = resolver(ref)
            if given is not None:
                return given
        return None if self._processor is None else self._recompute()(ref)

    def _recompute(self) -> Recompute:
        pid = os.getpid()
        if self._made is None or self._made[0] != pid:
            processor = self._processor
            if not isinstance(processor, CachedProcessor):
                cache = PixelCache(self._budget, name="restored")
                processor = CachedProcessor(processor, cache)
            self._made = pid, Recompute(processor, self._fetch)
        return self._made[1]

    def __getstate__(self) -> dict[str, Any]:
        processor = self._processor
        if isinstance(processor, CachedProcessor):
            processor = processor.wrapped
        return {**vars(self), "_processor": processor, "_made": None}


class RestoredDataset(Dataset[Any]):
    """``dataset``, map-style, with a CPU tensor in place of each reference, made where it is read.

    For a ``collate_fn`` that is not :class:`Collate`: an image is then copied once more, into the
    batch. Samples are whatever ``mw.materialize`` walks.

    Raises ``MissingPixels`` and ``PixelMismatch`` from the worker that reads the sample;
    ``UnsupportedType`` when it is pickled with arrays in it: ``mw.strip`` them first.
    """

    def __init__(self, dataset: Any, restore: Resolver | None = None) -> None:
        self._dataset = dataset
        self._restore = restore

    def __getitem__(self, index: Any) -> Any:
        return _as_tensors(self._dataset[index], _given(self._restore))

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        many = getattr(self._dataset, "__getitems__", None)
        samples = many(indices) if callable(many) else [self._dataset[i] for i in indices]
        return [_as_tensors(sample, _given(self._restore)) for sample in samples]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getstate__(self) -> dict[str, Any]:
        _refuse_arrays(self._dataset, "a dataset that goes to a worker")
        return vars(self)


class Collate:
    """A ``collate_fn`` that writes the images of a batch into one tensor for each name.

    Samples are mappings. Images are references by name, alone or in lists; below ``mm_items`` (a
    mapping of lists of images, or an object that has them) or ``mm_kwargs`` (a mapping of names
    to arrays). In the batch each name is one tensor of all images, in order, joined along axis 0
    as ``how`` says: ``"concat"``, or ``"pad"`` with zeros where other axes are shorter. Names
    from below ``mm_items`` and ``mm_kwargs`` are in ``batch["mm_kwargs"]``. The other values are
    collated by ``rest``, torch's ``default_collate`` unless given.

    Tensors have the arrays' dtypes, are contiguous, and lie in shared memory when a worker makes
    them.

    With ``check`` a sample whose images do not match its grids, or its ``mm_token_type_ids`` where
    it has them, is refused: ``MissingPixels`` or ``PixelMismatch``. ``merge_size`` is the square
    root of patches to a token, where it is known. ``TypeError`` says that the batch holds an array
    that would be pickled on its way back, ``ValueError`` that images do not join.
    """

    def __init__(
        self,
        restore: Resolver | None = None,
        *,
        how: str = "concat",
        rest: Callable[[list[Any]], Any] = default_collate,
        check: bool = True,
        merge_size: int | None = None,
    ) -> None:
        if how not in HOWS or how == ALONE:
            raise ValueError(f"unknown join {how!r}")
        self._restore = restore
        self._how = how
        self._rest = rest
        self._check = check
        self._merge_size = merge_size

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        outer: dict[str, list[Any]] = {}
        inner: dict[str, list[Any]] = {}
        others = []
        images = _image_names(samples)
        for number, sample in enumerate(samples):
            rest = {}
            mine: list[dict[str, list[Any]]] = [{}]
            for name, value in sample.items():
                nested = name in ("mm_items", "mm_kwargs", "multi_modal_data")
                if not nested and name not in images:
                    rest[name] = value
                    continue
                found = self._nested(name, value) if nested else _flat(name, value)
                for grid in _samples.GRIDS.keys() & found:  # small, and looked into below
                    found[grid] = [self._seen(part) for part in found[grid]]
                if nested:
                    mine.append(found)
                else:
                    mine[0].update(found)
                for key, parts in found.items():
                    (inner if nested else outer).setdefault(key, []).extend(parts)
            if self._check:
                self._check_sample(sample, mine, f"sample {number} of the batch")
            others.append(rest)
        batch: dict[str, Any] = {}
        if others and others[0]:
            collated = self._rest(others)
            if not isinstance(collated, Mapping):
                raise TypeError(f"rest= gives a mapping, not {type(collated).__name__}")
            _refuse_arrays(collated, "a batch")
            batch.update(collated)
        batch |= {key: self._joined(key, parts) for key, parts in outer.items() if parts}
        if inner:
            batch["mm_kwargs"] = {key: self._joined(key, parts) for key, parts in inner.items()}
        return batch

    def _joined(self, name: str, parts: list[Any]) -> torch.Tensor:
        kinds = {_torch_dtype(part) for part in parts}
        if len(kinds) != 1:
            raise ValueError(f"{name} is of {len(kinds)} types in one batch")
        shapes = [tuple(part.shape) for part in parts]
        shape, offsets = place(self._how, shapes)
        out = _shared(shape, kinds.pop(), zeros=self._how != "concat")
        for part, offset, extent in zip(parts, offsets, shapes, strict=True):
            cut: Any = (*window(offset, extent), ...)
            row = out[cut]
            if isinstance(part, PixelRef):
                restore_into(part, row, *_given(self._restore))
            else:
                row.copy_(part if is_tensor(part) else torch.from_numpy(_plain(part)))
        return out

    def _nested(self, name: str, value: Any) -> dict[str, list[Any]]:
        """Arrays by name, out of the images of all modalities, or out of a mapping of arrays."""
        if value is None:
            return {}
        # By name throughout: walked by items() some kinds of items are restored.
        if isinstance(value, Mapping) and name == "mm_kwargs":
            return {key: [value[key]] for key in value}
        items = _samples.items_of(value)
        if items is None:
            raise UnsupportedType(f"{name} is no mapping of images: {type(value).__name__}")
        seen = {
            modality: [
                {k: self._seen(item[k]) if k in _samples.GRIDS else item[k] for k in item}
                for item in images
            ]
            for modality, images in items.items()
        }
        _samples.check_items(seen, name)
        found: dict[str, list[Any]] = {}
        for images in seen.values():
            for item in images:
                for key, part in item.items():
                    found.setdefault(key, []).append(part)
        return found

    def _seen(self, part: Any) -> Any:
        if not isinstance(part, PixelRef):
            return part
        out = blank_tensor(part.descriptor, zeros=True)
        restore_into(part, out, *_given(self._restore))
        return out

    def _check_sample(
        self, sample: Mapping[str, Any], found: list[dict[str, list[Any]]], where: str
    ) -> None:
        counts: list[int] = []
        images = 0
        for arrays in found:
            names = [name for name, parts in arrays.items() if parts]
            if names and not any(name in _samples.PIXELS for name in names):
                raise MissingPixels(f"{where} has {', '.join(names)} and no pixels")
            images += len(arrays.get(_samples.PIXELS[0], ()))
            for grid, name in _samples.GRIDS.items():
                if not arrays.get(grid):
                    continue
                mine = [n for part in arrays[grid] for n in _samples.patches(part)]
                rows = sum(part.shape[0] for part in arrays.get(name, ()))
                if rows != sum(mine):
                    raise PixelMismatch(
                        f"{where} has {rows} rows of {name} where its grid has {sum(mine)}"
                    )
                if name == _samples.PIXELS[0]:
                    counts += mine
        types = sample.get("mm_token_type_ids")
        if types is not None:
            listed = np.asarray(types).reshape(-1).tolist()
            _samples.check_tokens(
                listed, counts or images, where=where, merge_size=self._merge_size
            )


def _given(restore: Resolver | None) -> tuple[Resolver, ...]:
    return () if restore is None else (restore,)


def _image_names(samples: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of images: those of pixels and grids, and what is a reference in any of the samples.

    One that was small enough to be left an array in another sample is an image there, too.
    """
    names = {*_samples.PIXELS, *_samples.GRIDS}
    for sample in samples:
        if not isinstance(sample, Mapping):
            raise TypeError(f"a sample is a mapping, not {type(sample).__name__}")
        for name, value in sample.items():
            each = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(v, PixelRef) for v in each):
                names.add(name)
    return names


def _flat(name: str, value: Any) -> dict[str, list[Any]]:
    """An image by name, or a list of them; none where a sample has none."""
    parts = list(value) if isinstance(value, list | tuple) else [value]
    if value is None:
        parts = []
    if not all(isinstance(part, PixelRef) or _is_array(part) for part in parts):
        raise UnsupportedType(f"{name} holds references and other things, or no arrays")
    return {name: parts}


def _torch_dtype(part: Any) -> torch.dtype:
    if isinstance(part, PixelRef):
        # A descriptor says a type; what torch makes of it is said by an array without elements.
        name = part.descriptor.dtype
        known = getattr(torch, name, None) if name.isidentifier() else None
        if isinstance(known, torch.dtype):
            return known
        return torch.from_numpy(np.empty(0, numpy_dtype(part.descriptor))).dtype
    if is_tensor(part):
        dtype: torch.dtype = part.dtype
        return dtype
    if _is_array(part):
        return torch.from_numpy(_plain(part)[:0]).dtype
    raise UnsupportedType(f"an image holds {type(part).__name__}, which is no array")


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Memory that torch takes without a warning: it is only read."""
    return array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy()


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or is_tensor(value)


def _shared(shape: tuple[int, ...], dtype: torch.dtype, *, zeros: bool) -> torch.Tensor:
    """Memory for a tensor; in a worker, memory that its parent can map."""
    make: Any = torch.zeros if zeros else torch.empty
    count = int(np.prod(shape, dtype=np.int64))
    if get_worker_info() is None or not count:
        return make(shape, dtype=dtype)  # type: ignore[no-any-return]
    new = getattr(torch.UntypedStorage, "_new_shared", None)
    if new is None:
        return make(shape, dtype=dtype).share_memory_()  # type: ignore[no-any-return]
    # What torch's own collate function allocates; the system hands it out zeroed.
    storage = new(count * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def _as_tensors(sample: Any, resolvers: tuple[Resolver, ...]) -> Any:
    def leaf(value: object, trail: Trail) -> object:
        if not isinstance(value, PixelRef):
            return value
        out = blank_tensor(value.descriptor, zeros=True)
        restore_into(value, out, *resolvers)
        return out

    return rebuild(sample, leaf)


def _refuse_arrays(data: object, what: str) -> None:
    """Raises where ``data`` holds an array that would be pickled."""

    def leaf(value: object, trail: Trail) -> object:
        if isinstance(value, np.ndarray) and value.nbytes >= LARGE:
            raise UnsupportedType(
                f"{what} holds an array of {value.nbytes} bytes at {trail}, which would be "
                "pickled: mw.strip() it before, or make it a tensor after"
            )
        if isinstance(value, PixelRef) and what == "a batch":
            raise MissingPixels(
                f"a batch holds {value!r} at {trail} and not its pixels: images are references by "
                "name, in lists, or below mm_items or mm_kwargs",
                digest=value.digest.hex(),
            )
        return value

    rebuild(data, leaf)
