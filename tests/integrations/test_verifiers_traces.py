"""Traces: on verifiers itself where it is, and as plain data always.

``MEMWEIR_VERIFIERS`` may name an unpacked wheel to be tested instead of the installed release; 0.3
has images on nodes, 0.4 has URLs alone.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from renderers.base import MultiModalData
from rollout_kit import PAD, item, processor, tokens, truth, uri
from verifiers_kit import assert_true, elsewhere, encoded

import memweir as mw
from memweir.integrations.verifiers import (
    adopt_images,
    check_trace,
    export_images,
    pack_reply,
    rehydrate,
    unpack_reply,
)


@pytest.fixture
def graph(vf: Any) -> Any:
    import verifiers.v1.graph as graph

    if "multi_modal_data" not in graph.MessageNode.model_fields:
        pytest.skip("nodes of this release carry no images")
    return graph


pytestmark = pytest.mark.usefixtures("alone")


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
