"""Size texts against a reader that knows nothing of regular expressions: `sizes.py SECONDS`."""

from __future__ import annotations

import importlib.util
import string
import sys
import time
from fractions import Fraction
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# By its path: the package around it would want the extension to be built.
PATH = Path(__file__).parents[2] / "python/memweir/sizes.py"
spec = importlib.util.spec_from_file_location("sizes", PATH)
sizes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sizes)
format_size, parse_size = sizes.format_size, sizes.parse_size

LIMIT = sizes.memory_limit()
SPACE = " \t\n\r\f\v"
POWERS = {letter: n for n, letter in enumerate("kmgtp", start=1)}


def naive(text: str) -> int | None:
    """What a text means, by its definition; ``None`` where it means nothing."""
    text = text.strip(SPACE)
    unit = text.lstrip(string.digits + ".")
    number = text[: len(text) - len(unit)]
    unit = unit.lstrip(SPACE)
    whole, _, part = number.partition(".")
    if "." in part or not whole + part:
        return None
    value = Fraction(int(whole or "0")) + Fraction(int(part or "0"), 10 ** len(part))
    if unit == "%":
        return int(value * LIMIT / 100) if value <= 100 else None
    if not all(letter in string.ascii_letters for letter in unit):
        return None
    unit = unit.lower()
    if unit in ("", "b"):
        factor = 1
    elif unit[0] not in POWERS or unit[1:] not in ("b", "ib"):
        return None
    else:
        factor = (1000 if unit[1:] == "b" else 1024) ** POWERS[unit[0]]
    nbytes = int(value * factor)
    return nbytes if nbytes < 1 << 63 else None


def check_text(text: str) -> None:
    expected = naive(text)
    try:
        found: int | None = parse_size(text)
    except ValueError:
        found = None
    assert found == expected, f"{text!r}: {found}, and by definition {expected}"


def check_int(n: int) -> None:
    if not 0 <= n < 1 << 63:
        try:
            parse_size(n)
        except ValueError:
            return
        raise AssertionError(f"{n} was taken for a size")
    assert parse_size(n) == n
    # The text is the nearest that one digit after the point can say, and says a size.
    text = format_size(n)
    value, unit = text.split(" ")
    step = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert n < 1024 * step or unit == "TiB", text
    assert n >= step or unit == "B", text
    digits = Fraction(value) * step
    assert abs(digits - n) * 20 <= step or digits + Fraction(step, 10) >= 1 << 63, text
    assert value.partition(".")[2] == "" if unit == "B" else len(value.partition(".")[2]) == 1
    assert parse_size(text) == int(digits), text


numbers = st.from_regex(r"[0-9]{0,25}(\.[0-9]{0,25})?", fullmatch=True)
units = st.sampled_from(
    ["", "B", "%", *(c + b for c in "kKmMgGtTpPeE" for b in ("b", "B", "ib", "iB", "i", ""))]
)
spaces = st.text(SPACE + "\x1c\x85\xa0\u2003", max_size=2)
texts = st.one_of(
    st.builds(lambda *parts: "".join(parts), spaces, numbers, spaces, units, spaces),
    st.text(string.digits + ". %kKMGTPiIbB-+eE_٣\u00b2\u212a" + SPACE, max_size=14),
    st.text(max_size=12),
)
ints = st.one_of(
    st.integers(),
    st.builds(lambda power, by: (1 << power) + by, st.integers(0, 64), st.integers(-3, 3)),
    st.builds(lambda p, by: 1024**p * by // 20, st.integers(0, 6), st.integers(0, 21000)),
)
forever = settings(
    max_examples=2000,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def main() -> None:
    seconds = float(sys.argv[1])
    until, tried = time.monotonic() + seconds, 0

    @forever
    @given(texts, ints)
    def check(text: str, n: int) -> None:
        nonlocal tried
        tried += 1
        check_text(text)
        check_int(n)

    sizes.memory_limit = lambda: LIMIT  # it reads files, and may change meanwhile
    while time.monotonic() < until:
        check()
    print(f"sizes: {tried} texts and numbers, nothing found")


if __name__ == "__main__":
    main()
