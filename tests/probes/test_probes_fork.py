"""A forked child keeps what everybody may know, and nothing hangs."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from probe_kit import TOKEN, Clock, Gated, Probe, cache

import memweir as mw
from flight_kit import until
from memweir.probes import ProbeCache, ProbeFailed
from test_flight_fork import end_child, fork, passed, pytestmark  # noqa: F401


def in_child(check):
    pid = fork()
    if pid == 0:
        end_child(check)
    return passed(pid)


def test_a_child_keeps_anonymous_answers_and_drops_those_of_tokens(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    probe = Probe(True)
    ask, nobody = ProbeCache(probe), cache(probe)
    for token in (TOKEN, mw.AMBIENT, mw.ANONYMOUS):
        ask.get("model", token=token)
    nobody.get("file")
    names = mw.fingerprint(TOKEN), ask.stats().entries

    def check():
        assert mw.fingerprint(TOKEN) != names[0]
        assert ask.stats().entries == 1
        assert ask.peek("model", token=TOKEN) is None
        assert ask.get("model", token=mw.ANONYMOUS).source == "cache"
        assert nobody.get("file").source == "cache"
        assert ask.get("model", token=TOKEN).source == "probe"
        assert ask.get("model", token=mw.AMBIENT).source == "cache"
        assert asyncio.run(ask.aget("other", token=TOKEN)).known

    assert in_child(check)
    assert (mw.fingerprint(TOKEN), ask.stats().entries) == names
    assert ask.get("model", token=TOKEN).source == "cache"


def test_a_child_keeps_back_offs():
    clock, probe = Clock(), Probe(ProbeFailed("transient", retry_after=30))
    ask = cache(probe, clock=clock)
    ask.get("model")
    assert in_child(lambda: ask.get("model").source == "backoff" or pytest.fail("it asked again"))


def test_a_child_born_in_the_middle_of_probes_asks_for_itself():
    gated = Gated()
    ask = cache(gated.sync, max_inflight=2)
    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(ask.get, f"model {n % 2}") for n in range(6)]
        gated.up(2)
        until(lambda: ask.stats().shared == 0 and len(ask._slots.table) == 2)

        def check():
            assert ask.stats().running == 0
            answer = threading.Thread(target=lambda: gated.up(3).set_result("child"))
            answer.start()
            assert ask.get("model 0").value == "child"
            answer.join()

        assert in_child(check)
        for verdict in gated.verdicts:
            verdict.set_result("parent")
        assert {caller.result().value for caller in callers} == {"parent"}


def test_a_probe_that_forks():
    pids = []

    def probe(subject):
        pid = fork()
        if pid == 0:
            end_child(lambda: ask.get("other", timeout=5))
        pids.append(pid)
        return "parent"

    ask = cache(lambda subject: probe(subject) if subject == "model" else "other")
    assert ask.get("model").value == "parent"
    assert passed(pids[0])


def test_forks_in_the_middle_of_everything():
    ask, stop = ProbeCache(Probe(True), max_entries=4), threading.Event()

    def churn(seed):
        n = seed
        while not stop.is_set():
            n += 1
            ask.get(f"model {n % 7}", token=TOKEN if n % 2 else mw.ANONYMOUS)
            if n % 11 == 0:
                ask.invalidate(f"model {n % 7}")

    def check():
        for token in (TOKEN, mw.ANONYMOUS):
            for n in range(7):
                assert ask.get(f"model {n}", token=token).value is True

    with ThreadPoolExecutor(4) as pool:
        threads = [pool.submit(churn, seed) for seed in range(4)]
        try:
            assert all(in_child(check) for _ in range(15))
        finally:
            stop.set()
        for thread in threads:
            thread.result()
