"""What an encoded source is called: data URIs, files, bytes and base64, before anything is decoded.

``docs/sources.md`` says which spellings are one source.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from memweir._core import Digest
from memweir.errors import Busy, UnsupportedType
from memweir.identity import hash_bytes, hash_file
from memweir.pixels.spelling import base64_spelling, data_uri_spelling

__all__ = ["Files", "Memo", "Signature", "path_of", "signature_of", "source_id"]

Source: TypeAlias = str | os.PathLike[str] | os.PathLike[bytes] | bytes | bytearray | memoryview
Signature: TypeAlias = tuple[int, ...]

# No system opens longer paths, and asking about a longer string copies it.
_LONGEST_PATH: Final = 32_768
# A file changed this recently may change again without a visible difference in its times.
_SETTLED_NS: Final = 2_000_000_000
# One letter is a drive.
_SCHEME: Final = re.compile(r"[\t\n\f\r ]*([A-Za-z][A-Za-z0-9+.-]{1,63}):(//)?")
_REREADS: Final = 3
_BUFFERS: Final = (bytes, bytearray, memoryview, mmap.mmap)


class Memo:
    """A least-recently-used map of fixed-size values, bounded by count.

    Single steps of ``OrderedDict`` only, each atomic: there is no lock that a fork could break.
    """

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int) -> None:
        self._entries: OrderedDict[object, Any] = OrderedDict()
        self._limit = limit

    def get(self, key: object) -> Any:
        try:
            self._entries.move_to_end(key)
            return self._entries[key]
        except KeyError:  # never there, or evicted between the two steps
            return None

    def put(self, key: object, value: object) -> None:
        self._entries[key] = value
        while len(self._entries) > self._limit:
            try:
                self._entries.popitem(last=False)
            except KeyError:
                return

    def __len__(self) -> int:
        return len(self._entries)


class Files:
    """Digests of files by content, read again when size, times, inode or device changed."""

    __slots__ = ("_known",)

    def __init__(self, limit: int) -> None:
        self._known = Memo(limit)  # path digest -> (signature, content digest)

    def digest(self, path: str | bytes) -> tuple[Digest, Signature]:
        """``hash_file`` of a regular file, and the signature that it has while that holds.

        Raises ``OSError``, ``ValueError`` for what is no regular file, and ``Busy`` when the
        file changes whenever it is read.
        """
        name = hash_bytes(os.fsencode(path))
        signature = signature_of(path)
        for _ in range(_REREADS):
            noted = self._known.get(name)
            if noted is not None and noted[0] == signature:
                return noted[1], signature
            settled = _settled(signature)
            digest = hash_file(path)
            after = signature_of(path)
            if after == signature:
                # A file written a moment ago can be written again within the same tick of the
                # clock, and nothing but its bytes would show it.
                if settled:
                    self._known.put(name, (signature, digest))
                return digest, signature
            signature = after
        raise Busy(f"a file changed {_REREADS} times while it was read; wait for its writer")


_files: Final = Files(16_384)
_ids: Final = Memo(16_384)  # digest of a text as it is -> its id


def source_id(source: Source, *, fetch: Callable[[str], Any] | None = None) -> Digest:
    """Digest of an encoded image, or of anything else that travels encoded; decodes nothing.

    Bytes and files are ``hash_bytes`` and ``hash_file`` of their content, data URIs and base64
    text ``hash_bytes`` of their canonical spelling: two spellings of one media type and payload
    have one id. A file that was read is read again only when its size, times or inode changed.
    Text is a ``data:`` or ``file:`` URI, else a file if there is one of that name, else base64.

    What has another scheme is not read here: ``fetch(url)`` returns its bytes, and they get the
    id.

    Raises ``ValueError`` for malformed URIs and base64 and for URLs without ``fetch``, ``OSError``
    for files, ``Busy`` for one that changes whenever it is read, ``UnsupportedType`` for other
    types, decoded images among them.
    """
    if isinstance(source, str):
        return _of_text(source, fetch)
    if isinstance(source, _BUFFERS):
        return hash_bytes(source)
    if isinstance(source, os.PathLike):
        return _files.digest(os.fspath(source))[0]
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    raise UnsupportedType(
        f"{kind} is no encoded source: give a data URI, a path, bytes or base64; "
        "decoded pixels are named by hash_image"
    )


def path_of(text: str) -> str | None:
    """The path that ``text`` means, as a processor would read it, or None."""
    if text.startswith("file://"):
        return url2pathname(urlsplit(text).path)
    if len(text) < _LONGEST_PATH and os.path.isfile(text):  # noqa: PTH113
        return text
    return None


def signature_of(path: str | bytes) -> Signature:
    """Changes when a file does, unless within one tick of its file system's clock.

    Raises ``OSError``, and ``ValueError`` for pipes, devices and directories.
    """
    status = os.stat(path)  # noqa: PTH116  also bytes
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("a source is a regular file, not a directory, device or pipe")
    return (
        status.st_size,
        status.st_mtime_ns,
        status.st_ino,
        status.st_dev,
        status.st_ctime_ns,  # a writer may set the other time back
    )


def _settled(signature: Signature) -> bool:
    return time.time_ns() - max(signature[1], signature[4]) > _SETTLED_NS


def _of_text(text: str, fetch: Callable[[str], Any] | None) -> Digest:
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else ""
    if scheme == "data":
        return _of_spelling(text, data_uri_spelling)
    if scheme == "file":
        return _files.digest(_local_path(text))[0]
    path = None if match and match[2] else path_of(text)
    if path is not None:
        return _files.digest(path)[0]
    if scheme:
        return _of_fetched(text, scheme, fetch)
    try:
        return _of_spelling(text, base64_spelling)
    except ValueError as error:
        raise ValueError(
            f"text of {len(text)} characters is no URI, no existing file and no base64 ({error})"
        ) from None


def _of_spelling(text: str, spell: Callable[[str], str]) -> Digest:
    """``hash_bytes`` of the canonical spelling, which is looked for once for each text."""
    if not text.isascii():  # hashing would leave a second copy, in UTF-8, with the text
        return hash_bytes(spell(text))
    as_it_is = hash_bytes(text)
    known = _ids.get(as_it_is)
    if known is None:
        canonical = spell(text)
        known = as_it_is if canonical is text else hash_bytes(canonical)
        _ids.put(as_it_is, known)
    return known  # type: ignore[no-any-return]


def _of_fetched(url: str, scheme: str, fetch: Callable[[str], Any] | None) -> Digest:
    if fetch is None:
        raise ValueError(
            f"a source of scheme {scheme[:20]}: is not read here: "
            "fetch it and pass its bytes, or give fetch="
        )
    content = fetch(url)
    if not isinstance(content, _BUFFERS):
        raise TypeError(f"fetch() returns the bytes of a source, not {type(content).__name__}")
    return hash_bytes(content)


def _local_path(uri: str) -> str:
    parts = urlsplit(uri.strip("\t\n\f\r "))
    if parts.netloc.lower() not in ("", "localhost"):
        raise ValueError("a file: URI of another host is not read here: pass its bytes")
    if parts.query or parts.fragment:
        raise ValueError("a file: URI has no query and no fragment: escape ? and # in names")
    if os.name == "nt":
        return url2pathname(parts.path)
    # Names of files are bytes, and need not be UTF-8.
    return os.fsdecode(unquote_to_bytes(parts.path))
