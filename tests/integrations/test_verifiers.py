"""Images on their way between processes: compact frames, adopted or refused."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_kit import item, processor, truth, uri
from verifiers_kit import assert_true, elsewhere, over_the_wire

import memweir as mw
from memweir.integrations import _frames
from memweir.integrations.verifiers import (
    adopt_images,
    check_trace,
    export_images,
)

pytestmark = pytest.mark.usefixtures("alone")


def test_images_travel_compact_and_come_back_bit_for_bit(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (512, 512)
    items = {"image": [item(cache, seed, size) for seed in range(3)]}
    sent = over_the_wire(export_images(items))
    nbytes = sum(v.nbytes for image in sent["image"] for v in image.values())
    pixels = sum(image["pixel_values"].nbytes for image in items["image"])
    assert nbytes < pixels / 7.5
    there = elsewhere(monkeypatch)
    got = adopt_images(sent, there)
    for seed, image in enumerate(got["image"]):
        assert isinstance(image["pixel_values"], mw.PixelRef)
        assert image["pixel_values"].recipe == items["image"][seed]["pixel_values"].recipe
        for name, array in truth(seed, size).items():
            assert np.array_equal(np.asarray(image[name]), array)


def test_with_compat_a_peer_gets_plain_arrays(cache: mw.PixelCache) -> None:
    items = {"image": [item(cache, seed) for seed in range(2)]}
    sent = over_the_wire(export_images(items, compat=True))
    assert_true(sent["image"], range(2))
    assert all(type(v) is np.ndarray for image in sent["image"] for v in image.values())


def test_plain_arrays_of_a_peer_are_moved_into_the_cache(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"mm_items": over_the_wire({"image": [truth(seed) for seed in range(2)]})}
    data["routed"] = np.zeros(32 << 10, np.uint8)
    got = adopt_images(data, cache)
    assert_true(got["mm_items"]["image"], range(2))
    for image in got["mm_items"]["image"]:
        assert isinstance(image["pixel_values"], mw.PixelRef)
        assert image["image_grid_thw"].base is None  # of its own, not of the message
    assert got["routed"] is data["routed"]
    elsewhere(monkeypatch)
    with pytest.raises(mw.BudgetExceeded, match="stays out"):
        adopt_images(data, mw.PixelCache("16 KiB"))


def test_arrays_that_nobody_stripped_are_compact_too(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"mm_items": {"image": [truth(0)]}, "other": truth(1)["pixel_values"]}
    tensor = {"mm_items": {"image": [{"pixel_values": torch.from_numpy(truth(2)["pixel_values"])}]}}
    sent = [export_images(data), export_images(tensor)]
    assert sent[0]["other"] is data["other"]
    assert data["mm_items"]["image"][0]["pixel_values"].dtype == np.float32
    there = elsewhere(monkeypatch)
    first, second = (adopt_images(each, there)["mm_items"]["image"][0] for each in sent)
    assert_true([first], [0])
    assert second["pixel_values"].tensor
    assert np.array_equal(np.asarray(second["pixel_values"]), truth(2)["pixel_values"])


def test_who_forgets_to_adopt_gets_errors_instead_of_no_image(cache: mw.PixelCache) -> None:
    sent = over_the_wire(export_images({"image": [item(cache, 0)]}))["image"][0]
    frame = sent["pixel_values"].copy()  # torch warns of memory that is read-only
    with pytest.raises(TypeError):
        torch.as_tensor(frame)
    with pytest.raises(TypeError):
        torch.frombuffer(bytearray(frame.tobytes()), dtype=str(frame.dtype))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        frame + 1
    with pytest.raises((TypeError, ValueError)):
        frame.astype(np.float32)
    with pytest.raises(mw.PixelMismatch, match="rows"):
        check_trace({"image": [sent]})


def test_an_evicted_image_is_made_again_for_the_reply(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = {"image": [item(cache, 0)]}
    cache.clear()
    with pytest.raises(mw.MissingPixels):
        export_images(items)
    with mw.resolvers(mw.Recompute(processor(), fetch=lambda ref: uri(0))):
        sent = export_images(items)
    assert_true(adopt_images(sent, elsewhere(monkeypatch))["image"], [0])


def test_an_adopted_image_answers_no_processor(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer may claim anything of a key: what it sent is found by content alone, verified."""
    ref = item(cache, 0)["pixel_values"]
    frame = _frames.write(ref, cache)
    other = _frames.write(item(cache, 3)["pixel_values"], cache)  # of the same size
    assert frame is not None
    assert other is not None
    (name, record), (_, lie) = (_frames._split(f.view(np.uint8).data)[2][0] for f in (frame, other))
    head = frame.tobytes()[: -len(name) - len(record) - 12]
    wrong = head + struct.pack("<IQ", len(name), len(lie)) + bytes(name) + bytes(lie)
    there = elsewhere(monkeypatch)
    forged = adopt_images({"image": [{"pixel_values": np.frombuffer(wrong, "V1")}]}, there)
    with pytest.raises(mw.PixelMismatch):
        np.asarray(forged["image"][0]["pixel_values"])
    cached = mw.CachedProcessor(processor(), there)
    answer = cached([uri(0)], return_tensors="np")
    assert np.array_equal(answer["pixel_values"], truth(0)["pixel_values"])


def test_the_cache_says_when_it_is_too_small(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = export_images({"image": [item(cache, seed, (512, 512)) for seed in range(3)]})
    elsewhere(monkeypatch)
    with pytest.raises(mw.BudgetExceeded, match=r"does not fit|room for less"):
        adopt_images(sent, mw.PixelCache("1 MiB"))


@pytest.fixture(scope="module")
def frame() -> bytes:
    cache = mw.PixelCache("64 MiB")
    made = _frames.write(item(cache, 0)["pixel_values"], cache)
    assert made is not None
    return made.tobytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_frames_are_refused(frame: bytes, data: st.DataObject) -> None:
    cache = mw.PixelCache("64 MiB")
    kind = data.draw(st.sampled_from(["cut", "longer", "flip", "lengths"]))
    damaged = bytearray(frame)
    if kind == "cut":
        del damaged[data.draw(st.integers(8, len(frame) - 1)) :]
    elif kind == "longer":
        damaged += data.draw(st.binary(min_size=1, max_size=64))
    elif kind == "flip":
        at = data.draw(st.integers(8, len(frame) - 1))
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        at = data.draw(st.integers(8, 60))
        damaged[at : at + 8] = b"\xff" * 8
    value = np.frombuffer(bytes(damaged), "V1")
    tracemalloc.start()
    try:
        ref = adopt_images(value, cache)
        # Only the card may be damaged without notice: it explains and proves nothing.
        assert isinstance(ref, mw.PixelRef)
        assert np.array_equal(np.asarray(ref), truth(0)["pixel_values"])
    except (ValueError, mw.PixelMismatch):
        pass
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_frames_of_other_versions_are_refused(cache: mw.PixelCache) -> None:
    for text in (b"memweir\x02" + bytes(20), b"", b"memweir\x01"):
        with pytest.raises(ValueError, match="malformed frame"):
            adopt_images({"mm_items": {"image": [{"x": np.frombuffer(text, "V1")}]}}, cache)


def test_a_lie_about_an_image_does_not_stand_in_for_it(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = _frames.write(item(cache, 0)["pixel_values"], cache)
    other = _frames.write(item(cache, 3)["pixel_values"], cache)
    assert frame is not None
    assert other is not None
    (name, record), (_, lie) = (_frames._split(f.view(np.uint8).data)[2][0] for f in (frame, other))
    head = frame.tobytes()[: -len(name) - len(record) - 12]
    wrong = head + struct.pack("<IQ", len(name), len(lie)) + bytes(name) + bytes(lie)
    there = elsewhere(monkeypatch)
    liar = adopt_images({"image": [{"pixel_values": np.frombuffer(wrong, "V1")}]}, there)
    honest = adopt_images({"image": [{"pixel_values": frame}]}, there)
    again = adopt_images({"image": [{"pixel_values": frame.copy()}]}, there)
    for each in (honest, again):
        assert np.array_equal(
            np.asarray(each["image"][0]["pixel_values"]), truth(0)["pixel_values"]
        )
    with pytest.raises(mw.PixelMismatch):
        np.asarray(liar["image"][0]["pixel_values"])
    assert len(there) == 2
