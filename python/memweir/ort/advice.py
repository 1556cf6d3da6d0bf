"""What a session would gain from an allocator that was tuned in time."""

from __future__ import annotations

import os

from memweir import _core
from memweir.process.tune import tuned

__all__ = ["untuned"]

COST = (
    "measured on a model of 199 MiB, runs then keep 50 to 75 MiB of activations until the next "
    "trim, and a load peaks 40 MiB higher"
)
_VARIABLE = "MALLOC_MMAP_THRESHOLD_"


def untuned() -> list[str]:
    """Says so where glibc was not told, in time, to map large blocks by themselves."""
    kind, _, _ = _core.heap_allocator()
    if kind != "glibc" or _VARIABLE in os.environ:
        return []
    report = tuned()
    if report is None:
        return [f'mw.tune("models") was not called before this session was opened: {COST}']
    if report.late is not None:
        return [f"mw.tune() came too late for what was allocated before ({report.late}): {COST}"]
    return []
