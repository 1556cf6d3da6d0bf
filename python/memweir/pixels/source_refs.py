"""References to encoded sources: short texts that stand for long ones whose bytes a cache has."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Self

from memweir._core import Digest
from memweir.errors import MissingPixels, PixelMismatch
from memweir.identity import hash_bytes
from memweir.pixels.live import held
from memweir.pixels.resolve import CONTENT
from memweir.pixels.unique import one
from memweir.pixels.walk import PLAIN, Trail, rebuild
from memweir.sizes import format_size

if TYPE_CHECKING:
    from memweir._core import Pixels
    from memweir.pixels.refs import PixelRef

__all__ = ["PREFIX", "Literal", "SourceRef", "SourceResolver", "find_source", "restore_sources"]

PREFIX: Final = "memweir-source:"
"""What the text of every reference begins with."""

_ESCAPE: Final = PREFIX + "="
_VERSION: Final = 1
_KINDS: Final = (bytes, str)
_RECORD: Final = 46
_LENGTH: Final = len(PREFIX) + 62


class SourceRef(str):
    """Names one encoded source by its content, as a text that goes wherever a text may.

    Made by ``intern_sources`` with a store. It is its own JSON, and pickles and compares as its
    text. While it lives in the process that made it, the store keeps its source; a copy out of a
    pickle or JSON keeps nothing. ``SourceRef(text)`` reads such a copy.

    Raises ``ValueError`` for any text that is no reference.
    """

    __slots__ = ("_digest", "_kind", "_nbytes", "_pin")

    _digest: Digest
    _kind: type
    _nbytes: int
    _pin: Pixels | None

    def __new__(cls, text: str) -> Self:
        ref = super().__new__(cls, text)
        ref._kind, ref._nbytes, ref._digest = _read(text)
        ref._pin = None
        return ref

    @classmethod
    def of(cls, kind: type, nbytes: int, digest: Digest, pin: Pixels) -> Self:
        """The reference to a source of this type, length and ``hash_bytes`` that ``pin`` keeps."""
        ref = cls(_written(kind, nbytes, digest))
        ref._pin = pin
        return ref

    @property
    def digest(self) -> Digest:
        """``hash_bytes`` of the source: its id, unless it is text in an unusual spelling."""
        return self._digest

    @property
    def nbytes(self) -> int:
        """Bytes of the source, which are its characters where it is text."""
        return self._nbytes

    @property
    def text(self) -> bool:
        """Whether the source is a ``str``; else it is ``bytes``."""
        return self._kind is str

    @property
    def pinned(self) -> Pixels | None:
        """The cache entry that this reference keeps, or ``None``."""
        return self._pin

    def load(self, *resolvers: SourceResolver) -> str | bytes:
        """The source itself, verified: one object while somebody uses it.

        The live caches of the process are asked first, then ``resolvers``. Raises
        ``MissingPixels`` when nobody has it and ``PixelMismatch`` when only others were offered.
        """
        wrong = None
        for found in _places(self, resolvers):
            got = _digest_of(found)
            # Equal digests are of equal lengths: nothing is ever as long as a record says it is.
            if got == self._digest and len(found) == self._nbytes:
                return _as(self._kind, found)
            wrong = wrong or PixelMismatch(
                f"another source was found for {self!r}",
                expected=self._digest.hex(),
                got=got.hex(),
            )
        raise wrong or MissingPixels(
            f"{self!r}, digest {self._digest.hex()}, is in no live cache of this process, and no "
            "resolver has it: give restore_sources() a resolver that can fetch it, or put the "
            "source into a cache of this process by intern_sources(source, store=cache)",
            digest=self._digest.hex(),
        )

    def to_json(self) -> str:
        """The text of the reference as a plain ``str``; :meth:`from_json` reads it."""
        return str(self)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The reference that :meth:`to_json` wrote. Raises ``ValueError`` for anything else."""
        return cls(text)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return SourceRef, (str(self),)

    def __repr__(self) -> str:
        """Shows nothing of the source."""
        size = format_size(self._nbytes)
        return f"SourceRef({self._kind.__name__} of {size}, {self._digest.hex()[:12]}…)"


class Literal(str):
    """A text that begins like a reference and is none, as it stands beside references."""

    __slots__ = ()

    @classmethod
    def of(cls, text: str) -> Self:
        """``text`` escaped."""
        return cls(_ESCAPE + text)


SourceResolver = Callable[[SourceRef], str | bytes | None]
"""Gives the source that a reference names, or ``None`` for "not mine"."""


def restore_sources(data: object, *resolvers: SourceResolver, inplace: bool = False) -> Any:
    """``data`` with every reference to a source replaced by the source, verified.

    References that came through JSON as plain text are found by how they begin. The live caches
    of the process are asked first, then ``resolvers``. Equal sources are one object. With
    ``inplace`` the containers of ``data`` are changed; else a container in which something was
    replaced is a new one.

    Raises ``MissingPixels`` when nobody has a source, ``PixelMismatch`` when only others were
    offered, and ``ValueError`` for a text that begins like a reference and is none.
    """
    loaded: dict[str, str | bytes] = {}

    def leaf(value: object, trail: Trail) -> object:
        if not isinstance(value, str) or not value.startswith(PREFIX):
            return value
        if value.startswith(_ESCAPE):
            return value[len(_ESCAPE) :]
        if value not in loaded:
            loaded[value] = _reference(value, trail).load(*resolvers)
        return loaded[value]

    return rebuild(data, leaf, plain=PLAIN - {str}, inplace=inplace)


def find_source(wanted: Digest | PixelRef) -> str | bytes | None:
    """A source out of the live caches of the process, by its digest; ``None`` when none has it.

    As ``mw.Recompute(processor, fetch=mw.find_source)`` it finds what a reference's pixels were
    made from.
    """
    if not isinstance(wanted, Digest):
        recipe = wanted.recipe
        if recipe is None or recipe.source is None:
            return None
        wanted = recipe.source
    for kind in _KINDS:
        for found in _stored(kind, wanted):
            if _digest_of(found) == wanted:
                return _as(kind, found)
    return None


def key_of(kind: type, digest: Digest) -> Digest:
    """The cache key of a source."""
    return hash_bytes(b"memweir source\x01" + kind.__name__.encode() + bytes(digest))


def _reference(text: str, trail: Trail) -> SourceRef:
    if isinstance(text, SourceRef):
        return text
    try:
        return SourceRef(text)
    except ValueError as error:
        raise ValueError(f"{error}, at {trail}") from None


def _places(ref: SourceRef, resolvers: tuple[SourceResolver, ...]) -> Iterator[Any]:
    if ref.pinned is not None:
        yield memoryview(ref.pinned.view(CONTENT))
    yield from _stored(ref._kind, ref.digest)
    for resolver in resolvers:
        given = resolver(ref)
        if isinstance(given, str | bytes):
            yield given
        elif given is not None:
            kind = type(given).__name__
            raise TypeError(f"a resolver gives a source as str or bytes, or None, not {kind}")


def _stored(kind: type, digest: Digest) -> Iterator[memoryview]:
    for pixels in held(key_of(kind, digest)):
        yield memoryview(pixels.view(CONTENT))


def _digest_of(found: Any) -> Digest:
    # Text that is not ASCII would keep a second copy of itself, and surrogates have no bytes.
    plain = not isinstance(found, str) or found.isascii()
    return hash_bytes(found if plain else found.encode("utf-8", "surrogatepass"))


def _as(kind: type, found: Any) -> str | bytes:
    """What was found as an object of its type: text came from ASCII text alone."""
    if kind is bytes:
        return one(found.encode() if isinstance(found, str) else bytes(found))
    if isinstance(found, str):
        return one(str(found))
    try:
        return one(str(found, "ascii"))
    except UnicodeDecodeError:
        raise PixelMismatch("a source reference names text, and its bytes are none") from None


def _written(kind: type, nbytes: int, digest: Digest) -> str:
    body = bytes([_VERSION, _KINDS.index(kind)]) + nbytes.to_bytes(8, "little") + bytes(digest)
    record = body + bytes(hash_bytes(body))[:4]
    return PREFIX + base64.urlsafe_b64encode(record).decode("ascii").rstrip("=")


def _read(text: str) -> tuple[type, int, Digest]:
    """Type, length and digest of a source. Raises ``ValueError`` for any other text."""
    if not isinstance(text, str):
        raise TypeError(f"a reference is read from a str, not {type(text).__name__}")
    if len(text) != _LENGTH or not text.startswith(PREFIX) or not text.isascii():
        raise ValueError("malformed source reference: not of the form that references have")
    try:
        record = base64.urlsafe_b64decode(text[len(PREFIX) :] + "==")
    except ValueError:
        record = b""
    if len(record) != _RECORD or record[0] != _VERSION or record[1] >= len(_KINDS):
        raise ValueError("malformed source reference: damaged, or of an unknown version")
    kind, nbytes = _KINDS[record[1]], int.from_bytes(record[2:10], "little")
    digest = Digest(record[10:42])
    # Covers the check, and digits and bits that a decoder passes over.
    if _written(kind, nbytes, digest) != text:
        raise ValueError("malformed source reference: damaged")
    return kind, nbytes, digest
