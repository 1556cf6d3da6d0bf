"""Replies of an environment's server: packed, unpacked, refused."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from renderers.base import MultiModalData, PlaceholderRange
from rollout_kit import item, tokens, truth
from verifiers_kit import elsewhere, encoded

import memweir as mw
from memweir.integrations.verifiers import (
    pack_reply,
    unpack_reply,
)

pytestmark = pytest.mark.usefixtures("alone")


def reply(cache: mw.PixelCache, seeds: Any, size: Any = None) -> dict[str, Any]:
    images = [item(cache, seed, size) for seed in seeds]
    places = [PlaceholderRange(offset=n, length=6) for n, _ in enumerate(images)]
    hashes = [f"hash-{seed}" for seed in seeds]
    mmd = MultiModalData(
        mm_hashes={"image": hashes}, mm_placeholders={"image": places}, mm_items={"image": images}
    )
    return {"trace": {"nodes": [{"multi_modal_data": mmd, "token_ids": tokens(*images)}]}}


@pytest.mark.parametrize("compat", [False, True])
def test_a_reply_is_unpacked_without_being_kept(
    vf: Any, cache: mw.PixelCache, compat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (512, 512)
    message = pack_reply(reply(cache, range(4), size), compat=compat)
    pixels = 4 * truth(0, size)["pixel_values"].nbytes
    assert (len(message) < pixels / 7.5) is not compat
    first = pack_reply(reply(cache, [4]))
    there = elsewhere(monkeypatch)
    unpack_reply(first, there)  # imports what it needs
    gc.collect()
    tracemalloc.start()
    got = unpack_reply(message, there)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 128 << 10
    assert peak < len(message) * (1.25 if compat else 0.6)
    node = got["trace"]["nodes"][0]
    mmd = node["multi_modal_data"]
    assert isinstance(mmd, MultiModalData)
    assert mmd.mm_hashes == {"image": [f"hash-{seed}" for seed in range(4)]}
    assert mmd.mm_placeholders["image"][2] == PlaceholderRange(offset=2, length=6)
    for seed, image in enumerate(mmd.mm_items["image"]):
        assert isinstance(image["pixel_values"], mw.PixelRef)
        assert np.array_equal(np.asarray(image["pixel_values"]), truth(seed, size)["pixel_values"])
        grid = image["image_grid_thw"]
        assert isinstance(grid, mw.PixelRef) or grid.base is None


def test_other_arrays_of_a_reply_stay_in_their_form(vf: Any, cache: mw.PixelCache) -> None:
    message = pack_reply({"routed": encoded(np.arange(5)), "more": np.zeros(3), "text": "a"})
    got = unpack_reply(message, cache)
    assert got["routed"] == encoded(np.arange(5))
    assert got["more"]["__torch_tensor__"] is True
    assert len(cache) == 0


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_what_is_no_reply_is_refused(data: st.DataObject) -> None:
    msgpack = pytest.importorskip("msgpack")
    cache = mw.PixelCache("16 MiB")
    wire: dict[str, Any] = encoded(np.arange(6).reshape(2, 3))
    fault = data.draw(st.sampled_from(["dtype", "shape", "data", "items", "cut", "places"]))
    if fault == "dtype":
        names = [
            "O",
            "object",
            "f4,f4",
            "(2,)f4",
            "x" * 40,
            "S0",
            7,
            None,
            "__import__('os')",
            "M8[s",
        ]
        wire["dtype"] = data.draw(st.sampled_from(names))
    elif fault == "shape":
        wire["shape"] = data.draw(
            st.sampled_from([[-1, 6], [1 << 40, 1 << 40], "ab", [2.0, 3], [5]])
        )
    elif fault == "data":
        wire["data"] = data.draw(st.sampled_from([b"", b"abc", "text", None]))
    images: Any = [{"pixel_values": wire}]
    if fault == "items":
        images = data.draw(st.sampled_from(["images", [1], 7, {"a": 1}]))
    places: Any = {"image": [{"offset": 1}]} if fault == "places" else {}
    value = {"mm_items": {"image": images}, "mm_placeholders": places}
    message = msgpack.packb(value)
    if fault == "cut":
        message = message[: data.draw(st.integers(0, len(message) - 1))]
    with pytest.raises(ValueError, match="malformed"):
        unpack_reply(message, cache)


def test_keys_that_are_no_keys_are_malformed(cache: mw.PixelCache) -> None:
    for message in (b"\x81\x90\x01", b"\x81\x80\x01", b"\x81\x81\x01\x01\x01"):
        with pytest.raises(ValueError, match="malformed"):
            unpack_reply(message, cache)
    with pytest.raises(TypeError):
        unpack_reply("text", cache)  # type: ignore[arg-type]
