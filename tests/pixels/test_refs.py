"""References as objects: what they say, how they travel, and what they refuse to be."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import memweir as mw
from memweir._core import Descriptor
from memweir.pixels.refs import JoinedRef, PixelRef

SECRET = "hunter2"


@pytest.fixture
def cache() -> mw.PixelCache:
    return mw.PixelCache("16 MiB")


@pytest.fixture
def array() -> np.ndarray[Any, Any]:
    return np.arange(24_000, dtype=np.float32).reshape(60, 400)


def refer(value: Any, cache: mw.PixelCache, **options: Any) -> PixelRef:
    ref = mw.strip(value, cache, threshold=0, **options).data
    assert isinstance(ref, PixelRef)
    return ref


def part(rows: int = 2, **fields: Any) -> PixelRef:
    values: dict[str, Any] = {"name": "x", "dtype": "<f4", "itemsize": 4, "shape": [rows, 3]}
    values |= {"digest": bytes(range(32)), **fields}
    return PixelRef(Descriptor(**values))


def test_describes_the_array_without_it(cache: mw.PixelCache, array: np.ndarray[Any, Any]) -> None:
    ref = refer(array, cache)
    assert (ref.dtype, ref.shape, ref.nbytes) == (array.dtype, array.shape, array.nbytes)
    assert (ref.ndim, ref.size, len(ref)) == (array.ndim, array.size, len(array))
    assert ref.digest == mw.hash_array(array)
    assert ref.parts == (ref,)
    assert ref.recipe is None
    assert not ref.tensor


def test_is_named_after_the_nearest_key(cache: mw.PixelCache) -> None:
    data = {"pixel_values": [np.zeros(9000)], "https://host/?sig=" + SECRET: np.ones(9000)}
    s = mw.strip(data, cache)
    assert [ref.name for ref in s.refs] == ["pixel_values", "array"]


def test_asarray_is_a_view_that_keeps_its_bytes(
    cache: mw.PixelCache, array: np.ndarray[Any, Any]
) -> None:
    ref = refer(array, cache)
    view = np.asarray(ref)
    assert view.tobytes() == array.tobytes()
    assert not view.flags.writeable
    del ref
    cache.clear()
    assert view.tobytes() == array.tobytes()


def test_array_and_copy_own_their_memory(cache: mw.PixelCache, array: np.ndarray[Any, Any]) -> None:
    ref = refer(array, cache)
    owned = ref.__array__(copy=True)
    owned += 1
    assert np.asarray(ref).tobytes() == array.tobytes()


def test_array_converts_types_only_where_a_copy_is_allowed(
    cache: mw.PixelCache, array: np.ndarray[Any, Any]
) -> None:
    ref = refer(array, cache)
    assert np.asarray(ref, np.float64).tolist() == array.tolist()
    assert ref.__array__(np.dtype("f4"), copy=False).dtype == np.float32
    with pytest.raises(ValueError, match="without a copy"):
        ref.__array__(np.dtype("f8"), copy=False)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(40, 50),
        torch.randn(40, 50).to(torch.bfloat16),
        torch.randn(40, 50, dtype=torch.complex128),
        torch.arange(99).reshape(9, 11).t(),
        torch.rand(700) > 0.5,
        torch.zeros(0, 4, dtype=torch.float16),
        torch.tensor(3.5),
        torch.randn(64).to(torch.float8_e4m3fn),
    ],
    ids=lambda t: str(t.dtype),
)
def test_tensors_come_back_as_tensors_of_their_own(cache: mw.PixelCache, tensor: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ref = refer(tensor, cache)
        back = mw.materialize(ref)
    assert ref.tensor
    assert type(back) is torch.Tensor
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    assert torch.equal(back.reshape(-1).view(torch.uint8), flat)
    back.zero_()
    assert torch.equal(ref.torch().reshape(-1).view(torch.uint8), flat)


def test_arrays_become_tensors_on_request_and_back(cache: mw.PixelCache) -> None:
    array = np.arange(6000, dtype=ml_dtypes.bfloat16)
    ref = refer(array, cache)
    tensor = ref.torch()
    assert tensor.dtype == torch.bfloat16
    assert tensor.view(torch.int16).numpy().tobytes() == array.tobytes()
    again = np.asarray(refer(tensor, cache))
    assert (again.dtype, again.tobytes()) == (array.dtype, array.tobytes())
    with pytest.raises(ValueError, match="torch has no type"):
        refer(np.zeros(9000, ">f4"), cache).torch()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_small_equal_and_pin_nothing(
    cache: mw.PixelCache, array: np.ndarray[Any, Any], protocol: int
) -> None:
    ref = refer(array, cache)
    data = pickle.dumps(ref, protocol)
    assert len(data) <= 256
    again = pickle.loads(data)
    assert (again, hash(again), repr(again)) == (ref, hash(ref), repr(ref))
    assert ref.pinned is not None
    assert again.pinned is None
    assert np.asarray(again).tobytes() == array.tobytes()


def test_json_is_small_and_reads_back(cache: mw.PixelCache, array: np.ndarray[Any, Any]) -> None:
    ref = refer(array, cache)
    text = json.dumps(ref.to_json())
    assert len(text) <= 256
    for written in (text, json.loads(text)):
        again = PixelRef.from_json(written)
        assert (again, again.to_json()) == (ref, ref.to_json())
    joined = JoinedRef("concat", [part(2), part(5)])
    again = PixelRef.from_json(json.dumps(joined.to_json()))
    assert isinstance(again, JoinedRef)
    assert (again, again.shape, again.how) == (joined, (7, 3), "concat")


GOOD = part().to_json()["memweir"]


@pytest.mark.parametrize(
    "tampered",
    [
        None,
        [],
        "[]",
        "{}",
        "null",
        "not json",
        {"memweir": 5},
        {"memweir": None},
        {"memweir": ""},
        {"memweir": GOOD[:-1]},
        {"memweir": GOOD + "0"},
        {"memweir": "é" + GOOD},
        {"memweir": GOOD, "join": "concat"},
        {"memweir": GOOD, SECRET: 1},
        {"memweir": []},
        {"memweir": [], "join": "concat"},
        {"memweir": [GOOD]},
        {"memweir": [GOOD], "join": "shuffle"},
        {"memweir": [GOOD], "join": ["concat"]},
        {"memweir": [GOOD, 3], "join": "concat"},
        {"memweir": [GOOD, GOOD], "join": "alone"},
        {"memweir": [GOOD, part(name="y").to_json()["memweir"]], "join": "concat"},
        {"memweir": [GOOD, part(shape=[2, 4]).to_json()["memweir"]], "join": "concat"},
        {"memweir": [GOOD, part(dtype="<f2").to_json()["memweir"]], "join": "concat"},
        {"memweir": [GOOD, part(torch=True).to_json()["memweir"]], "join": "concat"},
        {"memweir": [part(shape=[]).to_json()["memweir"]] * 2, "join": "concat"},
        {"memweir": [part(shape=[2**30, 2**30]).to_json()["memweir"]] * 9, "join": "concat"},
    ],
)
def test_tampered_json_is_refused(tampered: Any) -> None:
    with pytest.raises(ValueError, match=r"malformed|Expecting") as caught:
        PixelRef.from_json(tampered)
    assert SECRET not in str(caught.value)


def test_every_changed_character_is_refused() -> None:
    for at, old in enumerate(GOOD):
        for new in "0z~":
            if new != old:
                with pytest.raises(ValueError, match="malformed"):
                    PixelRef.from_json({"memweir": GOOD[:at] + new + GOOD[at + 1 :]})


def test_corrupt_pickles_are_refused() -> None:
    record = part().descriptor.encode()
    data = pickle.dumps(part())
    at = data.index(record) + 40
    with pytest.raises(ValueError, match="malformed reference"):
        pickle.loads(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize(
    ("dtype", "itemsize"),
    [("|O", 8), ("[('a', '|O')]", 8), ("<f4", 8), ("no such", 4), ("__name__", 4), ("[" * 999, 4)],
)
def test_hostile_types_are_refused_when_they_are_looked_at(dtype: str, itemsize: int) -> None:
    ref = pickle.loads(pickle.dumps(part(dtype=dtype, itemsize=itemsize)))
    with pytest.raises(ValueError, match="malformed reference"):
        ref.dtype  # noqa: B018
    assert repr(ref).startswith("PixelRef(")
    with pytest.raises(mw.MissingPixels):
        np.asarray(ref)


def test_equal_by_content(cache: mw.PixelCache, array: np.ndarray[Any, Any]) -> None:
    ref = refer(array, cache)
    same, cast = refer({"other": array.copy()}["other"], cache), refer(array.view(np.int32), cache)
    assert ref == same
    assert ref != cast
    assert ref != 3
    assert {ref, same, cast} == {ref, cast}
    assert JoinedRef("concat", [ref, same]) == JoinedRef("concat", [same, ref])
    assert JoinedRef("concat", [ref, ref]) != ref


def test_is_never_empty(cache: mw.PixelCache) -> None:
    assert refer(np.zeros((0, 3)), cache)
    assert len(refer(np.zeros((0, 3)), cache)) == 0
    scalar = refer(np.array(0.0), cache)
    assert scalar
    with pytest.raises(TypeError, match="0-d"):
        len(scalar)
    with pytest.raises(TypeError):
        list(refer(np.zeros(3), cache))  # type: ignore[call-overload]


def test_speaks_dlpack(cache: mw.PixelCache, array: np.ndarray[Any, Any]) -> None:
    for ref in (refer(array, cache), refer(torch.from_numpy(array.copy()), cache)):
        for take in (torch.as_tensor, torch.from_dlpack, np.from_dlpack):
            got = take(ref)
            assert np.asarray(got).tobytes() == array.tobytes()
            assert tuple(got.shape) == array.shape
        torch.as_tensor(ref).zero_()
        assert np.asarray(ref).tobytes() == array.tobytes(), "it was the caller's own"


def test_is_immutable_and_copies_are_free(
    cache: mw.PixelCache, array: np.ndarray[Any, Any]
) -> None:
    ref = refer(array, cache)
    for name in ("name", "digest", "shape", "extra"):
        with pytest.raises(AttributeError):
            setattr(ref, name, None)
    assert copy.copy(ref) is ref
    assert copy.deepcopy({"a": [ref]})["a"][0] is ref


def test_repr_and_recipe_show_no_source() -> None:
    origin = f"https://host/{SECRET}.png"
    ids = {"key": bytes(32), "fingerprint": bytes(32), "source": bytes(32)}
    ref = part(origin=origin, arguments=json.dumps({"token": SECRET}), **ids)
    assert ref.recipe is not None
    assert ref.recipe.origin == origin
    assert ref.recipe.arguments == {"token": SECRET}
    joined = JoinedRef("pad", [ref, ref])
    with pytest.raises(mw.MissingPixels) as missing:
        np.asarray(joined)
    texts = [repr(ref), str(ref), repr(ref.recipe), repr(joined), repr([ref])]
    texts += [str(missing.value), repr(missing.value), repr(ref.descriptor)]
    assert not any(SECRET in text for text in texts)


@pytest.mark.parametrize("arguments", ["[]", "5", '"text"', "{", ""])
def test_arguments_that_are_none_are_refused(arguments: str) -> None:
    ref = part(key=bytes(32), fingerprint=bytes(32), arguments=arguments)
    with pytest.raises(ValueError, match=r"malformed|Expecting"):
        ref.recipe  # noqa: B018
