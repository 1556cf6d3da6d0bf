"""What a finding is, and how bad."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Facts", "Finding", "Severity"]

Severity = Literal["problem", "warning", "note"]
"""``problem``: something is broken or does nothing of what it was meant to. ``warning``: it costs
memory or time, or may end the process. ``note``: good to know."""

Facts = dict[str, dict[str, Any]]
"""What was seen, by section: plain JSON data, sizes in bytes, ``None`` for none or unknown."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that somebody should know, and what to do about it."""

    severity: Severity
    name: str
    """The same for the same kind of thing, for ever: ``"preload-missing"``."""
    what: str
    do: str
    subject: str | None = None
    """What it is about, where one name is found of several things."""

    def as_dict(self) -> dict[str, str | None]:
        return asdict(self)
