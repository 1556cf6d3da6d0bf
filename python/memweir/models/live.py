"""The live pools of this process: what a fork has to see to."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memweir.models.desk import Desk

__all__ = ["register"]

# Changed by single operations on the dict only: no lock that a fork could catch.
_desks: dict[int, weakref.ref[Desk]] = {}
# Models of a parent process. A forked child runs no finalizer of theirs, which may reach for a
# device that is the parent's.
_inherited: list[Any] = []


def register(desk: Desk) -> None:
    """Makes a pool known for as long as it lives."""
    number = id(desk)

    def forget(dead: weakref.ref[Desk]) -> None:
        if _desks.get(number) is dead:
            del _desks[number]

    _desks[number] = weakref.ref(desk, forget)


def _after_fork_in_child() -> None:
    # The table of claims has forgotten who held what already, inside the fork.
    for ref in _desks.copy().values():
        desk = ref()
        if desk is not None:
            desk.reborn(_inherited)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
