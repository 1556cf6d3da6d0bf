"""Probes that misbehave, callers that leave at the worst moment, servers that send nonsense."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import re
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from probe_kit import Clock, Gated, Probe, cache

import memweir as mw
from flight_kit import until
from memweir.probes import Backoff, ProbeCache, ProbeFailed, classify_hub
from memweir.probes.jobs import Outcome, OwnersAlone

PLAIN = "correct-horse-battery"


def test_arguments_that_an_async_probe_does_not_take_cost_no_place():
    async def probe(subject):
        return True

    ask = cache(probe, max_inflight=2)

    async def calls():
        for n in range(1, 4):
            with pytest.raises(TypeError, match="revision"):
                await ask.aget("model", revision="main")
            assert (ask.stats().running, ask.stats().bugs) == (0, n)
        return await ask.aget("model")

    assert asyncio.run(calls()).value is True
    assert all(slot.job is None for slot in ask._slots.table.values())


@pytest.mark.parametrize("leaves", ["deadline", "cancelled"])
def test_the_text_of_an_error_after_the_end_of_an_async_probe_is_not_logged(caplog, leaves):
    ended = []

    async def probe(subject):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise ConnectionError(f"closed by Bearer {PLAIN}") from None
        finally:
            ended.append(subject)

    ask = cache(probe, deadline=0.02 if leaves == "deadline" else 3600)

    async def call():
        caller = asyncio.ensure_future(ask.aget("model"))
        if leaves == "deadline":
            assert (await caller).reason.kind == "timeout"
        else:
            while ask.stats().running == 0:
                await asyncio.sleep(0)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
        while ask.stats().running:
            await asyncio.sleep(0)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(call())
        gc.collect()  # when asyncio says that nobody looked at an error
    assert ended == ["model"]
    assert PLAIN not in caplog.text


def test_a_probe_that_cancels_itself_cancels_nobody_else():
    async def probe(subject):
        raise asyncio.CancelledError

    ask = cache(probe)

    async def callers():
        return await asyncio.gather(*(ask.aget("model") for _ in range(8)))

    verdicts = asyncio.run(callers())
    assert {v.reason for v in verdicts} == {mw.Reason("transient", "CancelledError")}
    assert ask.get("other").reason == mw.Reason("transient", "CancelledError")
    assert ask.stats().probes == 2


def test_an_async_probe_without_a_deadline_can_be_asked_from_a_thread_that_runs_a_loop():
    async def probe(subject):
        return threading.get_ident()

    ask = cache(probe, deadline=None)

    async def call():
        return ask.get("model")

    assert asyncio.run(call()).value != threading.get_ident()


def test_an_entry_whose_probe_runs_in_its_callers_thread_is_not_evicted():
    gated = Gated()
    ask = cache(gated.sync, deadline=None, max_entries=2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask.get, "model")
        gated.up()
        for n in range(9):
            ask.put(f"other {n}", n)
        second = pool.submit(ask.get, "model")
        (slot,) = (s for key, s in ask._slots.table.items() if key[0] == "model")
        until(lambda: ask._flights.waiting(slot) == 1)
        gated.verdicts[0].set_result("answer")
        assert (first.result().value, second.result().value) == ("answer", "answer")
    assert len(gated.asked) == 1
    assert ask.get("model").source == "cache"


@pytest.mark.parametrize("kind", ["sync", "coroutine"])
def test_what_is_not_remembered_is_shared_by_those_who_ask_at_the_same_time(kind):
    def unreadable(subject):
        raise PermissionError

    gated = Gated()
    ask = cache(getattr(gated, kind), identify=unreadable)
    with ThreadPoolExecutor(9) as pool:
        for n in (1, 2):
            callers = [pool.submit(ask.get, "file") for _ in range(8)]
            callers.append(pool.submit(lambda: asyncio.run(ask.aget("file"))))
            until(lambda: ask._passing and ask._flights.waiting(*ask._passing.values()) == 8)
            gated.up(n).set_result(n)
            assert [caller.result().value for caller in callers] == [n] * 9
            assert len(gated.asked) == n
    ask.put("other", 1)
    assert ask._passing == {}
    assert (ask.peek("file"), ask.stats().entries) == (None, 0)


def test_no_number_of_older_answers_outweighs_the_newest():
    gated = Gated()
    ask = cache(gated.sync, deadline=0.01, backoff=Backoff(0.0))
    for _ in range(20):
        assert ask.get("model").reason.kind == "timeout"
    ask.put("model", "newest")
    for n, verdict in enumerate(gated.verdicts):
        verdict.set_result(f"older {n}")
        until(lambda n=n: ask.stats().running == 19 - n)
    assert ask.get("model").value == "newest"


def test_a_refresh_that_cannot_start_leaves_the_stale_answer_and_is_tried_again(monkeypatch):
    clock, probe = Clock(), Probe("old")
    ask = cache(probe, clock=clock, ttl=5.0)
    ask.get("model")
    clock.now += 5
    probe.answer = "new"

    def start(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert ask.get("model", stale_ok=True).value == "old"
    assert ask.get("model", stale_ok=True).value == "old"
    until(lambda: ask.peek("model") is not None)
    assert ask.get("model").value == "new"


def test_a_refresh_whose_loop_is_gone_is_taken_over():
    clock, probe = Clock(), Gated()
    ask = cache(probe.coroutine, clock=clock, ttl=5.0)
    ask.put("model", "old")
    clock.now += 5
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(ask.aget("model", stale_ok=True)).value == "old"
    lost = next(iter(ask._tasks))
    assert loop.run_until_complete(ask.aget("model", stale_ok=True)).source == "stale"
    assert ask._tasks == {lost}  # the loop runs, so that one may still end
    assert ask.get("model", stale_ok=True).source == "stale"
    until(lambda: len(probe.asked) == 2)
    probe.verdicts[1].set_result("new")
    until(lambda: ask.peek("model") is not None)
    assert ask.get("model").value == "new"
    until(lambda: not ask._refreshing)
    lost.cancel()
    loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop), return_exceptions=True))
    loop.close()


@pytest.mark.parametrize("how", ["thread", "task"])
def test_a_bug_in_a_refresh_is_nobodys_and_says_no_more_than_its_class(how, caplog):
    clock, probe = Clock(), Probe(True)
    ask = ProbeCache(probe, clock=clock, ttl=5.0)
    ask.get("model", token=PLAIN)
    clock.now += 5
    probe.answer = TypeError(f"unexpected {PLAIN}")

    async def call():
        verdict = await ask.aget("model", token=PLAIN, stale_ok=True)
        while ask._refreshing:
            await asyncio.sleep(0.001)
        return verdict

    with caplog.at_level(logging.DEBUG):
        if how == "task":
            stale = asyncio.run(call())
        else:
            stale = ask.get("model", token=PLAIN, stale_ok=True)
            until(lambda: not ask._refreshing)
        gc.collect()
    assert (stale.value, stale.source, ask.stats().bugs) == (True, "stale", 1)
    assert "a refresh ended with TypeError" in caplog.text
    assert PLAIN not in caplog.text


@pytest.mark.parametrize("how", ["thread", "task"])
def test_a_refresh_sees_the_context_of_who_asked_and_may_begin_within_a_probe(how):
    var = contextvars.ContextVar("var", default="none")
    clock = Clock()
    ask = cache(lambda subject: var.get(), clock=clock, ttl=5.0)
    ask.get("model")
    clock.now += 5

    def outer(subject):
        # A stale answer of the very question that is being asked anew.
        return ask.get("model", stale_ok=True).value

    async def call():
        var.set("caller")
        stale = await ask.aget("model", stale_ok=True)
        while ask._refreshing:
            await asyncio.sleep(0.001)
        return stale

    if how == "task":
        assert asyncio.run(call()).source == "stale"
    else:
        var.set("caller")
        assert cache(outer).get("any").value == "none"
        until(lambda: not ask._refreshing)
    assert ask.get("model").value == "caller"


def test_a_stale_answer_is_served_to_tasks_while_one_refresh_runs():
    clock, gated = Clock(), Gated()
    ask = cache(gated.coroutine, clock=clock, ttl=5.0)
    ask.put("model", "old")
    clock.now += 5

    async def calls():
        for _ in range(10):
            verdict = await ask.aget("model", stale_ok=True)
            assert (verdict.value, verdict.source, verdict.age) == ("old", "stale", 5)
            await asyncio.sleep(0)
        assert len(gated.asked) == 1
        gated.verdicts[0].set_result("new")
        return await ask.aget("model")

    assert asyncio.run(calls()).value == "new"
    assert ask.stats().probes == 1


@pytest.mark.parametrize("endless", [float("inf"), float("nan"), 0.0])
def test_a_deadline_that_is_no_time_is_refused(endless):
    with pytest.raises(ValueError, match="deadline"):
        cache(Probe(True), deadline=endless)


def test_a_deadline_longer_than_a_thread_can_wait_is_waited_for():
    gated = Gated()
    ask = cache(gated.sync, deadline=1e12)
    with ThreadPoolExecutor(1) as pool:
        caller = pool.submit(ask.get, "model")
        verdict = gated.up()
        until(lambda: next(iter(ask._slots.table.values())).job._bells or caller.done())
        verdict.set_result(True)
        assert caller.result().value is True


def test_an_error_is_raised_to_one_owner_and_told_to_another():
    outcome = Outcome(error=KeyError("bug"))
    with pytest.raises(KeyError):
        outcome.get()
    for _ in range(2):
        with pytest.raises(OwnersAlone):
            outcome.get()


def test_a_filter_of_the_log_that_fails_costs_neither_the_verdict_nor_the_back_off():
    def broken(record):
        raise ZeroDivisionError

    logger, probe = logging.getLogger("memweir.probes"), Probe(ConnectionError())
    ask = cache(probe)
    level = logger.level
    logger.addFilter(broken)
    logger.setLevel(logging.DEBUG)
    try:
        assert [ask.get("model").source for _ in range(3)] == ["probe", "backoff", "backoff"]
    finally:
        logger.removeFilter(broken)
        logger.setLevel(level)
    assert probe.count == 1


@pytest.mark.parametrize(
    "header",
    [
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 0001 00:00:00 -0000",
        "Mon, 31 Dec 9999 23:59:59 -9999",
        "99 99 99 99:99:99",
        "9" * 5000,
        "-" * 5000,
        "\x00",
        ":",
        object(),
    ],
    ids=lambda header: str(header)[:20],
)
def test_nonsense_about_when_to_come_back_is_no_error(header):
    error = OSError()
    error.response = type("R", (), {"status_code": 429, "headers": {"Retry-After": header}})()
    verdict = cache(Probe(error)).get("model")
    assert (verdict.reason.kind, verdict.reason.status) == ("transient", 429)
    assert 0 < verdict.retry_after <= 3600


def test_an_error_whose_attributes_and_text_cannot_be_read_is_transient():
    class Broken(Exception):
        @property
        def response(self):
            raise RuntimeError("not set")

    class NoText:
        def __str__(self):
            raise RuntimeError

    class Headers:
        def get(self, name):
            raise LookupError

    holder = OSError()
    holder.response = type("R", (), {"status_code": 503, "headers": Headers()})()
    for error in (Broken(), ValueError(NoText()), holder):
        assert cache(Probe(error)).get("model").reason.kind == "transient"


def test_a_group_of_nothing_but_bugs_is_a_bug():
    bugs = ExceptionGroup("tasks", [TypeError(), ExceptionGroup("more", [AssertionError()])])
    assert classify_hub(bugs).kind == "bug"
    assert classify_hub(ExceptionGroup("tasks", [bugs, ConnectionError()])).kind == "transient"


@pytest.mark.parametrize("kind", ["transient", "denied"])
def test_what_a_probe_says_of_its_failure_is_shown_without_its_token(kind, caplog):
    with caplog.at_level(logging.DEBUG):
        probe = Probe(ProbeFailed(kind, error=f"{PLAIN} refused\nINFO all is well" + "x" * 999))
        verdict = ProbeCache(probe).get("model", token=PLAIN)
    told = f"{verdict!r} {verdict.reason} {caplog.text}"
    assert PLAIN not in told
    assert "refused" in verdict.reason.error
    assert "\n" not in verdict.reason.error
    assert len(verdict.reason.error) < 200


def test_a_subject_that_cannot_be_normalised_is_logged_without_the_token_in_it(caplog):
    ask = ProbeCache(Probe(True), normalize=lambda subject: 1 / 0)
    with caplog.at_level(logging.DEBUG):
        ask.get(f"repo-of-{PLAIN}", token=PLAIN)
        ask.invalidate(f"repo-of-{PLAIN}", token=PLAIN)
    assert caplog.text.count("repo-of-[redacted]: not normalised") >= 2
    assert PLAIN not in caplog.text


@pytest.mark.parametrize("how", ["thread", "own thread", "task"])
def test_no_frame_of_ours_under_a_bug_shows_the_token(how):
    async def coroutine(subject, *, token):
        raise TypeError("bug")

    def sync(subject, *, token):
        raise TypeError("bug")

    probe = coroutine if how == "task" else sync
    ask = ProbeCache(probe, deadline=None if how == "own thread" else 60)
    try:
        if how == "task":
            asyncio.run(ask.aget("model", token=PLAIN))
        else:
            ask.get("model", token=PLAIN)
    except TypeError as error:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame for frame in told.stack if "/memweir/" in frame.filename]
    assert len(ours) > 3
    for frame in ours:
        assert PLAIN not in repr(frame.locals), frame


def found_in(containers, text):
    """Objects that refer to a string which holds `text`."""
    return [
        container
        for container in containers
        if any(isinstance(item, str) and text in item for item in gc.get_referents(container))
    ]


@pytest.mark.parametrize(
    "outcome",
    [
        True,
        mw.UNKNOWN,
        ConnectionError(),
        ProbeFailed("denied"),
        ProbeFailed("transient", error="x"),
    ],
    ids=repr,
)
def test_no_token_is_kept_once_the_call_has_returned(outcome, caplog):
    secret = "".join(["nobody", "else", "has", "this"])
    gc.collect()
    before = {id(each) for each in gc.get_objects()}

    def probe(subject, *, token):
        return Probe(outcome)(subject)

    ask = ProbeCache(probe)

    async def call():
        return await ask.aget("task", token=secret)

    with caplog.at_level(logging.DEBUG):
        ask.get("model", token=secret)
        ask.get(f"repo of {secret}"[:7], token=f" {secret}\n")
        asyncio.run(call())
        ask.put("other", True, token=secret)
        mw.fingerprint(secret)
        mw.redact(f"x {secret}", secrets=[secret])
    gc.collect()
    until(lambda: not any(t.name.startswith("memweir") for t in threading.enumerate()))
    mine = {id(sys._getframe()), id(call.__closure__)}
    found = found_in([re._cache, *(e for e in gc.get_objects() if id(e) not in before)], secret)
    kept = [
        each
        for each in found
        if id(each) not in mine and type(each).__name__ not in ("frame", "cell")
    ]
    assert [type(each) for each in kept] == []
    assert not any(secret in repr(key) for key in re._cache)
