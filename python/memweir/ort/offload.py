"""Pages of mapped weights given back while the session stays."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memweir import _core

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["OffloadReport", "changing", "offload"]


@dataclass(frozen=True, slots=True)
class OffloadReport:
    """What an offload dropped. ``why`` says why it was not all."""

    released: int
    """Bytes that were resident in what was dropped."""
    mappings: int
    """How many maps of the files were dropped."""
    dirty: int
    """How many were left alone, since somebody had written to them."""
    why: str | None = None
    again: bool = False
    """Whether the same call may do more in a moment."""


# Who opens or closes a session says so, then looks whether pages are being dropped; who drops
# them says so first, then looks whether anybody opens or closes: the range of a map that has gone
# may be somebody's heap by then. Single operations only: no lock that a fork could catch.
_changing: dict[object, None] = {}
_dropping: dict[object, None] = {}


@contextmanager
def changing() -> Iterator[None]:
    """Around whatever maps or unmaps weights: no pages are dropped meanwhile."""
    token = object()
    _changing[token] = None
    try:
        while _dropping:
            time.sleep(0.0005)
        yield
    finally:
        _changing.pop(token, None)


def offload(files: Iterable[str]) -> OffloadReport:
    """Drops clean resident pages of every map of these files."""
    token = object()
    _dropping[token] = None
    try:
        if _changing:
            why = "a session is being opened or closed: ask again"
            return OffloadReport(0, 0, 0, why, again=True)
        return _offload(files)
    finally:
        _dropping.pop(token, None)


def _offload(files: Iterable[str]) -> OffloadReport:
    found, why = [], None
    for file in files:
        try:
            found.append(_core.drop_file_pages(file))
        except OSError as error:
            why = error.strerror or str(error)
    released, mappings, dirty = (sum(part) for part in zip((0, 0, 0), *found, strict=True))
    if dirty:
        why = "pages were written to, and would be lost"
    elif why is None and mappings == 0:
        why = "no weights are mapped: the model is not pre-packed"
    return OffloadReport(released, mappings, dirty, why)


def _after_fork_in_child() -> None:
    # Threads that were at it do not exist here.
    _changing.clear()
    _dropping.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
