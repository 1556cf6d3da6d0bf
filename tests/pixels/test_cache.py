"""What a user of one thread sees of the cache."""

from __future__ import annotations

import ctypes
import pickle
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import memweir as mw

RAW = np.arange(60_000, dtype=np.float32).reshape(3, 100, 200)  # too many values to be compact
NOISE = np.random.default_rng(0).integers(256, size=2 << 20, dtype=np.uint8)


def same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


SHAPES = hnp.array_shapes(min_dims=0, min_side=0, max_side=6)
DTYPES = st.one_of(
    hnp.scalar_dtypes(),
    hnp.unicode_string_dtypes(),
    hnp.byte_string_dtypes(),
    hnp.array_dtypes(),
)
# Of numpy's own types by value, of ml_dtypes' by bits: NaN payloads and negative zeros included.
ARRAYS = st.one_of(
    hnp.arrays(DTYPES, SHAPES),
    hnp.arrays(np.uint16, SHAPES).map(lambda bits: bits.view(ml_dtypes.bfloat16)),
    hnp.arrays(np.uint8, SHAPES).map(lambda bits: bits.view(ml_dtypes.float8_e4m3fn)),
    hnp.arrays(np.uint64, SHAPES).map(lambda bits: bits.view(np.float64)),
)


@given(
    ARRAYS,
    st.sampled_from(["", "T", "reverse", "every second", "fortran"]),
)
def test_any_array_comes_back_bit_for_bit(array: np.ndarray[Any, Any], layout: str) -> None:
    match layout:
        case "T":
            array = array.T
        case "reverse" if array.ndim:
            array = array[::-1]
        case "every second" if array.ndim:
            array = array[::2]
        case "fortran":
            array = np.asfortranarray(array)
    cache = mw.PixelCache("1 MiB")
    assert cache.put("k", {"x": array})
    pixels = cache.get("k")
    assert pixels is not None
    back = pixels["x"]
    assert same(np.ascontiguousarray(back).reshape(array.shape), array)
    assert not back.flags.writeable
    assert pixels.spec["x"].shape == array.shape
    assert pixels.spec["x"].nbytes == array.nbytes
    assert pixels.digest("x") == mw.hash_array(array)


@pytest.mark.parametrize("read_only", [False, True])
def test_bfloat16_from_torch(read_only: bool) -> None:
    torch = pytest.importorskip("torch")
    cache = mw.PixelCache("1 MiB")
    tensor = torch.arange(10_000).to(torch.bfloat16).reshape(100, 100)
    assert cache.put("t", tensor.T if read_only else tensor)
    pixels = cache.get("t")
    assert pixels is not None
    assert pixels.spec["array"].dtype == "bfloat16"
    out = torch.empty(100, 100, dtype=torch.bfloat16)
    pixels.copy_into("array", out)
    assert torch.equal(out, tensor.T if read_only else tensor)


def test_keys_of_different_types_are_different_keys() -> None:
    cache = mw.PixelCache("1 MiB")
    digest = mw.hash_bytes(b"a")
    keys = ["a", b"a", ("a",), (b"a",), ("a", "a"), ("aa",), (), digest, bytes(digest), (digest,)]
    keys += ["x" * 64, "x" * 65, b"x" * 65, ("x" * 65,), ""]
    for i, key in enumerate(keys):
        assert key not in cache
        assert cache.put(key, np.array([i]))
    assert len(cache) == len(keys)
    for i, key in enumerate(keys):
        pixels = cache.get(key)
        assert pixels is not None
        assert pixels["array"].tolist() == [i]


@pytest.mark.parametrize("key", [1, None, 1.5, ["a"], ("a", 1), (("a",),), bytearray(b"a")])
def test_other_keys_are_type_errors(key: Any) -> None:
    cache = mw.PixelCache("1 MiB")

    class Text(str):
        __slots__ = ()

    for bad in (key, Text("a")):
        for use in (cache.get, cache.__contains__, cache.remove):
            with pytest.raises(TypeError, match="a key is a Digest, bytes, str or a tuple"):
                use(bad)
        with pytest.raises(TypeError, match="a key is"):
            cache.put(bad, RAW)
        with pytest.raises(TypeError, match="a key is"):
            cache.get_or_load(bad, lambda: RAW)


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        (np.array([object()]), mw.UnsupportedType),
        ({"x": np.array([None])}, mw.UnsupportedType),
        (np.zeros(2, [("a", "i4"), ("b", "O")]), mw.UnsupportedType),
        (None, mw.UnsupportedType),
        ([1, 2, 3], mw.UnsupportedType),
        ({"x": None}, mw.UnsupportedType),
        (3.5, mw.UnsupportedType),
        ({1: RAW}, TypeError),
        ({}, ValueError),
    ],
)
def test_bad_arrays_are_refused_and_nothing_is_lost(arrays: Any, error: type[Exception]) -> None:
    cache = mw.PixelCache("1 MiB")
    assert cache.put("k", RAW)
    with pytest.raises(error):
        cache.put("k", arrays)
    with pytest.raises(error):
        cache.get_or_load("other", lambda: arrays)
    pixels = cache.get("k")
    assert pixels is not None
    assert same(pixels["array"], RAW)
    assert len(cache) == 1


def test_mappings_of_any_kind() -> None:
    from collections import UserDict

    cache = mw.PixelCache("1 MiB")
    for kind in (dict, OrderedDict, UserDict):
        assert cache.put("k", kind(b=RAW, a=RAW[0]))
        pixels = cache.get("k")
        assert isinstance(pixels, Mapping)
        assert list(pixels) == ["b", "a"] == list(pixels.keys())
        assert all(same(v, w) for v, w in zip(pixels.values(), (RAW, RAW[0]), strict=True))
        assert dict(pixels.items()).keys() == pixels.decode().keys()
        assert "a" in pixels
        assert "c" not in pixels
        assert 1 not in pixels
        with pytest.raises(KeyError):
            pixels["c"]


def test_a_view_is_read_only_every_way() -> None:
    cache = mw.PixelCache("1 MiB")
    cache.put("k", RAW)
    pixels = cache.get("k")
    assert pixels is not None
    array = pixels["array"]
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.setflags(write=True)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(TypeError, match="read-only"):
        memoryview(array).cast("B")[0] = 1
    with pytest.raises((BufferError, ValueError, TypeError)):
        np.frombuffer(pixels.view("array"), np.uint8).setflags(write=True)
    import ctypes
    from ctypes import c_char

    fortran = 0x40 | 0x18  # PyBUF_F_CONTIGUOUS
    view = (ctypes.c_char * 256)()
    get = ctypes.pythonapi.PyObject_GetBuffer
    with pytest.raises(BufferError, match="C order"):
        get(ctypes.py_object(pixels.view("array")), view, fortran)

    with pytest.raises(TypeError, match="not writable"):
        (c_char * 4).from_buffer(pixels.view("array"))


def test_what_is_in_use_stays_and_counts() -> None:
    cache = mw.PixelCache("1 MiB")
    row = RAW.reshape(-1)[:50_000]  # 200 kB
    views = []
    for n in range(4):
        assert cache.put(str(n), row + n)
        views.append(cache.get(str(n))["array"])  # type: ignore[index]
    stats = cache.stats()
    assert stats.pinned_bytes >= 4 * row.nbytes
    assert not cache.put("large", NOISE[:300_000])
    assert cache.stats().refused == 1
    assert all((view == row + n).all() for n, view in enumerate(views))
    tail = views[0][:1]
    excess = cache.resize("100 KB")
    assert excess == cache.stats().bytes - 100_000 > 600_000
    del views
    assert 0 < cache.stats().bytes - 100_000 < row.nbytes  # a one-element slice keeps its entry
    assert tail.tolist() == [0]
    del tail
    assert cache.stats().bytes <= 100_000
    assert len(cache) == 0


def test_small_arrays_keep_nothing() -> None:
    cache = mw.PixelCache("4 MiB")
    cache.put("k", {"pixel_values": RAW, "grid": np.array([[1, 10, 20]])})
    pixels = cache.get("k")
    assert pixels is not None
    grid = pixels["grid"]
    assert cache.stats().pinned_bytes > 0
    del pixels
    assert cache.stats().pinned_bytes == 0
    assert grid.tolist() == [[1, 10, 20]]
    assert not grid.flags.writeable


def test_views_outlive_everything() -> None:
    cache = mw.PixelCache("1 MiB")
    cache.put("k", RAW)
    view = cache.get("k")["array"]  # type: ignore[index]
    cache.clear()
    assert "k" not in cache
    cache.put("k", RAW + 1)
    del cache
    assert same(view, RAW)


def test_a_budget_of_nothing_works_and_keeps_nothing() -> None:
    cache = mw.PixelCache(0)
    assert not cache.put("k", RAW)
    assert cache.get("k") is None
    pixels = cache.get_or_load("k", lambda: {"x": RAW})
    assert same(pixels["x"], RAW)
    assert not pixels.kept
    stats = cache.stats()
    assert (stats.bytes, stats.entries) == (0, 0)
    assert stats.lent_bytes >= RAW.nbytes
    assert stats.refused == 2
    del pixels
    assert cache.stats().lent_bytes == 0


def test_what_does_not_fit_evicts_nothing() -> None:
    cache = mw.PixelCache("1 MiB")
    cache.put("small", RAW[0])
    assert not cache.put("large", NOISE)
    assert "small" in cache
    cache.put("replaced", RAW[0])
    assert not cache.put("replaced", NOISE)
    assert "replaced" not in cache  # the old value is not the answer any more
    pixels = cache.get_or_load("large", lambda: NOISE, nbytes=NOISE.nbytes)
    assert not pixels.kept
    assert "small" in cache


def test_put_array_is_found_by_content() -> None:
    cache = mw.PixelCache("1 MiB")
    digest, pixels = cache.put_array(RAW.transpose(2, 0, 1))
    assert digest == mw.hash_array(RAW.transpose(2, 0, 1))
    assert pixels is not None
    assert same(pixels["array"], np.ascontiguousarray(RAW.transpose(2, 0, 1)))
    again, other = cache.put_array(pixels["array"])
    assert again == digest
    assert len(cache) == 1
    assert cache.get(digest) is None
    assert cache.get_array(digest) is not None
    assert cache.clear() == 0  # pinned
    assert cache.get_array(digest) is None
    del pixels, other
    assert cache.clear() == 0  # gone already
    assert cache.stats().bytes == 0
    tight = mw.PixelCache("300 KiB")
    kept = tight.put_array(RAW)[1]
    assert tight.put_array(RAW)[1] is not None  # no room for another, and none is needed
    del kept
    digest, missing = mw.PixelCache("10 KiB").put_array(RAW)
    assert digest == mw.hash_array(RAW)
    assert missing is None


@pytest.mark.parametrize("compact", ["auto", "off"])
def test_what_another_thread_mutates_is_stored_as_it_was_hashed(
    compact: Literal["auto", "off"],
) -> None:
    array = np.zeros(1 << 20, np.uint64)
    stop = threading.Event()

    def mutate() -> None:
        value = 0
        while not stop.is_set():
            value += 1
            array.fill(value)

    thread = threading.Thread(target=mutate)
    thread.start()
    cache = mw.PixelCache("64 MiB", compact=compact)
    try:
        for _ in range(20):
            digest, pixels = cache.put_array(array)
            assert pixels is not None
            assert pixels.digest("array") == digest == mw.hash_array(pixels["array"])
    finally:
        stop.set()
        thread.join()


def test_copy_into_rows_of_any_stride() -> None:
    cache = mw.PixelCache("1 MiB")
    cache.put("k", {"x": RAW, "g": np.array([1, 2, 3])})
    pixels = cache.get("k")
    assert pixels is not None
    batch = np.zeros((2, 5, 100, 200), np.float32)
    pixels.copy_into("x", batch[1, 1:4])
    assert same(batch[1, 1:4].copy(), RAW)
    assert not batch[0].any()
    assert not batch[1, 4].any()
    columns = np.zeros((200, 100, 3), np.float32)
    pixels.copy_into("x", columns.transpose(2, 1, 0))
    assert same(columns.transpose(2, 1, 0).copy(), RAW)
    out = np.zeros(6, np.int64)
    pixels.copy_into("g", out[::2])
    assert out.tolist() == [1, 0, 2, 0, 3, 0]
    with pytest.raises(TypeError, match="same dtype"):
        pixels.copy_into("x", np.zeros(RAW.shape))
    with pytest.raises(ValueError, match="shape"):
        pixels.copy_into("x", np.zeros((3, 200, 100), np.float32))
    with pytest.raises(ValueError, match="read-only"):
        pixels.copy_into("x", pixels["x"])


SCALARS = [
    np.float64(0),
    np.bool_(0),
    np.datetime64(0, "s"),
    np.bytes_(b"abc"),
    np.bytes_(b""),
    np.zeros(1, "i4,f4")[0],
]


def small_integers() -> mw.Pixels:
    cache = mw.PixelCache("1 MiB")
    cache.put("k", np.arange(4, dtype=np.uint8))
    pixels = cache.get("k")
    assert pixels is not None
    return pixels


@pytest.mark.parametrize("out", SCALARS, ids=lambda out: type(out).__name__)
def test_a_scalar_is_no_destination(out: np.generic) -> None:
    """Numpy makes arrays of them by copying: what is written there is lost."""
    cache, before = mw.PixelCache("1 MiB"), out.tobytes()
    one = np.ones((), out.dtype)
    cache.put("k", one)
    pixels = cache.get("k")
    assert pixels is not None
    kind = re.escape(type(out).__name__)
    with pytest.raises(ValueError, match=rf"the destination \(numpy\.{kind}\) is read-only"):
        pixels.copy_into("array", out)
    assert out.tobytes() == before
    array = np.zeros((), out.dtype)
    pixels.copy_into("array", array)
    assert same(array, one)


@pytest.mark.parametrize("frozen", [bytes(4), memoryview(bytearray(4)).toreadonly()], ids=type)
def test_frozen_buffers_are_no_destinations(frozen: Any) -> None:
    with pytest.raises(ValueError, match="read-only"):
        small_integers().copy_into("array", frozen)
    assert bytes(frozen) == bytes(4)


@pytest.mark.parametrize("out", [bytearray(4), (ctypes.c_uint8 * 4)()], ids=["bytes", "ctypes"])
def test_writable_buffers_are_destinations(out: Any) -> None:
    small_integers().copy_into("array", out)
    assert bytes(out) == bytes(range(4))


def test_representations_decode_nothing_and_escape() -> None:
    cache = mw.PixelCache("1 MiB", name="<b>&")
    cache.put("k", RAW)
    shape = r"<PixelCache '<b>&': 24\d\.\d KiB of 1\.0 MiB, 1 entries, 0 hits, 0 misses>"
    assert re.fullmatch(shape, repr(cache))
    assert "&lt;b&gt;&amp;" in cache._repr_html_()
    pixels = cache.get("k")
    assert repr(pixels) == "<Pixels array: <f4 (3, 100, 200)>"
    assert cache.stats().lent_bytes == 0


def test_neither_caches_nor_handles_travel() -> None:
    cache = mw.PixelCache("1 MiB")
    cache.put("k", RAW)
    with pytest.raises(TypeError, match="belongs to its process"):
        pickle.dumps(cache)
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(cache.get("k"))
    view = cache.get("k")["array"]  # type: ignore[index]
    assert same(pickle.loads(pickle.dumps(view)), RAW)


def test_arguments() -> None:
    assert mw.PixelCache("2 GiB").budget == 2 << 30
    with pytest.raises(ValueError, match="compact"):
        mw.PixelCache("1 MiB", compact="yes")  # type: ignore[arg-type]
    for bad in ("-1", "nan", "101%", -1, ""):
        with pytest.raises(ValueError, match="size"):
            mw.PixelCache(bad)
    with pytest.raises(TypeError):
        mw.PixelCache(1.5)  # type: ignore[arg-type]


def test_evict_and_stats() -> None:
    cache = mw.PixelCache("8 MiB")
    for n in range(10):
        cache.put(str(n), RAW)
    assert cache.get("0") is not None
    before = cache.stats()
    freed = cache.evict(to=before.bytes // 2)
    after = cache.stats()
    assert freed >= before.bytes // 2 * 0.97
    assert after.bytes <= before.bytes // 2
    assert after.evictions == before.entries - after.entries
    assert "0" in cache  # used last
    assert "1" not in cache
    assert (after.hits, after.misses) == (1, 0)
    assert after.logical_bytes == after.entries * RAW.nbytes
    assert after.peak_bytes <= cache.budget


def test_equals_compares_type_shape_and_every_byte() -> None:
    photo = (np.arange(300_000) % 251 / np.float32(255)).astype(np.float32).reshape(3, 100, 1000)
    for value in (RAW, photo):
        cache = mw.PixelCache("4 MiB")
        cache.put("k", {"x": value})
        pixels = cache.get("k")
        assert pixels is not None
        assert (pixels.encoding["x"] == "raw") == (value is RAW)
        assert pixels.equals("x", value)
        assert pixels.equals("x", np.asfortranarray(value))
        assert not pixels.equals("x", value.reshape(-1))
        assert not pixels.equals("x", value.view(np.int32))
        for at in (0, value.size // 2, value.size - 1):
            other = value.copy()
            other.reshape(-1).view(np.uint8)[4 * at + 3] ^= 1
            assert not pixels.equals("x", other)
