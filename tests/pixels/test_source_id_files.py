"""Files are known by content, and read again whenever they may have changed."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
from intern_kit import encode, picture, uri

import memweir as mw
from memweir.pixels import source_id as module

A, B = picture(1), picture(2)
PNG, OTHER = encode(A), encode(B)
posix = pytest.mark.skipif(os.name != "posix", reason="about names and files of Unix")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.ppm"
    path.write_bytes(encode(A, "PPM"))
    return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass for what asks how old a file is."""
    ahead = 0

    def wait(seconds: float) -> None:
        nonlocal ahead
        ahead += int(seconds * 1e9)

    class Clock:
        @staticmethod
        def time_ns() -> int:
            return time.time_ns() + ahead

    monkeypatch.setattr(module, "time", Clock)
    return wait


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The paths that were read, in order."""
    paths: list[Any] = []
    real = module.hash_file

    def read(path: Any) -> mw.Digest:
        paths.append(path)
        return real(path)

    monkeypatch.setattr(module, "hash_file", read)
    return paths


def test_a_path_is_its_content_however_it_is_given(file: Path, tmp_path: Path) -> None:
    expected = mw.source_id(file.read_bytes())
    copy = tmp_path / "copy"
    copy.write_bytes(file.read_bytes())
    link = tmp_path / "link"
    link.symlink_to(file)
    uris = [file.as_uri(), file.as_uri().replace("file://", "FILE://localhost")]
    uris.append(file.as_uri().replace("file://", "file:"))
    for source in (file, str(file), copy, link, *uris):
        assert mw.source_id(source) == expected


def test_a_file_is_read_again_only_when_it_may_have_changed(
    file: Path, clock: Callable[[float], None], reads: list[Any]
) -> None:
    clock(10)
    first = mw.source_id(file)
    assert [mw.source_id(file), mw.source_id(str(file)), mw.source_id(file.as_uri())] == [first] * 3
    assert len(reads) == 1
    file.touch()
    clock(10)
    assert mw.source_id(file) == mw.source_id(file) == first
    assert len(reads) == 2


def test_a_file_written_just_now_is_read_each_time(file: Path, reads: list[Any]) -> None:
    assert mw.source_id(file) == mw.source_id(file)
    assert len(reads) == 2


@posix
def test_bytes_that_change_without_size_time_or_inode_are_noticed(
    file: Path, clock: Callable[[float], None]
) -> None:
    """A writer that sets the time of last change back, as copying tools do."""
    clock(10)
    before, times = file.stat(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    old = mw.source_id(file)
    time.sleep(0.05)  # more than a tick of any file system's clock
    with file.open("r+b") as out:
        out.write(encode(B, "PPM"))
    os.utime(file, ns=times)
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )
    assert mw.source_id(file) == mw.hash_file(file) != old


def test_a_second_write_within_a_tick_is_noticed_for_ever_after(
    file: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    """Same signature, other bytes: what was read so soon after a write is never remembered."""
    signature = module.signature_of(file)
    monkeypatch.setattr(module, "signature_of", lambda path: signature)
    mw.source_id(file)
    file.write_bytes(encode(B, "PPM"))
    clock(3600)
    assert mw.source_id(file) == mw.hash_file(file)


def test_a_replaced_file_is_another_source(file: Path, clock: Callable[[float], None]) -> None:
    clock(10)
    old = mw.source_id(file)
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    new = file.with_name("new")
    new.write_bytes(encode(B, "PPM"))
    os.utime(new, ns=times)
    new.replace(file)
    assert mw.source_id(file) == mw.hash_file(file) != old
    file.unlink()
    with pytest.raises(FileNotFoundError):
        mw.source_id(file)


def test_a_file_that_changes_while_it_is_read_is_read_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, changes = module.hash_file, [encode(B, "PPM") + b"1", encode(B, "PPM") + b"22"]

    def read(path: Any) -> mw.Digest:
        digest = real(path)
        if changes:
            file.write_bytes(changes.pop(0))
        return digest

    monkeypatch.setattr(module, "hash_file", read)
    assert mw.source_id(file) == real(file)

    def write(path: Any) -> mw.Digest:
        with file.open("ab") as out:
            out.write(b"more")
        return real(path)

    monkeypatch.setattr(module, "hash_file", write)
    with pytest.raises(mw.Busy, match="wait for its writer"):
        mw.source_id(file)


def test_a_file_that_goes_while_it_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Any) -> mw.Digest:
        file.unlink()
        return mw.hash_bytes(b"")

    monkeypatch.setattr(module, "hash_file", read)
    with pytest.raises(FileNotFoundError):
        mw.source_id(file)


def test_a_relative_path_means_another_file_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    clock(10)
    for name, content in (("one", PNG), ("two", OTHER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image").write_bytes(content)
        monkeypatch.chdir(tmp_path / name)
        assert mw.source_id("image") == mw.hash_bytes(content)


@posix
def test_names_are_bytes(tmp_path: Path) -> None:
    name = b"\xff caf\xc3\xa9?#%41.png"
    path = os.fsencode(tmp_path) + b"/" + name
    with open(path, "wb") as out:  # noqa: PTH123
        out.write(PNG)
    uri = f"file://{tmp_path.as_posix()}/%FF%20caf%C3%A9%3F%23%2541.png"
    for source in (os.fsdecode(path), Path(os.fsdecode(path)), uri):
        assert mw.source_id(source) == mw.hash_bytes(PNG)


@posix
@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    path = {"directory": tmp_path, "device": Path("/dev/zero")}.get(kind, tmp_path / "pipe")
    if kind == "pipe":
        os.mkfifo(path)
    for source in (path, path.as_uri()):
        with pytest.raises(ValueError, match="a regular file"):
            mw.source_id(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("file://host/a.png", "another host"),
        ("file:///a.png?v=1", "escape"),
        ("file:///a.png#x", "escape"),
    ],
)
def test_uris_that_name_no_local_file(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mw.source_id(source)


@pytest.mark.parametrize("source", ["file:///no/such/file", Path("no such file")])
def test_missing_files(source: Any) -> None:
    with pytest.raises(FileNotFoundError):
        mw.source_id(source)


def test_a_file_may_have_the_name_of_a_base64_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "AAAA"
    assert mw.source_id(text) == mw.hash_bytes(text)
    Path(text).write_bytes(PNG)
    assert mw.source_id(text) == mw.hash_bytes(PNG)


def test_threads_read_while_a_file_is_replaced(file: Path, clock: Callable[[float], None]) -> None:
    """Each answer is the id of a content that the file had, whole."""
    contents = [encode(picture(n), "PPM") for n in range(3)]
    whole = {mw.hash_bytes(content) for content in contents}
    wrong, stop = [], threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                digest = mw.source_id(file)
            except mw.Busy:
                continue
            if digest not in whole:
                wrong.append(digest)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(200):
        new = file.with_name("new")
        new.write_bytes(contents[n % 3])
        new.replace(file)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert mw.source_id(file) == mw.hash_bytes(contents[199 % 3])


def test_a_memo_maps_ids_to_pixels_size_and_mode() -> None:
    memo = mw.SourceMemo()
    source = mw.source_id(uri(1))
    assert memo.get(source) is None
    memo.put(source, mw.PixelId.of(PIL.Image.open(io.BytesIO(PNG))))
    known = memo.get(source)
    assert known is not None
    assert (known.digest, known.size, known.mode) == (mw.hash_image(A), A.size, A.mode)


def test_a_memo_is_bounded() -> None:
    memo, pixels = mw.SourceMemo(3), mw.PixelId.of(A)
    ids = [mw.hash_bytes(bytes([n])) for n in range(9)]
    for source in ids:
        memo.put(source, pixels)
    assert [memo.get(source) is not None for source in ids] == [False] * 6 + [True] * 3
    assert len(memo) == 3
    with pytest.raises(ValueError, match="at least 1"):
        mw.SourceMemo(0)


def test_to_a_memo_text_is_not_the_bytes_that_spell_it() -> None:
    memo, source = mw.SourceMemo(), mw.source_id(uri(1))
    assert source == mw.source_id(uri(1).encode())
    memo.put(source, mw.PixelId.of(A), text=True)
    assert memo.get(source) is None
    assert memo.get(source, text=True) is not None


def test_a_memo_holds_under_pillow_s_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    memo, source = mw.SourceMemo(), mw.source_id(PNG)
    memo.put(source, mw.PixelId.of(A))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    assert memo.get(source) is None
    monkeypatch.undo()
    assert memo.get(source) is not None
    monkeypatch.setattr(PIL.ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert memo.get(source) is None


def test_only_pixels_have_an_identity() -> None:
    with pytest.raises(mw.UnsupportedType):
        mw.PixelId.of("text")
    truncated = PIL.Image.open(io.BytesIO(PNG[: len(PNG) // 2]))
    with pytest.raises(OSError, match="truncated"):
        mw.PixelId.of(truncated)
    array = mw.PixelId.of(np.asarray(A))
    assert (array.mode, array.size, array.layout) == (None, None, (A.height, A.width, 3))
