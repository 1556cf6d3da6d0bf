"""The one setting that changes the process itself: the heap is tuned once, and it stays known how.

Never at import: by the first ``configure()`` or the first ``PixelCache`` whose settings say so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from .settings import Settings

__all__ = ["KNOBS", "Applied", "applied", "apply"]

KNOBS = ("mmap_threshold", "trim_threshold", "arena_max")
"""Settings that stand in place of values of the profile."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What settings did to the heap of this process, or why they did not."""

    by: str
    """Who came first: ``"configure()"`` or ``"PixelCache"``."""
    profile: str
    overrides: dict[str, Any]
    report: Any
    """What :func:`memweir.tune` reported; ``None`` where it failed."""
    why: str | None = None
    """Why it failed."""
    inherited: bool = False
    """Whether a parent of this forked process did it."""


# Changed by single operations on the dict only: no lock that a fork could catch.
_state: dict[str, Any] = {}


def applied() -> Applied | None:
    """How settings tuned the heap of this process; ``None`` if they did not."""
    return cast("Applied | None", _state.get("applied"))


def apply(settings: Settings, by: str) -> None:
    """Tunes the heap as ``settings`` say, if nobody's settings did before.

    Nothing that the platform lacks is an error. A value that the profile does not take is.
    """
    if settings.tune is None:
        return
    turn = object()
    if _state.setdefault("turn", turn) is not turn:
        return
    profile: Any = settings.tune  # one of the names that tune() takes: settings see to that
    report, why = None, None
    overrides = {name: value for name in KNOBS if (value := getattr(settings, name)) is not None}
    try:
        from .process.tune import tune

        report = tune(profile, **overrides)
    except BaseException as error:
        if isinstance(error, TypeError | ValueError) or not isinstance(error, Exception):
            del _state["turn"]
            raise
        why = f"{type(error).__name__}: {error}"
    _state["applied"] = Applied(by, profile, overrides, report, why)


def _after_fork_in_child() -> None:
    done = _state.get("applied")
    if done is not None:
        # The heap is the parent's, and so is what was set in it.
        _state["applied"] = Applied(
            done.by, done.profile, done.overrides, done.report, done.why, inherited=True
        )
    else:
        # A thread that was at it does not exist here.
        _state.pop("turn", None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
