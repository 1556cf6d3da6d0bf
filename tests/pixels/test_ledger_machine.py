"""The ledger beside a cache written down plainly: for one client the two are the same."""

from __future__ import annotations

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import memweir as mw
from ledger_kit import NaiveLru

NAMES = st.sampled_from("abcdefghij")
REQUESTS = st.lists(NAMES, min_size=1, max_size=5)


def size_of(name: str) -> int:
    """From 1 to 5; an image keeps its size."""
    return ord(name) % 5 + 1


class Mirror(RuleBasedStateMachine):
    """One client whose budget is the engine's: what it claims is what the engine holds."""

    @initialize(capacity=st.integers(1, 12))
    def begin(self, capacity: int) -> None:
        self.engine = NaiveLru(capacity)
        self.ledger = mw.SendOnce(capacity, engine="lru")
        self.missed = False

    @rule(names=REQUESTS, whole=st.booleans())
    def request(self, names: list[str], whole: bool) -> None:
        items = [(name, size_of(name)) for name in names]
        plan = self.ledger.plan(items, whole=whole)
        sent = [(*item, send) for item, send in zip(items, plan.send, strict=True)]
        lost = self.engine.serve(sent)
        if lost:
            # Only a request that is larger than the engine can push out what it refers to.
            assert sum(size_of(name) for name in set(names)) > self.engine.capacity
            self.missed = True
            self.ledger.miss(plan)
            plan = self.ledger.plan(items, whole=True)
            assert self.engine.serve([(*item, True) for item in items]) == []
        self.ledger.confirm(plan)

    @rule(names=REQUESTS)
    def lost_on_the_way(self, names: list[str]) -> None:
        self.ledger.plan([(name, size_of(name)) for name in names])

    @rule()
    def restart(self) -> None:
        self.engine.held.clear()
        self.ledger.reset()

    @invariant()
    def the_ledger_claims_what_is_there_in_the_order_of_use(self) -> None:
        if not hasattr(self, "ledger"):
            return
        claims = self.ledger._states[os.getpid()].claims if self.ledger._states else {}
        names = self.engine.names
        assert list(claims) == names[len(names) - len(claims) :]
        assert self.missed or len(claims) == len(names)
        assert self.ledger.stats().bytes == sum(map(size_of, claims))


class Drift(RuleBasedStateMachine):
    """Several clients, budgets of any size, evictions and restarts that nobody announces."""

    @initialize(capacity=st.integers(1, 12), budgets=st.lists(st.integers(1, 30), min_size=1))
    def begin(self, capacity: int, budgets: list[int]) -> None:
        self.engine = NaiveLru(capacity)
        self.ledgers = [mw.SendOnce(budget, engine="lru") for budget in budgets]

    @rule(names=REQUESTS, which=st.integers(0, 99))
    def request(self, names: list[str], which: int) -> None:
        ledger = self.ledgers[which % len(self.ledgers)]
        items = [(name, size_of(name)) for name in names]
        plan = ledger.plan(items)
        sent = [(*item, send) for item, send in zip(items, plan.send, strict=True)]
        if self.engine.serve(sent):
            assert plan.references
            ledger.miss(plan)
            assert not any(name in ledger for name in plan.references)
            plan = ledger.plan(items, whole=True)
            assert self.engine.serve([(*item, True) for item in items]) == []
        ledger.confirm(plan)

    @rule(name=NAMES)
    def evict(self, name: str) -> None:
        self.engine.drop(name)

    @rule()
    def restart(self) -> None:
        self.engine.held.clear()

    @invariant()
    def bytes_stay_within_the_budget(self) -> None:
        for ledger in self.ledgers if hasattr(self, "ledgers") else []:
            stats = ledger.stats()
            assert stats.bytes <= stats.budget


TestMirror = Mirror.TestCase
TestMirror.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestDrift = Drift.TestCase
TestDrift.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_after_a_restart_two_misses_are_all_that_ten_rollouts_see() -> None:
    engine, ledger = NaiveLru(1000), mw.SendOnce(1000, engine="lru")

    def turn(names: list[str]) -> int:
        items = [(name, 1) for name in names]
        plan = ledger.plan(items)
        lost = engine.serve([(*item, send) for item, send in zip(items, plan.send, strict=True)])
        if lost:
            ledger.miss(plan)
            plan = ledger.plan(items, whole=True)
            assert engine.serve([(*item, True) for item in items]) == []
        ledger.confirm(plan)
        return bool(lost)

    rollouts = [[f"{rollout} {step}" for step in range(8)] for rollout in range(10)]
    assert sum(turn(names[:step]) for step in range(1, 7) for names in rollouts) == 0
    engine.held.clear()
    assert sum(turn(names) for names in rollouts) == 2
    assert sum(turn(names) for names in rollouts) == 0
