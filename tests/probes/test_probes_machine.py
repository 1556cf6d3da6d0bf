"""Any interleaving of callers, answers, failures, departures and changes, against a naive model.

The actors are real threads and tasks. Each runs until it asks or waits, hypothesis picks who takes
the next step, and the clock is set by hand.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from probe_kit import OTHER, TOKEN, Clock, Gated

from flight_kit import Loop, until
from memweir.probes import TTL, UNKNOWN, Backoff, ProbeCache, ProbeFailed

SUBJECTS = ["a", "b"]
TOKENS = [TOKEN, OTHER]
KINDS = ["thread", "task"]
PICKS = st.integers(0, 59)
LIMITS = TTL(known=50.0, denied=20.0)
WAITS = Backoff(4.0, 16.0, jitter=0.0)
ANSWERS = {
    "yes": True,
    "no": False,
    "undecided": UNKNOWN,
    "transient": ConnectionError(),
    "limited": ProbeFailed("transient", retry_after=30.0),
    "denied": ProbeFailed("denied"),
    "bug": TypeError("bug"),
}


class Entry:
    """The model of what is kept for a question."""

    def __init__(self):
        self.said = None  # what is remembered, until when
        self.until = 0.0
        self.order = 0
        self.failure = None
        self.failed = 0
        self.not_before = 0.0
        self.locked = 0.0
        self.failures = 0


class Flight:
    """The model of a probe that runs, and of those who wait for it."""

    def __init__(self, entry, slot, verdict, order):
        self.entry = entry
        self.slot = slot
        self.verdict = verdict
        self.order = order
        self.callers = []
        self.leader = None  # one of the callers, where it is certain which
        self.anew = 0  # the last answer that some caller does not want


class CacheMachine(RuleBasedStateMachine):
    asynchronous = False

    def __init__(self):
        super().__init__()
        self.clock, self.gated = Clock(), Gated()
        self.cache = ProbeCache(
            self.gated.coroutine if self.asynchronous else self.gated.sync,
            ttl=LIMITS,
            backoff=WAITS,
            deadline=3600,
            clock=self.clock,
        )
        self.loops = [Loop(), Loop()]
        self.pool = ThreadPoolExecutor(64)
        self.entries = {}
        self.flights = []
        self.orders = 0

    def teardown(self):
        for flight in self.flights.copy():
            if flight.callers:
                self.land(flight, "yes")
            else:
                flight.verdict.set_result(True)
                self.flights.remove(flight)
        until(lambda: self.cache.stats().running == 0)
        for loop in self.loops:
            loop.stop()
            loop.loop.close()
        self.pool.shutdown()

    def order(self):
        self.orders += 1
        return self.orders

    def call(self, key, kind, loop, **options):
        subject, token = key
        if kind == "thread":
            return self.pool.submit(self.cache.get, subject, token=token, **options)
        return self.loops[loop].start(self.cache.aget(subject, token=token, **options))

    def flight_of(self, entry):
        return next((f for f in self.flights if f.entry is entry), None)

    def slot(self, key):
        return self.cache._slots.table[self.cache._key(*key, {})]

    def settled(self, entry, refresh=False):
        now = self.clock.now
        fresh = entry.said is not None and now < entry.until
        if fresh and not refresh:
            return entry.said, "cache"
        if entry.failure is not None and now < entry.not_before and not refresh:
            return entry.failure, "backoff"
        if now < entry.locked and entry.failure is not None:
            return (entry.said, "cache") if fresh else (entry.failure, "backoff")
        return None

    def ask(self, key, kind, loop, refresh=False):
        entry = self.entries.setdefault(key, Entry())
        flight, known = self.flight_of(entry), self.settled(entry, refresh)
        if known is not None:
            verdict = self.call(key, kind, loop, refresh=refresh).result()
            assert (self.said(verdict), verdict.source) == known
            return
        runs = len(self.gated.asked)
        caller = (kind, loop, self.call(key, kind, loop, refresh=refresh))
        if flight is None:
            verdict = self.gated.up(runs + 1)
            flight = Flight(entry, self.slot(key), verdict, self.order())
            self.flights.append(flight)
            flight.leader = caller
        elif not flight.callers:  # they have left, and the probe runs on
            self.until_led(flight)
            flight.leader = caller
        else:
            n = len(flight.callers)
            until(lambda: self.cache._flights.waiting(flight.slot) == n)
        flight.callers.append(caller)
        if refresh:
            flight.anew = entry.order
        assert len(self.gated.asked) == self.gated.verdicts.index(flight.verdict) + 1 or (
            len(self.gated.asked) == runs
        )

    def until_led(self, flight):
        until(lambda: flight.slot.job is not None and flight.slot.job._bells)

    @staticmethod
    def said(verdict):
        return verdict.value if verdict.known else verdict.reason.kind

    def land(self, flight, answer):
        self.flights.remove(flight)
        outcome = ANSWERS[answer]
        if isinstance(outcome, Exception):
            flight.verdict.set_exception(outcome)
        else:
            flight.verdict.set_result(outcome)
        self.keep(flight, answer)
        futures = [future for _, _, future in flight.callers]
        if answer == "bug":  # the owner's alone
            errors = [f.exception() for f in futures]
            assert [type(error) for error in errors if error] == [TypeError]
            told = [f.result().reason.kind for f in futures if not f.exception()]
            assert told == ["aborted"] * (len(futures) - 1)
            return
        verdicts = [f.result() for f in futures]
        said = {"yes": True, "no": False, "limited": "transient"}.get(answer, answer)
        assert [self.said(verdict) for verdict in verdicts] == [said] * len(futures)
        assert all(verdict == verdicts[0] for verdict in verdicts)
        sources = sorted(verdict.source for verdict in verdicts)
        assert sources == ["probe"] + ["shared"] * (len(futures) - 1)
        until(lambda: self.cache.stats().running == len(self.flights))

    def keep(self, flight, answer):
        entry, now = flight.entry, self.clock.now
        if answer == "bug":
            return
        if answer in ("yes", "no", "denied"):
            if flight.order > entry.order:
                entry.order = flight.order
                entry.said = {"yes": True, "no": False}.get(answer, answer)
                entry.until = now + (LIMITS.denied if answer == "denied" else LIMITS.known)
            self.recover(entry)
        elif flight.order > entry.order:
            entry.failures += 1
            delay = min(WAITS.first * 2 ** (entry.failures - 1), WAITS.most)
            if answer == "limited":
                delay = max(delay, 30.0)
                entry.locked = max(entry.locked, now + delay)
            entry.failure = "undecided" if answer == "undecided" else "transient"
            entry.not_before = now + delay

    def recover(self, entry):
        entry.failures = 0
        if self.clock.now >= entry.locked:
            entry.failure = None

    @rule(
        subject=st.sampled_from(SUBJECTS),
        token=st.sampled_from(TOKENS),
        kind=st.sampled_from(KINDS),
        loop=st.integers(0, 1),
        n=st.integers(1, 3),
    )
    def callers(self, subject, token, kind, loop, n):
        for _ in range(n):
            self.ask((subject, token), kind, loop)

    @rule(subject=st.sampled_from(SUBJECTS), kind=st.sampled_from(KINDS), loop=st.integers(0, 1))
    def a_caller_who_wants_it_anew(self, subject, kind, loop):
        self.ask((subject, TOKEN), kind, loop, refresh=True)

    @rule(subject=st.sampled_from(SUBJECTS), kind=st.sampled_from(KINDS), loop=st.integers(0, 1))
    def a_caller_without_patience(self, subject, kind, loop):
        key = (subject, TOKEN)
        entry = self.entries.get(key)
        flight = entry and self.flight_of(entry)
        if flight and flight.callers and self.settled(entry) is None:
            verdict = self.call(key, kind, loop, timeout=0).result()
            assert verdict.reason.kind == "waiting"

    @rule(pick=PICKS, answer=st.sampled_from(sorted(ANSWERS)))
    def answer(self, pick, answer):
        waited_for = [flight for flight in self.flights if flight.callers]
        if waited_for:
            self.land(waited_for[pick % len(waited_for)], answer)

    @rule(pick=PICKS)
    def a_leading_task_is_cancelled(self, pick):
        led = [f for f in self.flights if f.leader and f.leader[0] == "task"]
        if not led:
            return
        flight = led[pick % len(led)]
        if flight.order < flight.entry.order <= flight.anew:
            return  # put since, and asked for anew since that: it depends on who takes over
        runs = len(self.gated.asked)
        _, loop, future = flight.leader
        self.loops[loop].cancel(future)
        assert isinstance(future.exception(), asyncio.CancelledError)
        flight.callers.remove(flight.leader)
        flight.leader = None
        known = self.settled(flight.entry)
        if known and flight.order < flight.entry.order:  # put since: who takes over finds that
            for _, _, each in flight.callers:
                assert (self.said(each.result()), each.result().source) == known
            flight.callers.clear()
        if not self.asynchronous:  # the thread runs on, whoever leads
            if flight.callers:
                self.until_led(flight)
            else:
                self.let_go_of_lost(flight)
            assert len(self.gated.asked) == runs
        elif flight.callers:
            flight.verdict = self.gated.up(runs + 1)
            flight.order = self.order()
        else:
            self.flights.remove(flight)
        until(lambda: self.cache.stats().running == len(self.flights))

    def let_go_of_lost(self, flight):
        """Ends a probe that nobody waits for and nobody can ask for any more."""
        if not flight.callers and flight.entry not in self.entries.values():
            self.flights.remove(flight)
            flight.verdict.set_result(True)

    @rule(seconds=st.sampled_from([1.0, 5.0, 17.0, 31.0, 60.0]))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule(subject=st.sampled_from(SUBJECTS), token=st.sampled_from(TOKENS), value=st.booleans())
    def put(self, subject, token, value):
        entry = self.entries.setdefault((subject, token), Entry())
        assert self.cache.put(subject, value, token=token).value is value
        entry.said, entry.until = value, self.clock.now + LIMITS.known
        entry.order = self.order()
        self.recover(entry)

    @rule(subject=st.sampled_from([*SUBJECTS, None]))
    def invalidate(self, subject):
        dropped = [key for key in self.entries if subject in (None, key[0])]
        assert self.cache.invalidate(subject) == len(dropped)
        for key in dropped:
            flight = self.flight_of(self.entries.pop(key))
            if flight is not None:
                self.let_go_of_lost(flight)
        until(lambda: self.cache.stats().running == len(self.flights))

    @invariant()
    def is_as_the_model_says(self):
        assert self.cache.stats().entries == len(self.entries)
        for (subject, token), entry in self.entries.items():
            verdict, known = self.cache.peek(subject, token=token), self.settled(entry)
            said = None if verdict is None else (self.said(verdict), verdict.source)
            assert said == known
        for flight in self.flights:
            assert not any(future.done() for _, _, future in flight.callers)


class AsyncCacheMachine(CacheMachine):
    asynchronous = True


@pytest.mark.parametrize("machine", [CacheMachine, AsyncCacheMachine])
def test_the_cache_does_as_the_model_says(machine):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    assert threading.active_count() < 64
