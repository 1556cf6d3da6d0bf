"""Equal sources in nested data made one object, or moved into a cache with references left."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import numpy as np

from memweir._core import Digest, Pixels
from memweir.identity import hash_bytes
from memweir.pixels.cache import PixelCache
from memweir.pixels.source_refs import PREFIX, Literal, SourceRef, key_of
from memweir.pixels.unique import one, sweep
from memweir.pixels.walk import PLAIN, Trail, rebuild
from memweir.sizes import format_size, parse_size

__all__ = ["Interned", "intern_sources"]

# What models read rather than decode: a reference there would be read as well.
_PROSE: Final = frozenset({"text", "content"})
# Looked for at both ends: sources are long, and prose has a space or a full stop by then.
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_=\r\n-]*")
_SAMPLE: Final = 512


class Interned(NamedTuple):
    """What :func:`intern_sources` returns.

    ``data`` is the structure. ``found`` objects in it were sources, with ``distinct`` contents of
    ``nbytes`` bytes together. ``saved`` are the bytes of those that ``data`` no longer holds: they
    are free when nobody else does. ``refs`` is every reference in ``data``, once and in order,
    and ``inline`` counts the contents that the store had no room for.
    """

    data: Any
    found: int
    distinct: int
    nbytes: int
    saved: int
    refs: tuple[SourceRef, ...] = ()
    inline: int = 0

    def __repr__(self) -> str:
        """Counts alone: the data may hold anything."""
        size, saved = format_size(self.nbytes), format_size(self.saved)
        return (
            f"Interned({self.found} found, {self.distinct} distinct of {size}, {saved} saved, "
            f"{len(self.refs)} refs, {self.inline} inline)"
        )


def intern_sources(
    messages: object,
    *,
    store: PixelCache | None = None,
    threshold: int | str = "4 KiB",
    inplace: bool = False,
) -> Interned:
    """Makes every equal data URI, base64 text and ``bytes`` in ``messages`` one object.

    Sources are ``bytes``, ``data:`` URIs and texts that look like base64, from ``threshold``
    bytes on, wherever they are in dicts, lists, tuples, dataclasses and pydantic models; keys
    stay as they are. The one object is shared with all that was interned in this process, and
    lives as long as somebody uses it; for bytes, and for text where Python's interned strings are
    immortal, up to the next call or full garbage collection after that.

    With ``store`` sources are moved into that cache, once each, and a ``SourceRef`` takes the
    place of each; ``restore_sources`` is the way back. Texts under the keys ``text`` and
    ``content`` stay, since models read them; so does what does not fit, which is counted. A source
    cannot be evicted while a reference of ``refs``, or one in ``data``, lives in this process.

    A container in which something is replaced is a new one, and ``messages`` stays as it is. With
    ``inplace`` its containers are changed, where they can be: other threads may intern the same
    messages meanwhile, and on interpreters with a GIL change them.

    Raises ``ValueError`` for a container that holds itself and would have to be made anew.
    """
    if store is not None and not isinstance(store, PixelCache):
        raise TypeError(f"a store is a PixelCache, not {type(store).__name__}")
    sweep()
    work = _Intern(store, max(1, parse_size(threshold)))
    plain = PLAIN - {str, bytes}
    data = rebuild(messages, work.leaf, named=store is not None, plain=plain, inplace=inplace)
    return Interned(
        data,
        len(work.found),
        len(work.contents),
        sum(work.contents.values()),
        work.saved,
        tuple(work.refs.values()),
        work.inline,
    )


class _Intern:
    """One call of :func:`intern_sources`."""

    def __init__(self, store: PixelCache | None, threshold: int) -> None:
        self._store = store
        self._threshold = threshold
        # By id: the walk keeps what it has seen.
        self.found: dict[int, object] = {}
        # By type and digest with a store, and by type and object without.
        self.contents: dict[tuple[type, object], int] = {}
        self.refs: dict[str, SourceRef] = {}
        self._tried: dict[tuple[type, Digest], SourceRef | None] = {}
        self.inline = 0
        self.saved = 0

    def leaf(self, value: object, trail: Trail) -> object:
        if type(value) is bytes:
            return value if len(value) < self._threshold else self._source(value, trail)
        if type(value) is str:
            if len(value) >= self._threshold and _is_encoded(value):
                return self._source(value, trail)
            escape = self._store is not None and value.startswith(PREFIX)
            return Literal.of(value) if escape else value
        if isinstance(value, SourceRef):
            return self.refs.setdefault(value, value)
        return value

    def _source(self, value: str | bytes, trail: Trail) -> object:
        kind = type(value)
        if self._store is None:
            new: str | bytes = one(value)
            self.contents[kind, id(new)] = len(value)
        else:
            digest = hash_bytes(value)
            self.contents[kind, digest] = len(value)
            prose = kind is str and trail.name in _PROSE
            new = (None if prose else self._moved(self._store, value, digest)) or one(value)
        if new is not value and id(value) not in self.found:
            self.saved += len(value)
        self.found[id(value)] = new
        return new

    def _moved(self, store: PixelCache, value: str | bytes, digest: Digest) -> SourceRef | None:
        """The reference that takes the place of ``value``, or ``None`` where there is no room."""
        content = kind, _ = type(value), digest
        if content not in self._tried:
            pin = _put(store, key_of(kind, digest), value)
            ref = None if pin is None else SourceRef.of(kind, len(value), digest, pin)
            self._tried[content] = ref and self.refs.setdefault(ref, ref)
            self.inline += ref is None
        return self._tried[content]


def _put(store: PixelCache, key: Digest, value: str | bytes) -> Pixels | None:
    """The entry of a source, put there if need be; ``None`` when it does not fit."""
    found = store.get(key) if key in store else None
    if found is not None:
        return found
    content = value if isinstance(value, bytes) else value.encode("ascii")
    return store.get(key) if store.put(key, np.frombuffer(content, np.uint8)) else None


def _is_encoded(text: str) -> bool:
    if not text.isascii():
        return False
    if text[:5].lower() == "data:":
        return True
    return all(_BASE64.fullmatch(end) for end in (text[:_SAMPLE], text[-_SAMPLE:]))
