"""Pixels made again by their processor, here and in another process."""

from __future__ import annotations

import base64
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import LlavaNextImageProcessorPil, SmolVLMImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import memweir as mw
from memweir.pixels import live, provenance
from memweir.pixels.refs import JoinedRef, PixelRef

SIZES = [(320, 240), (200, 300), (128, 256)]


def image(seed: int) -> Image.Image:
    width, height = SIZES[seed % len(SIZES)]
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height))


def encoded(seed: int) -> bytes:
    out = io.BytesIO()
    image(seed).save(out, "PNG")
    return out.getvalue()


def uri(seed: int) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(seed)).decode()


URIS = [uri(seed) for seed in range(3)]
BY_SOURCE = {mw.hash_bytes(text): text for text in URIS}


def from_uris(ref: PixelRef) -> str | None:
    assert ref.recipe is not None
    assert ref.recipe.source is not None
    return BY_SOURCE.get(ref.recipe.source)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_caches", {})


@pytest.fixture
def cache() -> mw.PixelCache:
    return mw.PixelCache("64 MiB")


def arrays(batch: Any) -> dict[str, bytes]:
    return {name: np.asarray(value).tobytes() for name, value in batch.items()}


def llava() -> Any:
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": 112},
        crop_size={"height": 112, "width": 112},
        image_grid_pinpoints=[[112, 224], [224, 112], [224, 224]],
    )


def smol() -> Any:
    return SmolVLMImageProcessorPil(do_image_splitting=False)


@pytest.mark.parametrize("tensors", ["np", "pt"])
@pytest.mark.parametrize(
    ("make", "how"), [(Qwen2VLImageProcessorPil, "concat"), (llava, "pad"), (smol, "nest")]
)
def test_batches_are_made_again_image_by_image(
    cache: mw.PixelCache, make: Callable[[], Any], how: str, tensors: str
) -> None:
    processor = mw.CachedProcessor(make(), cache)
    batch = processor(URIS, return_tensors=tensors)
    want = {name: bits(value) for name, value in batch.items()}
    s = mw.strip(batch, cache)
    assert type(s.data) is type(batch)
    ref = s.data["pixel_values"]
    assert isinstance(ref, JoinedRef)
    assert (ref.how, len(ref.parts), s.left) == (how, 3, ())
    assert all(len(part.descriptor.encode()) <= 256 for part in ref.parts)
    cache.clear()
    with pytest.raises(mw.MissingPixels):
        mw.materialize(s.data)
    for again in (processor, make()):
        back = mw.materialize(s.data, mw.Recompute(again, from_uris))
        assert type(back) is type(batch)
        assert {name: bits(value) for name, value in back.items()} == want
        assert type(back["pixel_values"]) is type(batch["pixel_values"])


def bits(value: Any) -> bytes:
    return bytes((value if isinstance(value, np.ndarray) else value.numpy()).tobytes())


def test_arguments_travel(cache: mw.PixelCache) -> None:
    processor = mw.CachedProcessor(Qwen2VLImageProcessorPil(), cache)
    sized = {"shortest_edge": 56 * 56, "longest_edge": 56 * 56 * 4}
    batch = processor(URIS[0], return_tensors="np", size=sized, do_convert_rgb=True)
    assert batch["pixel_values"].shape != processor(URIS[0], return_tensors="np").pixel_values.shape
    s = mw.strip(batch, cache, threshold=0)
    cache.clear()
    back = mw.materialize(s.data, mw.Recompute(Qwen2VLImageProcessorPil(), from_uris))
    assert arrays(back) == arrays(batch)


def test_arguments_that_could_not_travel_are_said_to_be_missing(cache: mw.PixelCache) -> None:
    processor = mw.CachedProcessor(Qwen2VLImageProcessorPil(), cache)
    mean = [0.123456789012345, 0.123456789012345, 0.123456789012345]
    batch = processor(URIS[0], return_tensors="np", image_mean=mean, image_std=mean)
    refs = [mw.strip(batch, cache, sources=s).data["pixel_values"] for s in ("small", "all")]
    cache.clear()
    recompute = mw.Recompute(processor, from_uris)
    with pytest.raises(mw.PixelMismatch, match='sources="all"'):
        mw.materialize(refs[0], recompute)
    assert mw.materialize(refs[1], recompute).tobytes() == batch["pixel_values"].tobytes()


def test_every_kind_of_source(
    cache: mw.PixelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = mw.CachedProcessor(Qwen2VLImageProcessorPil(), cache)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.png"
    path.write_bytes(encoded(1))
    relative, pixels = Path("x.png"), image(1)
    for source in (encoded(1), str(path), relative, path.as_uri(), pixels, uri(1)):
        batch = processor(source, return_tensors="np")
        ref = mw.strip(batch, cache).data["pixel_values"]
        cache.clear()
        back = mw.materialize(ref, mw.Recompute(processor, lambda ref, source=source: source))
        assert back.tobytes() == batch["pixel_values"].tobytes()
        cache.clear()
        with pytest.raises(mw.PixelMismatch):
            mw.materialize(ref, mw.Recompute(processor, lambda ref: URIS[0]))
        cache.clear()
        with pytest.raises(mw.PixelMismatch):
            mw.materialize(ref, mw.Recompute(processor, lambda ref: image(2)))


def test_short_paths_need_no_fetch(
    cache: mw.PixelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.png").write_bytes(encoded(0))
    processor = mw.CachedProcessor(Qwen2VLImageProcessorPil(), cache)
    batch = processor("x.png", return_tensors="np")
    ref = mw.strip(batch, cache).data["pixel_values"]
    hidden = mw.strip(batch, cache, sources="never").data["pixel_values"]
    cache.clear()
    recompute = mw.Recompute(Qwen2VLImageProcessorPil())
    assert mw.materialize(ref, recompute).tobytes() == batch["pixel_values"].tobytes()
    with pytest.raises(mw.MissingPixels):
        mw.materialize(hidden, recompute)
    Path("x.png").write_bytes(encoded(1))
    with pytest.raises(mw.PixelMismatch, match="another source"):
        mw.materialize(ref, recompute)


def test_what_differs_is_said(cache: mw.PixelCache) -> None:
    processor = mw.CachedProcessor(Qwen2VLImageProcessorPil(), cache)
    ref = mw.strip(processor(URIS[0], return_tensors="np"), cache).data["pixel_values"]
    by_pixels = mw.strip(processor(image(0), return_tensors="np"), cache).data["pixel_values"]
    cache.clear()
    cases: list[tuple[PixelRef, Any, Any, str]] = [
        (
            ref,
            Qwen2VLImageProcessorPil(patch_size=28),
            lambda ref: URIS[0],
            "was 14 there and is 28",
        ),
        (ref, Qwen2VLImageProcessorPil(), lambda ref: URIS[1], "another source"),
        (by_pixels, Qwen2VLImageProcessorPil(), lambda ref: image(1), "another image"),
    ]
    for asked, make, fetch, why in cases:
        with pytest.raises(mw.PixelMismatch, match=why) as mismatch:
            mw.materialize(asked, mw.Recompute(make, fetch))
        assert mismatch.value.expected != mismatch.value.got
        assert URIS[0][:60] not in str(mismatch.value)


def test_not_mine(cache: mw.PixelCache) -> None:
    pinned = pickle.loads(pickle.dumps(mw.strip(np.arange(9999), cache).data))
    processor = mw.CachedProcessor(Qwen2VLImageProcessorPil(), cache)
    made = mw.strip(processor(URIS[0], return_tensors="np"), cache).data["pixel_values"]
    cache.clear()
    for ref in (pinned, made):
        with pytest.raises(mw.MissingPixels):
            mw.materialize(ref, mw.Recompute(processor, lambda ref: None))
        with pytest.raises(mw.MissingPixels):
            mw.materialize(ref, mw.Recompute(processor))
    with pytest.raises(TypeError, match="image processor"):
        mw.Recompute(object())


def test_what_fetch_raises_goes_through(cache: mw.PixelCache) -> None:
    processor = mw.CachedProcessor(Qwen2VLImageProcessorPil(), cache)
    ref = mw.strip(processor(URIS[0], return_tensors="np"), cache).data["pixel_values"]
    cache.clear()

    def fetch(ref: PixelRef) -> Any:
        raise ConnectionError("down")

    with pytest.raises(ConnectionError, match="down"):
        mw.materialize(ref, mw.Recompute(processor, fetch))


def test_a_tiny_budget_evicts_and_recomputes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_entries", provenance._Generations(1000))
    plain = Qwen2VLImageProcessorPil()
    cache = mw.PixelCache("400 KiB")
    processor = mw.CachedProcessor(plain, cache)
    stripped = []
    for turn in range(4):
        for text in URIS:
            s = mw.strip({"turn": turn, "mm": processor(text, return_tensors="np")}, cache)
            assert s.left == ()
            stripped.append(s.data)
    assert cache.stats().evictions > 0
    assert cache.stats().pinned_bytes == 0
    with mw.resolvers(mw.Recompute(processor, from_uris)):
        for number, step in enumerate(mw.materialize(stripped)):
            want = plain(image(number % 3), return_tensors="np")
            assert arrays(step["mm"]) == arrays(want)


CHILD = """
import pickle, sys
import memweir as mw
data, uris = pickle.load(sys.stdin.buffer)
ref = data["pixel_values"]
try:
    mw.materialize(data)
except mw.MissingPixels as missing:
    assert ref.parts[0].recipe.source.hex() in str(missing)
    assert "Recompute" in str(missing)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
sources = {mw.hash_bytes(uri): uri for uri in uris}
recompute = mw.Recompute(Qwen2VLImageProcessorPil(), lambda ref: sources[ref.recipe.source])
with mw.resolvers(recompute):
    back = mw.materialize(data)
print(mw.hash_array(back["pixel_values"]).hex())
print(type(back).__name__)
"""


def test_another_process_makes_the_same_pixels(cache: mw.PixelCache) -> None:
    processor = mw.CachedProcessor(Qwen2VLImageProcessorPil(), cache)
    batch = processor(URIS, return_tensors="np")
    s = mw.strip(batch, cache)
    child = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", CHILD],
        input=pickle.dumps((s.data, URIS)),
        capture_output=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr.decode()
    digest, kind = child.stdout.decode().splitlines()
    assert digest == mw.hash_array(batch["pixel_values"]).hex()
    assert kind == "BatchFeature"
