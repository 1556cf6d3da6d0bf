"""What is asked, what is remembered, for how long, and what is never taken for an answer."""

from __future__ import annotations

import copy
import logging
import pickle
import threading

import pytest
from probe_kit import OTHER, TOKEN, Clock, Probe, cache

import memweir as mw
from memweir.probes import TTL, UNKNOWN, Backoff, ProbeCache, ProbeFailed


def test_an_answer_is_asked_for_once():
    probe = Probe(True)
    ask = cache(probe)
    first, second = ask.get("model"), ask.get("model")
    assert (first.value, first.source, second.value, second.source) == (
        True,
        "probe",
        True,
        "cache",
    )
    assert first == second
    assert probe.asked == [("model", {})]


@pytest.mark.parametrize("answer", [False, 0, "", (), [], 0.0])
def test_an_answer_that_is_false_is_an_answer(answer):
    probe = Probe(answer)
    ask = cache(probe)
    assert [ask.get("model").value for _ in range(3)] == [answer] * 3
    assert probe.count == 1


def test_no_verdict_has_a_truth_value():
    for answer in (True, False, UNKNOWN):
        with pytest.raises(TypeError, match="no truth value"):
            bool(cache(Probe(answer)).get("model"))
    with pytest.raises(TypeError):
        bool(UNKNOWN)


def test_what_is_not_known_must_be_said_for():
    verdict = cache(Probe(ConnectionError())).get("model")
    assert not verdict.known
    assert verdict.or_("whatever") == "whatever"
    assert verdict.reason == mw.Reason("transient", "ConnectionError")
    for ask in (lambda: verdict.value, verdict.unwrap):
        with pytest.raises(mw.UnknownVerdict, match=r"transient \(ConnectionError\)") as caught:
            ask()
        assert (caught.value.kind, caught.value.http_status) == ("transient", 503)
        assert caught.value.retry_after == 1.0
    known = cache(Probe(7)).get("model")
    assert (known.value, known.unwrap(), known.or_(8), known.retry_after) == (7, 7, 7, None)


def test_a_verdict_is_immutable_and_travels():
    clock = Clock()
    verdict = cache(Probe("yes"), clock=clock).get("model")
    with pytest.raises(AttributeError):
        verdict.reason = None
    with pytest.raises(AttributeError):
        del verdict.source
    clock.now += 7
    assert verdict.age == 7
    again = pickle.loads(pickle.dumps(verdict))
    assert again == verdict
    assert 7 <= again.age < 60
    unknown = cache(Probe(ConnectionError())).get("model")
    assert 0 < pickle.loads(pickle.dumps(unknown)).retry_after <= 1
    assert verdict != unknown
    assert len({verdict, again, unknown}) == 2


def test_a_fake_none_is_a_bug_of_the_probe():
    ask = cache(Probe(None))
    with pytest.raises(TypeError, match=r"mw\.UNKNOWN"):
        ask.get("model")
    assert ask.peek("model") is None


def test_an_awaitable_is_a_bug_of_the_probe():
    async def later():
        return True

    with pytest.raises(TypeError, match="awaitable"), pytest.warns(RuntimeWarning):
        cache(lambda subject: later()).get("model")


@pytest.mark.parametrize(
    "failure",
    [
        *(ConnectionError(), TimeoutError(), OSError("torn"), ValueError(), RuntimeError()),
        *(MemoryError(), KeyError("x"), UNKNOWN, ProbeFailed("transient"), ProbeFailed("nonsense")),
    ],
    ids=repr,
)
def test_a_failure_is_asked_again_after_its_back_off_and_never_a_value(failure):
    clock, probe = Clock(), Probe(failure)
    ask = cache(probe, clock=clock)
    first = ask.get("model")
    assert (first.known, first.source, first.retry_after) == (False, "probe", 1.0)
    clock.now += 0.9
    again = ask.get("model")
    assert (again.source, again.reason, probe.count) == ("backoff", first.reason, 1)
    assert again.retry_after == pytest.approx(0.1)
    clock.now += 0.1
    probe.answer = True
    assert ask.get("model").value is True
    assert probe.count == 2


def test_fifty_failing_calls_are_one_probe_for_each_window():
    clock, probe = Clock(), Probe(ConnectionError())
    ask = cache(probe, clock=clock, backoff=Backoff(1.0, 60.0, jitter=0.0))
    asked = []
    for _ in range(6):
        window = ask.get("model").retry_after
        for _ in range(49):
            clock.now += window / 50
            assert ask.get("model").source == "backoff"
        asked.append((window, probe.count))
        clock.now += window / 50 + 1e-6
    assert asked == [(1, 1), (2, 2), (4, 3), (8, 4), (16, 5), (32, 6)]
    assert ask.get("model").retry_after == 60
    assert ask.stats().backoff == 6 * 49


def test_jitter_spreads_and_never_undercuts_retry_after():
    backoff = Backoff(10.0, 60.0, jitter=0.2)
    waits = {backoff.delay(1, None) for _ in range(200)}
    assert len(waits) > 100
    assert min(waits) >= 8
    assert max(waits) <= 12
    assert min(backoff.delay(1, 11.0) for _ in range(200)) >= 11
    assert backoff.delay(1, 1e9) == backoff.longest
    assert backoff.delay(10_000, None) <= 72


def test_a_success_starts_the_back_off_afresh():
    clock, probe = Clock(), Probe(ConnectionError())
    ask = cache(probe, clock=clock, ttl=5.0)
    for wait in (1, 2, 4):
        assert ask.get("model").retry_after == wait
        clock.now += wait
    probe.answer = True
    assert ask.get("model").known
    clock.now += 5
    probe.answer = ConnectionError()
    assert ask.get("model").retry_after == 1


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [("denied", 300), ("absent", 300), ("invalid", None), ("unsupported", None)],
)
def test_what_cannot_be_known_is_remembered_and_not_asked_again(kind, seconds):
    clock, probe = Clock(), Probe(ProbeFailed(kind, error="Gone", status=404))
    ask = cache(probe, clock=clock)
    first = ask.get("model")
    assert first.reason == mw.Reason(kind, "Gone", 404)
    assert first.reason.permanent
    assert first.retry_after is None
    clock.now += 299
    assert [ask.get("model").source for _ in range(5)] == ["cache"] * 5
    clock.now += 1 if seconds else 1e9
    ask.get("model")
    assert probe.count == (2 if seconds else 1)
    with pytest.raises(mw.UnknownVerdict, match="remembered") as caught:
        first.unwrap()
    assert caught.value.http_status == 409


def test_each_outcome_has_a_life_of_its_own():
    clock, probe = Clock(), Probe(True)
    ask = cache(probe, clock=clock, ttl=TTL(known=10, denied=20, unsupported=0))
    ask.get("yes")
    probe.answer = ProbeFailed("denied")
    ask.get("denied")
    probe.answer = ProbeFailed("unsupported")
    ask.get("unsupported")
    assert ask.peek("unsupported") is None
    clock.now += 10
    assert ask.peek("yes") is None
    assert ask.peek("denied") is not None
    clock.now += 10
    assert ask.peek("denied") is None


@pytest.mark.parametrize("error", [TypeError, AttributeError, AssertionError, NameError])
def test_a_bug_is_raised_and_never_stored(error):
    probe = Probe(error("bug"))
    ask = cache(probe)
    for n in (1, 2):
        with pytest.raises(error):
            ask.get("model")
        assert (probe.count, ask.stats().bugs, ask.stats().unknown) == (n, n, 0)
    assert ask.peek("model") is None
    assert ask.stats().running == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("deadline", [10, None])
def test_what_ends_the_program_is_raised_and_frees_the_place(error, deadline):
    probe = Probe(error())
    ask = cache(probe, deadline=deadline, max_inflight=1)
    for n in (1, 2):
        with pytest.raises(error):
            ask.get("model")
        assert (probe.count, ask.stats().running) == (n, 0)


def test_a_bug_of_the_classifier_is_raised():
    def classify(error):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache(Probe(OSError()), classify=classify).get("model")


def test_unknown_never_overwrites_known():
    clock, probe = Clock(), Probe(True)
    ask = cache(probe, clock=clock)
    ask.get("model")
    probe.answer = ConnectionError()
    assert not ask.get("model", refresh=True).known
    assert ask.get("model").value is True
    assert ask.stats().hits == 1


def test_refresh_asks_again_but_not_while_a_server_wants_to_be_left_alone():
    clock, probe = Clock(), Probe(True)
    ask = cache(probe, clock=clock)
    ask.get("model")
    probe.answer = False
    assert ask.get("model", refresh=True).value is False
    probe.answer = ConnectionError()
    assert ask.get("other").source == "probe"
    assert ask.get("other", refresh=True).source == "probe"
    probe.answer = ProbeFailed("transient", status=429, retry_after=30.0)
    assert ask.get("other", refresh=True).retry_after == 30
    count = probe.count
    clock.now += 29
    assert ask.get("other", refresh=True).source == "backoff"
    assert probe.count == count
    clock.now += 1
    assert ask.get("other", refresh=True).source == "probe"


def test_a_stale_answer_is_served_while_one_refresh_runs():
    clock, gate, began = Clock(), threading.Event(), threading.Event()
    answers = iter(["old", "new"])

    def probe(subject):
        answer = next(answers)
        if answer == "new":
            began.set()
            gate.wait()
        return answer

    ask = cache(probe, clock=clock, ttl=5.0)
    assert ask.get("model", stale_ok=True).value == "old"
    clock.now += 5
    for _ in range(10):
        verdict = ask.get("model", stale_ok=True)
        assert (verdict.value, verdict.source, verdict.age) == ("old", "stale", 5)
    assert began.wait(60)
    assert ask.stats().probes == 2
    gate.set()
    fresh = ask.get("model")
    assert fresh.value == "new"


def test_without_stale_ok_an_expired_answer_is_not_served():
    clock, probe = Clock(), Probe(True)
    ask = cache(probe, clock=clock, ttl=5.0)
    ask.get("model")
    clock.now += 5
    probe.answer = ConnectionError()
    assert not ask.get("model").known
    kept = ask.get("model", stale_ok=True)
    assert (kept.value, kept.source) == (True, "backoff")
    assert probe.count == 2


def test_peek_never_asks_and_counts_nothing():
    probe = Probe(True)
    ask = cache(probe)
    assert ask.peek("model") is None
    ask.get("model")
    before = ask.stats()
    assert ask.peek("model").value is True
    assert (probe.count, ask.stats()) == (1, before)


def test_put_is_an_answer():
    probe = Probe(True)
    ask = cache(probe)
    ask.put("model", False, revision="main")
    assert ask.get("model", revision="main").value is False
    assert ask.get("model").value is True
    for nothing in (None, UNKNOWN):
        with pytest.raises(TypeError):
            ask.put("model", nothing)


def test_invalidate_forgets_a_subject_with_all_its_dimensions():
    probe = Probe(True)
    ask = cache(probe)
    for subject in ("a", "b"):
        for revision in ("main", "dev"):
            ask.get(subject, revision=revision)
    assert ask.invalidate("a") == 2
    assert ask.invalidate("a") == 0
    assert ask.peek("a", revision="main") is None
    assert ask.peek("b", revision="main") is not None
    assert ask.invalidate() == 2
    assert ask.stats().entries == 0


def test_invalidate_forgets_one_identity_or_all():
    probe = Probe(True)
    ask = ProbeCache(probe)
    for token in (TOKEN, OTHER, mw.ANONYMOUS):
        ask.get("model", token=token)
    assert ask.invalidate("model", token=OTHER) == 1
    assert ask.peek("model", token=OTHER) is None
    assert ask.invalidate(token=mw.ANONYMOUS) == 1
    assert ask.invalidate("model", token=mw.ANY) == 1


def test_invalidate_forgets_a_back_off():
    probe = Probe(ProbeFailed("transient", retry_after=600))
    ask = cache(probe)
    ask.get("model")
    ask.invalidate("model")
    probe.answer = True
    assert ask.get("model").value is True


def test_least_lately_asked_for_go_first_and_the_bound_holds():
    probe = Probe(True)
    ask = cache(probe, max_entries=8)
    for n in range(8):
        ask.get(f"model {n}")
    for n in range(8, 200):
        ask.get("model 0")
        ask.get(f"model {n}")
        assert ask.stats().entries <= 8
    assert ask.get("model 0").source == "cache"
    assert ask.stats().evicted == 192
    assert len(ask._slots._ring) <= 2 * 8 + 64


def test_forgetting_and_asking_again_keeps_the_ring_bounded():
    ask = cache(Probe(True), max_entries=4)
    for n in range(1000):
        ask.get(f"model {n % 3}")
        ask.invalidate(f"model {n % 3}")
    assert len(ask._slots._ring) <= 2 * 4 + 64


def test_every_unknown_leaves_a_record_and_a_count(caplog):
    probe = Probe(ConnectionError())
    ask = cache(probe, name="vision")
    with caplog.at_level(logging.DEBUG, "memweir"):
        ask.get("org/model")
        probe.answer = ProbeFailed("denied", status=403)
        ask.get("org/other")
        probe.answer = UNKNOWN
        ask.get("org/third")
    assert [record.levelname for record in caplog.records] == ["DEBUG"] * 3
    text = caplog.text
    assert "vision: org/model: unknown" in text
    assert "vision: org/other: not to be known" in text
    assert "undecided" in text
    assert ask.stats().unknown == 3


def test_wrong_arguments_are_refused():
    for bad in (None, 7, b"model"):
        with pytest.raises(TypeError):
            cache(Probe(True)).get(bad)
    with pytest.raises(TypeError):
        ProbeCache("probe")
    for wrong in (
        {"deadline": 0}, {"deadline": -1}, {"max_entries": 0}, {"max_inflight": 0},
        {"auth": "optional"}, {"name": "a\nb"}, {"name": TOKEN}, {"ttl": -1},
        {"ttl": float("nan")},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=" "):
            ProbeCache(Probe(True), **wrong)
    with pytest.raises(ValueError, match="factor"):
        Backoff(factor=0.5)
    with pytest.raises(ValueError, match="timeout"):
        ProbeCache(lambda subject, *, token, timeout: True)


def test_a_cache_cannot_be_pickled_or_copied():
    ask = cache(Probe(True))
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            attempt(ask)
