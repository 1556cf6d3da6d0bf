"""Arrays with a recipe: believed only while their bytes are the ones that the recipe makes."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch

import memweir as mw
from memweir.pixels import provenance
from memweir.pixels.joiners import join
from memweir.pixels.recipe import Join, Recipe, recall, remember
from memweir.pixels.refs import JoinedRef

NAME = "pixel_values"


@pytest.fixture
def cache() -> mw.PixelCache:
    return mw.PixelCache("32 MiB")


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_entries", provenance._Generations(1000))


def recipe(seed: int, shape: tuple[int, ...] = (40, 300), **fields: Any) -> Recipe:
    def digest(what: str) -> mw.Digest:
        return mw.hash_bytes(f"{what} {seed} {shape}")

    values: dict[str, Any] = {
        "key": bytes(digest("key")),
        "fingerprint": digest("processor"),
        "image": digest("image"),
        "source": digest("source"),
        "origin": None,
        "kwargs": (("return_tensors", "np"),),
    }
    return Recipe(**(values | fields))


def entry(seed: int, shape: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return {NAME: values, "grid": np.array([[1, *shape[:2]]])}


def processed(
    cache: mw.PixelCache, how: str, shapes: list[tuple[int, ...]], *, tensor: bool = False
) -> Any:
    """What a cached processor returns for images whose entries have these shapes."""
    parts = [recipe(seed, shape) for seed, shape in enumerate(shapes)]
    entries = [entry(seed, shape) for seed, shape in enumerate(shapes)]
    for part, arrays in zip(parts, entries, strict=True):
        cache.put(mw.Digest(part.key), arrays)
    array: Any = join(how, entries)[NAME] if how != "alone" else entries[0][NAME].copy()
    array = torch.from_numpy(array) if tensor else array
    axis = 1 if how == "nest" else 0
    remember(array, Join(how, NAME, tuple(parts), tuple(shape[axis] for shape in shapes)))
    return array


def bits(array: Any) -> bytes:
    return bytes(array.numpy().tobytes() if isinstance(array, torch.Tensor) else array.tobytes())


CASES = [
    ("alone", [(40, 300)]),
    ("concat", [(40, 300), (7, 300), (90, 300)]),
    ("pad", [(2, 3, 60, 40), (1, 3, 20, 90), (1, 3, 60, 90)]),
    ("nest", [(1, 4, 3, 30, 30), (1, 2, 3, 50, 20)]),
]


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize(("how", "shapes"), CASES)
def test_one_reference_for_each_image(
    cache: mw.PixelCache, how: str, shapes: list[tuple[int, ...]], tensor: bool
) -> None:
    array = processed(cache, how, shapes, tensor=tensor)
    before = bits(array)
    s = mw.strip({NAME: array}, cache)
    ref = s.data[NAME]
    assert (ref.how, ref.shape, ref.name) == (how, tuple(array.shape), NAME)
    assert isinstance(ref, JoinedRef) == (how != "alone")
    assert ref.pinned is None
    assert cache.stats().pinned_bytes == 0
    for seed, part in enumerate(ref.parts):
        assert part.recipe is not None
        assert bytes(part.recipe.key) == recipe(seed, shapes[seed]).key
        assert part.recipe.arguments == {"return_tensors": "np"}
        assert len(part.descriptor.encode()) <= 256
        assert np.asarray(part).tobytes() == entry(seed, shapes[seed])[NAME].tobytes()
    back = mw.materialize(s.data)[NAME]
    assert type(back) is type(array)
    assert bits(back) == before
    assert bits(np.asarray(ref)) == before
    assert bits(ref.torch()) == before


@pytest.mark.parametrize(("how", "shapes"), CASES)
def test_evicted_entries_are_not_forgotten(
    cache: mw.PixelCache, how: str, shapes: list[tuple[int, ...]]
) -> None:
    first = mw.strip(processed(cache, how, shapes), cache).data
    again = processed(cache, how, shapes)
    cache.clear()
    ref = mw.strip(again, cache).data
    assert ref == first
    assert ref.pinned is None
    with pytest.raises(mw.MissingPixels, match=r"Recompute.*the source") as missing:
        np.asarray(ref)
    assert missing.value.digest == ref.parts[0].digest.hex()
    assert ref.parts[0].recipe.source.hex() in str(missing.value)


@pytest.mark.parametrize(("how", "shapes"), CASES)
def test_entries_that_were_never_seen_make_no_recipe(
    cache: mw.PixelCache, how: str, shapes: list[tuple[int, ...]]
) -> None:
    array = processed(cache, how, shapes)
    before = array.tobytes()
    cache.clear()
    ref = mw.strip(array, cache).data
    assert (ref.recipe, ref.how) == (None, "alone")
    assert ref.pinned is not None
    cache.clear()
    assert np.asarray(ref).tobytes() == before


def test_entries_without_room_are_known_when_noted(cache: mw.PixelCache) -> None:
    array = processed(cache, "alone", [(40, 300)])
    pixels = cache.get(mw.Digest(recipe(0).key))
    assert pixels is not None
    provenance.note(recipe(0).key, pixels)
    del pixels
    cache.clear()
    assert mw.strip(array, mw.PixelCache(0)).data.recipe.key == mw.Digest(recipe(0).key)


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize(("how", "shapes"), CASES)
def test_arrays_written_in_place_lose_their_recipe(
    cache: mw.PixelCache, how: str, shapes: list[tuple[int, ...]], tensor: bool
) -> None:
    for index in ((0,) * len(shapes[0]), (-1,) * len(shapes[0])):
        array = processed(cache, how, shapes, tensor=tensor)
        array[index] = 42.0
        before = bits(array)
        s = mw.strip([array], cache)
        ref = s.data[0]
        assert (ref.recipe, ref.how) == (None, "alone")
        del array
        gc.collect()
        cache.clear()
        assert bits(mw.materialize(s.data)[0]) == before


def test_a_negative_zero_in_the_padding_is_a_change(cache: mw.PixelCache) -> None:
    array = processed(cache, "pad", [(1, 3, 20, 90), (1, 3, 60, 40)])
    assert array[0, 0, 30, 0] == 0
    array[0, 0, 30, 0] = -0.0
    ref = mw.strip(array, cache).data
    assert ref.how == "alone"
    assert np.signbit(np.asarray(ref)[0, 0, 30, 0])


def test_a_written_array_that_does_not_fit_stays_in_place() -> None:
    cache = mw.PixelCache("256 KiB")
    array = processed(cache, "concat", [(40, 300), (40, 300), (40, 300), (40, 300)])
    array[0] = 0
    array = np.concatenate([array] * 2)
    s = mw.strip([array], cache)
    assert s.data[0] is array
    assert s.left[0].why == "does not fit into the cache"


def test_views_and_copies_have_no_recipe(cache: mw.PixelCache) -> None:
    array = processed(cache, "concat", [(40, 300), (50, 300)])
    for other in (array[:40], array.copy(), array.reshape(-1), array.astype(np.float64)):
        assert mw.strip(other, cache).data.recipe is None


def test_a_join_that_does_not_describe_the_array_is_not_believed(cache: mw.PixelCache) -> None:
    whole = processed(cache, "concat", [(40, 300), (50, 300)])
    parts = (recipe(0), recipe(1, (50, 300)))
    for how, name, used in [
        ("concat", NAME, parts[:1]),
        ("concat", NAME, parts[::-1]),
        ("concat", "grid", parts),
        ("concat", "no such", parts),
        ("nest", NAME, parts),
        ("alone", NAME, parts),
        ("unheard of", NAME, parts),
    ]:
        array = whole.copy()
        remember(array, Join(how, name, used, (40, 50)))
        ref = mw.strip(array, cache).data
        assert (ref.how, ref.recipe) == ("alone", None)
        assert np.asarray(ref).tobytes() == whole.tobytes()


@pytest.mark.parametrize("evicted", [False, True])
def test_each_byte_is_looked_at_once(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch, evicted: bool
) -> None:
    array = processed(cache, "concat", [(40, 300), (50, 300)])
    mw.strip(array, cache)
    if evicted:
        cache.clear()
    looked_at, hashed = 0, 0
    equal = provenance._equal

    def count(part: Any, *rest: Any) -> bool:
        nonlocal looked_at
        looked_at += part.nbytes
        return equal(part, *rest)

    def hash_array(part: Any) -> mw.Digest:
        nonlocal hashed
        hashed += part.nbytes
        return mw.hash_array(part)

    monkeypatch.setattr(provenance, "hash_array", hash_array)
    monkeypatch.setattr(provenance, "_equal", count)
    misses = cache.stats().misses
    mw.strip([array, array], cache)
    assert looked_at == array.nbytes
    assert hashed == (array.nbytes if evicted else 0)
    assert cache.stats().misses == misses


def test_what_is_known_stays_bounded() -> None:
    known = provenance._Generations(8)
    value = provenance.Known("<f4", (1,), mw.hash_bytes(b""), 1)
    known.put((b"kept", NAME), value)
    for n in range(100):
        known.put((str(n).encode(), NAME), value)
        assert known.get((b"kept", NAME)) is value
        assert len(known._young) + len(known._old) <= 9
    assert known.get((b"0", NAME)) is None


def test_an_entry_made_again_with_other_bytes_is_another_entry(cache: mw.PixelCache) -> None:
    first = processed(cache, "concat", [(40, 300)])
    old = mw.strip(first, cache)
    join = recall(first)
    assert join is not None
    key = mw.Digest(join.parts[0].key)
    other = np.ascontiguousarray(first + 1)
    assert cache.put(key, {NAME: other})
    remember(other, join)
    new = mw.strip(other, cache)
    assert mw.materialize(new.data).tobytes() == other.tobytes()
    with pytest.raises(mw.PixelMismatch):
        mw.materialize(old.data)
    late = mw.strip(first, cache)  # its entry has other bytes now: these are kept instead
    assert mw.materialize(late.data).tobytes() == first.tobytes()
