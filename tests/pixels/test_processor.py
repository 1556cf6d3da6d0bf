"""A cached processor answers like the one it wraps, from entries, and owns up when it cannot."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from processor_kit import assert_same, attempt, difference, photo
from transformers import (
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    DetrImageProcessorPil,
    FlavaImageProcessorPil,
    Idefics3ImageProcessorPil,
    Mask2FormerImageProcessorPil,
    PixtralImageProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
)
from transformers.image_processing_base import ImageProcessingMixin

import memweir as mw
from memweir.pixels import families

A, B, C = photo(), photo(200, 60, "coffee"), photo(48, 120, "rocket")
KINDS = [
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    DetrImageProcessorPil,
    Idefics3ImageProcessorPil,
    PixtralImageProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
]


def cached(processor: Any = None, budget: str = "512 MiB", **options: Any) -> mw.CachedProcessor:
    processor = Qwen2VLImageProcessorPil() if processor is None else processor
    return mw.CachedProcessor(processor, mw.PixelCache(budget), **options)


@pytest.mark.parametrize("tensors", [None, "np", "pt"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_equal_the_first_and_the_second_time(kind: Any, tensors: str | None) -> None:
    plain, proc = kind(), cached(kind())
    for images in (A, [B], (A, C), [A, B, C], [[A], [B, C]], [[A, B]]):
        expected = attempt(plain, images, return_tensors=tensors)
        for _ in range(2):
            assert_same(expected, attempt(proc, images, return_tensors=tensors))
    assert proc.stats().hits > 0


@pytest.mark.parametrize("images", [[A, B], np.array(A), torch.from_numpy(np.array(A))])
@pytest.mark.parametrize("kind", [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil])
def test_preprocess_and_every_kind_of_image_are_served(kind: Any, images: Any) -> None:
    proc = cached(kind())
    expected = kind().preprocess(images, return_tensors="np")
    for _ in range(2):
        assert difference(expected, proc.preprocess(images=images, return_tensors="np")) is None
    assert proc.stats().through == {}
    assert proc.stats().hits == proc.stats().misses


def test_kinds_of_input_do_not_share_entries() -> None:
    """A back end reads an RGBA image and the same numbers as an array differently."""
    image = photo().convert("RGBA")
    image.putalpha(77)
    plain, proc = Qwen2VLImageProcessor(), cached(Qwen2VLImageProcessor())
    array = np.array(image)
    for item in (image, array, torch.from_numpy(array), np.moveaxis(array, -1, 0)):
        assert_same(attempt(plain, item), attempt(proc, item))
    assert proc.stats().hits == 0


@pytest.mark.parametrize("tensors", ["np", "pt"])
def test_returned_arrays_are_the_callers_own(tensors: str) -> None:
    proc = cached()
    expected = Qwen2VLImageProcessorPil()([A, B], return_tensors=tensors)
    proc([A, B], return_tensors=tensors)
    for _ in range(2):
        answer = proc([A, B], return_tensors=tensors)
        assert difference(expected, answer) is None
        for value in answer.values():
            if tensors == "np":
                assert value.flags.owndata
                assert value.flags.writeable
            value[...] = 0  # must reach nobody else


def test_an_image_is_processed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    process = Qwen2VLImageProcessorPil._preprocess

    def counted(self: Any, images: Any, **kwargs: Any) -> Any:
        done.append(len(images))
        return process(self, images, **kwargs)

    monkeypatch.setattr(Qwen2VLImageProcessorPil, "_preprocess", counted)
    proc = cached()
    proc([A, A, B, A.copy()], return_tensors="np")
    proc([B, A], return_tensors="np")
    assert done == [1, 1]
    stats = proc.stats()
    assert (stats.calls, stats.images, stats.hits, stats.misses) == (2, 6, 4, 2)


def test_threads_on_a_cold_image_cause_one_load(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    process = Qwen2VLImageProcessorPil._preprocess

    def counted(self: Any, images: Any, **kwargs: Any) -> Any:
        done.append(threading.get_ident())
        return process(self, images, **kwargs)

    monkeypatch.setattr(Qwen2VLImageProcessorPil, "_preprocess", counted)
    proc, start, answers = cached(), threading.Barrier(8), []

    def call() -> None:
        start.wait()
        answers.append(proc(A, return_tensors="np"))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1
    assert len(answers) == 8
    assert all(difference(answers[0], answer) is None for answer in answers)


def test_changed_attributes_change_the_answer() -> None:
    plain, proc = Qwen2VLImageProcessorPil(), cached()
    for name, value in {
        "do_normalize": False,
        "rescale_factor": 1,
        "image_mean": [0.0] * 3,
    }.items():
        setattr(plain, name, value)
        setattr(proc, name, value)
        assert getattr(proc.wrapped, name) == value
        expected = plain(A, return_tensors="np")
        assert difference(expected, proc(A, return_tensors="np")) is None
    proc.wrapped.size["longest_edge"] = plain.size["longest_edge"] = 50_000  # in place
    large = photo(400, 300)
    for _ in range(2):
        assert difference(plain(large), proc(large)) is None


def test_keyword_arguments_are_part_of_the_key() -> None:
    plain, proc = CLIPImageProcessorPil(), cached(CLIPImageProcessorPil())
    for kwargs in (
        {},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"size": {"height": 50, "width": 40}, "do_center_crop": False},
        {"size": {"shortest_edge": 50}, "crop_size": 30},
        {"image_mean": [0.1, 0.2, 0.3]},
        {"image_mean": (0.3, 0.2, 0.1)},
        {"resample": 0},
        {"resample": PIL.Image.Resampling.LANCZOS},
    ):
        expected = attempt(plain, [A, B], return_tensors="np", **kwargs)
        for _ in range(2):
            assert_same(expected, attempt(proc, [A, B], return_tensors="np", **kwargs))
    assert proc.stats().through == {}


def test_it_is_an_image_processor(tmp_path: Any) -> None:
    proc = cached(Qwen2VLImageProcessorPil(merge_size=4))
    assert isinstance(proc, ImageProcessingMixin)
    assert (proc.merge_size, proc.model_input_names) == (4, ["pixel_values", "image_grid_thw"])
    assert proc.valid_kwargs is Qwen2VLImageProcessorPil.valid_kwargs
    assert proc.get_number_of_image_patches(100, 100) > 0
    assert proc.to_dict() == proc.wrapped.to_dict()
    assert "merge_size" in repr(proc)
    assert "merge_size" in dir(proc)
    proc.save_pretrained(tmp_path)
    assert Qwen2VLImageProcessorPil.from_pretrained(tmp_path).to_dict() == proc.to_dict()
    proc.extra = 1
    assert proc.wrapped.extra == 1
    del proc.extra
    with pytest.raises(AttributeError, match="extra"):
        _ = proc.extra
    with pytest.raises(AttributeError, match="anew"):
        proc.cache = mw.PixelCache(0)


def test_copies_share_the_cache_and_not_the_settings() -> None:
    proc = cached()
    proc(A)
    for other in (copy.deepcopy(proc), copy.copy(proc)):
        assert other.cache is proc.cache
        other(A)
        assert other.stats().hits == 1
        other.merge_size = 1
        assert proc.merge_size == 2
    with pytest.raises(TypeError, match="wrapped"):
        pickle.dumps(proc)


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="not dict"):
        cached({"size": 1})
    with pytest.raises(TypeError, match="already"):
        cached(cached())
    with pytest.raises(ValueError, match="join"):
        cached(join="glue")
    with pytest.raises(ValueError, match="memo"):
        cached(memo=0)


@pytest.mark.parametrize(
    ("args", "kwargs", "reason"),
    [
        ((), {"images": A, "device": "meta"}, "device"),
        ((), {}, "positional"),
        ((A, None), {}, "positional"),
        (([],), {}, "no images"),
        (([[]],), {}, "no images"),
        ((A,), {"return_tensors": "jax"}, "return_tensors"),
        ((A,), {"nonsense": 1}, "nonsense"),
        ((A,), {"patch_size": [14]}, "patch_size is a list"),
        ((A,), {"size": object()}, "size is a builtins.object"),
        (([A, np.asarray(A) / 2],), {}, "several types"),
        ((np.asarray(A)[None],), {}, "4 dimensions"),
        (([[A], B],), {}, "list"),
    ],
)
def test_unusual_calls_are_the_processors_own(
    args: Any, kwargs: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain, proc = Qwen2VLImageProcessorPil(), cached()

    def outcome(processor: Any) -> tuple[Any, str | None]:
        return attempt(lambda _: processor(*args, **kwargs), None)

    with caplog.at_level(logging.WARNING, "memweir"):
        for _ in range(2):
            expected, got = outcome(plain), outcome(proc)
            if expected[1] is None or "positional argument" not in expected[1]:
                assert_same(expected, got)
    assert [count for why, count in proc.stats().through.items() if reason in why] == [2]
    assert len([r for r in caplog.records if r.name == "memweir.processor"]) == 1
    assert len(proc.cache) == 0


def test_random_answers_are_not_kept() -> None:
    proc = cached(FlavaImageProcessorPil())
    masks = [proc(A, return_image_mask=True)["bool_masked_pos"][0] for _ in range(8)]
    assert any(not np.array_equal(masks[0], mask) for mask in masks)
    proc.return_image_mask = True
    proc(A)
    assert proc.stats().through == {"randomness": 9}


class Foreign(Qwen2VLImageProcessorPil):
    """A processor from outside transformers, with an attribute of unknown meaning."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.helper = object()


def test_foreign_classes_need_a_fingerprint() -> None:
    proc = cached(Foreign())
    assert difference(Foreign()([A, B]), proc([A, B])) is None
    assert "no fingerprint" in next(iter(proc.stats().through))

    named = cached(Foreign(), fingerprint="foreign 1")
    for _ in range(2):
        assert difference(Foreign()(A), named(A)) is None
        assert difference(Foreign()([A, B]), named([A, B])) is None
    assert named.stats().hits == 1
    assert named.stats().through == {"no join is known for Foreign": 2}

    joined = mw.CachedProcessor(Foreign(), named.cache, fingerprint="foreign 1", join="concat")
    assert difference(Foreign()([A, B]), joined([A, B])) is None
    other = mw.CachedProcessor(Foreign(), named.cache, fingerprint="foreign 2")
    other(A)
    assert (joined.stats().hits, other.stats().hits) == (1, 0)


def test_parts_that_do_not_join_go_through() -> None:
    kind = Mask2FormerImageProcessorPil
    plain, proc = kind(), cached(kind())
    for images in ([A, B], [A, B], [B, C], A, B):
        assert_same(attempt(plain, images), attempt(proc, images))
    assert proc.stats().through == {"the parts differ in shape": 3}
    # A and B alone are hits: they were kept when the first join was tried.
    assert (proc.stats().hits, proc.stats().misses) == (2, 0)
    # Images of one size join all the same, and are kept.
    batch = [C, C.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)]
    for _ in range(2):
        assert_same(attempt(plain, batch), attempt(proc, batch))
    assert (proc.stats().hits, proc.stats().misses) == (4, 2)


def test_padding_is_left_to_the_processor_when_it_is_off() -> None:
    kind = DetrImageProcessorPil
    plain, proc = kind(), cached(kind())
    for tensors in (None, "np"):
        for kwargs in ({"do_pad": False}, {"do_pad": True}):
            expected = attempt(plain, [A, B], return_tensors=tensors, **kwargs)
            for _ in range(2):
                assert_same(expected, attempt(proc, [A, B], return_tensors=tensors, **kwargs))


def test_channels_are_never_padded() -> None:
    images = [A, A.convert("L").resize((50, 70))]
    for kind in (DetrImageProcessorPil, Idefics3ImageProcessorPil):
        plain, proc = kind(), cached(kind())
        for tensors in (None, "np"):
            kwargs = {"do_normalize": False, "do_convert_rgb": False, "return_tensors": tensors}
            assert_same(attempt(plain, images, **kwargs), attempt(proc, images, **kwargs))


def test_pixtral_pads_by_the_sizes_before_it_crops() -> None:
    plain, proc = PixtralImageProcessor(), cached(PixtralImageProcessor())
    kwargs = {"do_center_crop": True, "crop_size": {"height": 30, "width": 30}}
    for images in ([A, B], [A, C], A):
        assert_same(attempt(plain, images, **kwargs), attempt(proc, images, **kwargs))


@pytest.mark.parametrize("budget", ["0", "32 KiB"])
def test_a_budget_too_small_costs_only_time(budget: str) -> None:
    plain, proc = Qwen2VLImageProcessorPil(), cached(budget=budget)
    for _ in range(2):
        assert difference(plain([A, B]), proc([A, B])) is None
    assert proc.stats().misses == 4
    assert proc.cache.stats().bytes <= proc.cache.budget


def test_another_version_of_transformers_must_prove_its_joins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.models.pp_ocrv5_server_rec.image_processing_pp_ocrv5_server_rec import (
        PPOCRV5ServerRecImageProcessor,
    )

    monkeypatch.setattr(families, "REVIEWED", "0.0")
    proc = cached()
    for _ in range(3):
        assert difference(Qwen2VLImageProcessorPil()([A, B]), proc([A, B])) is None
    assert proc.stats().through == {}

    # Fits together, and is not what the batch gives: the widest image sets everyone's width.
    monkeypatch.setitem(families._HOW, "PPOCRV5ServerRec", "concat")
    kind = PPOCRV5ServerRecImageProcessor
    batch = [photo(300, 100), photo(1200, 100)]
    wrong = cached(kind())
    for _ in range(3):
        assert difference(kind()(batch), wrong(batch)) is None
    assert sum(wrong.stats().through.values()) == 3


def test_lookup_identifies_and_processes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    proc = cached()
    answer = proc([A, B], return_tensors="np")
    monkeypatch.setattr(Qwen2VLImageProcessorPil, "preprocess", None)
    found = proc.lookup([A, C, B], return_tensors="np")
    assert [px is None for px in found] == [False, True, False]
    rows = found[0]["pixel_values"].shape[0]
    assert np.array_equal(found[0]["pixel_values"], answer["pixel_values"][:rows])
    assert proc.lookup(A, return_tensors="pt") == [None]
    assert proc.lookup([A, B], nonsense=1) == [None, None]
    assert proc.stats().calls == 1
