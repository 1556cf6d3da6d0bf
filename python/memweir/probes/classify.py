"""What an exception says about the question that a probe was asked.

No HTTP library is imported: exceptions are known by the names of their classes, by the status and
headers of the response that they carry, and by what they were raised from. That holds for
``requests``, ``httpx``, ``aiohttp`` and ``urllib``, and for ``huggingface_hub`` before and after it
changed from one to another, where ``transformers`` re-raises everything as a bare ``OSError``.
"""

from __future__ import annotations

import errno
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

from memweir.errors import IdentifierError, ProbeFailed, UnknownVerdict
from memweir.probes.verdict import PERMANENT, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KINDS", "Failure", "classify_hub", "is_exhausted"]

FailureKind: TypeAlias = Kind | Literal["bug"]
KINDS = frozenset({*get_args(Kind), "bug"})


class Failure(NamedTuple):
    """What a classifier makes of an exception.

    ``kind`` as in :class:`~memweir.Reason`, or ``"bug"``: raised to the caller and never stored.
    ``error`` is a class name, ``status`` an HTTP status, ``retry_after`` seconds.
    """

    kind: FailureKind
    error: str
    status: int | None = None
    retry_after: float | None = None


_BUGS = (TypeError, AttributeError, AssertionError, NameError, NotImplementedError)
_EXHAUSTED = frozenset(
    {errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EDQUOT, errno.EAGAIN}
)
_BY_STATUS: dict[int, Kind] = {
    401: "denied",
    403: "denied",
    451: "denied",
    404: "absent",
    410: "absent",
}
# Classes that say by themselves that asking again may help.
_TRANSIENT = frozenset(
    {
        *("ConnectionError", "Timeout", "TimeoutError", "TimeoutException", "SSLError"),
        *("TransportError", "RequestError", "ChunkedEncodingError", "ContentDecodingError"),
        *("IncompleteRead", "RemoteDisconnected", "ProtocolError", "MaxRetryError", "gaierror"),
        *("NewConnectionError", "ClientConnectionError", "ClientPayloadError"),
        *("JSONDecodeError", "UnicodeDecodeError", "InferenceTimeoutError"),
        *("CachedRepoTreeNotFoundError", "XetDownloadError", "FileMetadataError"),
    }
)
_NAMED: dict[str, Kind] = {
    "GatedRepoError": "denied",
    "DisabledRepoError": "denied",
    "RepositoryNotFoundError": "absent",
    "RevisionNotFoundError": "absent",
    "RemoteEntryNotFoundError": "absent",
    "EntryNotFoundError": "absent",
    "HFValidationError": "invalid",
    "PermissionError": "denied",
    "FileNotFoundError": "absent",
    "NotADirectoryError": "absent",
}
# A cache's own misses are handled all the time, and something else may fail meanwhile.
_LOCAL = frozenset({"PermissionError", "FileNotFoundError", "NotADirectoryError"})
# Not a transient error by itself: it is raised from the answer, if there was one.
_NO_LOCAL_FILE = "LocalEntryNotFoundError"
_UNSUPPORTED = ("does not recognize this architecture", "does not recognize this model type")


def classify_hub(error: BaseException) -> Failure:
    """The :class:`Failure` that `error` and what it was raised from amount to.

    Anything without positive evidence is transient. A sign that asking again may help, anywhere,
    outweighs the rest; else the innermost status decides, and where there is none the outermost
    class that is known. ``TypeError`` and its like, as the outermost, are bugs.
    """
    name = type(error).__qualname__
    if isinstance(error, ProbeFailed):
        kind = error.kind if error.kind in KINDS else "transient"
        return Failure(_kind(kind), error.error or name, error.status, error.retry_after)
    if isinstance(error, UnknownVerdict):  # a probe that asks another
        kind = error.kind if error.kind in PERMANENT else "transient"
        return Failure(_kind(kind), name, None, error.retry_after)
    if isinstance(error, IdentifierError):
        return Failure("invalid", name)
    if isinstance(error, _BUGS) or _all_bugs(error):
        return Failure("bug", name)
    status, retry_after = None, None
    by_status: Kind | None = None
    by_name: Kind | None = None
    transient = exhausted = False
    for each, meant in _chain(error):
        names = [cls.__name__ for cls in type(each).__mro__]
        response = _held(each, "response")
        found = _status(each, response)
        if found is not None:
            status = found  # the innermost is seen last
            by_status = _BY_STATUS.get(found)
        wait = _retry_after(response if response is not None else each)
        if wait is not None:
            retry_after = wait if retry_after is None else max(retry_after, wait)
        if found is None and not _by_class_known(names):
            transient = transient or not _TRANSIENT.isdisjoint(names)
        if found is not None and by_status is None:
            transient = True
        exhausted = exhausted or is_exhausted(each)
        if by_name is None and _NO_LOCAL_FILE not in names:
            named = next((n for n in names if n in _NAMED and (meant or n not in _LOCAL)), "")
            by_name = _NAMED.get(named) or _by_text(each)
    if exhausted:
        return Failure("exhausted", name, status, retry_after)
    kind = "transient" if transient else by_status or by_name or "transient"
    return Failure(_kind(kind), name, status, retry_after)


def _all_bugs(error: BaseException) -> bool:
    """Whether it is a group of nothing else, as a ``TaskGroup`` makes of a bug."""
    return isinstance(error, BaseExceptionGroup) and error.split(_BUGS)[1] is None


def _held(holder: object, name: str) -> Any:
    """An attribute of somebody's exception, which may be a property that fails."""
    try:
        return getattr(holder, name, None)
    except Exception:
        return None


def _kind(name: str) -> FailureKind:
    return name  # type: ignore[return-value]  # it is one of KINDS


def _by_class_known(names: list[str]) -> bool:
    return _NO_LOCAL_FILE not in names and any(name in _NAMED for name in names)


def _chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """`error`, then what it was raised from or while handling; at most 64, each once.

    Beside each stands whether all links to it were meant (``raise … from …``).
    """
    ahead, seen = [(error, True)], set[int]()
    while ahead and len(seen) < 64:
        each, meant = ahead.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each, meant
        if each.__cause__ is not None:
            ahead.append((each.__cause__, meant))
        elif each.__context__ is not None:
            ahead.append((each.__context__, False))
        if isinstance(each, BaseExceptionGroup):
            ahead.extend((inner, meant) for inner in each.exceptions)


def _status(error: BaseException, response: Any) -> int | None:
    for holder, name in (
        (response, "status_code"),
        (response, "status"),
        (error, "status_code"),
        (error, "status"),
        (error, "code"),
    ):
        value = _held(holder, name)
        if type(value) is int and 100 <= value <= 599:
            return value
    return None


def _retry_after(holder: Any) -> float | None:
    get = _held(_held(holder, "headers"), "get")
    try:
        text = get("Retry-After") or get("retry-after")
        limit = get("RateLimit") or get("ratelimit")
    except Exception:  # there are none, or it is some other get
        return None
    if text:
        return _seconds(str(text).strip())
    if limit:  # IETF draft: "api";r=0;t=55
        fields = dict(part.strip().partition("=")[::2] for part in str(limit).split(";"))
        if fields.get("r", "0") == "0" and "t" in fields:
            return _seconds(fields["t"])
    return None


def _seconds(text: str) -> float | None:
    """Seconds from now, of either form of ``Retry-After``."""
    try:
        wait = float(text)
    except ValueError:
        import time
        from email.utils import parsedate_to_datetime

        try:
            wait = parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError, IndexError):
            return None
    return max(0.0, wait) if isfinite(wait) else None


def is_exhausted(error: BaseException) -> bool:
    """Whether memory, disk or descriptors ran out here."""
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return True
    names = (cls.__name__ for cls in type(error).__mro__)
    return isinstance(error, MemoryError) or "OutOfMemoryError" in names


def _by_text(error: BaseException) -> Kind | None:
    # transformers has no class of its own for a model type that is newer than it.
    if type(error) is not ValueError:
        return None
    try:
        text = str(error)
    except Exception:
        return None
    return "unsupported" if any(words in text for words in _UNSUPPORTED) else None
