"""``memweir ort``: what is in the folder of pre-packed models, and cleaning it."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import memweir as mw
from memweir.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["clean", "make", "show"]


def show(cache_dir: Path | None, *, as_json: bool) -> int:
    """Prints what there is; the exit code."""
    found = mw.ort.cached(cache_dir)
    if as_json:
        print(json.dumps([one.as_dict() for one in found]))
        return 0
    print(f"{mw.ort.cache_folder(cache_dir)}: {format_size(sum(one.nbytes for one in found))}")
    for one in found:
        used = datetime.fromtimestamp(one.used).isoformat(" ", "minutes")
        name = one.name or "(bytes)"
        print(f"  {one.key[:12]}  {format_size(one.nbytes):>10}  {used}  {one.runtime}  {name}")
    return 0


def make(model: Path, cache_dir: Path | None) -> int:
    """Pre-packs a model; 1 where that cannot be, 2 without onnxruntime."""
    try:
        made = mw.ort.prepack(model, cache_dir)
    except (mw.NotPrepacked, mw.BadModel, OSError) as error:
        print(f"memweir ort prepack: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"memweir ort prepack: {error}", file=sys.stderr)
        return 2
    how = f"built in {made.seconds:.1f} s" if made.built else "there already"
    print(f"{made.folder}: {format_size(made.nbytes)}, {how}")
    return 0


def clean(cache_dir: Path | None, limit: str, unused: float, *, stale: bool) -> int:
    """Removes; 2 for a limit that is no size."""
    try:
        done = mw.ort.clean(cache_dir, limit=limit, unused=unused, stale=stale)
    except ValueError as error:
        print(f"memweir ort clean: {error}", file=sys.stderr)
        return 2
    busy = f", {done.busy} could not be removed" if done.busy else ""
    print(f"{len(done.removed)} removed, {format_size(done.nbytes)}; {done.kept} left{busy}")
    return 0
