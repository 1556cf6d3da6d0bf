"""Any interleaving of callers, answers, failures, departures and bumps, against a naive model.

The actors are real threads and tasks. Each of them runs until it loads or waits, and hypothesis
picks who takes the next step.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flight_kit import Loop, until
from memweir._flight import Flights, current
from memweir.errors import Busy, LoadFailed

KINDS = ["thread", "sync", "coroutine"]
# Who leads after another left is up to the threads, so what hypothesis draws must not depend on it.
PICKS = st.integers(0, 59)


class Left(BaseException):
    """A leader leaves without an answer."""


class Call:
    """One call: what the actor saw, and what the model expects."""

    def __init__(self, kind, loop):
        self.kind = kind
        self.loop = loop
        self.load = None
        self.verdict = Future()
        self.done = None


class Flight:
    """The model: who leads, who waits, and whether the result is to be kept."""

    def __init__(self, key, leader):
        self.key = key
        self.leader = leader
        self.waiters = []
        self.stale = False


class FlightMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.flights = Flights()
        self.loops = [Loop(), Loop()]
        self.pool = ThreadPoolExecutor(64)
        for loop in self.loops:
            loop.loop.set_default_executor(self.pool)
        self.model = []
        self.ghosts = []  # loads of cancelled tasks, whose threads run on
        self.joins = 0

    def teardown(self):
        for call in self.ghosts:
            call.verdict.set_result("late")
        while self.model:
            self.land(self.model[0], "end")
        assert self.flights._home == {}
        for loop in self.loops:
            loop.stop()
            loop.loop.close()
        self.pool.shutdown()

    def start(self, key, kind, loop, timeout=None):
        call = Call(kind, loop)

        def sync():
            call.load = current()
            return call.verdict.result()

        async def coroutine():
            call.load = current()
            return await asyncio.wrap_future(call.verdict)

        if kind == "thread":
            call.done = self.pool.submit(self.flights.run, key, sync, timeout=timeout)
        else:
            lead = sync if kind == "sync" else coroutine
            call.done = loop.start(self.flights.arun(key, lead, timeout=timeout))
        return call

    def pick(self, pick):
        return self.model[pick % len(self.model)] if self.model else None

    def listed(self, key):
        return next((f for f in self.model if f.key == key and not f.stale), None)

    def succeed_to_the_lead(self, flight):
        """After a leader left: exactly one of the waiters loads in its place."""
        if not flight.waiters:
            self.model.remove(flight)
            return
        until(lambda: any(call.load for call in flight.waiters))
        flight.leader = next(call for call in flight.waiters if call.load)
        flight.waiters.remove(flight.leader)

    def land(self, flight, answer):
        flight.leader.verdict.set_result(answer)
        assert flight.leader.done.result() is answer
        assert all(call.done.result() is answer for call in flight.waiters)
        self.joins += len(flight.waiters)
        self.model.remove(flight)

    @rule(
        key=st.integers(0, 1),
        kind=st.sampled_from(KINDS),
        loop=st.integers(0, 1),
        n=st.integers(1, 3),
    )
    def call(self, key, kind, loop, n):
        for _ in range(n):
            flight = self.listed(key)
            call = self.start(key, kind, self.loops[loop])
            if flight is None:
                until(lambda call=call: call.load)
                self.model.append(Flight(key, call))
            else:
                flight.waiters.append(call)
                until(lambda f=flight: self.flights.waiting(f.key) == len(f.waiters))

    @rule(key=st.integers(0, 1), kind=st.sampled_from(KINDS), loop=st.integers(0, 1))
    def call_without_patience(self, key, kind, loop):
        flight = self.listed(key)
        call = self.start(key, kind, self.loops[loop], timeout=0)
        if flight is None:
            until(lambda: call.load)
            self.model.append(Flight(key, call))
        else:
            assert isinstance(call.done.exception(), Busy)

    @rule(pick=PICKS)
    def answer(self, pick):
        if flight := self.pick(pick):
            self.land(flight, object())

    @rule(pick=PICKS)
    def fail(self, pick):
        flight, error = self.pick(pick), ValueError("no")
        if flight is None:
            return
        flight.leader.verdict.set_exception(error)
        assert flight.leader.done.exception() is error
        for call in flight.waiters:
            assert isinstance(call.done.exception(), LoadFailed)
            assert isinstance(call.done.exception().__cause__, ValueError)
        self.joins += len(flight.waiters)
        self.model.remove(flight)

    @rule(pick=PICKS)
    def leave(self, pick):
        if flight := self.pick(pick):
            flight.leader.verdict.set_exception(Left())
            assert isinstance(flight.leader.done.exception(), Left)
            self.succeed_to_the_lead(flight)

    @rule(pick=PICKS)
    def cancel_a_leader(self, pick):
        flight = self.pick(pick)
        if flight is None or flight.leader.kind == "thread":
            return
        leader = flight.leader
        leader.loop.cancel(leader.done)
        assert isinstance(leader.done.exception(), asyncio.CancelledError)
        if leader.kind == "sync":
            self.ghosts.append(leader)
        self.succeed_to_the_lead(flight)

    @rule(pick=PICKS)
    def cancel_a_waiter(self, pick):
        waiters = [(f, c) for f in self.model for c in f.waiters if c.kind != "thread"]
        if not waiters:
            return
        flight, call = waiters[pick % len(waiters)]
        call.loop.cancel(call.done)
        assert isinstance(call.done.exception(), asyncio.CancelledError)
        flight.waiters.remove(call)

    @rule(late=st.sampled_from(["answer", "error"]))
    def a_late_answer_is_dropped(self, late):
        if not self.ghosts:
            return
        call = self.ghosts.pop()
        assert call.load.stale
        if late == "answer":
            call.verdict.set_result("late")
        else:
            call.verdict.set_exception(ValueError("late"))

    @rule()
    def bump(self):
        self.flights.bump()
        for flight in self.model:
            flight.stale = True

    @invariant()
    def is_as_the_model_says(self):
        for flight in self.model:
            assert flight.leader.load.stale == flight.stale
            assert not flight.leader.done.done()
            assert not any(call.done.done() or call.load for call in flight.waiters)
        for key in (0, 1):
            flight = self.listed(key)
            assert self.flights.waiting(key) == (len(flight.waiters) if flight else 0)
        assert all(call.load.stale for call in self.ghosts)
        assert self.flights.joins == self.joins
        assert set(self.flights._home) == {f.key for f in self.model if not f.stale}


FlightMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class TestFlightMachine(FlightMachine.TestCase):
    def tearDown(self):
        super().tearDown()
        assert threading.active_count() < 64
