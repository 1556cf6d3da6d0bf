"""Images that cannot be read, that change, and that are not what they say."""

from __future__ import annotations

import base64
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
