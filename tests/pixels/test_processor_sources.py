"""Encoded sources are known by their content: a hit opens nothing, a change is noticed."""

from __future__ import annotations

import copy
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import torch
import transformers.image_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from processor_kit import assert_same, attempt, difference, encode, photo, uri
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

import memweir as mw
from memweir.pixels.recipe import recall
from memweir.pixels.sources import Memo

# What torchvision's decoder says of itself each time.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

A, B, C = photo(), photo(120, 60, "coffee"), photo(50, 90, "rocket")
PNG, JPEG = encode(A), encode(B, "JPEG", quality=90)
BOTH = [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil]


def cached(kind: Any = Qwen2VLImageProcessorPil) -> mw.CachedProcessor:
    return mw.CachedProcessor(kind(), mw.PixelCache("64 MiB"))


class Opened(Exception):
    """Somebody decoded an image."""


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From the moment it is called, decoding fails."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise Opened

    def seal() -> None:
        for name in ("load_image", "load_image_as_tensor"):
            monkeypatch.setattr(transformers.image_utils, name, refuse)
        monkeypatch.setattr("transformers.image_processing_base.load_image", refuse)
        monkeypatch.setattr("transformers.image_processing_backends.load_image_as_tensor", refuse)
        monkeypatch.setattr(PIL.Image, "open", refuse)
        monkeypatch.setattr("base64.b64decode", refuse)
        monkeypatch.setattr("base64.decodebytes", refuse)

    return seal


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.png"
    path.write_bytes(PNG)
    os.utime(path, (1, 1))
    return path


@pytest.mark.parametrize("kind", BOTH)
def test_every_encoding_of_a_source_is_one_image(kind: Any, file: Path) -> None:
    expected = kind()(uri(PNG), return_tensors="np")
    proc = cached(kind)
    plain_base64 = uri(PNG).split(",")[1]
    for source in (uri(PNG), plain_base64, PNG, str(file), file, file.as_uri()):
        assert difference(expected, proc(source, return_tensors="np")) is None
    assert (proc.stats().misses, proc.stats().hits) == (1, 5)


@pytest.mark.parametrize("kind", BOTH)
def test_a_hit_opens_nothing(kind: Any, file: Path, sealed: Any) -> None:
    proc, sources = cached(kind), [uri(JPEG, "jpeg"), PNG, file, str(file), file.as_uri()]
    first = proc(sources, return_tensors="pt")
    sealed()
    assert difference(first, proc(sources, return_tensors="pt")) is None
    assert difference(first, proc(proc.fetch_images(sources), return_tensors="pt")) is None
    assert all(px is not None for px in proc.lookup(sources, return_tensors="pt"))
    with pytest.raises(Opened):
        proc(uri(encode(B)))


def test_pixels_from_any_source_share_an_entry() -> None:
    proc = cached()
    proc([uri(PNG), A, B])
    assert (proc.stats().misses, proc.stats().hits) == (2, 1)


def test_a_text_is_not_the_image_it_spells(tmp_path: Path) -> None:
    proc, text = cached(), uri(PNG)
    proc(text)
    (tmp_path / "text").write_text(text)
    for source in (text.encode(), tmp_path / "text"):
        with pytest.raises(Exception, match="cannot identify"):
            proc(source)


def test_lookup_decodes_no_unknown_source(sealed: Any) -> None:
    proc = cached()
    proc(A)
    sealed()
    assert proc.lookup([PNG, uri(JPEG), "http://nowhere/a.png", "/no/such/file"]) == [None] * 4


@pytest.mark.parametrize("kind", BOTH)
def test_fetched_images_are_what_the_processor_fetches(kind: Any, sealed: Any) -> None:
    plain, proc = kind().fetch_images(uri(PNG)), cached(kind)
    proc.fetch_images(uri(PNG))
    lazy = proc.fetch_images([[PNG], uri(PNG)])[0][0]
    assert isinstance(lazy, torch.Tensor if kind is Qwen2VLImageProcessor else PIL.Image.Image)
    sealed_types = (lazy.shape, lazy.dtype, lazy.ndim) if isinstance(lazy, torch.Tensor) else None
    if sealed_types:
        assert sealed_types == (plain.shape, plain.dtype, plain.ndim)
        assert torch.equal(lazy, plain)
        assert np.array_equal(np.asarray(lazy), plain.numpy())
        assert torch.equal(lazy[:, 3:5] + 1, plain[:, 3:5] + 1)
    else:
        assert (lazy.size, lazy.mode, lazy.width) == (plain.size, plain.mode, plain.width)
        assert np.array_equal(np.asarray(lazy), np.asarray(plain))
        assert lazy == plain
        assert lazy.getexif() == plain.getexif()
    for other in (copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy))):
        assert type(other) is type(plain)
        assert np.array_equal(np.asarray(other), np.asarray(plain))


@pytest.mark.parametrize("kind", BOTH)
def test_size_and_type_of_a_lazy_image_need_no_decoding(kind: Any, sealed: Any) -> None:
    proc = cached(kind)
    proc(PNG)
    sealed()
    lazy = proc.fetch_images(PNG)
    if isinstance(lazy, torch.Tensor):
        assert tuple(lazy.shape) == (3, A.height, A.width)
        assert lazy.ndim == lazy.dim() == 3
        with pytest.raises(Opened):
            lazy.sum()
    else:
        assert (lazy.size, lazy.mode) == (A.size, "RGB")
        assert isinstance(repr(lazy), str)
        for touch in (lazy.load, lazy.tobytes, lambda: lazy.im, lambda: np.asarray(lazy)):
            with pytest.raises(Opened):
                touch()


@pytest.mark.parametrize("kind", BOTH)
def test_a_lazy_image_that_was_written_to_is_another_image(kind: Any) -> None:
    proc = cached(kind)
    proc(PNG)
    lazy = proc.fetch_images(PNG)
    if isinstance(lazy, torch.Tensor):
        lazy[:, :20, :20] = 0
        changed: Any = lazy.clone()
    else:
        lazy.paste((0, 0, 0), (0, 0, 20, 20))
        changed = lazy.copy()
    assert difference(kind()(changed), proc(lazy)) is None
    assert difference(kind()(uri(PNG)), proc(PNG)) is None


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "source",
    [uri(PNG[:300]), uri(b"no image"), "data:image/png;base64,!", "no such file", "", 7, None],
)
def test_fetching_fails_as_the_processor_does(kind: Any, source: Any) -> None:
    proc = cached(kind)
    for _ in range(2):
        expected = attempt(kind().fetch_images, source)
        assert expected[1] is not None
        assert attempt(proc.fetch_images, source) == expected
        assert_same(attempt(kind(), source), attempt(proc, source))
        assert_same(attempt(kind(), [A, source]), attempt(proc, [A, source]))


def test_a_changed_file_is_noticed(file: Path) -> None:
    proc = cached()
    assert difference(Qwen2VLImageProcessorPil()(A), proc(file)) is None
    proc(file)
    replaced = file.with_name("new")
    replaced.write_bytes(encode(photo(name="coffee")))
    os.utime(replaced, (1, 1))
    replaced.rename(file)
    assert difference(Qwen2VLImageProcessorPil()(photo(name="coffee")), proc(file)) is None


def test_a_file_rewritten_at_once_is_noticed(tmp_path: Path) -> None:
    """Same size, same inode, and a clock too coarse to tell the two writes apart."""
    proc, path = cached(), tmp_path / "image.ppm"
    for name in ("astronaut", "coffee", "rocket"):
        path.write_bytes(encode(photo(name=name), "PPM"))
        os.utime(path)
        expected = Qwen2VLImageProcessorPil()(photo(name=name))
        assert difference(expected, proc(path)) is None


def test_a_file_that_changes_under_a_lazy_image_poisons_nothing(file: Path) -> None:
    proc = cached()
    proc(file)
    lazy = proc.fetch_images(file)
    proc.cache.clear()
    file.write_bytes(encode(photo(name="coffee")))
    with pytest.raises(Exception, match="replaced"):
        proc(lazy)
    assert difference(Qwen2VLImageProcessorPil()(A), proc(A)) is None


def test_an_image_written_to_while_processed_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    proc, image = cached(), A.copy()
    process = Qwen2VLImageProcessorPil._preprocess

    def disturbed(self: Any, images: Any, **kwargs: Any) -> Any:
        image.putpixel((0, 0), (1, 2, 3))
        return process(self, images, **kwargs)

    monkeypatch.setattr(Qwen2VLImageProcessorPil, "_preprocess", disturbed)
    proc(image)
    assert len(proc.cache) == 0
    assert proc.stats().through == {"SourceChanged in processing": 1}


def test_urls_are_fetched_each_time_and_known_by_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[bytes] = []

    class Response:
        def __init__(self, content: bytes) -> None:
            self.content = content

    def get(url: str, **kwargs: Any) -> Response:
        served.append(contents[url])
        return Response(contents[url])

    monkeypatch.setattr(transformers.image_utils.httpx, "get", get)
    url = "http://example.org/a.png"
    contents = {url: PNG}
    proc = cached()
    assert difference(Qwen2VLImageProcessorPil()(A), proc(url)) is None
    proc([url, A])
    contents[url] = JPEG
    assert difference(Qwen2VLImageProcessorPil()(url), proc(url)) is None
    assert len(served) == 4
    assert (proc.stats().misses, proc.stats().hits) == (2, 2)
    proc([url, np.asarray(A) / 255])  # through, with what was fetched
    assert len(served) == 5


def test_pillow_s_own_switches_keep_working(monkeypatch: pytest.MonkeyPatch) -> None:
    proc, truncated = cached(), uri(JPEG[:-200])
    monkeypatch.setattr(PIL.ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert difference(Qwen2VLImageProcessorPil()(truncated), proc(truncated)) is None
    monkeypatch.setattr(PIL.ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    expected = attempt(Qwen2VLImageProcessorPil(), truncated)
    assert "truncated" in str(expected[1])
    assert_same(expected, attempt(proc, truncated))

    proc(PNG)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    expected = attempt(Qwen2VLImageProcessorPil(), uri(PNG))
    assert "decompression bomb" in str(expected[1])
    assert_same(expected, attempt(proc, uri(PNG)))


def test_arrays_know_their_sources(file: Path) -> None:
    proc = cached()
    answer = proc([uri(JPEG), file, C], return_tensors="np")
    join = recall(answer["pixel_values"])
    assert join is not None
    assert (join.how, join.name) == ("concat", "pixel_values")
    assert sum(join.rows) == answer["pixel_values"].shape[0]
    origins = [part.origin for part in join.parts]
    assert origins == [uri(JPEG), str(file), None]
    assert join.parts[0].source == mw.hash_bytes(uri(JPEG))
    assert join.parts[1].source == mw.hash_bytes(PNG)
    assert [part.image for part in join.parts[1:]] == [mw.hash_image(A), mw.hash_image(C)]
    assert mw.Digest(join.parts[2].key) in proc.cache
    assert join.parts[2].kwargs == (("return_tensors", "np"),)
    alone = recall(proc(A, return_tensors="pt")["pixel_values"])
    assert alone is not None
    assert alone.how == "alone"


@settings(deadline=None)
@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 8))))
def test_the_memo_forgets_what_was_not_used(limit: int, steps: list[tuple[bool, int]]) -> None:
    memo, model = Memo(limit), OrderedDict[int, int]()
    for put, key in steps:
        if put:
            memo.put(key, key * 10)
            model[key] = key * 10
            while len(model) > limit:
                model.popitem(last=False)
        else:
            assert memo.get(key) == model.get(key)
            if key in model:
                model.move_to_end(key)
        assert len(memo) == len(model) <= limit
