"""The pieces under a cached processor: joins, forms, fingerprints, recipes."""

from __future__ import annotations

import gc
import weakref
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from processor_kit import difference
from transformers import CLIPImageProcessorPil
from transformers.feature_extraction_utils import BatchFeature as FeatureBatch
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict

import memweir as mw
from memweir.pixels.fingerprint import Fingerprinter, Unfingerprintable, freeze
from memweir.pixels.forms import FORM, Leaf, Unrepresentable, form_of, take_apart
from memweir.pixels.joiners import Unjoinable, join, place, window
from memweir.pixels.recipe import Join, Recipe, recall, remember

lengths = st.integers(0, 4)
tails = st.tuples(lengths, lengths)


@settings(deadline=None)
@given(st.lists(lengths, min_size=1, max_size=4), tails)
def test_concat_is_numpy_s(rows: list[int], tail: tuple[int, int]) -> None:
    parts = [np.random.default_rng(n).random((n, *tail)) for n in rows]
    joined = join("concat", [{"x": part} for part in parts])["x"]
    assert np.array_equal(joined, np.concatenate(parts))
    assert joined.flags.owndata


@settings(deadline=None)
@given(st.lists(st.tuples(lengths, st.just(3), lengths, lengths), min_size=1, max_size=4))
def test_pad_keeps_every_part_and_puts_zeros_around(shapes: list[tuple[int, ...]]) -> None:
    parts = [np.full(shape, i + 1) for i, shape in enumerate(shapes)]
    joined = join("pad", [{"x": part} for part in parts])["x"]
    _, offsets = place("pad", shapes)
    for part, offset in zip(parts, offsets, strict=True):
        here = joined[window(offset, part.shape)]
        assert np.array_equal(here, part)
        here[...] = 0
    assert not joined.any()


def test_nest_appends_images_to_a_sample() -> None:
    one, two = np.ones((1, 2, 3)), np.full((1, 1, 3), 2.0)
    joined = join("nest", [{"x": one}, {"x": two}])["x"]
    assert np.array_equal(joined, np.concatenate([one, two], axis=1))


@pytest.mark.parametrize(
    ("how", "shapes"),
    [
        ("concat", [(1, 2), (1, 3)]),
        ("concat", [(1, 2), (1, 2, 1)]),
        ("concat", [(), ()]),
        ("alone", [(1,), (1,)]),
        ("pad", [(1, 3, 8, 8), (1, 4, 8, 8)]),
        ("pad", [(1, 2), (1, 2, 1)]),
        ("nest", [(1, 2, 3, 8, 8), (1, 2, 1, 8, 8)]),
        ("nest", [(2, 1), (2, 1)]),
        ("nest", [(1,), (1,)]),
    ],
)
def test_parts_that_do_not_fit_are_refused(how: str, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(Unjoinable):
        place(how, shapes)


def test_unknown_joins_names_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match="glue"):
        place("glue", [(1,)])
    with pytest.raises(Unjoinable, match="names"):
        join("concat", [{"x": np.zeros(1)}, {"y": np.zeros(1)}])
    with pytest.raises(Unjoinable, match="dtype"):
        join("concat", [{"x": np.zeros(1)}, {"x": np.zeros(1, np.int8)}])


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
arrays = hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_side=3))
tensors = st.builds(torch.full, st.just((2, 1)), st.integers(0, 9), dtype=st.just(torch.bfloat16))
values = st.recursive(
    scalars | arrays | tensors | st.builds(torch.Size, st.lists(st.integers(0, 9), max_size=2)),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


def same(one: Any, other: Any) -> bool:
    """`difference`, with nan equal to itself."""
    if isinstance(one, float) and isinstance(other, float):
        return repr(one) == repr(other)
    if isinstance(one, (list, tuple)) and type(one) is type(other) and len(one) == len(other):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return difference(one, other) is None


@settings(deadline=None)
@given(st.dictionaries(st.text(), values, max_size=4), st.sampled_from([None, "np", "pt"]))
def test_answers_survive_being_taken_apart(data: dict[str, Any], tensors: str | None) -> None:
    answer = BatchFeature(data, skip_tensor_conversion=["x"] if len(data) % 2 else None)
    arrays = take_apart(answer, tensors)
    form = form_of(arrays, list(arrays), tensors)

    def filled(value: Any) -> Any:
        if isinstance(value, Leaf):
            return arrays[value.name]
        if type(value) in (list, tuple):
            return type(value)([filled(item) for item in value])
        return value

    back = form.fill({key: filled(value) for key, value in form.values.items()})
    assert type(back) is BatchFeature
    assert back.skip_tensor_conversion == answer.skip_tensor_conversion
    assert list(back) == list(data)
    assert all(same(data[key], back[key]) for key in data)


def test_plain_answers_need_no_form() -> None:
    answer = BatchFeature({"pixel_values": np.zeros((1, 2)), "grid": np.ones(3)})
    assert list(take_apart(answer, "np")) == ["pixel_values", "grid"]
    assert FORM in take_apart(answer, "pt")
    assert FORM in take_apart(FeatureBatch(answer.data), "np")


@pytest.mark.parametrize(
    "answer",
    [
        np.zeros(3),
        {"a": np.zeros(3)},
        BatchFeature({"a": {"b": 1}}),
        BatchFeature({"a": [np.float64(1)]}),
        BatchFeature({"a": np.array([None])}),
        BatchFeature({FORM: 1}),
        BatchFeature({3: 1}),
        BatchFeature({"a": 1}, skip_tensor_conversion={"a"}),
    ],
)
def test_answers_that_no_entry_can_carry_are_named(answer: Any) -> None:
    with pytest.raises(Unrepresentable, match="answers with"):
        take_apart(answer, "np")


class Colour(Enum):
    RED = (1, 0, 0)
    BLUE = (0, 0, 1)


def test_equal_fingerprints_mean_equal_treatment() -> None:
    different = [
        None,
        True,
        1,
        1.0,
        "1",
        b"1",
        0.0,
        -0.0,
        [1],
        (1,),
        [[1]],
        {"a": 1},
        {"a": True},
        {1: "a"},
        Colour.RED,
        Colour.BLUE,
        np.float32(1),
        np.ones(1),
        np.ones(1, np.int64),
        np.ones((1, 1)),
        torch.float32,
        torch.device("cpu"),
        SizeDict(height=1),
        SizeDict(width=1),
    ]
    frozen = [freeze(value, "x") for value in different]
    assert len(set(frozen)) == len(different)
    alike = [
        (PILImageResampling.BICUBIC, 3),
        (ChannelDimension.FIRST, "channels_first"),
        (SizeDict(height=1, width=2), {"width": 2, "height": 1}),
        (float("nan"), float("nan")),
        (np.arange(6).reshape(2, 3).T, np.arange(6).reshape(2, 3).T.copy()),
    ]
    for one, other in alike:
        assert freeze(one, "x") == freeze(other, "x")


@pytest.mark.parametrize("value", [object(), lambda: 0, {1, 2}, np.array([None]), np.zeros(1000)])
def test_what_cannot_be_compared_is_named(value: Any) -> None:
    with pytest.raises(Unfingerprintable, match="argument size is a"):
        freeze([value], "argument size")


def test_fingerprints_name_class_attributes_arguments_and_code() -> None:
    class Mine(CLIPImageProcessorPil):
        pass

    one, other = CLIPImageProcessorPil(), CLIPImageProcessorPil()
    reference = Fingerprinter(one, None)
    assert reference.digest({"a": 1, "b": 2}) == Fingerprinter(other, None).digest({"b": 2, "a": 1})
    other._processor_class = "CLIPProcessor"  # bookkeeping
    assert reference.digest({}) == Fingerprinter(other, None).digest({})
    other.crop_size = {"height": 1, "width": 1}
    digests = {
        reference.digest({}),
        reference.digest({"return_tensors": "np"}),
        Fingerprinter(other, None).digest({}),
        Fingerprinter(Mine(), None).digest({}),
        Fingerprinter(one, "1").digest({}),
        Fingerprinter(one, b"1").digest({}),
    }
    assert len(digests) == 6
    one.helper = object()
    with pytest.raises(Unfingerprintable, match="attribute helper"):
        reference.digest({})
    assert Fingerprinter(one, "1").digest({}) in digests


@pytest.mark.parametrize("make", [lambda: np.zeros(3), lambda: torch.zeros(3)])
def test_recipes_live_as_long_as_their_arrays(make: Any) -> None:
    digest = mw.hash_bytes(b"")
    join = Join("alone", "x", (Recipe(bytes(digest), digest, digest, None, None, ()),), (3,))
    array = make()
    assert recall(array) is None
    remember(array, join)
    assert recall(array) is join
    assert recall(array[:2]) is None
    del array
    gc.collect()
    from memweir.pixels import recipe

    assert join not in [noted for _, noted in recipe._joins.values()]


def test_taking_an_answer_apart_leaves_no_cycle_around_its_arrays() -> None:
    first, second = np.zeros(10), np.zeros(10)
    refs = [weakref.ref(first), weakref.ref(second)]
    answer = BatchFeature({"pixel_values": first, "nested": [[second], 3]})
    gc.disable()
    try:
        take_apart(answer, None)
        del answer, first, second
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()
