"""What a setting may be: as a Python value, and as the text of a variable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .sizes import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COUNT", "SECONDS", "SIZE", "SWITCH", "Kind", "choice", "size_up_to"]

_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off"})
_NONE = frozenset({"none", "never"})


@dataclass(frozen=True, slots=True)
class Kind:
    """How values are checked and text is read; both raise ``ValueError`` or ``TypeError``."""

    accepts: str
    """For people, after "accepts"."""
    check: Callable[[Any], None]
    read: Callable[[str], Any]
    """What stands in a variable, as the value of a field: not yet checked."""


def _or_none(check: Callable[[Any], None]) -> Callable[[Any], None]:
    def checked(value: Any) -> None:
        if value is not None:
            check(value)

    return checked


def _read_or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text.lower() in _NONE else read(text)


def _size(value: Any) -> None:
    parse_size(value)


def _count(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"a count is an int, not {type(value).__name__}")
    if not 1 <= value <= 1 << 16:
        raise ValueError(f"not a count: {value}")


def _seconds(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"seconds are an int or a float, not {type(value).__name__}")
    # Whoever counts with them makes a float of them, which not every int can become.
    try:
        number = float(value)
    except OverflowError:
        raise ValueError("not a length of time: out of range") from None
    if not 0 <= number < math.inf:
        raise ValueError(f"not a length of time: {number}")


def _switch(value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"a switch is True or False, not {type(value).__name__}")


def _read_switch(text: str) -> bool:
    lower = text.lower()
    if lower not in _YES | _NO:
        raise ValueError(f"not a switch: {text!r}")
    return lower in _YES


def _read_number(kind: type[int] | type[float], what: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            # What people write, and not what Python reads besides: 1_000, or digits of any script.
            if not text.isascii() or "_" in text:
                raise ValueError
            return kind(text)
        except ValueError:
            raise ValueError(f"not {what}: {text!r}") from None

    return read


def choice(*names: str, none: bool = False) -> Kind:
    """One of ``names``; of text, in any case."""

    def check(value: Any) -> None:
        if not isinstance(value, str):
            raise TypeError(f"a name is a str, not {type(value).__name__}")
        if value not in names:
            raise ValueError(f"no such name: {value!r}")

    accepts = ", ".join(names[:-1]) + f" or {names[-1]}"
    if none:
        return Kind(f"{accepts}, or none", _or_none(check), _read_or_none(str.lower))
    return Kind(accepts, check, str.lower)


def size_up_to(most: int) -> Kind:
    """A size of at most so many bytes, or none."""

    def check(value: Any) -> None:
        if parse_size(value) > most:
            raise ValueError(f"too large: {value!r}")

    accepts = f'bytes or text such as "4 MiB", at most {format_size(most)}, or none'
    return Kind(accepts, _or_none(check), _read_or_none(str))


SIZE = Kind('bytes, or text such as "2 GiB", "500 MB" or "25%"', _size, str)
COUNT = Kind(
    "a whole number from 1 to 65536, or none",
    _or_none(_count),
    _read_or_none(_read_number(int, "a whole number")),
)
SECONDS = Kind(
    "seconds (0: at once), or none (never)",
    _or_none(_seconds),
    _read_or_none(_read_number(float, "a number of seconds")),
)
SWITCH = Kind("1 or 0", _switch, _read_switch)
