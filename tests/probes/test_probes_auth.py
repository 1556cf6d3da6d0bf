"""Whose question it is: tokens, the ambient one, nobody."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from probe_kit import OTHER, TOKEN, Probe

import memweir as mw
from memweir.probes import HubAmbient, ProbeCache


def whose(subject, *, token):
    return token


def test_each_identity_gets_its_own_answer():
    probe = Probe(True)
    ask = ProbeCache(probe)
    ask.get("model", token=mw.ANONYMOUS)
    probe.answer = False
    assert ask.get("model", token=TOKEN).value is False
    assert ask.get("model", token=mw.ANONYMOUS).value is True
    assert ask.get("model", token=OTHER).source == "probe"
    assert [arguments["token"] for _, arguments in probe.asked] == [False, TOKEN, OTHER]


@pytest.mark.parametrize("blank", ["", "  ", "\n", mw.ANONYMOUS])
def test_all_ways_to_be_nobody_are_one_identity(blank):
    probe = Probe(True)
    ask = ProbeCache(probe)
    ask.get("model", token=mw.ANONYMOUS)
    assert ask.get("model", token=blank).source == "cache"
    assert ask.get("other", token=blank).known
    assert probe.asked[-1] == ("other", {"token": False})


def test_space_around_a_token_is_not_part_of_it():
    probe = Probe(True)
    ask = ProbeCache(probe)
    ask.get("model", token=f" {TOKEN}\n")
    assert ask.get("model", token=TOKEN).source == "cache"
    assert probe.asked == [("model", {"token": TOKEN})]


@pytest.mark.parametrize("method", ["get", "peek", "aget"])
def test_a_token_must_be_said(method):
    ask = ProbeCache(Probe(True))

    def call(**arguments):
        result = getattr(ask, method)("model", **arguments)
        return result.send(None) if method == "aget" else result

    with pytest.raises(TypeError, match="token= is required"):
        call()
    for wrong in (None, True, False, b"token", 7, mw.ANY):
        with pytest.raises(TypeError, match="token is a str"):
            call(token=wrong)


def test_a_default_identity_can_be_bound(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert ProbeCache(whose, auth=mw.AMBIENT).get("model").value == TOKEN
    assert ProbeCache(whose, auth=mw.ANONYMOUS).get("model").value is False
    assert ProbeCache(whose, auth=mw.ANONYMOUS).get("model", token=OTHER).value == OTHER


def test_a_question_of_nobody_takes_no_token():
    probe = Probe(True)
    ask = ProbeCache(probe, auth=False)
    ask.get("file")
    assert probe.asked == [("file", {})]
    with pytest.raises(TypeError, match="takes no token"):
        ask.get("file", token=TOKEN)


def test_a_login_after_an_answer_is_noticed(monkeypatch):
    probe = Probe(False)
    ask = ProbeCache(probe, auth=mw.AMBIENT)
    assert ask.get("model").value is False
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    probe.answer = True
    assert ask.get("model").value is True
    monkeypatch.delenv("HF_TOKEN")
    assert ask.get("model").value is False
    assert probe.count == 2


def test_the_ambient_token_and_the_same_one_said_are_one_identity(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    probe = Probe(True)
    ask = ProbeCache(probe)
    ask.get("model", token=mw.AMBIENT)
    assert ask.get("model", token=TOKEN).source == "cache"


def test_the_token_file_is_read_again_when_it_changes(monkeypatch):
    path = os.environ["HF_TOKEN_PATH"]
    ask = ProbeCache(whose, auth=mw.AMBIENT)
    assert ask.get("model").value is False
    for token in (TOKEN, OTHER):
        with open(path, "w") as file:  # noqa: PTH123
            file.write(f"{token}\n")
        os.utime(path, ns=(len(token) + ord(token[3]),) * 2)
        assert ask.get("model").value == token
        assert ask.get("model").source == "cache"
    os.unlink(path)  # noqa: PTH108
    assert ask.get("model").value is False


def test_an_unchanged_token_file_is_not_read_again(monkeypatch):
    path = os.environ["HF_TOKEN_PATH"]
    with open(path, "w") as file:  # noqa: PTH123
        file.write(TOKEN)
    ambient = HubAmbient()
    digest = ambient.digest()
    monkeypatch.setattr(HubAmbient, "__call__", lambda self: pytest.fail("it was read"))
    assert ambient.digest() == digest == mw.identifiers.digest(TOKEN)


def test_a_token_that_cannot_be_read_is_not_nobody():
    os.mkdir(os.environ["HF_TOKEN_PATH"])  # noqa: PTH102
    probe = Probe(False)
    ask = ProbeCache(probe)
    ask.get("model", token=mw.ANONYMOUS)
    assert ask.get("model", token=mw.AMBIENT).source == "probe"
    assert probe.asked[-1] == ("model", {"token": False})
    assert ask.get("model", token=mw.AMBIENT).source == "cache"
    assert ask.stats().ambient_failures >= 2
    assert ask.invalidate(token=mw.ANONYMOUS) == 1


def test_a_resolver_of_ones_own(monkeypatch):
    tokens = [TOKEN]
    ask = ProbeCache(whose, auth=mw.AMBIENT, ambient=lambda: tokens[0])
    assert ask.get("model").value == TOKEN
    tokens[0] = None
    assert ask.get("model").value is False

    def broken():
        raise KeyError("keyring")

    ask = ProbeCache(whose, auth=mw.AMBIENT, ambient=broken)
    assert ask.get("model").value is False
    assert ask.stats().ambient_failures == 2


def test_a_token_that_changes_between_look_up_and_probe_gets_its_own_entry():
    tokens = iter([TOKEN, OTHER, OTHER, TOKEN, TOKEN])
    ask = ProbeCache(whose, auth=mw.AMBIENT, ambient=lambda: next(tokens))
    assert ask.get("model").value == OTHER
    assert ask.get("model").value == OTHER
    assert ask.get("model").value == TOKEN


@pytest.mark.parametrize(
    ("environ", "token"),
    [
        ({"HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": OTHER}, TOKEN),
        ({"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": OTHER}, OTHER),
        ({"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, None),
        ({}, None),
    ],
)
def test_the_ambient_token_is_the_one_that_the_hub_would_use(monkeypatch, environ, token):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    ambient = HubAmbient()
    assert ambient() == token
    assert ambient.digest() == mw.identifiers.digest(token or "")


@pytest.mark.parametrize("given", ["HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_token_file_is_where_the_hub_looks_for_it(monkeypatch, tmp_path, given):
    for name in ("HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "HOME"))
    monkeypatch.setenv(given, str(tmp_path / given))
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "from huggingface_hub import constants as c; print(c.HF_TOKEN_PATH)",
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert HubAmbient()._path == told.stdout.strip()
