"""One object for all equal texts, and for all equal bytes, for as long as somebody uses it.

Neither ``str`` nor ``bytes`` takes weak references. The interpreter's own table of strings is
weak: a string leaves it with its last user. But where interned strings are immortal (CPython 3.12,
free-threaded builds) what enters that table stays for ever, and bytes have none. For those there
are tables here that hold what they list, and let go of what nobody else holds: at every
:func:`sweep`, and after every full garbage collection.

The digests of long texts are kept in the same way, by object: whoever sends a source in every turn
need not have it hashed in every turn.

There is no lock. A look-up in the middle of a sweep may find what the sweep lets go of; all that
comes of it is that the next equal object is not made the same.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any, Final, TypeVar

from memweir._core import Digest
from memweir.identity import hash_bytes

__all__ = ["digest_of", "is_known", "one", "sweep"]

_Content = TypeVar("_Content", bound=str | bytes)
_Table = dict[Any, Any]


def one(value: _Content) -> _Content:
    """The object that stands for every exact ``str`` or ``bytes`` of this content."""
    if MORTAL and type(value) is str:
        return sys.intern(value)  # type: ignore[arg-type, return-value]
    _watch()
    found: _Content = _tables[type(value)].setdefault(value, value)
    return found


def digest_of(text: str) -> Digest:
    """``hash_bytes(text)``, remembered for as long as somebody else holds this very object."""
    known = _digests.get(id(text))
    if known is not None and known[0] is text:
        return known[1]
    digest = hash_bytes(text)
    if len(text) >= _LONG:
        _watch()
        _sweep_digests()
        if len(_digests) >= _MOST:
            _digests.clear()
        _digests[id(text)] = text, digest
    return digest


def is_known(text: str) -> bool:
    """Whether :func:`digest_of` has the digest of this object at hand."""
    return id(text) in _digests


def sweep() -> None:
    """Lets go of what nobody but the tables holds."""
    for table in _tables.values():
        for value, holders in _counted(table):
            if holders <= _ALONE:
                table.pop(value, None)
    _sweep_digests()


def _sweep_digests() -> None:
    for key, holders in _digests_counted():
        if holders <= _ALONE_WITH_DIGEST:
            _digests.pop(key, None)


def _digests_counted() -> Iterator[tuple[int, int]]:
    """Keys of ``_digests`` with the references to each text, those of this function included."""
    for key, known in list(_digests.items()):
        yield key, sys.getrefcount(known[0])


def _watch() -> None:
    if _after_collection not in gc.callbacks:
        gc.callbacks.append(_after_collection)


def _after_collection(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] == 2:
        sweep()


def _counted(table: _Table) -> Iterator[tuple[Any, int]]:
    """The objects of a table with the references to each, those of this function included."""
    for value in list(table):
        yield value, sys.getrefcount(value)


def _fresh() -> str:
    return f"memweir {id(object())}"


def _mortal() -> bool:
    """Whether interned strings die. Releases of one version differ, so they are not asked."""
    probe = sys.intern(_fresh())
    return sys.getrefcount(probe) < 1 << 16


def _alone() -> int:
    """What is counted for an object that only its table holds."""
    table = {text: text for text in [_fresh()]}
    return next(_counted(table))[1]


def _alone_with_digest() -> int:
    """The same for a text that only ``_digests`` holds."""
    text = _fresh()
    _digests[0] = text, hash_bytes(text)
    del text
    holders = dict(_digests_counted())[0]
    del _digests[0]
    return holders


# By id: a text that is listed here cannot die, and its id be another's.
_digests: Final[dict[int, tuple[str, Digest]]] = {}
_LONG: Final = 16 << 10
_MOST: Final = 4096
MORTAL: Final = _mortal()
_ALONE_WITH_DIGEST: Final = _alone_with_digest()
_ALONE: Final = _alone()
# Each maps an object to itself. A common one would compare text with bytes.
_tables: Final[dict[type, _Table]] = {str: {}, bytes: {}}
