"""How long, as callers say it."""

from __future__ import annotations

__all__ = ["seconds"]


def seconds(name: str, value: float | None) -> float | None:
    """A number of seconds from a caller."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds or None, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} is a number of seconds, and this is out of range") from None
    if not number >= 0:
        raise ValueError(f"{name} is a number of seconds from 0: {number!r}")
    return number
