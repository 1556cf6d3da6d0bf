"""The real libraries of both generations against a hub on loopback that fails in every way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import MODES, serving

HERE = Path(__file__).parent
OLDER = HERE.parents[1] / ".venv-hub0" / "bin" / "python"

# Kinds by what was answered. A client that tries again may run into the probe's deadline first.
PASSING = {"transient", "timeout"}
BY_HUB = {
    "half": PASSING,
    "401": {"denied"},
    "401-repo": {"denied"},
    "403": {"denied"},
    "gated": {"denied"},
    "404-repo": {"absent"},
    "404-entry": {"absent"},
    "404-revision": {"absent"},
    "404-none": {"absent"},
    "400": PASSING,
    "429": PASSING,
    "500": PASSING,
    "503": PASSING,
    "cut": PASSING,
    "silence": {"timeout"},
    "not/a": {"invalid"},
}
# AutoConfig says of a missing config.json what it says of an unknown model, and from nothing. It is
# the one that reads the file.
BY_TRANSFORMERS = {
    **BY_HUB,
    "404-entry": PASSING,
    "torn": PASSING,
    "newer-model": {"unsupported"},
    "not/a": PASSING | {"invalid"},
}
DEADLINE = 6.0


@pytest.fixture(scope="module", params=["newer", "older"])
def python(request):
    if request.param == "newer":
        pytest.importorskip("transformers")
        return sys.executable
    if not OLDER.exists():
        pytest.skip("`make hub0` has not been run: no transformers 4.57 with huggingface_hub 0.36")
    return str(OLDER)


@pytest.fixture(scope="module", params=["hub", "transformers"])
def told(request, python, tmp_path_factory):
    """What each repository's probe came to, by the way it was asked for."""
    with serving() as (address, asked):
        env = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path_factory.mktemp("hf")),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        lines = ask(
            python, request.param, [*(f"{mode}/model" for mode in MODES), "not/a/model"], env
        )
        assert asked
    return request.param, lines


def ask(python, how, subjects, env):
    """What a child says of each subject, by the part before its last slash."""
    env = {**env, "PYTHONPATH": str(HERE.parents[1] / "python"), "DEADLINE": str(DEADLINE)}
    done = subprocess.run(
        [python, str(HERE / "hub_child.py"), how, *subjects],
        env=env,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["subject"].rpartition("/")[0]: line for line in lines}


def test_every_answer_is_one_documented_kind(told):
    how, lines = told
    expected = BY_HUB if how == "hub" else BY_TRANSFORMERS
    found = {mode: lines[mode]["kind"] for mode in expected}
    assert {mode for mode, kind in found.items() if kind not in expected[mode]} == set(), found
    if how == "hub":
        assert lines["torn"]["known"]  # who fetches a file does not read it
    assert lines["ok"]["known"]


@pytest.mark.parametrize("how", ["hub", "transformers"])
def test_a_client_that_is_offline_says_nothing_about_the_subject(python, how, tmp_path):
    with serving() as (address, asked):
        env = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
        }
        lines = ask(python, how, ["404-repo/model", "ok/model"], env)
    assert {line["kind"] for line in lines.values()} == {"transient"}
    assert asked == []


def test_what_is_final_is_known_by_its_status_through_all_wrapping(told):
    how, lines = told
    final = {"401": 401, "401-repo": 401, "403": 403, "gated": 403, "404-repo": 404,
             "404-revision": 404, "404-none": 404}  # fmt: skip
    assert {mode: lines[mode]["status"] for mode in final} == final
    assert {lines[mode]["retry_after"] for mode in final} == {None}
    if how == "transformers":
        assert {lines[mode]["error"] for mode in final} == {"OSError"}
        assert all(len(lines[mode]["chain"]) > 1 for mode in final)


def test_what_passes_can_be_asked_again(told):
    _, lines = told
    assert all(lines[mode]["retry_after"] > 0 for mode in ("half", "429", "500", "503", "silence"))
    limited = lines["429"]
    if limited["status"] == 429:  # else the client slept on it past the deadline
        assert limited["retry_after"] > 6


def test_no_answer_takes_longer_than_the_deadline_allows(told):
    # A client left to itself waits 273 s for a silent server.
    _, lines = told
    assert max(line["seconds"] for line in lines.values()) < 10 * DEADLINE
