"""Refusals as HTTP answers, through real applications."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

import memweir as mw
from memweir.errors import Busy, Conflict, EvictionFailed, InUse, LeaseLost, Unverifiable
from memweir.integrations.starlette import exception_handlers
from memweir.probes import ProbeFailed

TOKEN = "hf_" + "N0tToBeSeenN0tToBeSeenN0tToBeSeen0"


def ask(failure):
    def probe(subject):
        raise failure

    return mw.ProbeCache(probe, auth=False, backoff=mw.Backoff(jitter=0)).get("model").unwrap()


CASES = [
    (lambda: mw.check_identifier(f"org/{TOKEN}"), 400, None),
    (lambda: mw.check_argv(["a\x00"]), 400, None),
    (lambda: raised(Conflict("taken", holders=["chat"])), 409, None),
    (lambda: raised(InUse("in use", holders=["chat"], retry_after=2.2)), 409, "3"),
    (lambda: raised(LeaseLost("revoked")), 409, None),
    (lambda: raised(Unverifiable("cannot tell", retry_after=5)), 503, "5"),
    (lambda: raised(EvictionFailed("it stays")), 503, None),
    (lambda: raised(Busy("no room")), 503, "1"),
    (lambda: ask(ProbeFailed("denied", status=403)), 409, None),
    (lambda: ask(ConnectionError(TOKEN)), 503, "1"),
    (lambda: ask(ProbeFailed("transient", retry_after=6.5)), 503, "7"),
]


def raised(error):
    raise error


@pytest.mark.parametrize(("act", "status", "retry_after"), CASES)
@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
def test_a_refusal_is_answered_as_what_it_is(framework, act, status, retry_after):
    if framework == "starlette":
        routes = [Route("/", lambda request: act())]
        app = Starlette(routes=routes, exception_handlers=exception_handlers)
    else:
        fastapi = pytest.importorskip("fastapi")
        app = fastapi.FastAPI(exception_handlers=exception_handlers)
        app.get("/")(act)
    answer = TestClient(app).get("/")
    assert answer.status_code == status
    assert answer.headers.get("Retry-After") == retry_after
    body = answer.json()
    assert body["detail"]
    assert TOKEN not in answer.text + str(answer.headers)
    if body["error"] in ("Conflict", "InUse"):
        assert body["holders"] == ["chat"]
