"""References in a real DataLoader: what its workers are sent, and what they send back."""

from __future__ import annotations

import multiprocessing.connection as connections
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_kit import ByDigest, image, item, processor, tokens, truth, types
from torch.utils.data import DataLoader

import memweir as mw
from memweir.integrations._renderers_items import ImageItem
from memweir.integrations.torch import Collate, RestoredDataset, Restorer
from memweir.pixels import cards, live

LARGE = (512, 384)


pytestmark = pytest.mark.usefixtures("alone")


def samples(cache: mw.PixelCache, count: int, size: Any = None) -> list[dict[str, Any]]:
    return [{"label": n, "mm_items": {"image": [item(cache, n, size)]}} for n in range(count)]


def expected(seeds: Any, size: Any = None) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([truth(seed, size)["pixel_values"] for seed in seeds]))


def loader(data: Any, context: str | None, **options: Any) -> DataLoader[Any]:
    workers = {None: 0, "fork": 2, "spawn": 1}[context]  # a spawned one imports torch anew
    return DataLoader(data, num_workers=workers, multiprocessing_context=context, **options)


def check(batch: dict[str, Any], size: Any = None) -> None:
    seeds = batch["label"].tolist()
    got = batch["mm_kwargs"]
    assert torch.equal(got["pixel_values"], expected(seeds, size))
    grids = [truth(seed, size)["image_grid_thw"] for seed in seeds]
    assert torch.equal(got["image_grid_thw"], torch.from_numpy(np.concatenate(grids)))


@pytest.mark.parametrize("context", [None, "fork"])
def test_a_batch_has_every_image_in_order(cache: mw.PixelCache, context: str | None) -> None:
    data = samples(cache, 7)
    collate = Collate(Restorer(processor(), fetch=ByDigest(range(7))))
    labels = []
    for batch in loader(data, context, batch_size=3, collate_fn=collate):
        check(batch)
        labels += batch["label"].tolist()
    assert labels == list(range(7))


@pytest.mark.parametrize("context", [None, "fork"])
def test_samples_are_tensors_for_other_collate_functions(
    cache: mw.PixelCache, context: str | None
) -> None:
    size = (64, 64)
    data = [{"label": n, **item(cache, n, size)} for n in range(4)]
    made = RestoredDataset(data, Restorer(processor(), fetch=ByDigest(range(4), size)))
    restored = pickle.loads(pickle.dumps(made))  # as a spawned worker gets it
    assert len(restored) == 4
    (batch,) = loader(restored, context, batch_size=4)
    whole = np.stack([truth(seed, size)["pixel_values"] for seed in range(4)])
    assert torch.equal(batch["pixel_values"], torch.from_numpy(whole))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_no_pixel_passes_through_a_pipe(
    cache: mw.PixelCache, context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = samples(cache, 4, LARGE)
    pixels = sum(each["mm_items"]["image"][0]["pixel_values"].nbytes for each in data)
    assert pixels > 16 << 20
    assert len(pickle.dumps(data)) < 4096
    collate = Collate(Restorer(processor(), fetch=ByDigest(range(4), LARGE)))
    received: list[int] = []
    sent: list[int] = []
    read, dump = connections.Connection.recv_bytes, ForkingPickler.dumps

    def recv_bytes(self: Any, *args: Any) -> bytes:
        message: bytes = read(self, *args)
        received.append(len(message))
        return message

    def dumps(*args: Any) -> Any:
        text = dump(*args)
        sent.append(len(text))
        return text

    work = iter(loader(data, context, batch_size=2, collate_fn=collate))
    monkeypatch.setattr(connections.Connection, "recv_bytes", recv_bytes)
    monkeypatch.setattr(ForkingPickler, "dumps", dumps)
    for batch in work:
        check(batch, LARGE)
        assert batch["mm_kwargs"]["pixel_values"].is_shared()
    assert received
    assert sum(received) + sum(sent) < 16 << 10


def test_a_forked_worker_reads_the_caches_it_was_born_with(cache: mw.PixelCache) -> None:
    data = samples(cache, 4)  # nobody could make these again: no processor is given
    for batch in loader(data, "fork", batch_size=2, collate_fn=Collate()):
        check(batch)


def test_a_spawned_worker_without_a_processor_says_so(cache: mw.PixelCache) -> None:
    array = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    data = [mw.strip({"pixel_values": array}, cache).data]
    assert np.array_equal(Collate()(data)["pixel_values"], array)
    with pytest.raises(mw.MissingPixels, match="in no live cache of this process"):
        next(iter(loader(data, "spawn", batch_size=1, collate_fn=Collate())))


def test_another_processor_in_the_worker_is_an_error_that_names_both(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = samples(cache, 1)
    restore = Restorer(processor(patch_size=14), fetch=ByDigest(range(1)))
    cache.clear()
    with pytest.raises(mw.PixelMismatch, match="patch_size was 16 there and is 14 here"):
        next(iter(loader(data, "fork", batch_size=1, collate_fn=Collate(restore))))
    # Where nobody has met the maker, it is known by its fingerprint alone.
    monkeypatch.setattr(cards, "_own", {})
    with pytest.raises(mw.PixelMismatch, match=r"not described; here it is .*ProcessorPil"):
        Collate(pickle.loads(pickle.dumps(restore)))(data)


def test_restorers_travel_without_their_cache(cache: mw.PixelCache) -> None:
    ref = item(cache, 0)["pixel_values"]
    restorer = Restorer(mw.CachedProcessor(processor(), cache), fetch=ByDigest(range(1)))
    copy = pickle.loads(pickle.dumps(restorer))
    cache.clear()
    for each in (restorer, copy):
        assert np.array_equal(each(ref)["pixel_values"], truth(0)["pixel_values"])
    with pytest.raises(ValueError, match="no processor"):
        Restorer(fetch=ByDigest(range(1)))


def test_arrays_that_would_be_pickled_are_refused(cache: mw.PixelCache) -> None:
    array = np.zeros((64, 256), np.float32)
    with pytest.raises(mw.UnsupportedType, match="would be pickled"):
        pickle.dumps(RestoredDataset([{"pixel_values": array}]))
    with pytest.raises(mw.UnsupportedType, match="would be pickled"):
        Collate(rest=lambda rows: {"more": array})([{"more": 1}])
    ref = item(cache, 0)["pixel_values"]
    with pytest.raises(mw.MissingPixels, match="not its pixels"):
        Collate(rest=lambda rows: {"more": rows})([{"more": {"deep": ref}}])


def test_names_lists_and_arrays_are_images_too(cache: mw.PixelCache) -> None:
    one, two, three = (item(cache, seed) for seed in range(3))
    plain = {name: np.asarray(value) for name, value in two.items()}
    batch = Collate()(
        [
            one,
            {name: torch.from_numpy(value.copy()) for name, value in plain.items()},
            {name: [value] for name, value in three.items()},
        ]
    )
    assert torch.equal(batch["pixel_values"], expected(range(3)))
    assert batch["image_grid_thw"].shape == (3, 3)
    nested = Collate()([{"mm_kwargs": one}, {"mm_kwargs": None}, {"mm_kwargs": plain}])
    assert torch.equal(nested["mm_kwargs"]["pixel_values"], expected(range(2)))


def test_shorter_images_are_padded_with_zeros(cache: mw.PixelCache) -> None:
    arrays = [np.full((1, 3, 64, n), n, np.float32) for n in (64, 96)]
    refs = mw.strip([{"pixel_values": a} for a in arrays], cache).data
    got = Collate(how="pad")(refs)["pixel_values"]
    assert got.shape == (2, 3, 64, 96)
    assert torch.equal(got[0, :, :, :64], torch.full((3, 64, 64), 64.0))
    assert not got[0, :, :, 64:].any()
    with pytest.raises(ValueError, match="differ in shape"):
        Collate()(refs)
    with pytest.raises(ValueError, match="unknown join"):
        Collate(how="alone")


def test_half_precision_and_bfloat16_keep_their_types(cache: mw.PixelCache) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.uint8):
        tensor = torch.arange(512).reshape(2, -1).to(dtype)
        ref = mw.strip({"pixel_values": tensor}, cache, threshold=0).data
        got = Collate()([ref, ref])["pixel_values"]
        assert got.dtype is dtype
        assert torch.equal(got, torch.cat([tensor, tensor]))
    mixed = [{"pixel_values": np.zeros(2, np.float32)}, {"pixel_values": np.zeros(2, np.int64)}]
    with pytest.raises(ValueError, match="2 types"):
        Collate()(mixed)


@pytest.fixture(scope="module")
def items() -> list[dict[str, Any]]:
    cache = mw.PixelCache("64 MiB")
    return [{**item(cache, seed), "keep": cache} for seed in range(3)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_sample_whose_images_do_not_fit_is_refused(items: Any, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
    images = [{k: v for k, v in items[n].items() if k != "keep"} for n in chosen]
    ids = tokens(*images)
    batch = Collate(merge_size=2)
    resolver = items[0]["keep"]
    live.register(resolver)
    good = {"mm_items": {"image": images}, "mm_token_type_ids": types(ids)}
    assert batch([good])["mm_kwargs"]["image_grid_thw"].shape == (len(chosen), 3)

    lost = data.draw(st.integers(0, len(images) - 1))
    fault = data.draw(st.sampled_from(["image", "pixels", "grid", "token", "all", "more"]))
    wrong = [dict(each) for each in images]
    if fault == "image":
        wrong.pop(lost)
    elif fault == "pixels":
        del wrong[lost]["pixel_values"]
    elif fault == "grid":
        wrong[lost]["image_grid_thw"] = wrong[lost]["image_grid_thw"] + [[0, 0, 1]]
    elif fault == "token":
        ids = [*ids[:2], *ids[3:]]
    elif fault == "all":
        wrong = []
    else:
        wrong.append(wrong[lost])
    bad = {"mm_items": {"image": wrong}, "mm_token_type_ids": types(ids)}
    with pytest.raises((mw.MissingPixels, mw.PixelMismatch)):
        batch([bad])


def test_samples_that_are_no_mappings_or_images_are_refused(cache: mw.PixelCache) -> None:
    with pytest.raises(TypeError, match="a sample is a mapping"):
        Collate()([[1, 2]])  # type: ignore[list-item]
    with pytest.raises(mw.UnsupportedType, match="no mapping of images"):
        Collate()([{"mm_items": [image(0)]}])
    with pytest.raises(mw.UnsupportedType, match="is no array"):
        Collate()([{"mm_items": {"image": [{"pixel_values": SimpleRows()}]}}])


class SimpleRows:
    shape = (4, 4)


def test_an_image_that_is_an_array_in_one_sample_is_joined_too(cache: mw.PixelCache) -> None:
    """Small ones stay arrays where they are stripped, whatever their name."""
    arrays = [np.full((1, 8192), n, np.float32) for n in range(3)]
    ref = mw.strip({"view": arrays[0]}, cache).data["view"]
    batch = Collate(check=False)
    for rows in (
        [{"label": 0, "view": ref}, {"label": 1, "view": arrays[1]}, {"view": [arrays[2]]}],
        [{"view": arrays[1]}, {"view": ref}],
    ):
        order = [row["view"][0] if isinstance(row["view"], list) else row["view"] for row in rows]
        whole = np.concatenate([np.asarray(each) for each in order])
        assert np.array_equal(batch([{"view": row["view"]} for row in rows])["view"], whole)
    with pytest.raises(mw.UnsupportedType, match="other things"):
        batch([{"view": ref}, {"view": 3}])


def test_a_grid_that_lost_its_pixels_is_refused(cache: mw.PixelCache) -> None:
    one, two = ({"label": n, **item(cache, n)} for n in range(2))
    del two["pixel_values"]
    for rows in ([one, two], [two, one], [two]):
        with pytest.raises(mw.MissingPixels, match="image_grid_thw and no pixels"):
            Collate()(rows)


@pytest.mark.parametrize("nothing", [None, []])
def test_samples_without_images_are_collated_with_others(
    cache: mw.PixelCache, nothing: Any
) -> None:
    bare = {"label": 7, "pixel_values": nothing, "image_grid_thw": nothing}
    one = {"label": 1, **item(cache, 1)}
    assert list(Collate()([bare, bare])) == ["label"]
    for rows in ([bare, one], [one, bare]):
        got = Collate()(rows)
        assert torch.equal(got["pixel_values"], expected([1]))
        assert sorted(got["label"].tolist()) == [1, 7]


def test_videos_are_not_taken_for_images() -> None:
    frames = {"pixel_values_videos": truth(0)["pixel_values"]}
    frames["video_grid_thw"] = truth(0)["image_grid_thw"]
    sample = {**frames, "mm_token_type_ids": [0, *[2] * 6, 0]}
    assert Collate()([sample])["pixel_values_videos"].shape == (24, 1536)
    with pytest.raises(mw.MissingPixels):
        Collate()([{**sample, "mm_token_type_ids": [0, *[1] * 6, 0]}])


def test_images_of_renderers_are_restored_in_the_worker(
    cache: mw.PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their items() bring pixels back by themselves, and know of no resolver."""
    whole = mw.strip(truth(0), cache, threshold=0).data  # with the grid
    text = pickle.dumps([ImageItem(item(cache, 0)), whole])
    monkeypatch.setattr(live, "_caches", {})
    asked = []

    def given(ref: mw.PixelRef) -> Any:
        asked.append(ref.name)
        return truth(0)

    one, two = pickle.loads(text)
    for sample in ({"mm_items": {"image": [one, two]}}, {"mm_kwargs": one}):
        asked.clear()
        got = Collate(given)([sample])["mm_kwargs"]
        count = 2 if "mm_items" in sample else 1
        assert torch.equal(got["pixel_values"], expected([0] * count))
        assert got["image_grid_thw"].shape == (count, 3)
        assert asked.count("pixel_values") == count
