"""One probe for all who ask, whoever leaves, and none that makes others wait."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from probe_kit import TOKEN, Clock, Gated, Probe, cache

import memweir as mw
from flight_kit import Loop, until
from memweir import _flight
from memweir.probes import ProbeCache, ProbeFailed
from memweir.probes.jobs import Job


@pytest.fixture
def pool():
    with ThreadPoolExecutor(80) as pool:
        yield pool


@pytest.fixture
def loops():
    loops = [Loop() for _ in range(8)]
    yield loops
    for loop in loops:
        loop.close()


def slot(ask, subject):
    return ask._slots.table[ask._key(subject, mw.probes.keys.OMITTED, {})]


def waiting(ask, subject):
    key = ask._key(subject, mw.probes.keys.OMITTED, {})
    found = ask._slots.table.get(key)
    return 0 if found is None else ask._flights.waiting(found)


@pytest.mark.parametrize("kind", ["sync", "coroutine"])
@pytest.mark.parametrize("outcome", [True, ConnectionError(), ProbeFailed("denied")], ids=repr)
def test_threads_and_tasks_of_many_loops_share_one_probe(pool, loops, kind, outcome):
    gated = Gated()
    ask = cache(getattr(gated, kind))
    callers = [pool.submit(ask.get, "model") for _ in range(64)]
    callers += [loop.start(ask.aget("model")) for loop in loops for _ in range(8)]
    verdict = gated.up()
    until(lambda: waiting(ask, "model") == 127)
    if isinstance(outcome, Exception):
        verdict.set_exception(outcome)
    else:
        verdict.set_result(outcome)
    verdicts = [caller.result() for caller in callers]
    assert len(gated.asked) == 1
    assert all(v == verdicts[0] for v in verdicts)
    assert sorted(v.source for v in verdicts) == ["probe"] + ["shared"] * 127
    assert (ask.stats().probes, ask.stats().shared) == (1, 127)


@pytest.mark.parametrize("kind", ["sync", "coroutine"])
def test_a_loop_that_is_closed_in_flight_hands_over(pool, loops, kind, monkeypatch):
    monkeypatch.setattr(_flight, "_PATROL", 0.01)
    gated = Gated()
    ask = cache(getattr(gated, kind), max_inflight=2)
    leader = loops[0].start(ask.aget("model"))
    gated.up()
    others = [pool.submit(ask.get, "model"), loops[1].start(ask.aget("model"))]
    until(lambda: waiting(ask, "model") == 2)
    loops[0].stop()
    loops[0].loop.close()
    # A thread runs on without its loop, and is joined; a task ended with it.
    gated.up(1 if kind == "sync" else 2).set_result("answer")
    assert [other.result().value for other in others] == ["answer"] * 2
    assert len(gated.asked) == (1 if kind == "sync" else 2)
    leader.task._log_destroy_pending = False
    leader.task = None
    for task in asyncio.all_tasks(loops[0].loop):
        task._log_destroy_pending = False
        del task
    if kind == "coroutine":
        gated.verdicts.clear()  # which holds on to what the lost task waits for
    until(lambda: [gc.collect(), ask.stats().running][1] == 0)


@pytest.mark.parametrize("kind", ["sync", "coroutine"])
def test_a_cancelled_leader_hands_over(pool, loops, kind):
    gated = Gated()
    ask = cache(getattr(gated, kind))
    leader = loops[0].start(ask.aget("model"))
    gated.up()
    other = pool.submit(ask.get, "model")
    until(lambda: waiting(ask, "model") == 1)
    loops[0].cancel(leader)
    assert isinstance(leader.exception(), asyncio.CancelledError)
    gated.up(1 if kind == "sync" else 2).set_result("answer")
    assert other.result().value == "answer"
    assert len(gated.asked) == (1 if kind == "sync" else 2)


def test_a_thread_whose_caller_left_is_joined_and_its_answer_kept(loops):
    gated = Gated()
    ask = cache(gated.sync)
    for n in range(5):
        caller = loops[n].start(ask.aget("model"))
        verdict = gated.up()
        until(lambda: slot(ask, "model").job._bells)
        loops[n].cancel(caller)
        assert isinstance(caller.exception(), asyncio.CancelledError)
    verdict.set_result("answer")
    until(lambda: ask.peek("model") is not None)
    assert ask.get("model").value == "answer"
    assert len(gated.asked) == 1


def test_a_cancelled_waiter_cancels_nothing_else(loops):
    gated = Gated()
    ask = cache(gated.coroutine)
    leader = loops[0].start(ask.aget("model"))
    gated.up()
    waiter = loops[1].start(ask.aget("model"))
    until(lambda: waiting(ask, "model") == 1)
    loops[1].cancel(waiter)
    assert isinstance(waiter.exception(), asyncio.CancelledError)
    gated.verdicts[-1].set_result("answer")
    assert leader.result().value == "answer"


def test_a_bug_is_the_owners_and_the_others_are_told(pool):
    gated = Gated()
    ask = cache(gated.sync)
    callers = [pool.submit(ask.get, "model") for _ in range(8)]
    until(lambda: waiting(ask, "model") == 7)
    gated.up().set_exception(TypeError("bug"))
    errors = [caller.exception() for caller in callers]
    assert [type(error) for error in errors if error] == [TypeError]
    told = [caller.result() for caller in callers if not caller.exception()]
    assert {(v.reason.kind, v.retry_after) for v in told} == {("aborted", 0.0)}
    assert len(gated.asked) == 1


def test_a_wait_that_expires_says_nothing_about_the_subject(pool, loops):
    gated = Gated()
    ask = cache(gated.sync)
    leader = pool.submit(ask.get, "model")
    verdict = gated.up()
    for waiter in (
        ask.get("model", timeout=0.01),
        loops[0].start(ask.aget("model", timeout=0.01)).result(),
    ):
        assert (waiter.known, waiter.reason.kind) == (False, "waiting")
    verdict.set_result(False)
    assert leader.result().value is False
    assert ask.get("model").value is False


def test_different_questions_never_wait_for_each_other(pool, loops):
    gated = Gated()
    ask = cache(lambda subject: gated.sync(subject) if subject == "blocked" else subject)
    blocked = pool.submit(ask.get, "blocked")
    gated.up()
    for n in range(50):
        assert ask.get(f"model {n}").value == f"model {n}"
        assert loops[0].start(ask.aget(f"other {n}")).result().value == f"other {n}"
        assert ask.get(f"model {n}").source == "cache"
        ask.put("known", n)
        ask.invalidate("known")
    assert not blocked.done()
    gated.verdicts[0].set_result("free")
    assert blocked.result().value == "free"


def test_a_full_house_tells_at_once_and_remembers_nothing(pool):
    gated = Gated()
    ask = cache(gated.sync, max_inflight=2)
    first = [pool.submit(ask.get, f"model {n}") for n in range(2)]
    gated.up(2)
    told = ask.get("model 2")
    assert (told.reason.kind, told.retry_after) == ("busy", 1.0)
    assert ask.peek("model 2") is None
    for verdict in gated.verdicts:
        verdict.set_result("free")
    assert all(caller.result().known for caller in first)
    third = pool.submit(ask.get, "model 2")
    gated.up(3).set_result("in")
    assert third.result().value == "in"
    assert ask.stats().busy == 1


def test_a_probe_past_its_deadline_is_unknown_and_keeps_its_place(pool):
    gated, clock = Gated(), Clock()
    ask = cache(gated.sync, deadline=0.02, max_inflight=1, clock=clock)
    late = ask.get("model")
    assert late.reason == mw.Reason("timeout")
    assert late.retry_after == 1.0
    assert ask.stats().running == 1
    clock.now += 1
    assert ask.get("other").reason.kind == "busy"
    gated.verdicts[0].set_exception(ConnectionError())
    until(lambda: ask.stats().running == 0)
    assert slot(ask, "model").failures == 1  # it is not counted twice


@pytest.mark.parametrize("said", [True, ProbeFailed("absent")], ids=repr)
def test_what_a_late_probe_says_still_counts(said):
    gated = Gated()
    ask = cache(gated.sync, deadline=0.02)
    assert ask.get("model").reason.kind == "timeout"
    if said is True:
        gated.verdicts[0].set_result(True)
    else:
        gated.verdicts[0].set_exception(said)
    until(lambda: ask.stats().running == 0)
    verdict = ask.get("model")
    assert verdict.source == "cache"
    assert verdict.known is (said is True)


def test_an_older_probe_never_overwrites_a_newer_answer():
    gated, clock = Gated(), Clock()
    ask = cache(gated.sync, deadline=0.02, clock=clock)
    assert ask.get("model").reason.kind == "timeout"
    clock.now += 1
    assert ask.get("model").reason.kind == "timeout"
    gated.up(2).set_result("newer")
    until(lambda: ask.stats().running == 1)
    gated.verdicts[0].set_result("older")
    until(lambda: ask.stats().running == 0)
    assert ask.get("model").value == "newer"


def test_put_beats_a_probe_that_began_before(pool):
    gated = Gated()
    ask = cache(gated.sync)
    caller = pool.submit(ask.get, "model")
    verdict = gated.up()
    ask.put("model", "put")
    verdict.set_result("older")
    assert caller.result().value == "older"
    assert ask.get("model").value == "put"


@pytest.mark.parametrize("which", ["model", None])
def test_invalidate_beats_a_probe_under_way(pool, which):
    gated = Gated()
    ask = cache(gated.sync)
    old = pool.submit(ask.get, "model")
    gated.up()
    other = pool.submit(ask.get, "other")
    gated.up(2)
    ask.invalidate(which)
    new = pool.submit(ask.get, "model")
    gated.up(3).set_result("new")  # it did not join the old one
    assert new.result().value == "new"
    gated.verdicts[0].set_result("old")
    gated.verdicts[1].set_result("other")
    assert (old.result().value, other.result().value) == ("old", "other")
    assert ask.get("model").value == "new"
    assert (ask.peek("other") is None) is (which is None)


def test_an_async_probe_past_its_deadline_is_cancelled(loops):
    ended = threading.Event()

    async def probe(subject):
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    ask = cache(probe, deadline=0.02)
    assert loops[0].start(ask.aget("task")).result().reason.kind == "timeout"
    assert ended.wait(60)
    ended.clear()
    assert ask.get("thread").reason.kind == "timeout"
    assert ended.wait(60)
    until(lambda: ask.stats().running == 0)


def test_an_async_probe_runs_on_the_loop_of_its_caller(loops):
    async def probe(subject):
        return id(asyncio.get_running_loop())

    ask = cache(probe)
    assert loops[3].start(ask.aget("model")).result().value == id(loops[3].loop)
    assert ask.get("other").value not in {id(loop.loop) for loop in loops}


def test_a_probe_may_ask_another_question_but_not_its_own(loops):
    def probe(subject):
        return f"{subject} of {ask.get(nested[subject]).value}" if subject in nested else subject

    nested = {"a": "b", "c": "c"}
    ask = cache(probe, classify=lambda error: mw.probes.Failure("bug", type(error).__name__))
    assert ask.get("a").value == "a of b"
    with pytest.raises(RuntimeError, match="re-entered"):
        ask.get("c")
    assert loops[0].start(ask.aget("b")).result().value == "b"


def test_questions_that_ask_each_other_in_a_circle_end(pool):
    both = threading.Barrier(2, timeout=60)

    def probe(subject):
        if len(ask.asked) < 2:
            ask.asked.append(subject)
            both.wait()
            return f"{subject} of {cached.get('ba'['ab'.index(subject)]).value}"
        return subject

    ask = Probe()
    cached = cache(probe)
    answers = [pool.submit(cached.get, subject) for subject in "ab"]
    assert all(answer.result().known for answer in answers)


def test_a_probe_sees_the_context_of_its_caller(loops):
    var = contextvars.ContextVar("var", default="none")
    ask = cache(lambda subject: var.get())

    async def caller():
        var.set("task")
        return (await ask.aget("task")).value

    var.set("thread")
    assert ask.get("thread").value == "thread"
    assert loops[0].start(caller()).result() == "task"


def test_without_a_deadline_a_probe_runs_in_its_callers_thread():
    ask = cache(lambda subject: threading.get_ident(), deadline=None)
    assert ask.get("model").value == threading.get_ident()
    assert cache(lambda subject: threading.get_ident()).get("x").value != threading.get_ident()


def test_a_thread_that_cannot_be_started_frees_its_place(monkeypatch):
    ask = cache(Probe(True), max_inflight=1)

    def start(self, name, work):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Job, "start", start)
    verdict = ask.get("model")
    assert verdict.reason == mw.Reason("exhausted", "RuntimeError")
    assert ask.stats().running == 0


def test_probes_run_in_daemon_threads_whose_names_say_whose_they_are(pool):
    gated = Gated()
    ask = ProbeCache(gated.sync, name="vision")
    caller = pool.submit(ask.get, f"model {TOKEN}", token=TOKEN)
    gated.up()
    (thread,) = (t for t in threading.enumerate() if t.name.startswith("memweir-probe"))
    assert (thread.name, thread.daemon) == ("memweir-probe-vision", True)
    gated.verdicts[0].set_result(True)
    assert caller.result().known


def test_a_failed_probe_pins_no_locals(loops):
    class Weights:
        alive = 0

        def __init__(self):
            Weights.alive += 1

        def __del__(self):
            Weights.alive -= 1

    def probe(subject):
        weights = Weights()
        raise ConnectionError(id(weights))

    ask = cache(probe)
    gc.collect()
    gc.disable()
    try:
        assert not ask.get("thread").known
        assert not loops[0].start(ask.aget("task")).result().known
        loops[0].idle()
        assert Weights.alive == 0
    finally:
        gc.enable()


def test_many_threads_on_few_keys_with_eviction_agree_with_the_probe(pool):
    ask = cache(lambda subject: subject, max_entries=4)
    stop = time.monotonic() + 1.0

    def churn(seed):
        n = seed
        while time.monotonic() < stop:
            n = (n * 1103515245 + 12345) % 2**31
            subject = f"model {n % 9}"
            if n % 31 == 0:
                ask.invalidate(subject)
            elif n % 29 == 0:
                ask.put(subject, subject)
            else:
                verdict = ask.get(subject)
                assert verdict.or_(subject) == subject
        return True

    assert all(pool.map(churn, range(16)))
    assert ask.stats().entries <= 4 + 16
    assert ask.get("model 0").value == "model 0"
