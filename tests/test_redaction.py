# ruff: noqa: E501  the lines are as they are written
"""Secrets that go, and text that stays."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memweir as mw
from memweir import redaction

HF = "hf_" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7"
SECRETS = {
    "hugging face": HF,
    "hugging face, short": "hf_" + "a1" * 10,
    "organization": "api_org_" + "A" * 34,
    "github": "ghp_" + "a1B2" * 9,
    "github, fine": "github_pat_" + "a1_B2" * 10,
    "gitlab": "glpat-" + "a1B2-" * 5,
    "openai": "sk-proj-" + "a1B2_" * 8,
    "aws": "AKIA" + "A1B2" * 4,
    "google": "AIza" + "a1B2-" * 7,
    "slack": "xoxb-" + "1234-abcd" * 2,
    "pypi": "pypi-" + "AgEI" * 20,
    "jwt": "eyJ" + "a1" * 10 + ".eyJ" + "b2" * 10 + "." + "c3" * 10,
}

# Lines as servers, trainers and libraries write them.
ORDINARY = """\
INFO:     127.0.0.1:54122 - "POST /v1/chat/completions HTTP/1.1" 200 OK
2026-08-22 09:13:07,113 WARNING transformers.modeling_utils: Some weights were not used: ['lm_head.weight']
Downloading shards: 100%|██████████| 4/4 [00:12<00:00,  3.17s/it]
model_name_or_path=Qwen/Qwen2-VL-7B-Instruct revision=refs/pr/12 sha=0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c
loading file tokenizer.json from cache at /root/.cache/huggingface/hub/models--org--x_hf_convert/snapshots/abc
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 23.69 GiB
[rank0]: Traceback (most recent call last): File "/usr/lib/python3.11/runpy.py", line 198, in <module>
\x1b[32m2026-08-22\x1b[0m | \x1b[1mINFO\x1b[0m | started 4 workers
task-0123456789abcdefghijklmnop done in 0.4s; disk-0123456789-abcdefghijkl mounted
{"step": 100, "loss": 1.2345, "lr": 2e-05, "tokens_per_second": 12345.6, "token_type_ids": null}
GET https://huggingface.co/api/models/gpt2?revision=main&expand=siblings 404 in 12 ms
Bearer token required; Basic authentication is not supported. token= must not be empty
0x7f3a9c0b1d20 <Foo object>, uuid 123e4567-e89b-12d3-a456-426614174000, sha256:9f86d081884c7d659a2feaa0c55ad015
data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==
hf_hub_download(repo_id='a/b', filename='config.json'); hf_transfer is on; whf_x
ssh git@github.com:org/repo.git; user@example.com wrote; redis://localhost:6379/0; http://[::1]:8000/
skip-eyJust-a-word; mask-rcnn; risk-aware; pypi-mirror; xoxo; AKIA; AIza; sk-learn
""".splitlines()


@pytest.mark.parametrize("line", ORDINARY)
def test_ordinary_lines_come_back_byte_for_byte(line):
    assert mw.redact(line) is line or mw.redact(line) == line


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "frame", ["{}", "token {} used", "'{}'", "a={}&b=1", "org/x_{}/y", "line\n{}\nline", "{0} {0}"]
)
def test_a_token_of_a_known_shape_goes(name, frame):
    secret = SECRETS[name]
    if frame == "org/x_{}/y" and name in ("openai", "aws", "google", "jwt"):
        return  # these need something else before them, or words would be taken for them
    clean = mw.redact(frame.format(secret))
    assert secret not in clean
    assert clean == frame.format("[redacted]")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://user:pass@host/x", "https://[redacted]@host/x"),
        ("postgres://u:p%40ss@db:5432/x", "postgres://[redacted]@db:5432/x"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer [redacted]"),
        ("authorization: basic dXNlcjpwYXNzd29yZA==", "authorization: basic [redacted]"),
        ("GET /x?token=abc&y=1", "GET /x?token=[redacted]&y=1"),
        ("/x?a=1&access_token=abc#f", "/x?a=1&access_token=[redacted]#f"),
        ("https://s3/x?X-Amz-Signature=abc", "https://s3/x?X-Amz-Signature=[redacted]"),
    ],
)
def test_what_is_named_as_a_secret_goes(text, clean):
    assert mw.redact(text) == clean


def test_given_secrets_go_the_longest_first():
    assert mw.redact("abc abcdef x", secrets=["abc", "abcdef"]) == "[redacted] [redacted] x"
    assert mw.redact("a.c abc", secrets=["a.c"]) == "[redacted] abc"
    assert mw.redact("nothing", secrets=["", "  "]) == "nothing"
    assert mw.redact("x secret y", secrets=[" secret\n"]) == "x [redacted] y"


def test_terminal_escapes_hide_nothing():
    hidden = HF[:10] + "\x1b[31m" + HF[10:20] + "\x1b]8;;http://x\x07" + HF[20:]
    assert mw.redact(f"\x1b[1mtoken\x1b[0m {hidden}") == "token [redacted]"
    assert mw.redact(f"\x1b[1mtoken\x1b[0m {HF}") == "\x1b[1mtoken\x1b[0m [redacted]"
    assert mw.redact("pass\x9b1mword", secrets=["password"]) == "[redacted]"


NOISE = st.text(
    alphabet=st.sampled_from("hf_sk-AKIA eyJ.://:@?token=&[]redacted\x1b[0mBearer abc1\n"),
    max_size=80,
)
PIECES = st.lists(
    st.sampled_from([*SECRETS.values(), "[redacted]", "[reda", "cted]", "://", "u:p@", "bearer ",
                     "?token=", "\x1b[0m", "\x1b", "-", "_", "x", " ", "red", "act"]) | NOISE,
    max_size=8,
).map("".join)  # fmt: skip


@settings(deadline=None)
@given(PIECES, st.lists(st.sampled_from(["red", "[", "]", "x[red", "acted]", "abc", "a", "hf_A"])))
def test_redacting_again_changes_nothing(text, secrets):
    once = mw.redact(text, secrets=secrets)
    assert mw.redact(once, secrets=secrets) == once


@settings(deadline=None)
@given(PIECES)
def test_no_token_of_a_vendor_is_left(text):
    clean = redaction._ANSI.sub("", mw.redact(text))
    assert not re.search(r"hf_[A-Za-z0-9]{20}", clean)


@settings(deadline=None)
@given(st.text(), st.text(min_size=1).filter(str.strip), st.text())
def test_no_given_secret_is_left(before, secret, after):
    clean = mw.redact(before + secret + after, secrets=[secret])
    assert secret.strip() not in clean.replace("[redacted]", "\x00")


HOSTILE = ["hf_", "eyJ", "://", "://a:", "sk-", "-", "?token=", "bearer ", "\x1b[", "\x1b]", "AKIA",
           "eyJaaaaaaaa.", "github_pat_", "a:b@", "xoxb-", "pypi-", "[redacted", "\ud800"]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_much_of_anything_is_dealt_with(unit):
    # The hang guard is the limit: what is not linear takes hours here.
    clean = mw.redact(unit * (200_000 // len(unit)))
    assert mw.redact(clean) == clean


def test_a_megabyte_is_dealt_with():
    text = "hf_://:eyJ" * 100_000
    assert mw.redact(text) == text
    assert len(mw.loggable(text)) < 200
    # Half a token's shape a hundred thousand times is no token.
    assert mw.check_identifier(text, kind="label", max_len=10**7) == text
    with pytest.raises(mw.IdentifierError) as refused:
        mw.check_identifier(text + HF, kind="label", max_len=10**7)
    assert (refused.value.code, refused.value.offset) == ("secret", len(text))


def record(message, *args, **more):
    return logging.getLogger("test").makeRecord("test", 10, "f", 1, message, args, None, extra=more)


def test_a_record_without_a_secret_is_left_alone():
    plain = record("loaded %s in %d ms", "model", 7, path="/x", sizes=[1, 2])
    before = dict(plain.__dict__)
    assert mw.RedactingFilter().filter(plain)
    assert plain.__dict__ == before
    assert plain.args == ("model", 7)


def test_a_record_with_a_secret_tells_the_rest():
    for told in (record("token %s", HF), record(f"token {HF}"), record("token %r", Holder(HF))):
        assert mw.RedactingFilter().filter(told)
        assert "token" in told.getMessage()
        assert HF not in repr(vars(told)).replace("Holder", "")


class Holder:
    def __init__(self, secret):
        self.secret = secret

    def __repr__(self):
        return f"<{self.secret}>"


def test_extra_fields_are_searched():
    told = record("x", url=f"http://h/?a={HF}", deep={"list": [HF, 1], "tuple": (HF,)})
    mw.RedactingFilter().filter(told)
    assert told.url == "http://h/?a=[redacted]"
    assert told.deep == {"list": ["[redacted]", 1], "tuple": ("[redacted]",)}


def test_a_real_logger_shows_no_secret(caplog):
    logger, lines = logging.getLogger("memweir.test"), []
    handler = logging.StreamHandler(type("S", (), {"write": lambda _, s: lines.append(s)})())
    handler.addFilter(mw.RedactingFilter(secrets=["horse battery"]))
    logger.addHandler(handler)
    try:
        try:
            raise ValueError(f"cannot use {HF}")
        except ValueError:
            logger.exception("with %s", "horse battery", stack_info=True)
        logger.error("does not fit %d", HF)
        try:
            raise ValueError("harmless")
        except ValueError:
            logger.exception("failed")
    finally:
        logger.removeHandler(handler)
    text = "".join(lines)
    assert HF not in text
    assert "horse battery" not in text.replace('"horse battery"', "")
    assert "ValueError: cannot use [redacted]" in text
    assert "ValueError: harmless" in text
    assert "arguments do not fit" in text


def test_an_exception_without_a_secret_keeps_its_exc_info():
    try:
        raise ValueError("harmless")
    except ValueError:
        info = sys.exc_info()
    told = logging.getLogger("t").makeRecord("t", 10, "f", 1, "x", (), info)
    mw.RedactingFilter().filter(told)
    assert told.exc_info is info
    assert told.exc_text is None


def test_a_filter_of_a_logger_filters():
    told = record(HF)
    assert not mw.RedactingFilter("other").filter(told)
    assert told.msg == HF


def test_a_filter_tells_and_carries_no_secret():
    holding = mw.RedactingFilter(secrets=["horse"])
    assert "horse" not in repr(holding)
    for carry in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="secrets"):
            carry(holding)


def test_what_a_message_does_not_show_is_searched_too():
    # A formatter that writes records as JSON shows their arguments.
    args = ({"user": "x", "token": HF},)
    for told in (
        logging.makeLogRecord({"msg": "user %(user)s", "args": args[0]}),
        record("token %.3s", HF),
        record("%d things", len(HF), keys={HF: 1}, more={HF}, frozen=frozenset([HF])),
    ):
        assert mw.RedactingFilter().filter(told)
        told.getMessage()
        assert HF not in repr(vars(told))


def test_names_of_threads_and_processes_are_searched():
    told = record("x")
    told.threadName, told.processName = f"worker of {HF}", HF
    mw.RedactingFilter().filter(told)
    assert (told.threadName, told.processName) == ("worker of [redacted]", "[redacted]")


def test_a_field_that_holds_itself_or_much_is_searched():
    deep = holding = [HF]
    for _ in range(50):
        deep = [deep]
    holding.append(holding)
    told = record("x", deep=deep, harmless=[[[[[[[[[["kept"]]]]]]]]]])
    mw.RedactingFilter().filter(told)
    assert HF not in repr(vars(told))
    assert told.harmless == [[[[[[[[[["kept"]]]]]]]]]]


def test_a_message_that_cannot_be_shown_is_no_error_of_the_caller():
    class Broken:
        def __str__(self):
            raise ValueError(HF)

    told = record(Broken())
    assert mw.RedactingFilter().filter(told)
    assert told.getMessage() == "<Broken> (it cannot be shown)"


@pytest.mark.parametrize(
    "secrets", [["abc", "b"], ["b", "abc"], ["abc", "bcd", "cde"], ["aa", "a"]]
)
@settings(deadline=None)
@given(text=st.text(alphabet="abcde ", max_size=40))
def test_given_secrets_are_found_as_a_pattern_would_find_them(secrets, text):
    longest_first = sorted(secrets, key=lambda secret: (-len(secret), secret))
    pattern = re.compile("|".join(longest_first))
    assert mw.redact(text, secrets=secrets) == pattern.sub("[redacted]", text)


def test_many_given_secrets_in_much_text_are_dealt_with():
    # The hang guard is the limit, as above.
    secrets = [f"secret{n}" for n in range(20)]
    text = "secret" * 30_000 + " ".join(secrets) * 3_000
    clean = mw.redact(text, secrets=secrets)
    assert not any(secret in clean for secret in secrets)
