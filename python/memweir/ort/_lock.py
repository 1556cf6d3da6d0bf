"""Locks between processes: files that the kernel unlocks when their holder ends, however."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

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
            os.close(number)


def _names(path: Path, number: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(number))
    except OSError:
        return False
