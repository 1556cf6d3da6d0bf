"""A token, given in every place that takes one, is found in none that shows one."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import pickle
import sys
import threading
import traceback
from pathlib import Path

import pytest
from probe_kit import Gated, Probe

import memweir as mw
from flight_kit import until
from memweir.probes import Failure, ProbeCache, ProbeFailed, run_probe_process

# One of a vendor's shape, and one that nothing but its being given tells from a word.
VENDOR = "hf_" + "S3cretS3cretS3cretS3cretS3cretS3cr"
PLAIN = "correct-horse-battery"


@pytest.fixture(params=[VENDOR, PLAIN], ids=["vendor", "plain"])
def token(request):
    return request.param


class Leaky(Exception):
    """An error that tells all it knows, as those of HTTP libraries do."""

    def __init__(self, token):
        super().__init__(f"GET https://user:{token}@hub/api failed, Bearer {token}")
        self.response = type("Response", (), {"status_code": 503, "headers": {"x": token}})()


def shown(thing):
    """Everything that could be printed of something."""
    texts = [repr(thing), str(thing), f"{thing}"]
    for attempt in (pickle.dumps, copy.copy):
        try:
            texts.append(repr(attempt(thing)))
        except Exception as error:
            texts.append("".join(traceback.format_exception(error)))
    return "\n".join(texts)


def everything_about(ask, verdicts):
    texts = [shown(ask), shown(ask.stats()), str(ask.stats()._asdict())]
    for verdict in verdicts:
        texts += [shown(verdict), shown(verdict.reason)]
        if not verdict.known:
            with pytest.raises(mw.UnknownVerdict) as caught:
                verdict.unwrap()
            texts.append(shown(caught.value))
    texts += [thread.name for thread in threading.enumerate()]
    return "\n".join(texts)


@pytest.mark.parametrize(
    "outcome",
    [lambda token: True, lambda token: mw.UNKNOWN, Leaky, lambda token: ProbeFailed("denied")],
    ids=["value", "unknown", "error", "denied"],
)
def test_no_trace_of_a_token_that_was_passed(token, outcome, caplog):
    def probe(subject, *, token, **dims):
        assert token
        result = outcome(token)
        if isinstance(result, Exception):
            raise result
        return result

    with caplog.at_level(logging.DEBUG):
        ask = ProbeCache(probe, environment=(mw.fingerprint(token),))
        verdicts = [ask.get("org/model", token=token) for _ in range(3)]
        verdicts += [ask.get(f"repo-of-{token}", token=token)]
        verdicts += [asyncio.run(ask.aget("org/other", token=token))]
        ask.put("org/put", True, token=token)
        ask.peek("org/put", token=token)
        ask.invalidate("org/put", token=token)
        text = everything_about(ask, verdicts)
    assert token not in text
    assert token not in caplog.text
    assert all(token not in repr(vars(record)) for record in caplog.records)
    keys = [key for key in ask._slots.table if token not in key[0]]
    assert keys
    assert token not in repr(keys)


def test_no_trace_of_the_ambient_token(token, caplog, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with caplog.at_level(logging.DEBUG):
        ask = ProbeCache(Probe(Leaky(token)), auth=mw.AMBIENT)
        verdicts = [ask.get("org/model") for _ in range(2)]
        Path(os.environ["HF_TOKEN_PATH"]).write_text(token)
        monkeypatch.delenv("HF_TOKEN")
        verdicts.append(ask.get("org/model"))
        text = everything_about(ask, verdicts)
    assert verdicts[-1].source == "backoff"  # the same identity
    for memory in (text, caplog.text, repr(ask._keys._ambient._seen), repr(ask._slots.table)):
        assert token not in memory


def test_no_trace_in_a_subject_dimension_or_name_of_a_known_shape(caplog):
    with caplog.at_level(logging.DEBUG):
        ask = ProbeCache(Probe(Leaky(VENDOR)), normalize=lambda subject: 1 / 0)
        verdict = ask.get(f"https://{VENDOR}@hub/model", token=mw.ANONYMOUS, revision=VENDOR)
        text = everything_about(ask, [verdict])
        text += repr(mw.Verdict(f"told {VENDOR}"))
        with pytest.raises(ValueError, match="token") as caught:
            ProbeCache(Probe(True), name=VENDOR)
        text += shown(caught.value)
    assert VENDOR not in text + caplog.text
    assert ask.stats().normalize_fallbacks == 1


def test_no_trace_in_the_errors_of_wrong_calls(token):
    ask = ProbeCache(Probe(True))
    calls = [
        lambda: ask.get("model", token=token.encode()),
        lambda: ask.get("model", token=[token]),
        lambda: ask.get([token], token=token),
        lambda: ask.get("model", token=token, revision=[token]),
        lambda: ask.put("model", None, token=token),
        lambda: mw.fingerprint([token]),
        lambda: run_probe_process(["child", token], secrets={"token": token}),
        lambda: mw.check_identifier(f"model/{token}\n"),
        lambda: mw.check_argv(["--token", token + "\n"]),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        told = "".join(traceback.format_exception_only(caught.value))
        chain = [caught.value.__cause__, caught.value.__context__]
        assert token not in told + repr(caught.value) + repr(chain)


def test_an_error_that_leaves_the_cache_carries_no_frame_with_a_token_in_its_text(token):
    ask = ProbeCache(Probe(Leaky(token)))
    with pytest.raises(mw.UnknownVerdict) as caught:
        ask.get("model", token=token).unwrap()
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert token not in "".join(traceback.format_exception(caught.value))


def test_waiters_of_a_bug_are_not_told_its_text(token):
    gated = Gated()
    ask = ProbeCache(gated.sync, classify=lambda error: Failure("bug", "Leaky"))
    told = []
    threads = [threading.Thread(target=lambda: told.append(attempt(ask, token))) for _ in range(3)]
    for thread in threads:
        thread.start()
    slot = lambda: next(iter(ask._slots.table.values()), None)  # noqa: E731
    until(lambda: slot() is not None and ask._flights.waiting(slot()) == 2)
    gated.up().set_exception(Leaky(token))
    for thread in threads:
        thread.join()
    verdicts = [each for each in told if isinstance(each, mw.Verdict)]
    assert len(verdicts) == 2
    assert token not in "".join(map(shown, verdicts))


def attempt(ask, token):
    try:
        return ask.get("model", token=token)
    except Leaky:
        return None


def test_a_fingerprint_tells_nothing_and_goes_nowhere(token):
    name = mw.fingerprint(token)
    assert name == mw.fingerprint(token)
    assert name != mw.fingerprint(token + "x")
    assert len(name._digest) == 32
    assert token not in shown(name)
    assert len(repr(name)) == len("AuthId(12345678)")
    with pytest.raises(TypeError, match="own process"):
        pickle.dumps(name)
    assert mw.fingerprint(None) == mw.fingerprint("") == mw.fingerprint(" \n")
    assert repr(mw.fingerprint(None)) == "AuthId(anonymous)"


def test_two_processes_name_a_token_differently():
    code = f"import memweir as mw; print(repr(mw.fingerprint({PLAIN!r})))"
    names = {run(code) for _ in range(2)} | {repr(mw.fingerprint(PLAIN))}
    assert len(names) == 3


def run(code):
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def spy(subject, token):
    """Runs in a child: what others can see of it, and that it got the token all the same."""
    everywhere = Path("/proc/self/cmdline").read_text() + Path("/proc/self/environ").read_text()
    print("noise on standard output:", token)
    print("noise on standard error:", token, file=sys.stderr)
    return {"got": mw.identifiers.digest(token) != b"", "seen": token in everywhere, "say": token}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_no_trace_in_a_childs_command_line_environment_or_output(token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("OTHER", f"x{token}y")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    outcome = run_probe_process(
        [sys.executable, "-m", "memweir.probes_child", "test_probes_secrets:spy"],
        secrets={"token": token},
        stdin_json={"subject": "model"},
        deadline=60,
    )
    assert outcome.ok, outcome
    assert outcome.value == {"got": True, "seen": False, "say": "[redacted]"}
    assert "noise on standard output: [redacted]" in outcome.stderr
    assert token not in shown(outcome) + json.dumps(outcome.value)
