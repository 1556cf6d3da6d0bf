"""Images in traces and replies: on verifiers itself where it is, and on its wire form always.

``MEMWEIR_VERIFIERS`` may name an unpacked wheel to be tested instead of the installed release; 0.3
has images on nodes, 0.4 has URLs alone.
"""

from __future__ import annotations

import copy
import gc
import os
import struct
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from renderers.base import MultiModalData, PlaceholderRange
from rollout_kit import PAD, item, processor, tokens, truth, uri

import memweir as mw
from memweir.integrations import _frames
from memweir.integrations.verifiers import (
    adopt_images,
    check_trace,
    export_images,
    pack_reply,
    rehydrate,
    unpack_reply,
)
from memweir.pixels import cards, live

if os.environ.get("MEMWEIR_VERIFIERS"):
    sys.path.insert(0, os.environ["MEMWEIR_VERIFIERS"])


@pytest.fixture
def vf() -> Any:
    return pytest.importorskip("verifiers.v1")


@pytest.fixture
def graph(vf: Any) -> Any:
    import verifiers.v1.graph as graph

    if "multi_modal_data" not in graph.MessageNode.model_fields:
        pytest.skip("nodes of this release carry no images")
    return graph


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_caches", {})


@pytest.fixture
def cache() -> mw.PixelCache:
    return mw.PixelCache("256 MiB")


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> mw.PixelCache:
    """A cache of a process that has no other."""
    monkeypatch.setattr(live, "_caches", {})
    monkeypatch.setattr(cards, "_own", {})
    monkeypatch.setattr(cards, "_foreign", {})
    return mw.PixelCache("256 MiB")


def encoded(array: Any) -> dict[str, Any]:
    """The form that arrays have in a reply, in the field names of the published wire."""
    flat = np.ascontiguousarray(array)
    fields = {"dtype": str(flat.dtype), "shape": [*flat.shape], "data": flat.tobytes()}
    return {"__nd__": True, **fields}


def decoded(wire: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(wire["data"], np.dtype(wire["dtype"])).reshape(wire["shape"])


def over_the_wire(data: dict[str, Any]) -> dict[str, Any]:
    """``mm_items`` through a reply and back, as a release with images on nodes does it."""
    return {
        kind: [{k: decoded(encoded(v)) for k, v in image.items()} for image in images]
        for kind, images in data.items()
    }


def assert_true(images: list[dict[str, Any]], seeds: Any) -> None:
    for image, seed in zip(images, seeds, strict=True):
        for name, array in truth(seed).items():
            assert np.asarray(image[name]).dtype == array.dtype
            assert np.array_equal(np.asarray(image[name]), array)


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


def node(vf: Any, seeds: list[int], images: list[dict[str, Any]] | None, parent: Any = None) -> Any:
    parts = [{"type": "image_url", "image_url": {"url": uri(seed)}} for seed in seeds]
    content = [*parts, {"type": "text", "text": "what is this?"}]
    ids = tokens(*[truth(seed) for seed in seeds])
    fields: dict[str, Any] = {"message": vf.UserMessage(content=content), "parent": parent}
    fields |= {"token_ids": ids, "mask": [False] * len(ids)}
    if images is not None:
        hashes = [str(seed) for seed in seeds][: len(images)]
        fields["multi_modal_data"] = MultiModalData(
            mm_items={"image": images}, mm_hashes={"image": hashes}
        )
    return vf.MessageNode(**fields)


def answer(vf: Any, parent: int) -> Any:
    fields = {"token_ids": [5, 6], "mask": [True, True], "logprobs": [-0.5, -0.25]}
    message = vf.AssistantMessage(content="it is")
    return vf.MessageNode(message=message, parent=parent, sampled=True, **fields)


def trace(vf: Any, nodes: list[Any]) -> Any:
    data = vf.TaskData(idx=0, prompt=None)
    fields = {"task": vf.TraceTask(type="Task", data=data), "nodes": nodes}
    if "agent" in vf.Trace.model_fields:
        fields["agent"] = vf.AgentInfo(config=vf.AgentConfig())
    return vf.Trace[vf.TaskData](**fields, mm_token_type_id_map={PAD: 1})


@pytest.fixture
def told(vf: Any, graph: Any, cache: mw.PixelCache) -> Any:
    first = node(vf, [0, 1], [item(cache, 0), item(cache, 1)])
    second = node(vf, [2], [item(cache, 2)], parent=1)
    return trace(vf, [first, answer(vf, 0), second, answer(vf, 2)])


def test_a_real_trace_goes_through_a_real_reply(
    vf: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serialized, packed, unpacked and validated by verifiers itself, between our two steps."""
    import msgpack
    from verifiers.v1.serve.encoding import msgpack_encoder

    exported = export_images(told)
    assert isinstance(
        told.nodes[0].multi_modal_data.mm_items["image"][0]["pixel_values"], mw.PixelRef
    )
    dumped = exported.model_dump(mode="python")
    message = msgpack.packb(dumped, default=msgpack_encoder, use_bin_type=True)
    plain = msgpack.packb(
        told.model_dump(mode="python"), default=msgpack_encoder, use_bin_type=True
    )
    pixels = sum(truth(seed)["pixel_values"].nbytes for seed in range(3))
    assert len(message) < len(plain) - pixels * 0.8

    there = elsewhere(monkeypatch)
    received = type(told).model_validate(msgpack.unpackb(message, raw=False))
    adopted = adopt_images(received, there)
    again = type(told).model_validate(unpack_reply(message, there))
    for got in (adopted, again):
        check_trace(got, merge_size=2)
        (branch,) = got.branches
        assert_true(branch.multi_modal_data.mm_items["image"], range(3))
        assert branch.token_ids == told.branches[0].token_ids
    older = type(told).model_validate(msgpack.unpackb(plain, raw=False))
    assert_true(older.branches[0].multi_modal_data.mm_items["image"], range(3))
    assert_true(adopt_images(older, there).branches[0].multi_modal_data.mm_items["image"], range(3))


def test_the_servers_response_is_packed_and_validated(
    told: Any, vf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the server makes it, and as its client reads it, with pixels in neither trace."""
    import msgpack
    from verifiers.v1.episode import Episode
    from verifiers.v1.serve.encoding import msgpack_encoder
    from verifiers.v1.serve.types import RunResponse

    episode = Episode[vf.TaskData](task=told.task, traces=[told], ok=True)
    exported = export_images(RunResponse.model_construct(episode=episode))
    dumped = exported.model_dump(mode="python")
    by_them = msgpack.packb(dumped, default=msgpack_encoder, use_bin_type=True)
    by_us = pack_reply(RunResponse.model_construct(episode=episode))
    assert abs(len(by_us) - len(by_them)) < 64
    there = elsewhere(monkeypatch)
    received = adopt_images(RunResponse.model_validate(msgpack.unpackb(by_them, raw=False)), there)
    for got in (received, RunResponse.model_validate(unpack_reply(by_us, there))):
        (branch,) = got.episode.traces[0].branches
        assert_true(branch.multi_modal_data.mm_items["image"], range(3))


def test_references_without_any_step_are_plain_arrays_on_the_wire(told: Any, graph: Any) -> None:
    image = told.nodes[0].multi_modal_data.mm_items["image"][0]
    wire = graph._encode_ndarray(image["pixel_values"])
    assert np.array_equal(graph._decode_ndarray(wire), truth(0)["pixel_values"])
    assert wire == encoded(truth(0)["pixel_values"])


def test_images_are_attributed_to_their_nodes(vf: Any, graph: Any, cache: mw.PixelCache) -> None:
    bare = trace(vf, [node(vf, [0], None), answer(vf, 0), node(vf, [1, 2], None, parent=1)])
    images = [item(cache, seed) for seed in range(3)]
    data = MultiModalData(mm_items={"image": images}, mm_hashes={"image": ["a", "b", "c"]})
    path = [(number, each.message) for number, each in enumerate(bare.nodes)]
    graph._attribute_mm(bare, path, 0, data)
    assert [len(n.multi_modal_data.mm_items["image"]) for n in (bare.nodes[0], bare.nodes[2])] == [
        1,
        2,
    ]
    assert bare.nodes[2].multi_modal_data.mm_items["image"][1] is images[2]
    check_trace(bare)
    graph._attribute_mm(bare, path, 0, MultiModalData(mm_items={"image": images[:2]}))
    with pytest.raises(mw.MissingPixels, match="2 images in its message and 1 processed"):
        check_trace(bare)


def test_a_trace_is_rehydrated_from_its_own_messages(
    told: Any, cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = copy.deepcopy(told)
    elsewhere(monkeypatch)
    with pytest.raises(mw.MissingPixels):
        rehydrate(copied)
    store = mw.PixelCache("64 MiB")
    for messages in (copied, mw.intern_sources(copied, store=store).data):
        got = rehydrate(messages, processor(), merge_size=2)
        images = got.branches[0].multi_modal_data.mm_items["image"]
        assert all(type(image["pixel_values"]) is np.ndarray for image in images)
        assert_true(images, range(3))
    with pytest.raises(mw.PixelMismatch, match="patch_size was 16 there and is 14 here"):
        rehydrate(copied, processor(patch_size=14))


def test_a_trace_that_lost_an_image_is_refused(vf: Any, told: Any, cache: mw.PixelCache) -> None:
    check_trace(told)
    for fault in ("image", "pixels", "grid", "token", "data", "hash"):
        bad = copy.deepcopy(told)
        one = bad.nodes[0]
        images = one.multi_modal_data.mm_items["image"]
        if fault == "image":
            images.pop()
        elif fault == "pixels":
            del images[1]["pixel_values"]
        elif fault == "grid":
            images[0]["image_grid_thw"] = images[0]["image_grid_thw"] * 2
        elif fault == "token":
            one.token_ids.remove(PAD)
        elif fault == "data":
            one.multi_modal_data = None
        else:
            one.multi_modal_data.mm_hashes["image"].pop()
        with pytest.raises((mw.MissingPixels, mw.PixelMismatch), match="node 0"):
            rehydrate(bad, processor())


def test_traces_of_urls_alone_are_checked_too(vf: Any) -> None:
    if "multi_modal_data" in vf.MessageNode.model_fields:
        pytest.skip("nodes of this release carry images")
    good = trace(vf, [node(vf, [0, 1], None), answer(vf, 0)])
    check_trace(good)
    assert rehydrate(good, processor()) is good
    good.nodes[0].token_ids = [1, 2, 3]
    with pytest.raises(mw.MissingPixels, match="2 images and 0 places"):
        check_trace(good)


def test_a_reference_that_upstreams_encoder_meets_by_itself_is_an_error(
    vf: Any, cache: mw.PixelCache
) -> None:
    import msgpack
    from verifiers.v1.serve.encoding import msgpack_encoder

    with pytest.raises((TypeError, ValueError)):
        msgpack.packb({"a": item(cache, 0)["pixel_values"]}, default=msgpack_encoder)


def test_mm_items_and_branches_are_rehydrated_as_they_are(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = {"image": [item(cache, seed) for seed in range(2)]}
    elsewhere(monkeypatch)
    got = rehydrate(
        items,
        processor(),
        fetch=lambda ref: next(
            (uri(seed) for seed in range(2) if mw.hash_bytes(uri(seed)) == ref.recipe.source), None
        ),
    )
    assert_true(got["image"], range(2))
    with pytest.raises(mw.PixelMismatch, match="another source"):
        rehydrate(items, processor(), fetch=lambda ref: uri(5))


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


def test_keys_that_are_no_keys_are_malformed(cache: mw.PixelCache) -> None:
    for message in (b"\x81\x90\x01", b"\x81\x80\x01", b"\x81\x81\x01\x01\x01"):
        with pytest.raises(ValueError, match="malformed"):
            unpack_reply(message, cache)
    with pytest.raises(TypeError):
        unpack_reply("text", cache)  # type: ignore[arg-type]


def plain(seeds: list[int], images: list[dict[str, Any]] | None, ids: list[int]) -> dict[str, Any]:
    """A node as plain data, as replies have it."""
    parts = [{"type": "image_url", "image_url": {"url": uri(seed)}} for seed in seeds]
    data = None if images is None else {"mm_items": {"image": images}, "mm_hashes": {}}
    message = {"role": "tool", "content": parts}
    return {"message": message, "token_ids": ids, "multi_modal_data": data}


def test_plain_data_is_checked_like_objects(cache: mw.PixelCache) -> None:
    images = [item(cache, seed) for seed in (0, 1)]
    kinds = {"mm_token_type_id_map": {PAD: 1}}
    good = {"nodes": [plain([0, 1], images, tokens(*images))], **kinds}
    relayed = {"nodes": [plain([0, 1], None, [])]}
    lost = {"nodes": [plain([0, 1], images[:1], tokens(*images))], **kinds}
    torn = {"nodes": [plain([0, 1], images, tokens(*images)[:-4])], **kinds}
    untold = {"nodes": [plain([0, 1], images[:1], [])]}
    check_trace([good, relayed])
    check_trace(None)
    rehydrate({"episode": {"traces": [good]}, "ok": True}, merge_size=2)
    for bad in (lost, torn, untold, untold["nodes"][0]):
        for each in (bad, [good, bad], {"traces": [bad]}, {"episode": {"traces": [good, bad]}}):
            with pytest.raises((mw.MissingPixels, mw.PixelMismatch), match="node 0"):
                check_trace(each)
    with pytest.raises(mw.UnsupportedType, match="no trace"):
        check_trace(object())
