"""What travels inside a reference: enough to make the pixels again, and no secret."""

from __future__ import annotations

import json
import pickle
from enum import Enum, IntEnum
from typing import Any

import numpy as np
import pytest
from transformers.image_utils import PILImageResampling, SizeDict

import memweir as mw
from memweir._core import Descriptor
from memweir.pixels.recipe import Recipe
from memweir.pixels.records import LIMIT, Layout, record
from memweir.pixels.refs import PixelRef, RefRecipe

SECRET = "hunter2"
QWEN = Layout("<f4", 4, (4900, 1176))


def digest(what: str) -> mw.Digest:
    return mw.hash_bytes(what)


def made(sources: Any = "small", **fields: Any) -> PixelRef:
    values: dict[str, Any] = {
        "key": bytes(digest("key")),
        "fingerprint": digest("processor"),
        "image": digest("image"),
        "source": digest("source"),
        "origin": None,
        "kwargs": (("return_tensors", "np"),),
    }
    recipe = Recipe(**(values | fields))
    return PixelRef(
        record("pixel_values", QWEN, digest("array"), torch=False, recipe=recipe, sources=sources)
    )


def recipe_of(ref: PixelRef) -> RefRecipe:
    recipe = PixelRef.from_json(json.dumps(ref.to_json())).recipe
    assert recipe is not None
    return recipe


def size(ref: PixelRef) -> int:
    return len(ref.descriptor.encode())


def test_an_image_costs_less_than_256_bytes_in_every_form() -> None:
    ref = made()
    assert size(ref) <= LIMIT
    assert len(pickle.dumps(ref)) <= 256
    assert len(json.dumps(ref.to_json())) <= 256
    assert size(made(source=None)) == size(ref)


def test_the_image_is_named_once() -> None:
    by_source, by_image = recipe_of(made()), recipe_of(made(source=None))
    assert (by_source.source, by_source.image) == (digest("source"), None)
    assert (by_image.source, by_image.image) == (None, digest("image"))
    assert by_source.key == digest("key")
    assert by_source.fingerprint == digest("processor")


@pytest.mark.parametrize(
    "origin",
    ["/data/train/000000391895.jpg", "cat.png", "file:///data/x.png", "https://host/x.png"],
)
def test_short_plain_origins_travel(origin: str) -> None:
    assert recipe_of(made(origin=origin)).origin == origin
    assert recipe_of(made("never", origin=origin)).origin is None
    assert size(made(origin=origin)) <= LIMIT


@pytest.mark.parametrize(
    "origin",
    [
        f"data:image/png;base64,{SECRET}",
        f"https://host/x.png?X-Amz-Signature={SECRET}",
        f"https://user:{SECRET}@host/x.png",
        f"s3://bucket/x#{SECRET}",
        f"/data/{'long/' * 40}{SECRET}.png",
        SECRET.encode(),
    ],
)
def test_other_origins_travel_only_when_asked(origin: str | bytes) -> None:
    for ref in (made(origin=origin), made("never", origin=origin)):
        assert recipe_of(ref).origin is None
        assert size(ref) <= LIMIT
        for text in (pickle.dumps(ref), json.dumps(ref.to_json()).encode(), repr(ref).encode()):
            assert SECRET.encode() not in text
    every = made("all", origin=origin)
    assert recipe_of(every).origin == origin
    assert SECRET not in repr(every) + repr(every.recipe) + repr([every])


def test_a_whole_data_uri_travels_when_asked() -> None:
    uri = "data:image/jpeg;base64," + "A" * 300_000
    assert recipe_of(made("all", origin=uri)).origin == uri


class Mode(Enum):
    FAST = "fast"


class Level(IntEnum):
    LOW = 1


def test_arguments_come_back_as_equal_plain_data() -> None:
    kwargs: dict[str, Any] = {
        "size": {"longest_edge": 56 * 56},
        "image_mean": (0.5, 0.25),
        "resample": PILImageResampling.BICUBIC,
        "mode": [Mode.FAST, Level.LOW, None, True, 1, 1.0],
    }
    arguments = recipe_of(made("all", kwargs=tuple(kwargs.items()))).arguments
    assert arguments == {
        "size": {"longest_edge": 3136},
        "image_mean": [0.5, 0.25],
        "resample": 3,
        "mode": ["fast", 1, None, True, 1, 1.0],
    }
    assert [type(x) for x in arguments["mode"]] == [str, int, type(None), bool, int, float]
    assert recipe_of(made(kwargs=())).arguments == {}
    sized = (("size", SizeDict(height=4, width=5)),)
    assert recipe_of(made(kwargs=sized)).arguments == {"size": {"height": 4, "width": 5}}


@pytest.mark.parametrize(
    "value", [np.float32(1), np.zeros(2), b"x", {1: 2}, object(), {"a": [{3}]}], ids=repr
)
def test_arguments_without_a_plain_form_are_said_to_be_missing(value: Any) -> None:
    assert recipe_of(made(kwargs=(("x", value),))).arguments is None


def test_arguments_come_before_the_origin_and_never_break_the_limit() -> None:
    origin = "/data/000000391895.jpg"
    kwargs = (("size", {"shortest_edge": 3136, "longest_edge": 12845056}),)
    ref = made(origin=origin, kwargs=kwargs)
    assert recipe_of(ref).arguments == dict(kwargs)
    long = made(origin=origin, kwargs=(("image_mean", [0.1234567890123] * 9),))
    assert (recipe_of(long).arguments, recipe_of(long).origin) == (None, origin)
    assert max(size(ref), size(long)) <= LIMIT
    every = made("all", origin=origin, kwargs=(("image_mean", [0.1234567890123] * 9),))
    assert recipe_of(every).arguments == {"image_mean": [0.1234567890123] * 9}


def test_arrays_without_a_recipe_are_a_name_and_a_digest() -> None:
    ref = PixelRef(record("x", QWEN, digest("array"), torch=True))
    assert ref.recipe is None
    assert size(ref) < 64


FIELDS = {"name": "x", "dtype": "<f4", "itemsize": 4, "shape": (2, 3), "digest": bytes(32)}


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("digest", bytes(31), ValueError),
        ("key", bytes(33), ValueError),
        ("source", b"", ValueError),
        ("shape", (2**40, 2**40), ValueError),
        ("shape", (1,) * 65, ValueError),
        ("shape", (-1,), OverflowError),
        ("itemsize", -4, OverflowError),
        ("name", "\ud800", UnicodeEncodeError),
        ("name", b"x", TypeError),
        ("origin", 5, TypeError),
        ("origin", bytearray(b"x"), TypeError),
        ("arguments", {}, TypeError),
    ],
)
def test_the_record_refuses_what_it_cannot_say(
    field: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        Descriptor(**(FIELDS | {field: value}))


def test_the_record_gives_back_its_fields() -> None:
    fields: dict[str, Any] = FIELDS | {
        "torch": True,
        "key": bytes([1] * 32),
        "fingerprint": bytes([2] * 32),
        "image": bytes([3] * 32),
        "source": bytes([4] * 32),
        "origin": b"\x00\xff",
        "arguments": "{}",
    }
    descriptor = Descriptor.decode(Descriptor(**fields).encode())
    assert {name: getattr(descriptor, name) for name in fields} == fields
    assert descriptor.nbytes == 24
    assert descriptor.encode() == Descriptor(**fields).encode()
    with pytest.raises(AttributeError):
        descriptor.name = "y"  # type: ignore[misc]
