"""What exceptions say, whichever library made them and however they were wrapped."""

from __future__ import annotations

import errno
import http.client
import json
import socket
import sys
import urllib.error
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from probe_kit import cache

import memweir as mw
from memweir.probes import ProbeFailed, classify_hub


class Response:
    def __init__(self, status, **headers):
        self.status_code = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def http_error(status, name="HfHubHTTPError", bases=(OSError,), **headers):
    error = type(name, bases, {})(f"{status} of something secret")
    error.response = Response(status, **headers)
    return error


def wrapped(error, *outer):
    """`error` re-raised by one after the other."""
    for each in outer:
        try:
            raise each from error
        except Exception as raised:
            error = raised
    return error


def while_handling(inner, outer):
    try:
        try:
            raise inner
        except Exception:
            raise outer  # noqa: B904
    except Exception as raised:
        return raised


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "denied"), (403, "denied"), (451, "denied"), (404, "absent"), (410, "absent"),
        (400, "transient"), (408, "transient"), (409, "transient"), (425, "transient"),
        (429, "transient"), (500, "transient"), (502, "transient"), (503, "transient"),
        (504, "transient"), (418, "transient"), (302, "transient"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrap", [(), (OSError("re-raised"),), (OSError(), RuntimeError())])
def test_the_status_decides_however_deep_it_is(status, kind, wrap):
    failure = classify_hub(wrapped(http_error(status), *wrap))
    assert (failure.kind, failure.status) == (kind, status)


def test_the_innermost_status_wins():
    local = type("LocalEntryNotFoundError", (FileNotFoundError,), {})()
    assert classify_hub(wrapped(http_error(404), local, OSError())).kind == "absent"
    assert classify_hub(wrapped(http_error(401), local, OSError())).kind == "denied"
    assert classify_hub(wrapped(http_error(503), local, OSError())).kind == "transient"
    assert classify_hub(local).kind == "transient"


def test_a_sign_that_it_may_pass_outweighs_a_refusal_handled_on_the_way():
    for passing in (ConnectionError(), TimeoutError(), http_error(503)):
        assert classify_hub(while_handling(http_error(404), passing)).kind == "transient"
        assert classify_hub(wrapped(passing, http_error(404))).kind == "transient"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["GatedRepoError", "RepositoryNotFoundError"], "denied"),
        (["DisabledRepoError"], "denied"),
        (["RepositoryNotFoundError"], "absent"),
        (["RevisionNotFoundError"], "absent"),
        (["RemoteEntryNotFoundError", "EntryNotFoundError"], "absent"),
        (["LocalEntryNotFoundError", "EntryNotFoundError"], "transient"),
        (["OfflineModeIsEnabled"], "transient"),
        (["HFValidationError"], "invalid"),
        (["BadRequestError"], "transient"),
    ],
)
def test_a_class_speaks_where_there_is_no_status(names, kind):
    base = ConnectionError if names[0].startswith("Offline") else ValueError
    for name in reversed(names):
        base = type(name, (base,), {})
    assert classify_hub(wrapped(base(), OSError("re-raised"))).kind == kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError(), "transient"),
        (TimeoutError(), "transient"),
        (socket.gaierror(), "transient"),
        (http.client.IncompleteRead(b""), "transient"),
        (json.JSONDecodeError("torn", "{", 1), "transient"),
        (ValueError("anything"), "transient"),
        (OSError("Unable to load"), "transient"),
        (RuntimeError(), "transient"),
        (ImportError(), "transient"),
        (ValueError("`x` but Transformers does not recognize this architecture."), "unsupported"),
        (RuntimeError("does not recognize this architecture"), "transient"),
        (FileNotFoundError(errno.ENOENT, "no"), "absent"),
        (PermissionError(errno.EACCES, "no"), "denied"),
        (urllib.error.HTTPError("http://x", 404, "no", {}, None), "absent"),
        (MemoryError(), "exhausted"),
        (OSError(errno.ENOSPC, "full"), "exhausted"),
        (OSError(errno.EMFILE, "many"), "exhausted"),
        (type("OutOfMemoryError", (RuntimeError,), {})(), "exhausted"),
        (mw.errors.IdentifierError("no", code="dash", offset=0, kind="repo"), "invalid"),
        (ProbeFailed("denied"), "denied"),
        (ProbeFailed("anything else"), "transient"),
        (mw.UnknownVerdict("no", kind="absent"), "absent"),
        (mw.UnknownVerdict("no", kind="waiting", retry_after=0.0), "transient"),
    ],
)
def test_what_an_error_by_itself_says(error, kind):
    assert classify_hub(error).kind == kind


@pytest.mark.parametrize("error", [TypeError, AttributeError, AssertionError, NameError])
def test_bugs_are_bugs_only_where_they_surface(error):
    assert classify_hub(error()).kind == "bug"
    assert classify_hub(while_handling(http_error(404), error())).kind == "bug"
    assert classify_hub(wrapped(error(), OSError())).kind == "transient"


def test_exhaustion_outweighs_everything():
    assert classify_hub(wrapped(OSError(errno.ENOSPC, "full"), http_error(404))).kind == "exhausted"


def test_a_cache_miss_handled_on_the_way_is_no_absence():
    assert classify_hub(while_handling(FileNotFoundError(), RuntimeError())).kind == "transient"
    assert classify_hub(while_handling(PermissionError(), OSError())).kind == "transient"
    assert classify_hub(wrapped(FileNotFoundError(), OSError())).kind == "absent"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "7"}, 7),
        ({"Retry_After": " 7.5 "}, 7.5),
        ({"Retry_After": "-3"}, 0),
        ({"Retry_After": "soon"}, None),
        ({"Retry_After": "inf"}, None),
        ({"Retry_After": "nan"}, None),
        ({"Retry_After": "99999999999"}, 99999999999),
        ({"retry_after": "7"}, 7),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=3;t=55'}, None),
        ({"RateLimit": "nonsense"}, None),
        ({}, None),
    ],
)
def test_when_a_server_wants_to_be_asked_again(headers, seconds):
    error = wrapped(http_error(429, **headers), OSError())
    assert classify_hub(error).retry_after == seconds


def test_a_date_to_be_asked_again_at():
    import datetime

    now = datetime.datetime.now(datetime.UTC)
    later = format_datetime(now + datetime.timedelta(seconds=90), usegmt=True)
    assert 80 < classify_hub(http_error(429, Retry_After=later)).retry_after <= 90
    earlier = format_datetime(now - datetime.timedelta(seconds=90), usegmt=True)
    assert classify_hub(http_error(429, Retry_After=earlier)).retry_after == 0


def test_cycles_and_long_chains_end():
    first, second = OSError("a"), OSError("b")
    first.__cause__, second.__cause__ = second, first
    assert classify_hub(first).kind == "transient"
    deep = http_error(404)
    for _ in range(10_000):
        outer = OSError()
        outer.__cause__ = deep
        deep = outer
    assert classify_hub(deep).kind == "transient"  # too deep to be sure


def test_a_group_says_what_its_members_say():
    group = ExceptionGroup("tasks", [http_error(404), ValueError()])
    assert classify_hub(group).kind == "absent"
    assert classify_hub(ExceptionGroup("tasks", [group, TimeoutError()])).kind == "transient"


def test_no_http_library_is_imported():
    import subprocess

    code = (
        "import sys, memweir.probes\n"
        "memweir.probes.classify_hub(OSError())\n"
        "libraries = {'requests', 'httpx', 'httpx2', 'aiohttp', 'urllib3', 'huggingface_hub'}\n"
        "print(*libraries & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@settings(deadline=None)
@given(st.recursive(
    st.sampled_from([OSError, ValueError, TypeError, KeyError, lambda: http_error(404),
                     lambda: http_error(429), ConnectionError, MemoryError]),
    lambda inner: st.tuples(st.sampled_from(["cause", "context"]), inner, inner),
    max_leaves=12,
))  # fmt: skip
def test_any_tree_of_errors_has_one_documented_kind(tree):
    def build(node):
        if not isinstance(node, tuple):
            return node()
        how, outer, inner = node
        error = build(outer)
        setattr(error, f"__{how}__", build(inner))
        return error

    failure = classify_hub(build(tree))
    assert failure.kind in {"transient", "exhausted", "denied", "absent", "bug"}
    assert "secret" not in repr(failure)


def test_a_question_within_a_question_passes_on_what_is_not_known():
    inner = cache(lambda subject: (_ for _ in ()).throw(ProbeFailed("denied")))
    outer = cache(lambda subject: inner.get(subject).value)
    assert outer.get("model").reason.kind == "denied"
