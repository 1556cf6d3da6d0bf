"""What only one at a time may do, whichever model it is for."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from memweir.errors import Busy
from memweir.models.turns import PATROL, mine, waits_for

if TYPE_CHECKING:
    from memweir.models.entry import Entry
    from memweir.models.turns import Turn

__all__ = ["turn_of"]


def turn_of(entry: Entry, deadline: float | None) -> Turn | None:
    """The turn of an entry that stands for something only one may do; ``None``: it is ours."""
    turns = mine()
    bell = threading.Lock()
    bell.acquire()
    with entry.aboard(bell.release):
        while True:
            turn = entry.begin("loading")
            if turn is not None:
                turn.waits.extend(turns)  # it ends when they do
                return turn
            if entry.blocked_by(turns, set()):
                return None
            left = PATROL if deadline is None else min(PATROL, deadline - time.monotonic())
            if left <= 0:
                raise Busy("another load that may not overlap is still running")
            with waits_for(entry):
                bell.acquire(timeout=left)
