"""Entries as records: the same bytes anywhere, and no trust in what comes back."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memweir as mw

LEVELS = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.48)) / np.float32(0.27)
RNG = np.random.default_rng(0)


def entry() -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of every kind: codes, escapes, few values, runs, and such that stay as they are."""
    photo = LEVELS[RNG.integers(256, size=(2, 3, 120, 128), dtype=np.uint8)]
    photo[..., 100:, :] = 0
    photo[0, 0, 0, 0] = np.nan
    return {
        "pixel_values": photo,
        "half": photo.astype(np.float16),
        "ids": RNG.integers(100, size=(300, 40)),
        "mask": np.ones((200, 300), np.int64),
        "noise": RNG.random(5000),
        "grid": np.array([[1, 8, 8]]),
        "flag": np.array(True),
        "none": np.zeros((0, 3), np.float32),
    }


def exported(arrays: Any) -> bytes:
    cache = mw.PixelCache("16 MiB")
    assert cache.put("k", arrays)
    pixels = cache.get("k")
    assert pixels is not None
    return pixels.export()


def same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, "u1")])
@pytest.mark.parametrize("compact", ["auto", "off"])
def test_what_was_exported_is_the_same_entry_elsewhere(kind: Any, compact: Any) -> None:
    arrays = entry()
    record = exported(arrays)
    assert len(record) < sum(array.nbytes for array in arrays.values()) / 3
    cache = mw.PixelCache("16 MiB", compact=compact)
    assert cache.put_exported(("other", "key"), kind(record))
    pixels = cache.get(("other", "key"))
    assert pixels is not None
    assert list(pixels) == list(arrays)
    assert all(same(pixels[name], array) for name, array in arrays.items())
    assert (pixels.encoding["pixel_values"] == "raw") == (compact == "off")
    again = mw.PixelCache("16 MiB")
    assert again.put_exported("k", pixels.export())
    assert same(again.get("k")["pixel_values"], arrays["pixel_values"])  # type: ignore[index]


def test_another_process_reads_it(tmp_path: Path) -> None:
    arrays = entry()
    (tmp_path / "record").write_bytes(exported(arrays))
    np.savez(tmp_path / "arrays.npz", **arrays)  # type: ignore[arg-type]
    code = """
        import sys
        import numpy as np
        import memweir as mw

        cache = mw.PixelCache("16 MiB")
        with open("record", "rb") as record:
            assert cache.put_exported("k", record.read())
        pixels = cache.get("k")
        for name, array in np.load("arrays.npz").items():
            assert pixels[name].tobytes() == array.tobytes(), name
            assert pixels[name].dtype == array.dtype and pixels[name].shape == array.shape
    """
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_was_served_from_outside_the_budget_is_exported_too() -> None:
    array = RNG.random(100_000)
    pixels = mw.PixelCache("64 KiB").get_or_load("k", lambda: {"x": array})
    assert not pixels.kept
    cache = mw.PixelCache("4 MiB")
    assert cache.put_exported("k", pixels.export())
    assert same(cache.get("k")["x"], array)  # type: ignore[index]


def test_entries_from_records_share_their_tables() -> None:
    cache = mw.PixelCache("64 MiB")
    sizes = []
    for seed in range(30):
        codes = np.random.default_rng(seed).integers(256, size=(3, 128, 128), dtype=np.uint8)
        assert cache.put_exported(str(seed), exported(LEVELS[codes]))
        sizes.append(cache.stats().bytes)
    assert sizes[-1] - sizes[1] < 28 * (3 * 128 * 128 + 8192)


def test_damage_is_found_wherever_it_is() -> None:
    record = exported(entry())
    cache = mw.PixelCache("16 MiB")
    rng = np.random.default_rng(1)
    for at in [*range(40), *rng.integers(len(record), size=200).tolist(), len(record) - 1]:
        damaged = bytearray(record)
        damaged[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(ValueError, match="record"):
            cache.put_exported("k", damaged)
    for end in [0, 1, 7, 8, 23, 24, 100, *rng.integers(len(record), size=50).tolist()]:
        with pytest.raises(ValueError, match="record"):
            cache.put_exported("k", record[:end])
    with pytest.raises(ValueError, match="record"):
        cache.put_exported("k", record + b"x")
    assert len(cache) == 0
    assert cache.stats().logical_bytes == 0


def test_what_is_no_record_and_what_does_not_fit() -> None:
    record = exported(entry())
    cache = mw.PixelCache("16 MiB")
    for wrong in ("text", 3, None):
        with pytest.raises((TypeError, mw.UnsupportedType)):
            cache.put_exported("k", wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="record"):
        cache.put_exported("k", b"not a record at all, whatever it says")
    small = mw.PixelCache("40 KiB")
    assert small.put("k", np.arange(10))
    assert not small.put_exported("k", record)
    assert "k" not in small
    assert small.stats().refused == 1
