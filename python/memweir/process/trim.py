"""Memory given back to the system, step by step, and told in the kernel's bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from memweir import _core
from memweir.pixels.live import live_caches
from memweir.process import hooks
from memweir.process._aside import Skip
from memweir.process._engine import Means, Trims
from memweir.process._report import TrimReport, TrimStep
from memweir.process.hooks import on_trim

if TYPE_CHECKING:
    from typing import TypeAlias

    Level: TypeAlias = Literal["auto", "buffers", "hooks", "gc", "allocator", "arenas"]

__all__ = ["PATIENCE", "TrimReport", "TrimStep", "atrim", "on_trim", "trim"]

PATIENCE = 10.0
"""Seconds that a hook, or a collection with its finalizers, may take before it is left behind."""


def trim(
    level: Level = "auto", *, min_interval: float | None = None, deadline: float | None = None
) -> TrimReport:
    """Gives memory that nobody uses back to the system, and says what came back.

    The steps, of which ``level`` names the last (``"auto"`` takes all): ``"buffers"`` that caches
    keep for the next array, ``"hooks"`` of known libraries and :func:`~memweir.on_trim`, ``"gc"``,
    what the ``"allocator"`` releases when asked, and the ``"arenas"`` that glibc leaves out of
    that, whose nearly empty parts take no huge pages any more where numpy had asked for them. All
    of it runs in a thread of ours, one trim at a time: callers that come meanwhile join it and get
    the same report. What they freed after a step began is left to the next trim.

    An explicit call always acts, or joins one that does. Give ``min_interval`` in seconds where
    you trim periodically: a step that was done more recently is left out, one that brought little
    is done less and less often, and no full collection is forced unless ``level`` is ``"gc"``.

    After ``deadline`` seconds you get the report so far, and the trim goes on; where no thread can
    be started, your own does the work to its end. Nothing is raised for what fails or is not
    supported here: it is in the report.
    """
    return _trims.trim(level, min_interval=min_interval, deadline=deadline)


async def atrim(
    level: Level = "auto", *, min_interval: float | None = None, deadline: float | None = None
) -> TrimReport:
    """:func:`trim` for tasks: the loop goes on, and no executor's thread is held.

    Where no thread can be started the work is done on the loop, which stands still meanwhile.
    """
    return await _trims.atrim(level, min_interval=min_interval, deadline=deadline)


def _memory(full: bool) -> Any:
    return _core.memory(full=full)


def _buffers() -> int:
    # The arenas of caches keep no free pages, only addresses.
    caches = live_caches()
    if not caches:
        raise Skip("no cache is alive")
    return sum(cache._drop_outputs() for cache in caches)


def _heap_job(release: bool, sweep: bool) -> Any:
    return _core.heap_job(release=release, sweep=sweep)


def _allocator() -> Any:
    from memweir.process.heap import Allocator

    return Allocator(*_core.heap_allocator())


_trims = Trims(
    Means(
        memory=_memory,
        buffers=_buffers,
        hooks=hooks.registered,
        heap_job=_heap_job,
        allocator=_allocator,
        patience=PATIENCE,
    )
)
