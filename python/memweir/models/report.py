"""What became of models that were let go: promised bytes beside those that the kernel counted."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from memweir.models.adapters.protocol import NOTHING, Sizes
from memweir.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Kept",
    "ReleaseStep",
    "Resident",
    "ShutdownReport",
    "UnloadReport",
    "Unloaded",
    "Verdict",
]

Verdict: TypeAlias = Literal["dead", "not provable", "alive"]


class Resident(NamedTuple):
    """What the process takes at one moment, in bytes; ``None`` where nobody tells."""

    anon: int | None = None
    file: int | None = None
    device: int | None = None

    def less(self, other: Resident) -> Resident:
        """By how much this is more than the other, part by part."""
        return Resident(
            *(None if a is None or b is None else a - b for a, b in zip(self, other, strict=True))
        )


UNKNOWN = Resident()


@dataclass(frozen=True, slots=True)
class Unloaded:
    """One model that was let go.

    ``promised`` is what it was counted or measured at. ``verdict`` is ``"dead"`` when a weak
    reference to it died, ``"alive"`` when it did not: then somebody still refers to the model, and
    its memory cannot come back; ``referrers`` says who, as far as it can be found out.
    ``"not provable"``: nothing in it can be referred to weakly.
    """

    key: str
    reason: str
    promised: Sizes = NOTHING
    verdict: Verdict = "not provable"
    referrers: tuple[str, ...] = ()
    rung: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as plain data."""
        return _fields(self)

    def __str__(self) -> str:
        unsure = ", not provable" if self.verdict == "not provable" else ""
        return f"{self.key} ({self.reason}, {format_size(self.promised.total)}{unsure})"


@dataclass(frozen=True, slots=True)
class Kept:
    """A model that was not let go, because it is lent; ``holders`` are where leases were taken."""

    key: str
    reason: str
    holders: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as plain data."""
        return _fields(self)

    def __str__(self) -> str:
        return f"{self.key} ({self.reason}{': ' if self.holders else ''}{', '.join(self.holders)})"


@dataclass(frozen=True, slots=True)
class ReleaseStep:
    """One step of a release, and the process before and after it.

    What other threads took or gave meanwhile is in it.
    """

    name: str
    seconds: float
    before: Resident = UNKNOWN
    after: Resident = UNKNOWN
    failed: str | None = None

    @property
    def returned(self) -> Resident:
        """Bytes that came back in this step; negative where more was taken."""
        return self.before.less(self.after)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as plain data, with ``returned``."""
        return {**_fields(self), "returned": self.returned._asdict()}


@dataclass(frozen=True, slots=True)
class UnloadReport:
    """What an unload did; true if it let anything go.

    ``deferred`` are models that go when their last lease does, ``refused`` those that stay.
    ``before`` and ``after`` are the process around the whole pass: without anything released there
    is no pass, and they are ``None``. ``errors`` are what finalizers and steps raised, in words.
    ``trim`` is the report of the trim that ended the pass.
    """

    released: tuple[Unloaded, ...] = ()
    deferred: tuple[Kept, ...] = ()
    refused: tuple[Kept, ...] = ()
    errors: tuple[str, ...] = ()
    before: Resident | None = None
    after: Resident | None = None
    seconds: float = 0.0
    steps: tuple[ReleaseStep, ...] = ()
    trim: Any = None

    def __bool__(self) -> bool:
        return bool(self.released)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the models that were let go."""
        return tuple(each.key for each in self.released)

    @property
    def promised(self) -> Sizes:
        """What the released models were counted or measured at, together."""
        return sum((each.promised for each in self.released), NOTHING)

    @property
    def returned(self) -> Resident:
        """What came back by the kernel's and the devices' count; ``None`` where unknown."""
        if self.before is None or self.after is None:
            return Resident()
        return self.before.less(self.after)

    @property
    def alive(self) -> tuple[Unloaded, ...]:
        """Released models that somebody still refers to."""
        return tuple(each for each in self.released if each.verdict == "alive")

    def step(self, name: str) -> ReleaseStep | None:
        """The step of that name, if there was a pass."""
        return next((step for step in self.steps if step.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as plain data, with ``promised`` and ``returned``."""
        return {
            **_fields(self),
            "promised": self.promised._asdict(),
            "returned": self.returned._asdict(),
        }

    def __str__(self) -> str:
        told = []
        if self.released:
            told.append(
                f"released {_listed(self.released)} in {self.seconds:.2f} s: "
                f"{_compared(self.promised, self.returned)}"
            )
        told += (
            f"still alive: {each.key}, held by {'; '.join(each.referrers) or 'somebody unknown'}"
            for each in self.alive
        )
        if self.deferred:
            told.append(f"deferred {_listed(self.deferred)}")
        if self.refused:
            told.append(f"refused {_listed(self.refused)}")
        if self.errors:
            told.append(f"{len(self.errors)} errors: {_listed(self.errors)}")
        return "; ".join(told) or "nothing released"


@dataclass(frozen=True, slots=True)
class ShutdownReport:
    """What the end of a pool did.

    ``unload`` is what was let go, ``in_use`` what was still lent when the deadline came, and is
    not freed. ``finished`` is false while something is in use.
    """

    unload: UnloadReport = UnloadReport()
    in_use: tuple[Kept, ...] = ()
    errors: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether nothing is lent any more."""
        return not self.in_use

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as plain data."""
        return {**_fields(self), "finished": self.finished}

    def __str__(self) -> str:
        told = f"closed in {self.seconds:.2f} s: {self.unload}"
        if self.in_use:
            told += f"; still in use: {_listed(self.in_use)}"
        if self.errors:
            told += f"; {len(self.errors)} errors: {_listed(self.errors)}"
        return told


_SHOWN = 8


def _listed(these: Iterable[object]) -> str:
    shown = [str(each) for each in these]
    more = f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def _compared(promised: Sizes, returned: Resident) -> str:
    """Returned beside promised bytes, by place; places without either are left out."""
    rows = (
        ("anonymous", returned.anon, promised.host),
        ("file", returned.file, promised.file),
        ("device", returned.device, promised.device),
    )
    told = [
        f"{name} {'unknown' if got is None else format_size(got)} of {format_size(hoped)}"
        for name, got, hoped in rows
        if hoped or (got and name == "anonymous")
    ]
    return ", ".join(told) or "nothing promised"


def _fields(record: Any) -> dict[str, Any]:
    return {each.name: _plain(getattr(record, each.name)) for each in fields(record)}


def _plain(value: Any) -> Any:
    """Records as dicts and tuples of them as lists: what JSON takes."""
    for name in ("as_dict", "_asdict"):
        told = getattr(value, name, None)
        if told is not None:
            return told()
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
