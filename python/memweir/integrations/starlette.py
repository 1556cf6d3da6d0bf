"""memweir's refusals as HTTP answers, for Starlette and FastAPI.

``exception_handlers`` goes into an application::

    app = FastAPI(exception_handlers=exception_handlers)
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from memweir.errors import Busy, IdentifierError, MemweirError, Refused, UnknownVerdict

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["answer", "exception_handlers"]


async def answer(request: Request, error: Exception) -> JSONResponse:
    """400 for a bad name, 409 for what waiting does not change, 503 for what it may.

    The body is ``{"error": class name, "detail": text}`` with the error's own public facts. With
    ``retry_after`` there is a ``Retry-After`` header, in whole seconds. Nothing of the request is
    in it.
    """
    assert isinstance(error, MemweirError)
    body: dict[str, Any] = {"error": type(error).__name__, "detail": str(error)}
    if isinstance(error, IdentifierError):
        body |= {"code": error.code, "kind": error.kind, "offset": error.offset}
    elif isinstance(error, UnknownVerdict):
        body |= {"kind": error.kind}
    elif isinstance(error, Refused):
        body |= {"holders": list(error.holders), "retryable": error.retryable}
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(ceil(error.retry_after))
        body["retry_after"] = error.retry_after
    return JSONResponse(body, status_code=error.http_status, headers=headers)


exception_handlers: dict[Any, Any] = {
    Busy: answer,
    IdentifierError: answer,
    Refused: answer,
    UnknownVerdict: answer,
}
"""For ``exception_handlers=`` of an application."""
