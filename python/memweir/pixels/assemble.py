"""Answers put together from entries: fresh, writable, and what the processor would have said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from memweir.pixels.forms import Form, Leaf, leaves
from memweir.pixels.joiners import Unjoinable, axis_of, largest, place, window
from memweir.pixels.recipe import Join, Recipe, remember

if TYPE_CHECKING:
    from memweir._core import Pixels
    from memweir.pixels.cache import Spec

__all__ = ["Part", "assemble"]


@dataclass(frozen=True, slots=True)
class Part:
    """One image's entry, its form and how it came to be."""

    pixels: Pixels
    spec: Mapping[str, Spec]  # ``pixels.spec``, which is made anew on each access
    form: Form
    recipe: Recipe

    def shape(self, leaf: Leaf) -> tuple[int, ...]:
        return self.spec[leaf.name].shape


@dataclass(frozen=True, slots=True)
class Block:
    """An array to be: each piece is an array of a part and its offset."""

    how: str
    leaf: Leaf
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[Part, Leaf, tuple[int, ...]], ...]

    def gaps(self) -> bool:
        """Whether some of it is covered by no piece."""
        sizes = [math.prod(part.shape(leaf)) for part, leaf, _ in self.pieces]
        return sum(sizes) != math.prod(self.shape)


def assemble(
    how: str, samples: Sequence[Sequence[Part]], *, pads: bool, uneven: bool = False
) -> Any:
    """The ``BatchFeature`` of a call whose images have the entries ``samples``.

    ``samples`` holds one sequence for a flat list of images, and for a nested list given to a
    "nest" family one per sample. With ``pads`` false nothing may be filled with zeros; with
    ``uneven`` true, arrays in a list may differ in shape. Raises ``Unjoinable`` where only the
    processor knows the answer.
    """
    form = samples[0][0].form
    for sample in samples:
        for part in sample:
            if part.form.batch != form.batch or list(part.form.values) != list(form.values):
                raise Unjoinable("the parts differ in keys")
    plan = {}
    for key in form.values:
        joined = [
            _join(how, uneven, sample, [part.form.values[key] for part in sample])
            for sample in samples
        ]
        plan[key] = joined[0] if len(joined) == 1 else _stack(joined)
    if not pads and any(block.gaps() for block in _blocks(plan)):
        raise Unjoinable("the parts differ in shape")
    return form.fill({key: _realize(value) for key, value in plan.items()})


def _join(how: str, uneven: bool, parts: Sequence[Part], values: Sequence[Any]) -> Any:
    """The values of one key, joined: a tree whose leaves are blocks."""
    if len(parts) == 1:
        return _alone(parts[0], values[0])
    if all(isinstance(value, Leaf) for value in values):
        return _block(how, parts, values)
    if not all(type(value) is list for value in values):
        raise Unjoinable("neither arrays nor lists")
    if how == "nest":  # one sample: [[a]] and [[b]] are [[a, b]]
        if any(len(value) != 1 or type(value[0]) is not list for value in values):
            raise Unjoinable("not a list of samples")
        inner = [(part, value[0]) for part, value in zip(parts, values, strict=True)]
        return [_listed(how, uneven, inner)]
    return _listed(how, uneven, list(zip(parts, values, strict=True)))


def _listed(how: str, uneven: bool, lists: Sequence[tuple[Part, list[Any]]]) -> list[Any]:
    """Lists one after the other; their arrays agree in shape, or are padded until they do."""
    items = [(part, item) for part, items in lists for item in items]
    found = [(part, leaf) for part, item in items for leaf in leaves(item)]
    shapes = {part.shape(leaf) for part, leaf in found}
    if len(shapes) <= 1 or uneven:
        return [_alone(part, item) for part, item in items]
    if how == "concat" or not all(isinstance(item, Leaf) for _, item in items):
        raise Unjoinable("the parts differ in shape")
    shape = largest(shapes, None)
    origin = (0,) * len(shape)
    return [
        Block("pad", leaf, part.spec[leaf.name].dtype, shape, ((part, leaf, origin),))
        for part, leaf in items
    ]


def _alone(part: Part, value: Any) -> Any:
    if isinstance(value, Leaf):
        return _block("alone", [part], [value])
    if type(value) is list:
        return [_alone(part, item) for item in value]
    if type(value) is tuple:
        return tuple([_alone(part, item) for item in value])
    return value


def _block(how: str, parts: Sequence[Part], found: Sequence[Leaf]) -> Block:
    specs = [part.spec[leaf.name] for part, leaf in zip(parts, found, strict=True)]
    if any(spec.dtype != specs[0].dtype for spec in specs) or len(set(found)) != 1:
        raise Unjoinable("the parts differ in type")
    shape, offsets = place(how, [spec.shape for spec in specs])
    pieces = tuple(zip(parts, found, offsets, strict=True))
    return Block(how, found[0], specs[0].dtype, shape, pieces)


def _stack(samples: Sequence[Any]) -> Any:
    """Joined samples on axis 0, the shorter ones filled up with zeros; lists one by one."""
    if all(type(sample) is list for sample in samples):
        stacked = [item for sample in samples for item in sample]
        if len({block.shape for block in _blocks(stacked)}) > 1:
            raise Unjoinable("the samples differ in shape")
        return stacked
    if not all(isinstance(sample, Block) for sample in samples):
        raise Unjoinable("neither arrays nor lists")
    first = samples[0]
    if any(sample.dtype != first.dtype for sample in samples):
        raise Unjoinable("the samples differ in type")
    shape = largest([sample.shape for sample in samples], 1)
    pieces = tuple(
        (part, leaf, (row, *offset[1:]))
        for row, sample in enumerate(samples)
        for part, leaf, offset in sample.pieces
    )
    return Block("samples", first.leaf, first.dtype, (len(samples), *shape[1:]), pieces)


def _blocks(value: Any) -> list[Block]:
    if isinstance(value, Block):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    nested = isinstance(value, (dict, list, tuple))
    return [block for item in items for block in _blocks(item)] if nested else []


def _realize(value: Any) -> Any:
    if isinstance(value, Block):
        return _filled(value)
    if type(value) is list:
        return [_realize(item) for item in value]
    if type(value) is tuple:
        return tuple([_realize(item) for item in value])
    return value


def _filled(block: Block) -> Any:
    """The block's array: memory of its own, filled straight out of the cache."""
    gaps = block.gaps()
    if block.leaf.tensor:
        import torch

        make: Any = torch.zeros if gaps else torch.empty
        out = make(block.shape, dtype=_torch_dtype(block.dtype))
    else:
        out = (np.zeros if gaps else np.empty)(block.shape, np.dtype(block.dtype))
    for part, leaf, offset in block.pieces:
        shape = part.shape(leaf)
        into = out if shape == block.shape else out[window(offset, shape)]
        part.pixels.copy_into(leaf.name, into)
    if block.how in ("alone", "concat", "nest") or (block.how == "pad" and len(block.pieces) > 1):
        axis = axis_of(block.how)
        rows = tuple([(part.shape(leaf) or (1,))[axis] for part, leaf, _ in block.pieces])
        recipes = tuple([part.recipe for part, _, _ in block.pieces])
        remember(out, Join(block.how, block.leaf.name, recipes, rows))
    return out


def _torch_dtype(token: str) -> Any:
    import torch

    if token[0] in "<>|=":
        return torch.from_numpy(np.empty(0, np.dtype(token))).dtype
    return getattr(torch, token)
