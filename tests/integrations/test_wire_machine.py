"""Requests to an engine that forgets: every one is answered after one resend at most."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from wire_kit import Engine, NaiveCaches, data_of, error, parts_of, pixels, sent_in

import memweir as mw
from memweir.integrations._vllm_images import TOKEN_BYTES
from memweir.integrations.vllm import ContentParts, Features, send

pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")

NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5)
BODY: dict[str, Any] = {"token_ids": [1]}


def rows_of(name: str) -> int:
    """From 4 to 20; an image keeps its size."""
    return 4 * (ord(name) % 5 + 1)


class Failed(Exception):
    """An answer that is none."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status_code = status
        self.body = body


class Wire(RuleBasedStateMachine):
    """Clients with ledgers of any size and an engine with a cache of any other."""

    caches: Any = NaiveCaches

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()

    def teardown(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    @initialize(capacity=st.integers(0, 3000), budgets=st.lists(st.integers(1, 6000), min_size=1))
    def begin(self, capacity: int, budgets: list[int]) -> None:
        self.engine = Engine(type(self).caches(max(capacity, 1)))
        self.ledgers = [mw.SendOnce(budget, engine="lru") for budget in budgets]

    def request(self, images: Any, ledger: mw.SendOnce) -> tuple[list[str], int]:
        """What was sent in each request that it took, and the last status."""
        before, status = len(self.engine.bodies), 0

        async def post(stream: Any, whole: bool) -> Any:
            nonlocal status
            content = b"".join(stream.pieces())
            assert len(content) == stream.length
            status, answer = self.engine.answer(content)
            if status != 200:
                raise Failed(status, answer)
            return answer

        try:
            self.loop.run_until_complete(send(post, BODY, images, ledger))
        except Failed as failed:
            status = failed.status_code
        return [sent_in(body) for body in self.engine.bodies[before:]], status

    @rule(names=NAMES, which=st.integers(0, 99))
    def turn(self, names: list[str], which: int) -> None:
        ledger = self.ledgers[which % len(self.ledgers)]
        sent, status = self.request(Features(data_of(names, rows_of)), ledger)
        assert status == 200
        assert len(sent) == 1 or (len(sent) == 2 and "-" in sent[0] and "-" not in sent[1])
        for name in set(names) & set(self.engine.caches.held()):
            assert (
                self.engine.caches.tensor(name).tobytes() == pixels(name, rows_of(name)).tobytes()
            )

    @rule(names=NAMES, which=st.integers(0, 99), status=st.sampled_from([400, 429, 500, 503]))
    def refused(self, names: list[str], which: int, status: int) -> None:
        ledger = self.ledgers[which % len(self.ledgers)]
        before = ledger.stats()
        self.engine.faults.append(error(status, "Other", "something else"))
        sent, got = self.request(Features(data_of(names, rows_of)), ledger)
        assert (len(sent), got, ledger.stats()) == (1, status, before)

    @rule(name=st.sampled_from("abcdefgh"))
    def evict(self, name: str) -> None:
        self.engine.caches.evict(name)

    @rule()
    def restart(self) -> None:
        self.engine.caches.clear()


class Sources(Wire):
    """The same by the names of sources, where an API process has a cache of its own."""

    @initialize(capacity=st.integers(1, 20), budgets=st.lists(st.integers(1, 40), min_size=1))
    def begin(self, capacity: int, budgets: list[int]) -> None:
        # A request larger than its caches fails in vLLM's API process, whoever sends it.
        self.engine = Engine(type(self).caches(TOKEN_BYTES * max(capacity, 5)))
        self.ledgers = [
            mw.SendOnce(TOKEN_BYTES * budget, engine="lru", route="content_parts")
            for budget in budgets
        ]

    @rule(names=NAMES, which=st.integers(0, 99))
    def turn(self, names: list[str], which: int) -> None:
        ledger = self.ledgers[which % len(self.ledgers)]
        sent, status = self.request(ContentParts(parts_of(names)), ledger)
        assert status == 200
        assert len(sent) == 1 or (len(sent) == 2 and "-" in sent[0] and "-" not in sent[1])

    @rule(names=NAMES, which=st.integers(0, 99), status=st.sampled_from([400, 429, 500, 503]))
    def refused(self, names: list[str], which: int, status: int) -> None:
        ledger = self.ledgers[which % len(self.ledgers)]
        before = ledger.stats()
        self.engine.faults.append(error(status, "Other", "something else"))
        sent, got = self.request(ContentParts(parts_of(names)), ledger)
        assert (len(sent), got, ledger.stats()) == (1, status, before)


OFTEN = settings(max_examples=50, stateful_step_count=20, deadline=None)
SELDOM = settings(
    OFTEN, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("machine", [Wire, Sources])
def test_with_plain_caches(machine: Any) -> None:
    run_state_machine_as_test(machine, settings=OFTEN)


@pytest.mark.parametrize("machine", [Wire, Sources])
def test_with_vllms_own_caches(vllm: Any, machine: Any) -> None:
    def caches(capacity: int) -> Any:
        return vllm.RealCaches(capacity, TOKEN_BYTES)

    real = type(machine.__name__, (machine,), {"caches": staticmethod(caches)})
    run_state_machine_as_test(real, settings=SELDOM)
