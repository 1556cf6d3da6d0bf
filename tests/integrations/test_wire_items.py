"""Images as text: what the engine reads is what there was, whatever held it."""

from __future__ import annotations

import base64
import struct
import sys
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from wire_kit import Unpacker, data_of, image, pixels, size_of, tensors

import memweir as mw
from memweir.integrations import _vllm_items
from memweir.integrations._json_stream import JsonStream
from memweir.integrations._msgpack import extension, pack
from memweir.integrations._vllm_items import WireItem
from memweir.integrations.vllm import Features

GRID = np.array([[1, 2, 2]])


def text_of(item: WireItem) -> str:
    text = b"".join(item.pieces())
    assert len(text) == item.length
    return text.decode("ascii")


def read(values: Any, grid: Any = GRID, wire: Any = "exact") -> dict[str, Any]:
    item = WireItem("a", {"pixel_values": values, "image_grid_thw": grid}, wire)
    return tensors(text_of(item))


def test_an_image_arrives_bit_for_bit() -> None:
    got = tensors(text_of(WireItem("a", image("a"))))
    assert got["pixel_values"].tobytes() == pixels("a").tobytes()
    assert got["pixel_values"].shape == pixels("a").shape
    assert got["image_grid_thw"].tolist() == [1, 2, 2]


def test_the_record_says_how_the_engine_joins_images() -> None:
    record = Unpacker(base64.b64decode(text_of(WireItem("a", image("a"))))).all()
    assert record["image_grid_thw"]["field"] == ["batched", {"keep_on_cpu": True}]
    rows = {"keep_on_cpu": False, "slices": [[[0, 4, None]]], "dim": 0}
    assert record["pixel_values"]["field"] == ["flat", rows]


def test_sizes_are_the_tensors_own() -> None:
    assert WireItem("a", image("a")).nbytes == size_of(1)
    assert WireItem("a", image("a"), "bfloat16").nbytes == 4 * 6 * 2 + 24


@pytest.mark.parametrize(
    "values",
    [
        pixels("a"),
        np.asfortranarray(pixels("a")),
        pixels("aa", 8)[::2],
        pixels("a").astype(">f4"),
        pixels("a").astype(np.float16),
        pixels("a").astype(np.float64),
        (pixels("a") * 255).astype(np.uint8),
        torch.from_numpy(pixels("a")),
        torch.from_numpy(pixels("a")).t().contiguous().t(),
    ],
    ids=lambda values: f"{type(values).__name__}-{values.dtype}",
)
def test_any_array_in_any_memory(values: Any) -> None:
    got = read(values)["pixel_values"]
    array = np.asarray(values)
    assert got.dtype == array.dtype.newbyteorder("<")
    assert np.array_equal(got, array)


@pytest.mark.parametrize("wire", ["exact", "bfloat16"])
def test_what_is_bfloat16_already_stays_as_it_is(wire: Any) -> None:
    array = pixels("a").astype(ml_dtypes.bfloat16)
    tensor = torch.from_numpy(pixels("a")).to(torch.bfloat16)
    for values in (array, tensor):
        assert np.array_equal(read(values, wire=wire)["pixel_values"], array.view(np.uint16))


def test_a_grid_may_be_a_list() -> None:
    assert read(pixels("a"), [[1, 2, 2]])["image_grid_thw"].tolist() == [1, 2, 2]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 196_606, 196_607, 196_608, 196_609, 400_001])
def test_pieces_meet_at_every_remainder(size: int) -> None:
    values = np.arange(size, dtype=np.uint32).view(np.float32).reshape(size, 1)
    item = WireItem("a", {"pixel_values": values, "image_grid_thw": [[1, 1, size]]})
    assert all(len(piece) <= 1 << 20 for piece in item.pieces())
    assert tensors(text_of(item))["pixel_values"].tobytes() == values.tobytes()


def test_without_pybase64_the_text_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = text_of(WireItem("a", image("a")))
    monkeypatch.setitem(sys.modules, "pybase64", None)
    monkeypatch.setattr(_vllm_items, "_encoder", _vllm_items._encoder.__wrapped__)
    assert text_of(WireItem("a", image("a"))) == whole


def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    floats = (upper[:, None] | lower).view(np.float32)
    grid = [[1, *floats.shape[:1], 1]]
    got = read(floats, grid, "bfloat16")["pixel_values"]
    expected = torch.from_numpy(floats).to(torch.bfloat16).view(torch.int16).numpy()
    numbers = ~np.isnan(floats)
    assert np.array_equal(got[numbers], expected.view(np.uint16)[numbers])
    assert np.isnan(got[~numbers].view(ml_dtypes.bfloat16).astype(np.float32)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_bfloat16_too(dtype: Any) -> None:
    values = pixels("a").astype(dtype)
    got = read(values, wire="bfloat16")["pixel_values"]
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    assert np.array_equal(got, expected.view(np.uint16))


def test_images_in_other_types_have_other_names() -> None:
    assert WireItem("a", image("a")).hash == "a"
    assert WireItem("a", image("a"), "bfloat16").hash == "a-bf16"


def test_gemma_has_its_own_fields() -> None:
    values = {
        "pixel_values": pixels("a").reshape(1, 4, 6),
        "image_position_ids": np.arange(8).reshape(1, 4, 2),
    }
    record = Unpacker(base64.b64decode(text_of(WireItem("a", values)))).all()
    for name in ("pixel_values", "pixel_position_ids"):
        assert record[name]["field"] == ["batched", {"keep_on_cpu": False}]
    got = tensors(text_of(WireItem("a", values)))
    assert got["pixel_values"].tobytes() == pixels("a").tobytes()
    assert got["pixel_position_ids"].tolist() == np.arange(8).reshape(4, 2).tolist()


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({"pixel_values": pixels("a")}, mw.UnsupportedType, "pixel_values"),
        ({}, mw.UnsupportedType, "no arrays"),
        ({"pixel_values": pixels("a"), "image_grid_thw": [[1, 2, 3]]}, ValueError, "grid"),
        ({"pixel_values": pixels("a"), "image_grid_thw": [[1, 2, 2]] * 2}, ValueError, "axis of 1"),
        ({"pixel_values": pixels("a") * 1j, "image_grid_thw": GRID}, mw.UnsupportedType, "complex"),
        ({"pixel_values": None, "image_grid_thw": GRID}, mw.UnsupportedType, "object"),
    ],
)
def test_what_cannot_be_sent_is_an_error_at_once(values: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        WireItem("a", values)


def test_integers_are_not_rounded() -> None:
    values = {"pixel_values": np.zeros((4, 6), np.uint8), "image_grid_thw": GRID}
    with pytest.raises(mw.UnsupportedType, match="only floats"):
        WireItem("a", values, "bfloat16")
    with pytest.raises(ValueError, match="wire is"):
        WireItem("a", values, "float16")  # type: ignore[arg-type]


# References.


def referred(names: str, cache: mw.PixelCache, rows: int = 4000) -> dict[str, Any]:
    data: dict[str, Any] = mw.strip(data_of(names, lambda _: rows), cache).data
    for item in data["mm_items"]["image"]:
        assert isinstance(item["pixel_values"], mw.PixelRef)
    return data


def test_references_are_restored_while_they_are_read() -> None:
    cache = mw.PixelCache("4 MiB")
    stream = JsonStream({"images": [one.text for one in Features(referred("ab", cache))._images]})
    body = b"".join(stream.pieces())
    assert len(body) == stream.length
    for name, text in zip("ab", stream.plain()["images"], strict=True):
        assert text.encode() in body
        assert tensors(text)["pixel_values"].tobytes() == pixels(name, 4000).tobytes()


def test_one_image_at_a_time_is_in_memory() -> None:
    cache = mw.PixelCache("4 MiB")
    data = referred("abcdefgh", cache)
    refs = [item["pixel_values"] for item in data["mm_items"]["image"]]
    names = {ref.digest: name for ref, name in zip(refs, "abcdefgh", strict=True)}
    unpinned = [mw.PixelRef(ref.descriptor) for ref in refs]
    for item, ref in zip(data["mm_items"]["image"], unpinned, strict=True):
        item["pixel_values"] = ref
    del refs
    cache.clear()
    arrays: list[weakref.ref[Any]] = []

    def alive() -> int:
        return sum(array() is not None for array in arrays)

    def resolver(ref: mw.PixelRef) -> Any:
        assert alive() == 0
        array = pixels(names[ref.digest], 4000)
        arrays.append(weakref.ref(array))
        return array

    with mw.resolvers(resolver):
        stream = JsonStream({"images": [one.text for one in Features(data)._images]})
        assert not arrays
        assert max(alive() for _ in stream.pieces()) == 1
    assert (len(arrays), alive()) == (8, 0)


def test_pixels_that_are_nowhere_are_an_error_and_no_empty_image() -> None:
    cache = mw.PixelCache("4 MiB")
    data = referred("a", cache)
    ref = mw.PixelRef(data["mm_items"]["image"][0]["pixel_values"].descriptor)
    data["mm_items"]["image"][0]["pixel_values"] = ref
    cache.clear()
    stream = JsonStream({"image": Features(data)._images[0].text})
    with pytest.raises(mw.MissingPixels):
        b"".join(stream.pieces())
    assert isinstance(stream.failure, mw.MissingPixels)


# MessagePack.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**64 - 1) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_packed_values_read_back(value: Any) -> None:
    assert Unpacker(pack(value)).all() == value


@pytest.mark.parametrize("size", [15, 16, 31, 32, 255, 256, 65535, 65536])
def test_counts_at_their_limits(size: int) -> None:
    for value in ("x" * size, [0] * size, {str(number): 0 for number in range(size)}):
        assert Unpacker(pack(value)).all() == value


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 8, 16, 17, 255, 256, 65535, 65536])
def test_opaque_data_of_every_length(size: int) -> None:
    assert Unpacker(extension(3, size) + b"x" * size).all() == b"x" * size


def test_what_has_no_place_in_a_record() -> None:
    for value in (1.5, b"", -1, 2**64, [object()]):
        with pytest.raises(TypeError):
            pack(value)
    with pytest.raises(TypeError, match="more than"):
        extension(3, 2**32)
    assert extension(3, 2**32 - 1)[1:5] == struct.pack(">I", 2**32 - 1)
