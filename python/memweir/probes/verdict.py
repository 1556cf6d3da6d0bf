"""What a probe found out: a value, or why there is none."""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, NoReturn, TypeVar, cast

from memweir.errors import UnknownVerdict
from memweir.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    Clock: TypeAlias = Callable[[], float]

__all__ = ["PERMANENT", "UNKNOWN", "Kind", "Reason", "Source", "Verdict"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
D = TypeVar("D")

Kind = Literal[
    "transient",
    "timeout",
    "exhausted",
    "undecided",
    "denied",
    "absent",
    "invalid",
    "unsupported",
    "waiting",
    "busy",
    "aborted",
]
Source = Literal["probe", "shared", "cache", "backoff", "stale"]
PERMANENT = frozenset({"denied", "absent", "invalid", "unsupported"})


class _Unknown(Enum):
    UNKNOWN = "UNKNOWN"

    def __repr__(self) -> str:
        return "UNKNOWN"

    def __bool__(self) -> NoReturn:
        raise TypeError("UNKNOWN is neither true nor false")


UNKNOWN = _Unknown.UNKNOWN
"""What a probe returns when it ran and could not tell."""


class Reason(NamedTuple):
    """Why a verdict is unknown.

    ``kind``, and what becomes of it:

    - asked again after a back-off: ``"transient"`` (connection, server error, rate limit, anything
      unclassified), ``"timeout"`` (the probe's deadline), ``"exhausted"`` (memory, disk or file
      descriptors ran out here), ``"undecided"`` (the probe returned ``UNKNOWN``);
    - remembered, each with a TTL of its own: ``"denied"`` (401, 403, gated), ``"absent"`` (404),
      ``"invalid"`` (a malformed name), ``"unsupported"`` (not with these library versions);
    - this caller's alone: ``"waiting"`` (its patience ended first), ``"busy"`` (too many probes
      are running), ``"aborted"`` (the caller that ran the probe left by a bug in it).

    ``error`` is the class name of the exception and ``status`` its HTTP status. Messages are left
    out: nobody knows what is in them.
    """

    kind: Kind
    error: str | None = None
    status: int | None = None

    @property
    def permanent(self) -> bool:
        """Whether it is remembered as the answer."""
        return self.kind in PERMANENT


class Verdict(Generic[T_co]):
    """An answer that may be "not known"; immutable.

    It has no truth value: ``if verdict:`` would take "not known" for "no". Verdicts are equal when
    they say the same, whatever their age and source.

    ``source`` says how it came: ``"probe"`` (this call ran it), ``"shared"`` (another's probe),
    ``"cache"``, ``"backoff"`` (not asked again yet), ``"stale"`` (expired, while it is refreshed).
    """

    __slots__ = ("_clock", "_value", "asked_at", "not_before", "order", "reason", "source", "until")

    reason: Reason | None
    source: Source
    order: int  # of the probes of one cache; the newest wins
    until: float | None  # clock time at which it expires; None is never
    not_before: float | None  # clock time at which it may be asked again
    asked_at: float
    _value: T_co | _Unknown
    _clock: Clock

    def __init__(
        self,
        value: T_co | _Unknown,
        reason: Reason | None = None,
        *,
        source: Source = "probe",
        order: int = 0,
        until: float | None = None,
        not_before: float | None = None,
        clock: Clock = time.monotonic,
        asked_at: float | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "_value", value)
        put(self, "reason", reason)
        put(self, "source", source)
        put(self, "order", order)
        put(self, "until", until)
        put(self, "not_before", not_before)
        put(self, "_clock", clock)
        put(self, "asked_at", clock() if asked_at is None else asked_at)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a verdict is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a verdict is immutable: {name} cannot be deleted")

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return self.reason is None

    @property
    def value(self) -> T_co:
        """The value, or :class:`~memweir.UnknownVerdict`."""
        if self.reason is not None:
            raise self._error()
        return cast(T_co, self._value)

    def unwrap(self) -> T_co:
        """:attr:`value` as a call."""
        return self.value

    def or_(self, default: D) -> T_co | D:
        """The value where it is known, else `default`: who calls says what unknown means."""
        return default if self.reason is not None else cast(T_co, self._value)

    @property
    def retry_after(self) -> float | None:
        """Seconds until it may be asked again, at least 0; ``None`` for what is remembered."""
        if self.not_before is None:
            return None
        return max(0.0, self.not_before - self._clock())

    @property
    def age(self) -> float:
        """Seconds since the probe answered."""
        return max(0.0, self._clock() - self.asked_at)

    def _error(self) -> UnknownVerdict:
        assert self.reason is not None
        wait = self.retry_after
        advice = "it is remembered" if wait is None else f"ask again in {wait:.1f} s"
        return UnknownVerdict(
            f"the verdict is not known: {_described(self.reason)}; {advice}",
            kind=self.reason.kind,
            retry_after=wait,
        )

    def seen_as(self, source: Source) -> Verdict[T_co]:
        """The same verdict from another source."""
        return Verdict(
            cast("Any", self._value),
            self.reason,
            source=source,
            order=self.order,
            until=self.until,
            not_before=self.not_before,
            clock=self._clock,
            asked_at=self.asked_at,
        )

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a verdict may be unknown and has no truth value: "
            "use .known, .value, .or_(default) or .unwrap()"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Verdict):
            return NotImplemented
        return bool(self.reason == other.reason and self._value == other._value)

    def __hash__(self) -> int:
        return hash((self.reason, self._value))

    def __repr__(self) -> str:
        what = (
            redact(repr(self._value))
            if self.reason is None
            else f"unknown: {_described(self.reason)}"
        )
        return f"Verdict({what}, source={self.source})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _revived, (self._value, self.reason, self.source, self.age, self.retry_after)


def _revived(
    value: Any, reason: Reason | None, source: Source, age: float, retry_after: float | None
) -> Verdict[Any]:
    # Clocks of two processes have nothing in common; what has passed and what is left has.
    now = time.monotonic()
    not_before = None if retry_after is None else now + retry_after
    return Verdict(value, reason, source=source, not_before=not_before, asked_at=now - age)


def _described(reason: Reason) -> str:
    more = ", ".join(str(part) for part in (reason.error, reason.status) if part is not None)
    return f"{reason.kind} ({more})" if more else reason.kind
