"""Leases: the only way to a model, and what keeps it where it is."""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any

from memweir.errors import Released
from memweir.models import room, waiting
from memweir.models.entry import Loan, caller
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

    def _again(self) -> Released:
        return Released(f"the lease of {self.key!r} was used already: ask the pool for another")

    def _take(self, claim: int, owner: Any) -> Any:
        entry = self._entry
        self._claim = claim
        entry.loans[claim] = Loan(weakref.ref(owner), self._code, self._line, weakref.ref(self))
        if self._working:
            try:
                self._reserve()
            except BaseException:
                self._release()
                raise
        return entry.model

    def _reserve(self) -> None:
        desk, entry = self._desk, self._entry
        device = entry.spec.device
        account = desk.ram if device is None else desk.account(device)
        self._permit = room.reserve(desk, entry, [(account, self._working)])

    def _release(self) -> None:
        """Takes no lock and calls nobody's code: a finalizer may come here."""
        claim = self._claim
        if self._entry.loans.pop(claim, None) is None:
            return
        if self._permit is not None:
            self._desk.claims.free(self._permit)
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
        owner = caller()
        entry = self._entry
        claim = self._desk.claims.hold(entry.slot, id(owner))
        if claim is None or self._desk.closed:
            if claim is not None:
                self._desk.claims.release(entry.slot, claim)
            claim = waiting.arrive(self._desk, entry, owner, self._timeout)
        return self._take(claim, owner)

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
        owner = caller()
        entry = self._entry
        claim = self._desk.claims.hold(entry.slot, id(owner))
        if claim is None or self._desk.closed:
            if claim is not None:
                self._desk.claims.release(entry.slot, claim)
            claim = await waiting.asynchronous_arrive(self._desk, entry, owner, self._timeout)
        return self._take(claim, owner)

    async def __aexit__(self, *exc: object) -> None:
        self._release()

    def _hand_over(self, owner: Any) -> None:
        """Notes that another thread works with the model now."""
        loan = self._entry.loans.get(self._claim)
        if loan is not None:
            self._entry.loans[self._claim] = loan._replace(owner=weakref.ref(owner))
