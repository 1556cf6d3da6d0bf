from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memweir import sizes
from memweir.settings import Settings, current, use
from memweir.sizes import format_size, memory_limit, parse_size

if TYPE_CHECKING:
    from pathlib import Path


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


@pytest.mark.parametrize(
    ("membership", "files", "limits"),
    [
        ("0::/a/b\n", {"a/memory.max": "1000", "a/b/memory.max": "max"}, [1000]),
        ("0::/a/b\n", {"a/memory.max": "1000", "a/b/memory.max": "400"}, [400, 1000]),
        ("0::/\n", {}, []),
        (
            "5:memory:/x\n3:cpu,cpuacct:/y\n",
            {"memory/x/memory.limit_in_bytes": "700", "memory/memory.limit_in_bytes": "9"},
            [700, 9],
        ),
        ("5:cpuset,memory:/x\n0::/u\n", {"memory/x/memory.limit_in_bytes": "7"}, [7]),
    ],
)
def test_cgroup_limits(
    tmp_path: Path, membership: str, files: dict[str, str], limits: list[int]
) -> None:
    own = tmp_path / "cgroup"
    own.write_text(membership)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert sizes._cgroup_limits(tmp_path, own) == limits


def test_settings() -> None:
    assert Settings.from_env({}) == Settings()
    settings = Settings.from_env({"MEMWEIR_CACHE_BUDGET": "3 MiB", "OTHER": "x"})
    assert settings == Settings(cache_budget="3 MiB")
    assert Settings.from_dict(settings.to_dict()) == settings
    with pytest.raises(ValueError, match=r"MEMWEIR_\*.*not a size"):
        Settings.from_env({"MEMWEIR_CACHE_BUDGET": "plenty"})
    with pytest.raises(TypeError):
        Settings.from_dict({"cash_budget": 1})
    import memweir as mw

    use(settings)
    try:
        assert current() is settings
        assert mw.PixelCache().budget == 3 << 20
    finally:
        use(None)
    assert mw.PixelCache().budget == 1 << 30
