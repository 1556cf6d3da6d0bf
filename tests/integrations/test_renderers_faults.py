"""Images that cannot be read, that change, and that are not what they say."""

from __future__ import annotations

import base64
import copy
import io
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import PIL.Image
import pytest
from renderers_kit import (
    count_calls,
    encoded,
    parts,
    picture,
    pixels_of,
    qwen,
    qwen_processor,
    same,
    upstream_of,
    uri,
)

import memweir as mw

PNG = encoded(picture(1))
JPEG = encoded(picture(1), "JPEG")
BROKEN = {
    "no payload": "data:image/png;base64,",
    "no comma": "data:image/png;base64",
    "no base64": "data:image/png;base64,@@@@",
    "wrong padding": "data:image/png;base64," + base64.b64encode(PNG).decode().rstrip("=") + "A",
    "no image": uri(b"not an image at all"),
    "truncated png": uri(PNG[: len(PNG) // 2]),
    "truncated jpeg": uri(JPEG[: len(JPEG) // 2], "jpeg"),
    "only a header": uri(PNG[:40]),
    "no file": "/nowhere/at/all.png",
    "no file URI": "file:///nowhere/at/all.png",
    "a directory": "/",
    "another scheme": "ftp://example.com/a.png",
    "no bytes": b"",
    "truncated bytes": PNG[: len(PNG) // 2],
    "nothing": None,
    "a number": 5,
    "a path": Path(__file__),
    "an array": np.asarray(picture(1)),
    "a data URI for a file": "file:" + uri(PNG),
    "a name that ends in a slash": f"{__file__}/",
}


def failure(renderer: Any, messages: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  any, and upstream's
        renderer.render(messages)
    return caught.value


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("backend", ["pil"])
def test_fails_as_upstream_does(what: str, backend: str) -> None:
    mine = qwen()
    theirs = upstream_of(mine)
    good = mine.render(parts(uri(2)))
    for _ in range(2):
        ours = failure(mine, parts(uri(2), BROKEN[what]))
        other = failure(theirs, parts(uri(2), BROKEN[what]))
        assert type(ours) is type(other)
        # Addresses of buffers differ.
        assert str(ours).split(" at 0x")[0] == str(other).split(" at 0x")[0]
    same(mine.render(parts(uri(2))), good)


def test_a_bomb_is_refused_also_when_it_was_seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = qwen()
    messages = parts(uri(1))
    kept = mine.render(messages)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 64 * 64 // 4)
    ours, theirs = failure(mine, messages), failure(upstream_of(mine), messages)
    assert type(ours) is type(theirs) is PIL.Image.DecompressionBombError
    monkeypatch.undo()
    same(mine.render(messages), kept)


def test_a_processor_that_fails_says_so_and_is_asked_again() -> None:
    mine = qwen()
    processor = mine._processor.image_processor
    plain = type(processor).preprocess
    calls = count_calls(processor)
    kind = type(processor)
    counted = kind.preprocess

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of paper")

    kind.preprocess = failing
    assert str(failure(mine, parts(uri(1)))) == "out of paper"
    kind.preprocess = counted
    same(mine.render(parts(uri(1))), upstream_of(mine).render(parts(uri(1))), hashes=False)
    assert calls == [1, 1]
    assert plain is not counted


class TestFile:
    def test_is_its_content_of_the_moment(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        mine = qwen()
        theirs = upstream_of(mine)
        outs = []
        for seed in (1, 2, 1):
            path.write_bytes(encoded(picture(seed)))
            for source in (str(path), path.as_uri()):
                outs.append(mine.render(parts(source)))
                theirs._image_cache.clear()
                same(outs[-1], theirs.render(parts(source)), hashes=False)
        hashes = [out.multi_modal_data.mm_hashes["image"][0] for out in outs]
        assert hashes[0] == hashes[1] == hashes[4] == hashes[5] != hashes[2] == hashes[3]

    def test_that_changed_cannot_stand_in_for_what_it_was(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(encoded(picture(1)))
        mine = qwen()
        out = mine.render(parts(str(path)))
        want = pixels_of(out)[0]["pixel_values"].copy()
        path.write_bytes(encoded(picture(2)))
        assert np.array_equal(pixels_of(out)[0]["pixel_values"], want), "it is still cached"
        mine.pixel_cache.clear()
        with pytest.raises(mw.PixelMismatch, match="another source"):
            pixels_of(out)
        path.unlink()
        with pytest.raises(mw.MissingPixels, match="source"):
            pixels_of(out)
        path.write_bytes(encoded(picture(1)))
        assert np.array_equal(pixels_of(out)[0]["pixel_values"], want)

    def test_with_odd_names(self, tmp_path: Path) -> None:
        mine = qwen()
        theirs = upstream_of(mine)
        for name in ("a b.png", "a%20b.png", "ä#1.png", "what?.png"):
            path = tmp_path / name
            path.write_bytes(encoded(picture(len(name))))
            same(mine.render(parts(str(path))), theirs.render(parts(str(path))), hashes=False)
            spelled = f"file://{path}"
            if urlparse(spelled).path == str(path):
                out = mine.render(parts(spelled))
                same(out, theirs.render(parts(spelled)), hashes=False)
            else:
                assert type(failure(mine, parts(spelled))) is FileNotFoundError
                assert type(failure(theirs, parts(spelled))) is FileNotFoundError

    @pytest.mark.parametrize("spelled", ["FILE://{}", " file://{}", "file:{}"])
    def test_is_its_content_however_its_uri_is_spelled(self, tmp_path: Path, spelled: str) -> None:
        path = tmp_path / "a.png"
        messages = parts(spelled.format(path))
        mine = qwen(mm_hash="upstream")
        theirs = upstream_of(mine)
        for seed in (1, 2):
            path.write_bytes(encoded(picture(seed)))
            out = mine.render(messages)
            same(out, theirs.render(messages))
        path.unlink()
        assert type(failure(mine, messages)) is type(failure(theirs, messages)) is FileNotFoundError

    @pytest.mark.skipif(os.name == "nt", reason="names are text")
    def test_may_have_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        name = os.fsencode(tmp_path) + b"/\xff.png"
        try:
            Path(os.fsdecode(name)).write_bytes(PNG)
        except OSError:
            pytest.skip("this file system has text alone")
        mine = qwen(mm_hash="upstream")
        messages = parts(os.fsdecode(name))
        out = mine.render(messages)
        same(out, upstream_of(mine).render(messages))
        mine.pixel_cache.clear()
        assert pixels_of(out)

    def test_with_a_scheme_for_a_name_is_refused_also_when_its_image_is_known(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "frame:1.png"
        path.write_bytes(PNG)
        mine = qwen()
        mine.render(parts(str(path)))
        ours, theirs = failure(mine, parts(path.name)), failure(upstream_of(mine), parts(path.name))
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))


@pytest.mark.parametrize("spelled", ["http", "HTTP", " http"])
def test_a_page_is_its_content_of_the_moment(spelled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[bytes] = []

    def urlopen(url: str) -> io.BytesIO:
        assert url.strip().lower() == "http://example.com/a.png"
        return io.BytesIO(pages[-1])

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    mine = qwen(mm_hash="upstream")
    theirs = upstream_of(mine)
    messages = parts(f"{spelled}://example.com/a.png")
    for seed in (1, 2):
        pages.append(encoded(picture(seed)))
        out = mine.render(messages)
        same(out, theirs.render(messages))
        mine.pixel_cache.clear()
        same(out, theirs.render(messages))


@pytest.mark.parametrize("first", ["uri", "other uri", "bytes", "file", "pixels"])
def test_an_image_from_several_sources_is_made_again_from_each(tmp_path: Path, first: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    sources = {
        "uri": uri(PNG),
        "other uri": uri(encoded(picture(1), compress_level=0)),
        "bytes": encoded(picture(1), compress_level=1),
        "file": str(path),
        "pixels": picture(1),
    }
    mine = qwen()
    calls = count_calls(mine._processor.image_processor)
    outs = {}
    for _ in range(2):
        for name in (first, *sources):
            outs[name] = mine.render(parts(sources[name]))
    assert len(calls) == 1
    [want] = pixels_of(upstream_of(mine).render(parts(picture(1))))
    for name, out in outs.items():
        mine.pixel_cache.clear()
        assert pixels_of(out)[0]["pixel_values"].tobytes() == want["pixel_values"].tobytes()
        recipe = out.multi_modal_data.mm_items["image"][0]["pixel_values"].recipe
        assert (recipe.source is None) == (name == "pixels")
        if name == "other uri":
            assert recipe.source == mw.hash_bytes(sources[name])


def test_an_image_of_a_class_of_its_own_is_an_image() -> None:
    class Own(PIL.Image.Image):
        pass

    own = Own()
    own.__setstate__(picture(1).__getstate__())
    mine = qwen(mm_hash="upstream")
    out = mine.render(parts(own))
    same(out, upstream_of(mine).render(parts(own)))
    mine.pixel_cache.clear()
    same(out, upstream_of(mine).render(parts(own)))


def test_bytes_that_could_change_are_kept_once() -> None:
    source = bytearray(PNG)
    mine = qwen()
    outs = [mine.render(parts(source)).multi_modal_data.mm_items["image"][0] for _ in range(3)]
    assert len({id(item["pixel_values"].source) for item in outs}) == 1
    source[:] = encoded(picture(2))
    [item] = mine.render(parts(source)).multi_modal_data.mm_items["image"]
    assert item["pixel_values"] != outs[0]["pixel_values"]


def test_a_processor_that_somebody_else_changed_stops_nobody() -> None:
    processor = qwen_processor()
    twin = type(processor)(image_processor=copy.deepcopy(processor.image_processor))
    a, b = qwen(processor=processor), qwen(processor=twin)
    kept = [a.render(parts(uri(1))), b.render(parts(uri(1)))]
    processor.image_processor.image_mean = [0.4] * 3
    out = b.render(parts(uri(2)))
    same(out, upstream_of(b).render(parts(uri(2))), hashes=False)
    b.pixel_cache.clear()
    for each, source in ((kept[1], uri(1)), (out, uri(2)), (kept[0], uri(1))):
        same(each, upstream_of(b).render(parts(source)), hashes=False)


def test_an_image_that_is_written_to_is_another(tmp_path: Path) -> None:
    mine = qwen()
    image = picture(1)
    out = mine.render(parts(image))
    image.putpixel((0, 0), (1, 2, 3))
    again = mine.render(parts(image))
    assert out.multi_modal_data.mm_hashes != again.multi_modal_data.mm_hashes
    mine.pixel_cache.clear()
    assert pixels_of(again)
    with pytest.raises(mw.PixelMismatch):
        pixels_of(out)


def test_an_orientation_is_left_alone_as_upstream_does() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    source = uri(encoded(picture(1, (64, 96)), "JPEG", exif=exif), "jpeg")
    mine = qwen()
    out = mine.render(parts(source))
    same(out, upstream_of(mine).render(parts(source)), hashes=False)
    mine.pixel_cache.clear()
    same(out, upstream_of(mine).render(parts(source)), hashes=False)


def test_an_unknown_processor_is_refused_until_it_has_a_name() -> None:
    mine = qwen()
    kind = type(mine._processor.image_processor)
    own = type("MyProcessor", (kind,), {})
    mine._processor.image_processor.__class__ = own
    with pytest.raises(mw.UnsupportedType, match="fingerprint="):
        mine.render(parts(uri(1)))
    named = qwen(processor=mine._processor, fingerprint="mine, 1")
    same(named.render(parts(uri(1))), upstream_of(named).render(parts(uri(1))), hashes=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_renders_and_restores() -> None:
    mine = qwen()
    out = mine.render(parts(uri(1)))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            mine.pixel_cache.clear()
            pixels_of(out)
            mine.render(parts(uri(1), uri(2)))
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
