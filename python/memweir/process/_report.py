"""What a trim did, step by step, in the kernel's bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from memweir.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TrimReport", "TrimStep", "anon_of"]


@dataclass(frozen=True, slots=True)
class TrimStep:
    """One step of a trim.

    ``released`` is by how much the process's anonymous memory fell while the step ran: what other
    threads took or gave meanwhile is in it, so it may be negative. ``None`` where nothing was done
    or the kernel does not tell. ``skipped`` says why nothing was done, ``failed`` what went wrong.
    ``detail`` is what the step itself knows, among it the allocator's own return values, which are
    not bytes.
    """

    name: str
    level: str
    seconds: float = 0.0
    released: int | None = None
    skipped: str | None = None
    failed: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**named, "detail": dict(self.detail)}

    def __str__(self) -> str:
        if self.skipped is not None:
            return f"{self.name}: skipped, {self.skipped}"
        told = f"{self.name}: {signed(self.released)} in {self.seconds:.3f} s"
        if self.failed is not None:
            told += f", failed: {self.failed}"
        known = ", ".join(f"{key}={value}" for key, value in self.detail.items())
        return f"{told} ({known})" if known else told


@dataclass(frozen=True, slots=True)
class TrimReport:
    """What a trim did.

    ``before`` and ``after`` are the process's memory around it, or ``None`` where it could not be
    read. ``finished`` is false for the report of a caller whose deadline came first: the trim goes
    on, and ``running`` names the step it was at. ``supported`` is false if the allocator was to
    release its memory and knows no way to. ``joined`` counts the callers that came while it ran
    and share this report. ``note`` says what else is to be known, such as why nothing was done.
    """

    allocator: Any = None
    steps: tuple[TrimStep, ...] = ()
    before: Any = None
    after: Any = None
    seconds: float = 0.0
    supported: bool = True
    finished: bool = True
    joined: int = 0
    running: str | None = None
    nested: bool = False
    note: str | None = None

    @property
    def released(self) -> int | None:
        """By how many bytes anonymous memory fell; negative if it grew, ``None`` if unknown."""
        before, after = anon_of(self.before), anon_of(self.after)
        return None if before is None or after is None else before - after

    def step(self, name: str) -> TrimStep | None:
        """The step of that name, if the trim came to it."""
        return next((step for step in self.steps if step.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, with ``released``; records in them by their fields, too."""
        named = {each.name: plain(getattr(self, each.name)) for each in fields(self)}
        steps = [step.as_dict() for step in self.steps]
        return {**named, "steps": steps, "released": self.released}

    def __str__(self) -> str:
        head = f"trim: {signed(self.released)} in {self.seconds:.3f} s"
        kind = getattr(self.allocator, "kind", None)
        if kind is not None:
            head += f", {kind}"
        if not self.supported:
            head += ", which gives nothing back"
        if self.joined:
            head += f", {self.joined} joined"
        if not self.finished and self.running is not None:
            head += f", unfinished: at {self.running}"
        if self.note is not None:
            head += f"; {self.note}"
        return "\n".join([head, *(f"  {step}" for step in self.steps)])


def anon_of(memory: object) -> int | None:
    """The anonymous bytes of a record of memory, if it knows them."""
    anon = getattr(memory, "anon", None)
    return anon if isinstance(anon, int) else None


def signed(released: int | None) -> str:
    """Bytes that came back, or were taken, in words."""
    if released is None:
        return "unknown bytes released"
    return f"{format_size(abs(released))} {'released' if released >= 0 else 'taken'}"


def plain(value: Any) -> Any:
    """A record as a dict, anything else as it is."""
    as_dict = getattr(value, "as_dict", None)
    if as_dict is not None:
        return as_dict()
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
