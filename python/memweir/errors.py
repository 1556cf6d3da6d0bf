"""The errors of memweir: each says what happened and what to do about it.

Bad arguments raise ``ValueError`` and wrong types ``TypeError``, as everywhere in Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BadModel",
    "BudgetExceeded",
    "Busy",
    "Conflict",
    "EvictionFailed",
    "IdentifierError",
    "InUse",
    "LeaseLost",
    "LoadFailed",
    "MemweirError",
    "MissingPixels",
    "NotPrepacked",
    "PixelMismatch",
    "ProbeFailed",
    "Refused",
    "Released",
    "UnknownVerdict",
    "UnsupportedType",
    "Unverifiable",
]


class MemweirError(Exception):
    """Base of every error that memweir defines.

    ``http_status`` is what a web service answers with, and ``retry_after`` the seconds after which
    the same request may succeed, where that is known.
    """

    http_status: ClassVar[int] = 500
    retry_after: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by calling the class, whose arguments are not what it keeps in `args`.
        return _revived, (type(self), self.args), self.__dict__


def _revived(cls: type[MemweirError], args: tuple[Any, ...]) -> MemweirError:
    return cls.__new__(cls, *args)


class BudgetExceeded(MemweirError):
    """Something cannot fit into its byte budget, whatever is evicted."""


class MissingPixels(MemweirError, LookupError):
    """Pixels that a reference names are nowhere to be found.

    ``digest`` is the hex digest of the missing array.
    """

    def __init__(self, message: str, *, digest: str | None = None) -> None:
        super().__init__(message)
        self.digest = digest


class PixelMismatch(MemweirError):
    """Pixels were found or recomputed, and are not the ones that were stripped.

    ``expected`` and ``got`` are hex digests (``got`` is ``None`` when a layout differed first).
    """

    def __init__(
        self, message: str, *, expected: str | None = None, got: str | None = None
    ) -> None:
        super().__init__(message)
        self.expected = expected
        self.got = got


class UnsupportedType(MemweirError, TypeError):
    """A value has no canonical bytes; it is refused instead of pickled."""


class Released(MemweirError):
    """The memory behind a handle was given back."""


class LoadFailed(MemweirError):
    """A loader that others were waiting for failed; the cause is chained."""


class BadModel(MemweirError, ValueError):
    """A model file cannot be run.

    ``kind`` says why: ``"corrupt"`` (truncated, too), ``"foreign"`` (of another format),
    ``"external-data"`` (a file beside it is missing or short), ``"custom-ops"`` (operators that
    nobody registered), ``"too-large"``, ``"providers"`` (what was asked for is not to be had) or
    ``"refused"`` (by the runtime, whose error is chained).
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class NotPrepacked(MemweirError):
    """A model was not pre-packed, and runs without.

    ``kind`` says why: ``"disk"``, ``"runtime"`` (too old, or none that can), ``"format"``,
    ``"random"``, ``"probe"`` (no input to try it on), ``"mismatch"`` (other outputs) or
    ``"build"``.
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Busy(MemweirError):
    """No room or no turn right now: the same call may succeed later."""

    http_status = 503


class Refused(MemweirError):
    """Something was not done, for the sake of who holds what it needs.

    ``holders`` are their labels; ``retryable`` says whether waiting can help.
    """

    http_status = 409
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, holders: Iterable[str] = (), retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.holders = tuple(holders)
        self.retry_after = retry_after


class Conflict(Refused):
    """Another claim excludes this one."""

    retryable = True


class InUse(Refused):
    """What was to be removed is in use."""

    retryable = True


class Unverifiable(Refused):
    """It could not be found out whether this is safe, so it was not done."""

    http_status = 503
    retryable = True


class EvictionFailed(Refused):
    """The holder that was asked to make room did not, and keeps what it has."""

    http_status = 503
    retryable = True


class LeaseLost(Refused):
    """The lease was revoked while its holder worked: undo the work, or claim again."""


class UnknownVerdict(MemweirError):
    """A verdict was asked for its value, and it is not known.

    ``kind`` says why (see :class:`~memweir.Reason`); ``retry_after`` in seconds when asking again
    makes sense, ``None`` when the answer is that it cannot be known.
    """

    def __init__(self, message: str, *, kind: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after

    @property
    def http_status(self) -> int:  # type: ignore[override]
        """503 when it can be asked again, 409 when not."""
        return 409 if self.retry_after is None else 503


class ProbeFailed(MemweirError):
    """Raised by a probe to say why it has no answer: ``kind`` as in :class:`~memweir.Reason`.

    ``error`` is the class name of what happened, ``status`` its HTTP status, ``retry_after`` the
    seconds that a server asked for.
    """

    def __init__(
        self,
        kind: str,
        *,
        error: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"the probe has no answer: {kind}" + (f" ({error})" if error else ""))
        self.kind = kind
        self.error = error
        self.status = status
        self.retry_after = retry_after


class IdentifierError(MemweirError, ValueError):
    """A name from outside is not clean; the error never holds the name.

    ``code`` says what is wrong and ``offset`` where, in characters; ``kind`` is what it was to be
    and ``index`` its place in an argv.
    """

    http_status = 400

    def __init__(
        self, message: str, *, code: str, offset: int, kind: str, index: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.offset = offset
        self.kind = kind
        self.index = index
