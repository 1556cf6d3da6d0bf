"""Pools in real applications: they end with it, say when it can serve, and refuse in HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import memweir as mw
from flight_kit import until
from memweir.errors import BudgetExceeded, Busy, LoadFailed
from memweir.integrations.starlette import exception_handlers, lifespan, readiness


class Encoder:
    def __init__(self) -> None:
        self.weight = np.ones(1000, np.uint8)

    def __call__(self, text: str) -> int:
        return len(text) * int(self.weight[0])


def pool_of(**loads: Callable[[], Any]) -> mw.ModelPool:
    pool = mw.ModelPool("1 GiB", name="models")
    for key, load in loads.items():
        pool.add(key, load)
    return pool


def application(pool: mw.ModelPool, **more: Any) -> Starlette:
    async def encode(request):
        text = request.query_params["text"]
        async with pool.alease("encoder") as encoder:
            return JSONResponse(encoder(text))

    async def in_a_thread(request):
        text = request.query_params["text"]
        return JSONResponse(await pool.run("encoder", Encoder.__call__, text))

    routes = [
        Route("/encode", encode),
        Route("/thread", in_a_thread),
        Route("/ready", readiness(pool, require=more.pop("require", ()))),
    ]
    given = {"lifespan": lifespan(pool), "exception_handlers": exception_handlers, **more}
    return Starlette(routes=routes, **given)


def test_a_pool_ends_with_its_application():
    pool = pool_of(encoder=Encoder)
    with TestClient(application(pool)) as client:
        assert client.get("/encode?text=abc").json() == 3
        assert client.get("/thread?text=abcd").json() == 4
        told = client.get("/ready")
        assert told.status_code == 200
        (shown,) = told.json()["pools"].values()
        assert shown["ram"]["limit"] == 1 << 30
        assert shown["ram"]["held"] == shown["models"]["encoder"]["bytes"]["host"] == 1000
        assert shown["models"]["encoder"] | {"bytes": 0} == {
            "state": "loaded",
            "device": None,
            "bytes": 0,
            "leases": 0,
            "loads": 1,
        }
    assert pool.closed
    assert pool.status().ram.held == 0


def test_the_applications_own_lifespan_begins_within_the_pools_and_ends_within():
    pool, seen = pool_of(encoder=Encoder), []

    @asynccontextmanager
    async def own(app):
        async with pool.alease("encoder") as encoder:
            seen.append(encoder("begin"))
        yield {"greeting": "hello"}
        async with pool.alease("encoder") as encoder:
            seen.append(encoder("end"))

    async def greet(request):
        return JSONResponse(request.state.greeting)

    app = Starlette(routes=[Route("/", greet)], lifespan=lifespan(pool, around=own))
    with TestClient(app) as client:
        assert client.get("/").json() == "hello"
        assert not pool.closed
    assert seen == [5, 3]
    assert pool.closed


@pytest.mark.parametrize("when", ["begins", "ends"])
def test_a_pool_ends_though_the_application_fails(when):
    pool = pool_of(encoder=Encoder)

    @asynccontextmanager
    async def own(app):
        if when == "begins":
            raise OSError("no database")
        yield
        raise OSError("no database")

    app = application(pool, lifespan=lifespan(pool, around=own))
    with pytest.raises(OSError, match="no database"), TestClient(app):
        pass
    assert pool.closed


def test_pools_go_around_each_other_and_around_handlers_of_events():
    one, other, seen = pool_of(encoder=Encoder), pool_of(), []

    @asynccontextmanager
    async def default(app):
        seen.append("begin")
        yield
        seen.append((one.closed, other.closed))

    app = Starlette()
    app.router.lifespan_context = default
    around = lifespan(other, around=app.router.lifespan_context)
    app.router.lifespan_context = lifespan(one, around=around)
    with TestClient(app):
        assert seen == ["begin"]
    assert seen == ["begin", (False, False)]
    assert one.closed
    assert other.closed


def test_a_lease_that_outlives_the_application_is_not_freed():
    pool = pool_of(encoder=Encoder)
    held = pool.lease("encoder")
    model = held.__enter__()
    with TestClient(application(pool, lifespan=lifespan(pool, deadline=0))):
        pass
    assert pool.closed
    assert model("abc") == 3
    assert pool.status().models["encoder"].leases == 1
    del model
    held.__exit__(None, None, None)


def test_it_is_ready_when_what_it_requires_was_loaded_and_stays_so():
    let = threading.Event()

    def slow():
        let.wait(60)
        return Encoder()

    pool = pool_of(encoder=slow)
    app = application(pool, lifespan=lifespan(pool, preload=["encoder"]), require=["encoder"])
    with TestClient(app) as client:
        told = client.get("/ready")
        assert (told.status_code, told.json()["missing"]) == (503, ["encoder"])
        let.set()
        until(lambda: client.get("/ready").status_code == 200)
        until(lambda: not pool.status().models["encoder"].leases)
        assert pool.unload("encoder")
        told = client.get("/ready")
        assert told.status_code == 200
        assert told.json()["pools"]["models"]["models"]["encoder"]["state"] == "absent"
        pool.close()
        assert client.get("/ready").status_code == 503


def test_a_preload_that_fails_is_tried_again(monkeypatch):
    monkeypatch.setattr("memweir.integrations.starlette.AGAIN", 0.01)
    tried = []

    def flaky():
        tried.append(1)
        if len(tried) == 1:
            raise OSError("https://user:secret" + "word@host/")
        return Encoder()

    pool = pool_of(encoder=flaky)
    app = application(
        pool, lifespan=lifespan(pool, preload=["unknown", "encoder"]), require=["encoder"]
    )
    with TestClient(app) as client:
        until(lambda: client.get("/ready").status_code == 200)
        assert "secretword" not in client.get("/ready").text
    assert len(tried) == 2


def test_the_end_of_the_application_does_not_wait_for_a_preload_to_begin_again():
    def broken():
        raise OSError("never")

    pool = pool_of(encoder=broken)
    app = application(pool, lifespan=lifespan(pool, preload=["encoder"]), require=["encoder"])
    with TestClient(app) as client:
        until(lambda: pool.status().models["encoder"].failures > 0)
        told = client.get("/ready")
        assert told.status_code == 503
        assert "never" not in told.text


# What is refused.


def refusing(error):
    async def refuse(request):
        raise error

    app = Starlette(routes=[Route("/", refuse)], exception_handlers=exception_handlers)
    return TestClient(app, raise_server_exceptions=False).get("/")


def later(error, seconds):
    error.retry_after = seconds
    return error


SITE = "held by /srv/app.py:12"


@pytest.mark.parametrize(
    ("error", "status", "again"),
    [
        (Busy("not ready in time"), 503, "1"),
        (later(Busy("not ready in time"), 2.5), 503, "3"),
        (BudgetExceeded(SITE), 503, None),
        (LoadFailed(SITE), 500, None),
        (later(LoadFailed(SITE), 7.1), 503, "8"),
    ],
)
def test_what_a_pool_refuses_is_answered_without_what_is_not_the_clients(error, status, again):
    told = refusing(error)
    assert (told.status_code, told.headers.get("Retry-After")) == (status, again)
    assert told.json()["error"] == type(error).__name__
    assert SITE not in told.text


def test_a_model_that_is_not_there_in_time_is_503_with_retry_after():
    let = threading.Event()

    def slow():
        let.wait(60)
        return Encoder()

    pool = pool_of(encoder=slow)

    async def encode(request):
        async with pool.alease("encoder", timeout=0) as encoder:
            return JSONResponse(encoder("abc"))

    with ThreadPoolExecutor(1) as others:
        first = others.submit(pool.preload, "encoder")
        until(lambda: pool.status().models["encoder"].state == "loading")
        app = application(pool)
        app.router.routes.append(Route("/now", encode))
        with TestClient(app) as client:
            told = client.get("/now")
            assert (told.status_code, told.headers["Retry-After"]) == (503, "1")
            let.set()
            first.result()
            assert client.get("/now").json() == 3


# The recipes of docs/models.md.


def test_the_recipe_for_fastapi():
    fastapi = pytest.importorskip("fastapi")
    loads = []

    def load():
        loads.append(1)
        return Encoder()

    pool = mw.ModelPool("2 GiB", idle=mw.Idle(unload=600))
    pool.add("encoder", load)
    app = fastapi.FastAPI(
        lifespan=lifespan(pool, preload=["encoder"]), exception_handlers=exception_handlers
    )
    app.add_route("/ready", readiness(pool, require=["encoder"]))

    @app.get("/encode")
    async def encode(text: str) -> int:
        return await pool.run("encoder", lambda encoder: encoder(text))

    @app.get("/plain")
    def plain(text: str) -> int:  # in FastAPI's own threads
        with pool.lease("encoder", timeout=5) as encoder:
            return encoder(text)

    with TestClient(app) as client, ThreadPoolExecutor(8) as users:
        ways = ["/encode?text=abc", "/plain?text=abc"] * 16
        assert [told.json() for told in users.map(client.get, ways)] == [3] * 32
        until(lambda: client.get("/ready").status_code == 200)
    assert loads == [1]
    assert pool.closed


def test_the_recipe_for_threads():
    loads = []

    def load():
        loads.append(1)
        return Encoder()

    with mw.ModelPool("2 GiB") as pool, ThreadPoolExecutor(8) as workers:

        def work(text):
            key = mw.model_key("encoder", dtype="float32")
            with pool.lease(key, load=load) as encoder:
                return encoder(text)

        assert list(workers.map(work, ["abc"] * 50)) == [3] * 50
        assert loads == [1]
        report = pool.unload(prefix="encoder:")
        assert report.released[0].verdict == "dead"
    assert asyncio.run(pool.aclose()).finished
