"""Sessions that the runtime itself lets go only when the main thread runs next.

Newer versions keep a session that has run asynchronously until the callback ended, and give that
reference back by a call that the interpreter makes in its main thread. A main thread that
waits, for a lock or for the network, makes none: no other thread can hurry it.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from memweir.process._aside import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NOTE", "Watch", "is_late", "trim_later"]

NOTE = "the runtime frees it when the main thread runs next, and the trim comes after that"


class Watch:
    """Tells whether a session lives on although its handle let go of it."""

    def __init__(self, session: Any) -> None:
        self.refs: list[Callable[[], Any]] = []
        for part in (session, getattr(session, "_sess", None)):
            try:
                self.refs.append(weakref.ref(part))
            except TypeError:  # None, or what cannot be referred to so
                self.refs.append(lambda: None)

    def parts(self) -> tuple[bool, bool]:
        """Whether the runtime's Python object lives, and its own part."""
        outer, inner = (ref() is not None for ref in self.refs)
        return outer, inner

    def alive(self) -> bool:
        """Whether either does."""
        return any(self.parts())


def is_late(outer: bool, inner: bool) -> bool:
    """Whether it is the runtime that keeps a session which has run asynchronously: nobody else has
    its own part alone, and in the main thread itself it would be gone.
    """
    return inner and not outer and threading.current_thread() is not threading.main_thread()


def trim_later(alive: Callable[[], bool], trim: Callable[[], Any]) -> None:
    """Trims, in a thread of its own, when the session has died."""

    def wait() -> None:
        pause = 0.01
        while alive():
            time.sleep(pause)
            pause = min(1.0, 1.5 * pause)
        trim()

    spawn(wait, "memweir-ort-late")
