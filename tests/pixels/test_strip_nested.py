"""Whatever the structure: stripped and materialized it is what it was, and nothing else changed."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, UserDict
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import memweir as mw

CACHE = mw.PixelCache("64 MiB")


class Named(NamedTuple):
    left: Any
    right: Any


@dataclass(frozen=True, slots=True)
class Frozen:
    left: Any
    right: Any


@dataclass
class Open:
    left: Any


def spread(array: np.ndarray[Any, Any], how: str) -> np.ndarray[Any, Any]:
    """The same elements in another kind of memory."""
    if how == "fortran":
        return np.asfortranarray(array)
    if how == "reversed":
        return array[::-1].copy()[::-1] if array.ndim else array
    if how == "strided" and array.ndim:
        return np.repeat(array, 2, axis=0)[::2]
    if how == "swapped" and array.dtype.kind in "iufcmMU" and array.dtype.isbuiltin == 1:
        return array.astype(array.dtype.newbyteorder())
    if how == "readonly":
        array.flags.writeable = False
    return array


shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
dtypes = st.one_of(
    hnp.scalar_dtypes(),
    hnp.array_dtypes(max_size=3),
    st.sampled_from([np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e5m2)]),
    st.sampled_from([np.dtype("U0"), np.dtype("S3"), np.dtype("V5"), np.dtype("M8[7D]")]),
)
memories = st.sampled_from(["plain", "fortran", "reversed", "strided", "swapped", "readonly"])


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    dtype, shape = draw(dtypes), draw(shapes)
    count = int(np.prod(shape)) * dtype.itemsize
    data = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), np.uint8)
    if not count:
        return np.zeros(shape, dtype)
    made = data.copy().view(np.dtype((np.void, dtype.itemsize))).view(dtype).reshape(shape)
    # Any bit pattern will do, but for text, whose code points numpy checks when it prints them.
    safe = np.zeros(shape, dtype) if dtype.kind == "U" else made
    return spread(safe, draw(memories))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    kinds = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint8]
    shape = draw(shapes)
    bits = torch.from_numpy(np.random.default_rng(draw(st.integers(0, 9))).random((*shape, 2)))
    made = bits[..., 0].mul(3).to(draw(st.sampled_from(kinds)))
    return made.transpose(0, -1) if made.ndim > 1 and draw(st.booleans()) else made


leaves = st.one_of(arrays(), tensors(), st.none(), st.integers(), st.text(), st.binary())
data = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4),
        st.dictionaries(st.text(max_size=5), inner, max_size=3).map(OrderedDict),
        st.dictionaries(st.text(max_size=5), inner, max_size=3).map(UserDict),
        st.tuples(inner, inner),
        st.builds(Named, inner, inner),
        st.builds(Frozen, inner, inner),
        st.builds(Open, inner),
        inner.map(lambda value: [value, {"again": value}]),
    ),
    max_leaves=12,
)


def bits(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray | torch.Tensor):
        assert (one.dtype, one.shape, bits(one)) == (other.dtype, other.shape, bits(other))
    elif isinstance(one, dict | UserDict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif is_dataclass(one):
        for f in fields(one):
            assert_same(getattr(one, f.name), getattr(other, f.name))
    else:
        assert one == other


@settings(max_examples=200, deadline=None)
@given(data, st.sampled_from([0, 8, 64]), st.booleans())
def test_there_and_back(value: Any, threshold: int, writable: bool) -> None:
    before = copy.deepcopy(value)
    s = mw.strip(value, CACHE, threshold=threshold)
    assert_same(value, before)
    assert s.left == ()
    back = mw.materialize(s.data, writable=writable)
    assert_same(back, before)
    if threshold == 0:  # else numpy's own pickles are in it, which forget byte orders
        travelled = pickle.loads(pickle.dumps(s.data))
        assert_same(mw.materialize(travelled, writable=writable), before)
    assert_same(value, before)


@settings(max_examples=100, deadline=None)
@given(data)
def test_only_references_are_big(value: Any) -> None:
    s = mw.strip(value, CACHE, threshold=16)
    stack = [s.data]
    while stack:
        item = stack.pop()
        if isinstance(item, np.ndarray | torch.Tensor):
            assert item.nbytes < 16
        elif isinstance(item, dict | UserDict):
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
        elif is_dataclass(item):
            stack.extend(getattr(item, f.name) for f in fields(item))
    assert s.bytes_removed <= CACHE.stats().pinned_bytes + sum(r.nbytes for r in s.refs)


@settings(max_examples=50, deadline=None)
@given(arrays())
def test_every_array_alone(array: np.ndarray[Any, Any]) -> None:
    ref = mw.strip(array, CACHE, threshold=0).data
    assert ref.digest == mw.hash_array(array)
    assert_same(np.asarray(ref), np.array(array))
    owned = mw.materialize(ref, writable=True)
    assert owned.flags.writeable
    assert owned.flags.owndata or not owned.nbytes
