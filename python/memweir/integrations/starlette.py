"""memweir in Starlette and FastAPI: refusals as HTTP answers, pools that live as the application.

::

    pool = mw.ModelPool("8 GiB")
    app = FastAPI(lifespan=lifespan(pool, around=mine), exception_handlers=exception_handlers)
    app.add_route("/ready", readiness(pool))

An endpoint is then ``async with pool.alease(key) as model``, or ``await pool.run(key, fn, ...)``.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, nullcontext, suppress
from math import ceil
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from memweir.errors import (
    BudgetExceeded,
    Busy,
    IdentifierError,
    LoadFailed,
    MemweirError,
    Refused,
    UnknownVerdict,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from starlette.requests import Request

    from memweir.models.pool import ModelPool
    from memweir.models.status import ModelStatus

    Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]

__all__ = ["answer", "exception_handlers", "lifespan", "readiness"]

AGAIN = 1.0
"""Seconds after which to ask again where no error says."""


async def answer(request: Request, error: Exception) -> JSONResponse:
    """400 for a bad name, 409 for what waiting does not change, 503 for what it may.

    The body is ``{"error": class name, "detail": text}`` with the error's own public facts. With
    ``retry_after`` there is a ``Retry-After`` header, in whole seconds; a ``Busy`` that does not
    say has one of a second. Nothing of the request is in it, nor who holds what a budget lacks,
    nor what a loader said.
    """
    assert isinstance(error, MemweirError)
    status, again, detail = error.http_status, error.retry_after, str(error)
    if isinstance(error, Busy) and again is None:
        again = AGAIN
    elif isinstance(error, LoadFailed):
        detail = "a model that this needs could not be loaded"
        status = status if again is None else 503
    elif isinstance(error, BudgetExceeded):
        detail, status = "there is no room for a model that this needs", 503
    body: dict[str, Any] = {"error": type(error).__name__, "detail": detail}
    if isinstance(error, IdentifierError):
        body |= {"code": error.code, "kind": error.kind, "offset": error.offset}
    elif isinstance(error, UnknownVerdict):
        body |= {"kind": error.kind}
    elif isinstance(error, Refused):
        body |= {"holders": list(error.holders), "retryable": error.retryable}
    headers = {}
    if again is not None:
        headers["Retry-After"] = str(ceil(again))
        body["retry_after"] = again
    return JSONResponse(body, status_code=status, headers=headers)


exception_handlers: dict[Any, Any] = {
    BudgetExceeded: answer,
    Busy: answer,
    IdentifierError: answer,
    LoadFailed: answer,
    Refused: answer,
    UnknownVerdict: answer,
}
"""For ``exception_handlers=`` of an application."""


def lifespan(
    pool: ModelPool,
    *,
    around: Lifespan | None = None,
    preload: Sequence[str] = (),
    deadline: float | None = 10.0,
) -> Lifespan:
    """A lifespan that closes the pool when the application ends, after ``around`` has ended.

    ``around`` is the application's own, with its state; it may lend models while it begins and
    while it ends. Of several pools each goes around the next: ``lifespan(a, around=lifespan(b))``.
    An application that has no ``lifespan=`` but handlers of events keeps them with
    ``app.router.lifespan_context = lifespan(pool, around=app.router.lifespan_context)``.

    Keys in ``preload`` are loaded while the application serves already, again and again until
    they are there: :func:`readiness` says when. ``deadline`` is what the pool's leases have, in
    seconds, to end.
    """

    @asynccontextmanager
    async def span(app: Any) -> AsyncIterator[Any]:
        try:
            async with nullcontext() if around is None else around(app) as state:
                loading = asyncio.create_task(_preload(pool, preload)) if preload else None
                try:
                    yield state
                finally:
                    if loading is not None:
                        loading.cancel()
                        with suppress(asyncio.CancelledError):
                            await loading
        finally:
            await pool.aclose(deadline)

    return span


async def _preload(pool: ModelPool, keys: Sequence[str]) -> None:
    for key in keys:
        while not pool.closed:
            try:
                await pool.apreload(key)
                break
            except Exception:
                # The pool has told of it, and knows how long it will not try again.
                model = pool.status().models.get(key)
                if model is None:
                    break  # there is no such key, and readiness says so
                await asyncio.sleep(model.retry_after or AGAIN)


def readiness(
    *pools: ModelPool, require: Sequence[str] = ()
) -> Callable[[Request], Awaitable[JSONResponse]]:
    """An endpoint: 200 if the application can serve, else 503, with budgets and models either way.

    It can serve while no pool is closed and each key in ``require`` was loaded once; a model that
    has gone since, because nobody used it, comes back when somebody does. Sizes are bytes. Where
    leases were taken and what loaders raised is not for everybody, and not in it.
    """

    async def ready(request: Request) -> JSONResponse:
        told = [pool.status() for pool in pools]
        known = {key: model for status in told for key, model in status.models.items()}
        missing = [key for key in require if key not in known or not known[key].loads]
        able = not missing and not any(status.closed for status in told)
        body = {
            "ready": able,
            "missing": missing,
            "pools": {
                status.name: {
                    "closed": status.closed,
                    "ram": status.ram._asdict(),
                    "devices": {name: each._asdict() for name, each in status.devices.items()},
                    "models": {key: _shown(model) for key, model in status.models.items()},
                }
                for status in told
            },
        }
        return JSONResponse(body, status_code=200 if able else 503)

    return ready


def _shown(model: ModelStatus) -> dict[str, Any]:
    return {
        "state": model.state,
        "device": model.device,
        "bytes": model.sizes._asdict(),
        "leases": model.leases,
        "loads": model.loads,
    }
