"""Compact entries as users see them: smaller, exact to the bit, and within the budget."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memweir as mw

LEVELS = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.48)) / np.float32(0.27)
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """What an image processor returns: normalised bytes, another mean for each of 3 channels."""
    codes = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    channel = np.arange(3, dtype=np.float32).reshape(3, *(1,) * (len(shape) - shape.index(3) - 1))
    return LEVELS[codes] + np.float32(0.125) * channel


def same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def stored(array: Any) -> tuple[str, np.ndarray[Any, Any], float]:
    """The encoding of an array, what comes back, and how much smaller its entry was."""
    cache = mw.PixelCache("64 MiB")
    assert cache.put("first", array)
    first = cache.stats().bytes
    assert cache.put("k", array)
    ratio = array.nbytes / (cache.stats().bytes - first)
    entry = cache.get("k")
    assert entry is not None
    out = np.empty_like(entry["array"])
    entry.copy_into("array", out)
    assert same(out, entry["array"])
    assert entry.digest("array") == mw.hash_array(out)
    assert entry.equals("array", array)
    return entry.encoding["array"], entry["array"], ratio


def anonymous() -> int:
    """Bytes of this process's anonymous memory."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def test_a_processors_floats_take_a_quarter() -> None:
    x = pixels(2, 3, 256, 256)
    encoding, back, ratio = stored(x)
    assert encoding == "u8 affine ×3"
    assert same(back, x)
    assert ratio > 3.8


def test_a_repeated_frame_is_dropped() -> None:
    plane = pixels(400, 3, 196).reshape(400, 3, 1, 196)
    x = np.repeat(plane, 2, axis=2).reshape(400, -1)
    encoding, back, ratio = stored(x)
    assert encoding == "u8 affine ×3, repeated plane dropped"
    assert same(back, x)
    assert ratio > 7.5
    x[399, -1] += np.float32(1)  # one late difference
    encoding, back, _ = stored(x)
    assert "dropped" not in encoding
    assert same(back, x)


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.bool_, np.int32])
def test_other_types_take_less_too(dtype: type) -> None:
    x = pixels(3, 200, 200)
    if dtype is not np.float16:
        x = np.tile(x > 0, (2, 1, 1)) if dtype is np.bool_ else np.abs(x * 100) % 200
        x[:, 150:] = 0
    x = x.astype(dtype)
    encoding, back, ratio = stored(x)
    assert same(back, x)
    assert (encoding == "raw") == (dtype is np.bool_)
    assert ratio > (0.9 if encoding == "raw" else x.itemsize * 0.9)


def test_bfloat16_takes_half() -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(pixels(3, 300, 300)).bfloat16()
    cache = mw.PixelCache("8 MiB")
    cache.put("first", x)
    first = cache.stats().bytes
    assert cache.put("k", x)
    assert x.nbytes / (cache.stats().bytes - first) > 1.9
    entry = cache.get("k")
    assert entry is not None
    assert entry.encoding["array"].startswith("u8")
    out = torch.empty_like(x)
    entry.copy_into("array", out)
    assert torch.equal(out.view(torch.int16), x.view(torch.int16))


def test_off_means_as_it_is() -> None:
    cache = mw.PixelCache("8 MiB", compact="off")
    cache.put("k", pixels(3, 200, 200))
    entry = cache.get("k")
    assert entry is not None
    assert entry.encoding == {"array": "raw"}
    assert np.shares_memory(entry["array"], entry["array"])


ODD = [np.nan, -np.nan, -0.0, np.inf, -np.inf, 1e-45, -1e-40, 3e38]


@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from([(3, 90, 70), (1, 3, 64, 128), (64, 1176), (20_000,), (2, 3, 50, 60)]),
    seed=st.integers(0, 2**32 - 1),
    spots=st.lists(st.tuples(st.integers(0, 10**9), st.sampled_from(ODD)), max_size=12),
    flips=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 31)), max_size=3),
    pad=st.integers(0, 40),
    dtype=st.sampled_from(["f4", "f2"]),
    step=st.sampled_from([1, 2, -1]),
)
def test_whatever_is_put_comes_back_to_the_bit(
    shape: tuple[int, ...],
    seed: int,
    spots: list[tuple[int, float]],
    flips: list[tuple[int, int]],
    pad: int,
    dtype: str,
    step: int,
) -> None:
    codes = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    x = LEVELS[codes]
    x[..., x.shape[-1] - min(pad, x.shape[-1]) :] = 0
    for at, value in spots:
        x.reshape(-1)[at % x.size] = value
    for at, bit in flips:
        x.reshape(-1).view(np.uint32)[at % x.size] ^= np.uint32(1 << bit)
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    x = x[..., ::step]
    _, back, _ = stored(x)
    assert same(back, np.ascontiguousarray(x))


def test_entries_share_what_they_learnt() -> None:
    cache = mw.PixelCache("64 MiB")
    for seed in range(20):
        cache.put(str(seed), pixels(3, 128, 128, seed=seed))
    alone = mw.PixelCache("64 MiB")
    alone.put("0", pixels(3, 128, 128, seed=0))
    assert cache.stats().bytes < 20 * alone.stats().bytes * 0.95
    for seed in range(20):
        entry = cache.get(str(seed))
        assert entry is not None
        assert same(entry["array"], pixels(3, 128, 128, seed=seed))


def test_a_decoded_array_is_the_callers() -> None:
    cache = mw.PixelCache("2 MiB")
    x = pixels(3, 300, 300)
    cache.put("k", {"x": x, "grid": np.array([[1, 2, 3]])})
    entry = cache.get("k")
    assert entry is not None
    arrays = entry.decode()
    assert not arrays["x"].flags.writeable
    assert not np.shares_memory(arrays["x"], entry["x"])
    assert cache.stats().lent_bytes >= x.nbytes
    tail = arrays["x"][-1:]
    del arrays, entry
    assert cache.stats().pinned_bytes == 0
    cache.clear()
    assert cache.stats().lent_bytes >= x.nbytes  # a slice keeps the whole
    assert same(tail.copy(), x[-1:])
    del cache
    assert same(tail.copy(), x[-1:])


def test_buffers_are_kept_inside_the_budget_and_go_first() -> None:
    x = pixels(3, 300, 300)
    cache = mw.PixelCache("8 MiB")
    cache.put("k", x)
    owned = cache.stats().bytes
    entry = cache.get("k")
    assert entry is not None
    address = entry["array"].__array_interface__["data"][0]
    assert cache.stats().lent_bytes == 0
    assert owned + x.nbytes <= cache.stats().bytes <= owned + x.nbytes * 1.05
    assert entry["array"].__array_interface__["data"][0] == address
    assert cache.put("noise", np.random.default_rng(0).bytes(7 << 20)) is True
    assert "k" in cache
    assert cache.stats().bytes <= cache.stats().budget
    del entry
    cache.clear()
    assert cache.stats().bytes == 0


def test_a_full_cache_lends_without_keeping() -> None:
    cache = mw.PixelCache("300 KiB")
    x = pixels(3, 300, 300)
    assert cache.put("k", x)
    entry = cache.get("k")
    assert entry is not None
    for _ in range(3):
        assert same(entry["array"], x)
        assert cache.stats().lent_bytes == 0
        assert cache.stats().bytes <= cache.stats().budget


def test_what_another_thread_writes_is_an_old_or_a_new_element() -> None:
    old, new = pixels(3, 256, 256, seed=1), pixels(3, 256, 256, seed=2)
    array = old.copy()
    stop = threading.Event()

    def mutate() -> None:
        while not stop.is_set():
            array[:] = new
            array[:] = old

    thread = threading.Thread(target=mutate)
    thread.start()
    cache = mw.PixelCache("64 MiB")
    try:
        for n in range(60):
            assert cache.put(str(n), array)
    finally:
        stop.set()
        thread.join()
    for n in range(60):
        entry = cache.get(str(n))
        assert entry is not None
        back = entry["array"]
        assert ((back == old) | (back == new)).all()


@linux
def test_memory_follows_the_account() -> None:
    code = """
        import numpy as np
        import memweir as mw

        def anon():
            with open("/proc/self/status") as status:
                return next(int(l.split()[1]) << 10 for l in status if l.startswith("RssAnon"))

        levels = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) * 4
        rng = np.random.default_rng(0)
        photo = levels[rng.integers(256, size=6 << 20, dtype=np.uint8)]  # 24 MiB
        noise = rng.integers(256, size=4 << 20, dtype=np.uint8)
        cache = mw.PixelCache("64 MiB")
        cache.put("warm", photo), cache.put("warm", noise), cache.get("warm")["array"]
        cache.clear()
        base = anon()
        for life in range(3):
            cache.resize("64 MiB")
            for n in rng.integers(0, 400, 800).tolist():
                size = int(rng.integers(5 << 10, 6 << 20) ** (0.7 + 0.3 * (n % 2)))
                start = int(rng.integers(0, 1000))
                cache.put(str(n), photo[start : size] if n % 3 else noise[start : size])
                found = cache.get(str(n - 1))
                if found is not None and n % 5 == 0:
                    found.decode()
                if n % 20 == 0:
                    grown, owned = anon() - base, cache.stats().bytes
                    assert owned <= 64 << 20
                    assert grown <= owned * 1.03 + (8 << 20), (grown, owned)
            found = None
            assert cache.stats().evictions > 0
            for shrink in (
                lambda b: cache.evict(to=b // 2),
                lambda b: cache.resize(b // 2),
                lambda b: cache.clear(),
            ):
                owned, resident = cache.stats().bytes, anon()
                shrink(owned)
                promised = owned - cache.stats().bytes
                assert resident - anon() >= 0.97 * promised - (64 << 10), (life, promised)
            assert anon() - base <= 8 << 20
    """
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_refused_leaves_nothing_under_its_key_and_locks_nobody_out() -> None:
    noise = np.random.default_rng(0).random(600)
    for budget in range(20 << 10, 80 << 10, 700):
        cache = mw.PixelCache(budget)
        cache.put("k", noise)
        held = cache.get("k")
        views = [] if held is None else [held["array"]]
        del held
        for n in range(12):
            palette = np.arange(256, dtype=np.uint16) * np.uint16(2 * n + 3)
            codes = np.random.default_rng(n).integers(256, size=10_000, dtype=np.uint8)
            if not cache.put("k", palette[codes]):
                assert "k" not in cache
            assert cache.stats().bytes <= budget
        assert all(same(view, noise) for view in views)
        del views
        assert cache.put("small", noise[:100])


def test_one_misleading_array_does_not_undo_the_others() -> None:
    plane = pixels(60, 3, 196).reshape(60, 3, 1, 196)
    arrays = {}
    for n in range(12):
        arrays[str(n)] = np.repeat(plane, 2, axis=2).reshape(60, -1).copy()
        arrays[str(n)][59, -1] += np.float32(1)  # its repetition breaks at the very end
    cache = mw.PixelCache("64 MiB")
    assert cache.put("k", arrays)
    entry = cache.get("k")
    assert entry is not None
    assert all(same(entry[name], array) for name, array in arrays.items())
    assert not any("dropped" in encoding for encoding in entry.encoding.values())


@linux
def test_a_dropped_cache_keeps_no_buffers() -> None:
    cache = mw.PixelCache("64 MiB")
    x = pixels(3, 1000, 1000)
    cache.put("k", x)
    entry = cache.get("k")
    assert entry is not None
    array = entry["array"]
    del cache
    before = anonymous()
    del array
    assert before - anonymous() >= x.nbytes * 0.9
    assert same(entry["array"], x)
