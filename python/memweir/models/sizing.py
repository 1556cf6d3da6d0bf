"""How many bytes a model takes: as declared, as counted, or as the process grew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memweir.models.adapters.protocol import Sizes
from memweir.sizes import parse_size

if TYPE_CHECKING:
    from memweir.models.desk import Desk
    from memweir.models.entry import Entry, Spec

__all__ = ["Meter", "declared", "parse_nbytes"]


def parse_nbytes(nbytes: Any, device: str | None) -> Any:
    """What ``nbytes=`` says: ``None``, sizes, or a path to look at when it is needed."""
    if nbytes is None or isinstance(nbytes, Sizes):
        if nbytes is not None:
            for part in nbytes:
                parse_size(part)
        return nbytes
    if isinstance(nbytes, os.PathLike):
        return Path(nbytes)
    size = parse_size(nbytes)
    return Sizes(host=size) if device is None else Sizes(device=size)


def declared(spec: Spec) -> Sizes | None:
    """What was said about a key, or what its file has now; ``None``: nothing is known."""
    said = spec.nbytes
    if not isinstance(said, Path):
        return said  # type: ignore[no-any-return]
    try:
        files = [said] if said.is_file() else [each for each in said.rglob("*") if each.is_file()]
        size = sum(each.stat().st_size for each in files)
    except OSError:
        return None
    if size == 0:
        return None
    return Sizes(host=size) if spec.device is None else Sizes(device=size)


class Meter:
    """The process before a load, to be compared with what it is after."""

    def __init__(self, desk: Desk, entry: Entry) -> None:
        self._desk = desk
        self._entry = entry
        self._quiet = self._is_quiet()
        self._changes = desk.changes
        self._anon, self._device = self._now()

    def grown(self) -> tuple[Sizes, bool]:
        """What was added since, and whether nothing else of the pool ran meanwhile."""
        anon, device = self._now()
        alone = self._quiet and self._is_quiet() and self._changes == self._desk.changes
        sizes = Sizes(host=_grown(self._anon, anon), device=_grown(self._device, device))
        return (sizes if self._entry.spec.device is not None else Sizes(host=sizes.host)), alone

    def _is_quiet(self) -> bool:
        others = (e for e in self._desk.entries.copy().values() if e is not self._entry)
        return len(self._desk.active) <= 1 and not any(other.loans for other in others)

    def _now(self) -> tuple[int | None, int | None]:
        anon = device = None
        try:
            anon = self._desk.read().anon
        except Exception:
            pass
        try:
            if self._desk.device is not None and self._entry.spec.device is not None:
                device = self._desk.device()
        except Exception:
            pass
        return anon, device


def _grown(before: int | None, after: int | None) -> int:
    return 0 if before is None or after is None else max(0, after - before)
