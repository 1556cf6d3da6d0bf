"""Images in trainer samples, through what prime-rl publishes to do with them.

prime-rl is in no registry: its steps are told again here, as far as images meet them, in the names
and shapes of its samples. ``Encoded`` stands for its ``EncodedTensor``.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from renderers.base import MultiModalData
from rollout_kit import item, processor, tokens, truth, types, uri

import memweir as mw
from memweir.integrations.prime_rl import (
    check_sample,
    encode_images,
    guard_items,
    guard_model,
    model_kwargs,
    plain_items,
    rehydrate,
)
from memweir.pixels import cards, live
from memweir.pixels.cards import ProcessorCard
from memweir.pixels.fingerprint import processor_card


@dataclass
class Encoded:
    dtype: str
    shape: list[int]
    data: bytes


@dataclass
class Sample:
    token_ids: list[int] = field(default_factory=list)
    mm_kwargs: dict[str, Any] | None = None
    mm_token_type_ids: list[int] | None = None
    mm_refs: Any = None


def upstream_encode(items: dict[str, Any]) -> dict[str, Encoded] | None:
    """What the orchestrator makes of ``mm_items``: arrays by name, joined, as bytes."""
    columns: dict[str, list[Any]] = {}
    for image in (image for images in items.values() for image in images):
        for name, value in image.items():
            array = value.detach().numpy() if hasattr(value, "detach") else value
            columns.setdefault(name, []).append(np.ascontiguousarray(array))
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    return {k: Encoded(str(v.dtype), list(v.shape), v.tobytes()) for k, v in whole.items()} or None


def upstream_rows(tensor: Encoded, count: int) -> Encoded:
    """The first rows of an encoded tensor."""
    size = int(np.prod(tensor.shape[1:], dtype=int)) * np.dtype(tensor.dtype).itemsize
    return replace(tensor, shape=[count, *tensor.shape[1:]], data=tensor.data[: count * size])


def upstream_truncate(sample: Sample, images: int, length: int) -> Sample:
    """A sample cut after its first images, as the packer cuts what is too long."""
    assert sample.mm_kwargs is not None
    assert sample.mm_token_type_ids is not None
    encoded = sample.mm_kwargs["image_grid_thw"]
    grid = np.frombuffer(encoded.data, encoded.dtype).reshape(encoded.shape)
    rows = int(grid[:images].prod(axis=1).sum())
    cut = {
        name: upstream_rows(value, images if name == "image_grid_thw" else rows)
        for name, value in sample.mm_kwargs.items()
    }
    kinds = sample.mm_token_type_ids[:length]
    return replace(
        sample, token_ids=sample.token_ids[:length], mm_kwargs=cut, mm_token_type_ids=kinds
    )


def upstream_pack(one: Sample, two: Sample) -> Sample:
    """Two samples in one micro batch: bytes and rows added up."""
    joined = copy.deepcopy(one)
    assert joined.mm_kwargs is not None
    assert two.mm_kwargs is not None
    for name, value in two.mm_kwargs.items():
        joined.mm_kwargs[name].data += value.data
        joined.mm_kwargs[name].shape[0] += value.shape[0]
    joined.token_ids += two.token_ids
    joined.mm_token_type_ids = [*(one.mm_token_type_ids or []), *(two.mm_token_type_ids or [])]
    return joined


def upstream_tensor(encoded: Encoded) -> torch.Tensor:
    """What the trainer makes of an encoded tensor."""
    dtype = getattr(torch, encoded.dtype, None)
    if dtype is None:
        dtype = torch.from_numpy(np.zeros(1, np.dtype(encoded.dtype))).dtype
    return torch.frombuffer(bytearray(encoded.data), dtype=dtype).reshape(encoded.shape)


def upstream_flatten(items: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Supervised fine-tuning: arrays become tensors, everything else is passed over."""
    out: dict[str, torch.Tensor] = {}
    for image in (image for images in items.values() for image in images):
        for name, value in image.items():
            if isinstance(value, np.ndarray | torch.Tensor):
                tensor = torch.as_tensor(value)
                out[name] = torch.cat([out[name], tensor]) if name in out else tensor
    return out


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_caches", {})


@pytest.fixture
def cache() -> mw.PixelCache:
    return mw.PixelCache("64 MiB")


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's process, which has no cache."""
    monkeypatch.setattr(live, "_caches", {})
    monkeypatch.setattr(cards, "_own", {})


def messages(seeds: Any) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": uri(seed)}} for seed in seeds]
    return [{"role": "user", "content": parts}]


def sample(cache: mw.PixelCache, seeds: Any) -> Sample:
    images = [item(cache, seed) for seed in seeds]
    ids = tokens(*images)
    encoded = encode_images({"image": images}, Encoded)
    return Sample(token_ids=ids, mm_kwargs=encoded, mm_token_type_ids=types(ids))


def whole(seeds: Any) -> dict[str, torch.Tensor]:
    arrays = [truth(seed) for seed in seeds]
    return {n: torch.from_numpy(np.concatenate([a[n] for a in arrays])) for n in arrays[0]}


def assert_tensors(got: dict[str, torch.Tensor], seeds: Any) -> None:
    expected = whole(seeds)
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name].dtype is tensor.dtype
        assert torch.equal(got[name], tensor)


def test_upstreams_own_encoding_takes_references(cache: mw.PixelCache) -> None:
    items = {"image": [item(cache, seed) for seed in range(3)]}
    arrays = {"image": [truth(seed) for seed in range(3)]}
    assert upstream_encode(items) == upstream_encode(arrays)


def test_a_sample_carries_names_and_comes_back_as_upstream_made_it(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = sample(cache, range(3))
    assert len(pickle.dumps(sealed)) < 4096
    assert sealed.mm_kwargs is not None
    assert sealed.mm_kwargs["pixel_values"].shape == list(whole(range(3))["pixel_values"].shape)
    plain = upstream_encode({"image": [truth(seed) for seed in range(3)]})
    assert rehydrate(sealed).mm_kwargs == plain  # from the cache
    elsewhere(monkeypatch)
    with pytest.raises(mw.MissingPixels):
        rehydrate(sealed)
    got = rehydrate(sealed, processor(), sources=messages(range(3)), merge_size=2)
    assert got.mm_kwargs == plain
    assert sealed.mm_kwargs["pixel_values"].dtype == "memweir:float32"
    assert rehydrate(got) is got
    assert rehydrate(vars(sealed), processor(), sources=messages(range(3)))["mm_kwargs"] == plain
    for each in (sealed, got):
        assert_tensors(model_kwargs(each, processor(), sources=messages(range(3))), range(3))


def test_sources_may_be_interned_or_fetched(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = sample(cache, [0, 1])
    elsewhere(monkeypatch)
    store = mw.PixelCache("64 MiB")
    kept = mw.intern_sources(messages([0, 1]), store=store)
    assert_tensors(model_kwargs(sealed, processor(), sources=kept.data), [0, 1])
    assert_tensors(model_kwargs(sealed, processor()), [0, 1])  # the store is a live cache
    del kept, store
    monkeypatch.setattr(live, "_caches", {})
    by = {mw.hash_bytes(uri(seed)): uri(seed) for seed in (0, 1)}
    found = model_kwargs(sealed, processor(), fetch=lambda ref: by[ref.recipe.source])
    assert_tensors(found, [0, 1])


def test_packing_adds_references_up(cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = upstream_pack(sample(cache, [0, 1]), sample(cache, [2]))
    elsewhere(monkeypatch)
    got = rehydrate(packed, processor(), sources=messages(range(3)), merge_size=2)
    assert got.mm_kwargs == upstream_encode({"image": [truth(seed) for seed in range(3)]})


def test_what_cuts_or_decodes_references_fails_loudly(cache: mw.PixelCache) -> None:
    sealed = sample(cache, range(3))
    with pytest.raises(TypeError):
        upstream_truncate(sealed, 1, 20)
    assert sealed.mm_kwargs is not None
    with pytest.raises(TypeError):
        upstream_tensor(sealed.mm_kwargs["pixel_values"])
    with pytest.raises(TypeError):
        upstream_rows(sealed.mm_kwargs["pixel_values"], 5)
    plain = rehydrate(sealed)
    cut = upstream_truncate(plain, 2, tokens(truth(0), truth(1)).__len__())
    check_sample(cut, merge_size=2)
    assert_tensors(model_kwargs(cut), range(2))
    # Cut in the middle of an image: not what upstream does, and not silent.
    torn = replace(cut, mm_token_type_ids=(cut.mm_token_type_ids or [])[:-3])
    with pytest.raises((mw.MissingPixels, mw.PixelMismatch)):
        model_kwargs(torn)


def test_another_processor_is_named_beside_the_first(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision about its own parts
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    sealed = sample(cache, [0])
    card = cards.card_of(processor_card(processor(), return_tensors="np").fingerprint)
    live._caches.clear()
    for wrong, said in [
        (processor(patch_size=14), "patch_size was 16 there and is 14 here"),
        (processor(image_mean=[0.4] * 3), "image_mean was"),
    ]:
        with pytest.raises(mw.PixelMismatch, match=said):
            rehydrate(sealed, wrong, sources=messages([0]))
    back_end = Qwen2VLImageProcessor(
        **{
            k: v
            for k, v in processor().to_dict().items()
            if k
            in (
                "patch_size",
                "merge_size",
                "size",
                "image_mean",
                "image_std",
                "temporal_patch_size",
            )
        }
    )
    with pytest.raises(mw.PixelMismatch, match=r"ProcessorPil there and is \S+Processor here"):
        rehydrate(sealed, back_end, sources=messages([0]))
    monkeypatch.setattr("PIL.__version__", "1.0")
    with pytest.raises(mw.PixelMismatch, match=r"PIL was \S+ there and is 1.0 here"):
        rehydrate(sealed, processor(), sources=messages([0]))
    monkeypatch.undo()
    assert card is not None
    assert ProcessorCard.from_json(card.to_json()) == card


def test_cards_of_any_content_are_read_or_refused() -> None:
    hexed = "00" * 32
    for bad in (
        {"fingerprint": hexed},
        {"fingerprint": "zz", "lines": {}},
        {"fingerprint": hexed, "lines": {"a": 1}},
        {"fingerprint": hexed, "lines": {"a": "x" * 4096}},
        {"fingerprint": hexed, "lines": {"a": "\x1b[2J"}},
        {"fingerprint": hexed, "lines": {str(n): "" for n in range(4096)}},
        "[]",
        '{"fingerprint":' + "[" * 100_000,
    ):
        with pytest.raises(ValueError, match=r"malformed|hex"):
            ProcessorCard.from_json(bad)  # type: ignore[arg-type]


def test_fine_tuning_with_a_forgotten_conversion_is_loud(cache: mw.PixelCache) -> None:
    items = {"image": [item(cache, seed) for seed in range(2)]}
    assert "pixel_values" not in upstream_flatten(items)  # what has to be prevented
    guarded = guard_items(copy.deepcopy(items))
    with pytest.raises(ValueError, match="negative"):
        upstream_flatten(guarded)
    with pytest.raises(ValueError, match="negative"):
        torch.from_numpy(guarded["image"][0]["image_grid_thw"])
    assert_tensors(upstream_flatten(plain_items(guarded)), range(2))
    assert_tensors(upstream_flatten(plain_items(items)), range(2))
    # Who reads them by numpy reads what was there.
    assert upstream_encode(guarded) == upstream_encode({"image": [truth(s) for s in range(2)]})
    grid = guarded["image"][0]["image_grid_thw"]
    assert grid.tolist() == truth(0)["image_grid_thw"].tolist()
    travelled = pickle.loads(pickle.dumps(grid))
    assert travelled.tolist() == grid.tolist()
    with pytest.raises(ValueError, match="negative"):
        torch.as_tensor(travelled)
    assert_tensors(model_kwargs({"mm_items": guarded}), range(2))
    sealed = encode_images(guarded, Encoded)
    assert sealed is not None
    assert sealed["image_grid_thw"] == (upstream_encode(items) or {})["image_grid_thw"]
    with pytest.raises(mw.MissingPixels):
        plain_items({"image": [{"image_grid_thw": truth(0)["image_grid_thw"]}]})
    data = MultiModalData(mm_items=items)
    assert_tensors(upstream_flatten(plain_items(data).mm_items), range(2))


class Model(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> int:
        return len(kwargs)


def test_a_model_refuses_placeholders_without_images() -> None:
    model = Model()
    guard = guard_model(model, [9, 10])
    text, seen = torch.tensor([[1, 2]]), torch.tensor([[1, 10]])
    assert model(text) == 0
    assert model(input_ids=seen, pixel_values=torch.zeros(1)) == 1
    assert model(seen, inputs_embeds=torch.zeros(1)) == 1
    for call in (lambda: model(seen), lambda: model(input_ids=seen, pixel_values=None)):
        with pytest.raises(mw.MissingPixels, match="placeholders of images"):
            call()
    guard.remove()
    assert model(seen) == 0
    guard_model(model, 9)
    assert model(seen) == 0


def refs(*places: tuple[int, int, int]) -> Any:
    """The images of a sample by URL, with offset and length of their placeholders."""
    images = [SimpleNamespace(url=uri(seed), offset=o, length=n) for seed, o, n in places]
    return SimpleNamespace(images=images)


def named(seeds: list[int]) -> Sample:
    ids = tokens(*[truth(seed) for seed in seeds])
    kinds, at, places = types(ids), 2, []
    for seed in seeds:
        length = int(truth(seed)["image_grid_thw"].prod()) // 4
        places.append((seed, at, length))
        at += length + 1
    return Sample(token_ids=ids, mm_token_type_ids=kinds, mm_refs=refs(*places))


def test_images_by_url_are_processed_once(cache: mw.PixelCache) -> None:
    cached = mw.CachedProcessor(processor(), cache)
    expect = processor_card(processor(), return_tensors="pt")
    for _ in range(2):
        assert_tensors(model_kwargs(named([0, 1, 0]), cached, expect=expect), [0, 1, 0])
    assert len(cache) == 2
    assert_tensors(model_kwargs(named([2]), processor()), [2])
    assert model_kwargs(Sample()) == {}
    fetched = named([1])
    fetched.mm_refs.images[0].url = "https://example.org/1.png"
    assert_tensors(model_kwargs(fetched, processor(), fetch=lambda url: uri(1)), [1])


def test_images_by_url_that_do_not_fit_are_refused(cache: mw.PixelCache) -> None:
    with pytest.raises(mw.MissingPixels, match="no processor"):
        model_kwargs(named([0]))
    expect = processor_card(processor(merge_size=1), return_tensors="pt")
    with pytest.raises(mw.PixelMismatch, match="merge_size was 1 there and is 2 here"):
        model_kwargs(named([0]), processor(), expect=expect)
    with pytest.raises(mw.PixelMismatch, match="not processed like this"):
        model_kwargs(named([0]), processor(size={"shortest_edge": 65536, "longest_edge": 1 << 24}))
    swapped = named([0, 1])
    images = swapped.mm_refs.images
    images[0].url, images[1].url = images[1].url, images[0].url
    with pytest.raises(mw.PixelMismatch, match="not processed like this"):
        model_kwargs(swapped, processor())
    for fault in ("lost", "moved", "overlap", "end"):
        bad = named([0, 1])
        images = bad.mm_refs.images
        if fault == "lost":
            images.pop()
        elif fault == "moved":
            images[0].offset -= 1
        elif fault == "overlap":
            images[1].offset = images[0].offset
        else:
            images[1].length += 100
        with pytest.raises((mw.MissingPixels, mw.PixelMismatch)):
            model_kwargs(bad, processor())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_sample_that_lost_something_is_refused(data: st.DataObject) -> None:
    cache = mw.PixelCache("64 MiB")
    good = sample(cache, data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3)))
    check_sample(good)
    bad = copy.deepcopy(good)
    assert bad.mm_kwargs is not None
    sealed, grid = bad.mm_kwargs["pixel_values"], bad.mm_kwargs["image_grid_thw"]
    fault = data.draw(st.sampled_from(["pixels", "all", "grid", "rows", "cut", "flip", "token"]))
    if fault == "pixels":
        del bad.mm_kwargs["pixel_values"]
    elif fault == "all":
        bad.mm_kwargs = data.draw(st.sampled_from([None, {}]))
    elif fault == "grid":
        cells = np.frombuffer(grid.data, np.int64).copy()
        cells[data.draw(st.integers(0, len(cells) - 1))] += 1
        grid.data = cells.tobytes()
    elif fault == "rows":
        sealed.shape[0] -= 4
    elif fault == "cut":
        sealed.data = sealed.data[: data.draw(st.integers(0, len(sealed.data) - 1))]
    elif fault == "flip":
        text = bytearray(sealed.data)
        text[data.draw(st.integers(0, len(text) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        sealed.data = bytes(text)
    else:
        bad.mm_token_type_ids = [0, *[n for n in bad.mm_token_type_ids or [] if n][1:]]
    with pytest.raises((mw.MissingPixels, mw.PixelMismatch, ValueError)):
        rehydrate(bad)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = ["torch", "transformers", "verifiers", "msgpack", "renderers", "PIL"]
    code = (
        "import sys, memweir.integrations.prime_rl, memweir.integrations.verifiers\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_what_cannot_be_encoded_is_refused(cache: mw.PixelCache) -> None:
    with pytest.raises(mw.UnsupportedType, match="no lists of images"):
        encode_images([1, 2], Encoded)
    with pytest.raises(mw.UnsupportedType, match="which is no array"):
        encode_images({"image": [{"pixel_values": "no"}]}, Encoded)
    with pytest.raises(mw.MissingPixels, match="no pixels"):
        encode_images({"image": [{"image_grid_thw": np.ones((1, 3), np.int64)}]}, Encoded)
    assert encode_images({}, Encoded) is None
    tensors = {"image": [{k: torch.from_numpy(v) for k, v in truth(0).items()}]}
    assert encode_images(tensors, Encoded) == upstream_encode({"image": [truth(0)]})


def test_videos_are_not_taken_for_images() -> None:
    array, grid = truth(0)["pixel_values"], truth(0)["image_grid_thw"]
    video = {"pixel_values_videos": array, "video_grid_thw": grid}
    check_sample(Sample(mm_kwargs=video, mm_token_type_ids=[0, *[2] * 6, 0]))
    with pytest.raises(mw.MissingPixels):
        check_sample(Sample(mm_kwargs=video, mm_token_type_ids=[0, *[1] * 6, 0]))


def test_a_guard_stays_with_what_is_copied(cache: mw.PixelCache) -> None:
    guarded = guard_items({"image": [item(cache, 0)]})
    once = copy.deepcopy(guarded)
    one_by_one = {"image": [{k: copy.copy(v) for k, v in guarded["image"][0].items()}]}
    for each in (once, one_by_one, guard_items(guarded), guard_items(once)):
        grid = each["image"][0]["image_grid_thw"]
        assert grid.tolist() == truth(0)["image_grid_thw"].tolist()
        with pytest.raises(ValueError, match="negative"):
            upstream_flatten(each)
    grid = once["image"][0]["image_grid_thw"]
    grid[0, 0] = 7
    assert guarded["image"][0]["image_grid_thw"][0, 0] == 1


def test_a_guarded_model_is_pickled_with_its_guard() -> None:
    model = Model()
    guard = guard_model(model, np.int64(9))
    travelled = pickle.loads(pickle.dumps(model))
    for each in (model, travelled, copy.deepcopy(model)):
        assert each(torch.tensor([1])) == 0
        with pytest.raises(mw.MissingPixels):
            each(torch.tensor([9]))
    guard.remove()
    assert model(torch.tensor([9])) == 0


def test_the_expected_processor_is_asked_of_every_sample(cache: mw.PixelCache) -> None:
    expect = processor_card(processor(patch_size=14), return_tensors="pt")
    arrays = Sample(mm_kwargs=upstream_encode({"image": [truth(0)]}))
    for each in (sample(cache, [0]), arrays, {"mm_items": {"image": [item(cache, 0)]}}):
        with pytest.raises(mw.PixelMismatch, match="patch_size was 14 there and is 16 here"):
            model_kwargs(each, processor(), expect=expect)
        good = processor_card(processor(), return_tensors="pt")
        assert_tensors(model_kwargs(each, processor(), expect=good), [0])


def test_grids_are_written_as_they_are(cache: mw.PixelCache) -> None:
    images = [mw.strip(truth(seed), cache, threshold=0).data for seed in range(2)]
    assert isinstance(images[0]["image_grid_thw"], mw.PixelRef)
    sealed = Sample(mm_kwargs=encode_images({"image": images}, Encoded))
    plain = upstream_encode({"image": [truth(seed) for seed in range(2)]})
    assert sealed.mm_kwargs is not None
    assert sealed.mm_kwargs["pixel_values"].dtype == "memweir:float32"
    assert rehydrate(sealed).mm_kwargs == plain
