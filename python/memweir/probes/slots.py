"""The table of a probe cache: a slot for each question, bounded, without a lock.

Each step that matters is one call on a built-in container that no other thread, signal handler or
finalizer can find half done. A hit is one look-up and one store.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from memweir.probes.jobs import Job
    from memweir.probes.verdict import Verdict

__all__ = ["Slot", "Slots"]

Key = tuple[Any, ...]


class Slot:
    """What is known about one question at one epoch; a flight's key, by identity.

    A slot that was dropped from the table is not found again, and neither is what is written into
    it: that is how an answer that began before ``invalidate`` is fenced off.
    """

    __slots__ = (
        "_offers",
        "failure",
        "failures",
        "job",
        "key",
        "locked_until",
        "touched",
        "verdict",
    )

    def __init__(self, key: Key | None = None) -> None:
        self.key = key  # of one that is in no table
        self.verdict: Verdict[Any] | None = None  # the newest that is remembered
        self.failure: Verdict[Any] | None = None  # what is said during the back-off
        self.failures = 0
        self.locked_until = 0.0  # until when a server asked to be left alone
        self.touched = False
        self.job: Job | None = None
        self._offers: deque[Verdict[Any]] = deque(maxlen=8)

    def keep(self, verdict: Verdict[Any]) -> None:
        """Remembers a verdict unless a newer one is remembered."""
        self._offers.append(verdict)
        while True:
            # Whoever of two threads writes last has seen the other's offer, or looks again. Many
            # old ones may have pushed the newest out of the offers.
            offers, kept = self._offers.copy(), self.verdict
            best = max(offers, key=lambda offer: offer.order)
            self.verdict = best if kept is None or kept.order < best.order else kept
            if self._offers[-1] is offers[-1]:
                return

    def fail(self, verdict: Verdict[Any], locked_until: float) -> None:
        """Remembers when to ask again."""
        self.failures += 1
        self.failure = verdict
        self.locked_until = max(self.locked_until, locked_until)

    def recover(self, now: float) -> None:
        """Forgets about failures, though not that a server asked to be left alone."""
        self.failures = 0
        if now >= self.locked_until:
            self.failure = None


class Slots:
    """Slots by key, at most ``most`` of them: those not asked for lately go first (CLOCK)."""

    __slots__ = ("_ring", "evicted", "most", "table")

    def __init__(self, most: int) -> None:
        self.most = most
        self.evicted = 0
        self.table: dict[Key, Slot] = {}
        self._ring: deque[tuple[Key, Slot]] = deque()

    def find(self, key: Key) -> Slot:
        """The slot of `key`, made if there is none."""
        new = Slot()
        slot = self.table.setdefault(key, new)
        if slot is new:
            if len(self.table) > self.most or len(self._ring) > 2 * self.most + 64:
                self._turn()
            self._ring.append((key, slot))  # a newcomer does not go in its own turn
        return slot

    def _turn(self) -> None:
        for _ in range(2 * len(self._ring)):
            swollen = len(self._ring) > self.most + 64
            if len(self.table) <= self.most and not swollen:
                return
            try:
                key, slot = self._ring.popleft()
            except IndexError:  # another thread turns it, too
                return
            if self.table.get(key) is not slot:
                continue
            if len(self.table) > self.most and slot.job is None and not slot.touched:
                self.evicted += self._drop(key, slot)
            else:
                slot.touched = False
                self._ring.append((key, slot))

    def _drop(self, key: Key, slot: Slot) -> bool:
        taken = self.table.pop(key, None)
        if taken is not None and taken is not slot:  # dropped and made anew just now: put it back
            self.table.setdefault(key, taken)
            return False
        return taken is not None

    def drop(self, wanted: Callable[[Key], bool]) -> int:
        """Drops the slots whose keys are `wanted`; returns how many."""
        found = [(key, slot) for key, slot in self.table.copy().items() if wanted(key)]
        return sum(self._drop(key, slot) for key, slot in found)

    def clear(self) -> int:
        """Drops all."""
        # The ring first: what is found in the new table must be in the new ring.
        self._ring = deque()
        table, self.table = self.table, {}
        return len(table)

    def after_fork(self, kept: Callable[[Key], bool]) -> None:
        """In a forked child: no probe runs, and only `kept` keys mean anything."""
        self.table = {key: slot for key, slot in self.table.items() if kept(key)}
        for slot in self.table.values():
            slot.job = None
        self._ring = deque(self.table.items())
