"""What the parts of a pool share. No locks: steps that matter are single calls on a built-in
container or on the table of claims, which a finalizer cannot find half done.
"""

from __future__ import annotations

import contextvars
import math
import threading
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from memweir.models.entry import ring_all
from memweir.models.turns import Turn, mine

if TYPE_CHECKING:
    from collections.abc import Callable

    from memweir._core import Claims
    from memweir.events import Events
    from memweir.models.adapters.protocol import Sizes
    from memweir.models.entry import Entry
    from memweir.models.release import Release

__all__ = ["Counters", "Desk"]


@dataclass(slots=True)
class Counters:
    """How often things happened since the pool was made."""

    loads: int = 0
    failed: int = 0
    unloads: int = 0
    offloads: int = 0
    evictions: int = 0
    thrash: int = 0


@dataclass(slots=True, eq=False, weakref_slot=True)
class Desk:
    """The state of a pool, behind its public face."""

    name: str
    claims: Claims
    clock: Callable[[], float]
    read: Callable[[], Any]
    device: Callable[[], int | None] | None
    release: Release
    events: Events
    arbiter: Any
    ram: int  # account
    limits: Callable[[str], int | None]  # of devices
    residence: float
    threaded: bool  # whether the keeper has a thread of its own
    entries: dict[str, Entry] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)  # accounts
    active: dict[Turn, None] = field(default_factory=dict)
    waiting: dict[Turn, None] = field(default_factory=dict)  # those in the line for bytes
    bells: dict[Callable[[], object], None] = field(default_factory=dict)  # of that line
    asking: dict[object, tuple[Any, Entry]] = field(default_factory=dict)  # who waits for which
    mail: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    keeper: dict[str, Any] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    changes: int = 0  # how many turns have begun or ended
    closed: bool = False
    serial: Any = None  # the slot that loads which may not overlap take

    def account(self, device: str) -> int:
        """The account of a device."""
        found = self.devices.get(device)
        if found is None:
            found = self.devices.setdefault(device, self.claims.account(self.limits(device)))
        return found

    def parts(self, sizes: Sizes, device: str | None) -> list[tuple[int, int]]:
        """What sizes come to on the accounts; pages of files are the system's."""
        parts = [(self.ram, sizes.host)]
        if device is not None:
            parts.append((self.account(device), sizes.device))
        return parts

    def would_wait_for_itself(self, owner: Any, entry: Entry) -> bool:
        """Whether those who have a model wait, one for the other, for this thread or task.

        The last of them to begin its wait finds that out, and the others at their next look.
        """
        turns, thread = mine(), threading.current_thread()
        seen: set[Any] = set()
        ahead: list[Any] = [entry]
        while ahead:
            what = ahead.pop()
            if what in seen:
                continue
            seen.add(what)
            turn = what if isinstance(what, Turn) else getattr(what, "turn", None)
            if turn is not None:
                if turn in turns:
                    return True
                ahead += turn.waits.copy()
            for loan in getattr(what, "loans", {}).copy().values():
                holder = loan.owner()
                if holder is owner or holder is thread:
                    return True
                ahead += [e for who, e in [*self.asking.values()] if who is holder]
            # It drains until those who want to let it go have all that they wait for.
            for who in getattr(what, "awaited", {}).copy():
                ahead += [found[1] for found in (self.asking.get(who),) if found is not None]
        return False

    def interrupted(self, owner: Any) -> None:
        """After an interrupt, which may come between any two steps of this thread: what it had
        begun and nobody will end is ended.
        """
        here, running = threading.get_ident(), mine()
        for visit, (who, _) in self.asking.copy().items():
            if who is owner:
                getattr(visit, "leave", int)()
        for entry in [*self.entries.values(), self.serial]:
            for turn in dict.fromkeys([entry.turn, *self.active]):
                if turn is None or turn.entry is not entry or turn in running:
                    continue
                if turn.thread == here:
                    entry.end(turn, turn.kind != "loading" and entry.whole)
                    self.over(turn)
            seen = self.claims.look(entry.slot)
            for claim, who in () if seen is None else seen.holders:
                if who == id(owner) and claim not in entry.loans:
                    self.claims.release(entry.slot, claim)
            self.notice(entry)
            entry.ring()

    def opened(self, turn: Turn) -> None:
        """A turn has begun."""
        self.active[turn] = None
        self.changes += 1

    def over(self, turn: Turn) -> None:
        """A turn has ended: who waits for bytes looks again."""
        self.active.pop(turn, None)
        self.changes += 1
        ring_all(self.bells)

    def notice(self, entry: Entry) -> None:
        """Has the keeper look at an entry; safe in a finalizer."""
        if not entry.noticed:
            entry.noticed = True
            self.mail.put(entry)

    def reborn(self, inherited: list[Any]) -> None:
        """In a forked child: nothing is here, nobody is at work, and no thread runs."""
        for entry in [*self.entries.values(), self.serial]:
            inherited.extend((entry.model, entry.grant, entry.adapter))
            entry.clear()
            entry.grant = entry.adapter = entry.turn = entry.error = None
            entry.retry_at = 0.0
            entry.failures = 0
            entry.due = entry.window = math.inf
            entry.noticed = False
            entry.loans.clear()
            entry.bells.clear()
            entry.awaited.clear()
        inherited.append(self.arbiter)
        self.arbiter = None
        self.active.clear()
        self.waiting.clear()
        self.bells.clear()
        self.asking.clear()
        self.keeper.clear()
        self.mail = SimpleQueue()

    def start(self, name: str, work: Callable[..., object], *args: Any) -> None:
        """Runs something in a thread of its own, in this context."""
        context = contextvars.copy_context()
        threading.Thread(
            target=context.run, args=(work, *args), name=f"memweir {name}", daemon=True
        ).start()
