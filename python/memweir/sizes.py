"""Byte sizes as people write them, and what a percentage of memory is here."""

from __future__ import annotations

import re

__all__ = ["format_size", "memory_limit", "parse_size"]

_UNKNOWN = 1 << 62  # where no limit can be read: only a percentage would need to know
_SIZES = 1 << 63  # so many there are: the bytes of the largest address space
_NAMES = ("B", "KiB", "MiB", "GiB", "TiB")
_UNITS: dict[str, int] = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", start=1):
    _UNITS[f"{_letter}b"] = pow(1000, _power)
    _UNITS[f"{_letter}ib"] = 1 << 10 * _power

_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*|%)\s*", re.ASCII)
_HINT = 'give bytes as an int, or text such as "2 GiB", "500 MB" or "25%"'


def parse_size(size: int | str) -> int:
    """Bytes in ``size``: an int, or text with a decimal or binary unit or a percent sign.

    Percentages are of :func:`memory_limit`. Fractions of a byte are cut off.

    Raises ``ValueError`` for negative, unreadable or over-100 % sizes, ``TypeError`` for other
    types (bool included).
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise TypeError(f"a size is an int or a str, not {type(size).__name__}: {_HINT}")
    if isinstance(size, int):
        if size < 0:
            raise ValueError(f"a size cannot be negative: {size}")
        return _checked(size, str(size))
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ValueError(f"not a size: {size!r}; {_HINT}")
    number, unit = match.groups()
    # Exact in integers: 2**63 + 1 bytes and "1.1 TiB" must not pass through a float.
    whole, _, digits = number.partition(".")
    scale: int = 10 ** len(digits)
    value = int(whole + digits)
    if unit == "%":
        if value > 100 * scale:
            raise ValueError(f"a size cannot be more than all of the memory: {size!r}")
        return memory_limit() * value // (100 * scale)
    factor = _UNITS.get(unit.lower())
    if factor is None:
        raise ValueError(f"unknown unit {unit!r} in {size!r}; {_HINT}")
    return _checked(value * factor // scale, size)


def format_size(nbytes: int) -> str:
    """``nbytes`` with the largest binary unit that leaves at least one: ``"1.5 GiB"``.

    To the nearest tenth of the unit. :func:`parse_size` reads the text of every size.
    """
    size = abs(nbytes)
    power = next((n for n in range(4) if size < 1 << 10 * (n + 1)), 4)
    if power == 0:
        return f"{nbytes} B"
    # In integers, halves to the even neighbour: floats have no room for the largest of them.
    tenths, rest = divmod(10 * size, 1 << 10 * power)
    tenths += 2 * rest + tenths % 2 > 1 << 10 * power
    if size < _SIZES <= tenths * (1 << 10 * power) // 10:
        tenths -= 1  # the next tenth would be the first that is no size
    return f"{'-' if nbytes < 0 else ''}{tenths // 10}.{tenths % 10} {_NAMES[power]}"


def memory_limit() -> int:
    """Bytes this process may use: the least of :func:`memweir.limits`."""
    from memweir._core import limits

    return min((limit.bytes for limit in limits()), default=_UNKNOWN)


def _checked(size: int, given: str) -> int:
    if size >= _SIZES:
        raise ValueError(f"a size larger than any address space: {given!r}")
    return size
