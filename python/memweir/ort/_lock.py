"""Locks between processes: files that the kernel unlocks when their holder ends, however."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["held"]

_PATROL = 0.05


@contextmanager
def held(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock on a file of its own; whether it is held.

    Where the system or its disk has no such locks nobody is kept out: what is guarded is renamed
    into place, so that two who do it do it twice.
    """
    try:
        import fcntl
    except ImportError:  # Windows, untested
        yield True
        return
    while True:
        # Descriptors of their own: threads of one process keep each other out, too.
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _held[number], home = None, os.getpid()
        try:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                time.sleep(_PATROL)
                continue
            except OSError:
                yield True
                return
            if not _names(path, number):
                continue  # its last holder has removed it
            yield True
            return
        finally:
            if home == os.getpid():
                _given_back(number, fcntl)


def _names(path: Path, number: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(number))
    except OSError:
        return False


# Descriptors of locks that are held or asked for; changed by single operations only.
_held: dict[int, None] = {}


def _given_back(number: int, fcntl: Any) -> None:
    _held.pop(number, None)
    # A child that was forked meanwhile, and runs nothing of ours, has the descriptor as well.
    with suppress(OSError):
        fcntl.flock(number, fcntl.LOCK_UN)
    os.close(number)


def _after_fork_in_child() -> None:
    # They are the parent's: should it be killed, nobody must find them held by its children.
    for number in list(_held):
        with suppress(OSError):
            os.close(number)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
