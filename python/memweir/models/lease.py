"""Leases: the only way to a model, and what keeps it where it is."""

from __future__ import annotations

import sys
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from memweir.errors import Released
from memweir.models import room, waiting
from memweir.models.entry import Loan, caller, ring_all
from memweir.models.ladder import Rung

if TYPE_CHECKING:
    from types import CodeType

    from memweir.models.desk import Desk
    from memweir.models.entry import Entry

__all__ = ["AsyncLease", "Lease"]


class _Held:
    """What both kinds of lease are: asked for, held once, over."""

    __slots__ = (
        "__weakref__",
        "_claim",
        "_code",
        "_desk",
        "_entry",
        "_line",
        "_permit",
        "_timeout",
        "_used",
        "_working",
    )

    def __init__(self, desk: Desk, entry: Entry, timeout: float | None, working: int) -> None:
        self._desk = desk
        self._entry = entry
        self._timeout = timeout
        self._working = working
        self._claim = 0
        self._used = False
        self._permit: int | None = None
        # Two frames up: who called `pool.lease`.
        frame = sys._getframe(2)
        self._code: CodeType | None = frame.f_code
        self._line = frame.f_lineno

    @property
    def key(self) -> str:
        """The model's key."""
        return self._entry.spec.key

    @property
    def held(self) -> bool:
        """Whether the model is here for as long as this lasts."""
        return self._claim in self._entry.loans

    @property
    def model(self) -> Any:
        """The model. Raises :class:`~memweir.Released` before and after the lease."""
        model = self._entry.model
        if self._claim not in self._entry.loans:
            when = "over" if self._used else "not entered yet"
            raise Released(f"the lease of {self.key!r} is {when}: its model must not be used")
        return model

    @property
    def device(self) -> str | None:
        """Where the model is while it is lent."""
        return self._entry.spec.device if self._entry.rung is Rung.DEVICE else None

    def _until(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout

    def _again(self) -> Released:
        return Released(f"the lease of {self.key!r} was used already: ask the pool for another")

    def _take(self, claim: int, owner: Any) -> Any:
        entry = self._entry
        self._claim = claim
        entry.loans[claim] = Loan(weakref.ref(owner), self._code, self._line, weakref.ref(self))
        return entry.model

    def _parts(self) -> list[tuple[int, int]]:
        desk, device = self._desk, self._entry.spec.device
        return [(desk.ram if device is None else desk.account(device), self._working)]

    def _reserve(self, deadline: float | None) -> int:
        # Who is in the line may wait for this very lease to end: it does not go behind them.
        return room.reserve(self._desk, self._entry, self._parts(), deadline=deadline, jump=True)

    def _release(self) -> None:
        """Takes no lock and calls nobody's code: a finalizer may come here."""
        claim, loans = self._claim, self._entry.loans
        if claim not in loans:
            return
        ended = False
        try:
            ended = loans.pop(claim, None) is None  # by another, just now
            if not ended:
                self._end(claim)
                ended = True
        finally:
            if not ended and claim not in loans:  # interrupted
                self._end(claim)

    def _end(self, claim: int) -> None:
        permit, self._permit = self._permit, None
        if permit is not None:
            self._desk.claims.free(permit)
            ring_all(self._desk.bells)
        waiting.let_go(self._desk, self._entry, claim)

    def __del__(self) -> None:
        # Whoever dropped this may be using the model still: it stays lent, and that is told.
        if self._claim and self._claim in self._entry.loans:
            self._desk.mail.put(self._entry)

    def __repr__(self) -> str:
        state = "held" if self.held else "over" if self._used else "not entered"
        return f"<{type(self).__name__} of {self.key!r}: {state}>"


class Lease(_Held):
    """A model on loan: ``with pool.lease(key) as model``.

    The model is what the loader made, not a wrapper: use it inside the block, and keep the lease,
    not the model, where something is to be kept. It is entered once. A generator that is collected
    in the middle of the block ends it, without taking a lock.
    """

    __slots__ = ()

    def __enter__(self) -> Any:
        if self._used:
            raise self._again()
        self._used = True
        until = self._until() if self._working else None
        owner = caller()
        entry = self._entry
        try:
            claim = self._desk.claims.hold(entry.slot, id(owner))
            if claim is None or self._desk.closed:
                if claim is not None:
                    self._desk.claims.release(entry.slot, claim)
                claim = waiting.arrive(self._desk, entry, owner, self._timeout)
            elif entry.spent is not None and entry.spent(entry.model):
                waiting.give_up(self._desk, entry, claim)
                waiting.renew(self._desk, entry)
                claim = waiting.arrive(self._desk, entry, owner, self._timeout)
            model = self._take(claim, owner)
            if self._working:
                self._permit = self._reserve(until)
            return model
        except BaseException as error:
            self._release()
            if isinstance(error, KeyboardInterrupt):
                self._desk.interrupted(owner)
            raise

    def __exit__(self, *exc: object) -> None:
        self._release()


class AsyncLease(_Held):
    """A model on loan for a task: ``async with pool.alease(key) as model``.

    A load runs in a thread of its own, and goes on should the task be cancelled.
    """

    __slots__ = ()

    async def __aenter__(self) -> Any:
        if self._used:
            raise self._again()
        self._used = True
        until = self._until() if self._working else None
        owner = caller()
        entry = self._entry
        try:
            claim = self._desk.claims.hold(entry.slot, id(owner))
            if claim is None or self._desk.closed:
                if claim is not None:
                    self._desk.claims.release(entry.slot, claim)
                claim = await waiting.asynchronous_arrive(self._desk, entry, owner, self._timeout)
            elif entry.spent is not None and entry.spent(entry.model):
                waiting.give_up(self._desk, entry, claim)
                self._desk.start(f"renews {entry.spec.key}", waiting.renew, self._desk, entry)
                claim = await waiting.asynchronous_arrive(self._desk, entry, owner, self._timeout)
            model = self._take(claim, owner)
            if self._working:
                self._permit = await self._reserved(until)
            return model
        except BaseException as error:
            self._release()
            if isinstance(error, KeyboardInterrupt):
                self._desk.interrupted(owner)
            raise

    async def _reserved(self, until: float | None) -> int:
        """What has to be let go or waited for is so in a thread: the loop goes on."""
        import asyncio

        desk = self._desk
        permit, _, _ = desk.claims.reserve(self._parts(), jump=True)
        if permit is not None:
            return permit
        loop, bell = asyncio.get_running_loop(), asyncio.Event()
        fate: dict[None, Any] = {}

        def work() -> None:
            try:
                found: Any = self._reserve(until)
            except BaseException as error:
                found = error
            if fate.setdefault(None, found) is not found and isinstance(found, int):
                desk.claims.free(found)  # nobody waits for it any more
                ring_all(desk.bells)
            with suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(bell.set)

        desk.start(f"makes room for {self.key}", work)
        try:
            await bell.wait()
        finally:
            found = fate.setdefault(None, self)
            if isinstance(found, int):
                self._permit = found
        if isinstance(found, BaseException):
            raise found
        return cast(int, found)

    async def __aexit__(self, *exc: object) -> None:
        self._release()

    def _hand_over(self, owner: Any) -> None:
        """Notes that another thread works with the model now."""
        loan = self._entry.loans.get(self._claim)
        if loan is not None:
            self._entry.loans[self._claim] = loan._replace(owner=weakref.ref(owner))
