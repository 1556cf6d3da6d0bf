from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memweir import _core
from memweir.sizes import format_size, memory_limit, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("7", 7),
        ("2 GiB", 2 << 30),
        ("2GiB", 2 << 30),
        ("2 gib", 2 << 30),
        ("500 MB", 500_000_000),
        ("2 GB ", 2_000_000_000),
        (" 1.5KiB", 1536),
        (".5 kB", 500),
        ("1.1 TiB", 11 * (1 << 40) // 10),
        ("9007199254740993 B", 9007199254740993),  # 2**53 + 1: no float in between
        (9007199254740993, 9007199254740993),
    ],
)
def test_sizes_as_people_write_them(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "-1 GiB", "nan", "inf", "1e9", "1 GiBB", "GiB", "1..5 GiB", "101%", "-5%",
     "5 %%", "1,5 GiB", "0x10", "٣ GiB", "9 EiB", str(1 << 63), -1, 1 << 63],
)  # fmt: skip
def test_what_is_no_size_is_a_value_error(text: int | str) -> None:
    with pytest.raises(ValueError, match=r"size|unit"):
        parse_size(text)


@pytest.mark.parametrize("value", [True, 1.5, None, b"1", ["1"]])
def test_other_types_are_type_errors(value: Any) -> None:
    with pytest.raises(TypeError, match="int or a str"):
        parse_size(value)


LARGEST = (1 << 63) - 1


@given(st.integers(0, LARGEST))
@example(LARGEST)
def test_any_int_is_itself(n: int) -> None:
    assert parse_size(n) == parse_size(str(n)) == parse_size(f"{n} B") == n


@given(st.integers(0, 63).flatmap(lambda bits: st.integers(0, (1 << bits) - 1)))
@example(LARGEST)
@example(LARGEST - (1 << 40) // 20)
@example((1 << 53) + 1)
def test_the_text_of_any_size_is_a_size(n: int) -> None:
    text = format_size(n)
    step = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(text.split()[1])
    # Half a tenth off at most, or a whole one where the next would be too large; in whole bytes.
    twentieths = 2 if n > LARGEST - (1 << 40) // 20 else 1
    assert 20 * (abs(parse_size(text) - n) - 1) < twentieths * step
    assert format_size(-n) == (f"-{text}" if n else text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024 + 256, "1.2 KiB"),  # halves go to the even tenth
        (1024 + 768, "1.8 KiB"),
        ((1 << 20) - 1, "1024.0 KiB"),
        (3 << 29, "1.5 GiB"),
        (LARGEST - (1 << 40) // 20, "8388607.9 TiB"),
        (LARGEST, "8388607.9 TiB"),  # and no "8388608.0 TiB", which is no size
        (1 << 63, "8388608.0 TiB"),
        (10 << 4000, f"{10 << 3960}.0 TiB"),
        (-(3 << 19), "-1.5 MiB"),
    ],
)
def test_sizes_as_they_are_shown(size: int, text: str) -> None:
    assert format_size(size) == text


def test_percentages_are_of_the_limit() -> None:
    limit = memory_limit()
    assert 0 < limit < 1 << 60
    assert parse_size("100%") == limit
    assert parse_size("25 %") == limit // 4
    assert parse_size("0%") == 0


def test_a_percentage_is_of_the_least_limit_there_is() -> None:
    """In a process of its own, which is given less address space than the machine has memory."""
    resource = pytest.importorskip("resource")
    script = """
import resource
import memweir as mw
from memweir.sizes import memory_limit, parse_size
host = {limit.kind: limit.bytes for limit in mw.limits()}["host"]
assert memory_limit() <= host
for least in (memory_limit() // 2, memory_limit() // 3):
    resource.setrlimit(resource.RLIMIT_AS, (least, resource.RLIM_INFINITY))
    assert memory_limit() == least, (memory_limit(), least)
    assert parse_size("25%") == least // 4
"""
    assert resource
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_percentage_where_no_limit_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "limits", list)
    assert parse_size("100%") == 1 << 62
