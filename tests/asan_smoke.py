"""What touches memory, under the address sanitizer: `make asan` builds the extension for it.

Not collected by pytest: the sanitizer has to be loaded before the interpreter's first allocation.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import sys
import threading
import warnings
from pathlib import Path

import numpy as np

import memweir as mw
from memweir import _core

DTYPES = ["u1", "?", "i2", "f2", "f4", "i8", "f8", "c16", "S3", "M8[s]", "i4,f4"]
noise = np.random.default_rng(7)


def photo(*shape: int) -> np.ndarray:
    """Pixels as a processor returns them: they are kept as codes."""
    levels = noise.integers(0, 256, shape).astype(np.float32)
    return (levels / np.float32(255) - np.float32(0.48)) / np.float32(0.27)


def check_sanitizer() -> None:
    assert hasattr(ctypes.CDLL(None), "__asan_init"), "the sanitizer is not loaded"
    assert b"__asan_report_load" in Path(_core.__file__).read_bytes(), "built without it"


def check_entries() -> None:
    for compact in ("auto", "off"):
        cache = mw.PixelCache("64 MiB", compact=compact)
        for i, dtype in enumerate(DTYPES):
            for n in (0, 1, 7, 1023, 4096, 70_001):
                raw = noise.bytes(n * np.dtype(dtype).itemsize)
                array = np.frombuffer(raw, dtype)
                assert cache.put((str(i), str(n)), {"a": array, "grid": np.arange(n % 5)})
                pixels = cache.get((str(i), str(n)))
                assert pixels is not None
                assert pixels["a"].tobytes() == raw
                assert pixels.digest("a") == mw.hash_array(array)
        assert cache.stats().bytes <= cache.budget


def check_views_outlive_everything() -> None:
    cache = mw.PixelCache("32 MiB")
    arrays = {"codes": photo(3, 300, 301), "raw": noise.standard_normal(50_001)}
    cache.put("k", arrays)
    pixels = cache.get("k")
    assert pixels is not None
    views = {name: pixels[name] for name in arrays}
    slices = {name: view.ravel()[5::7] for name, view in views.items()}
    buffer = memoryview(pixels.view("raw"))
    cache.clear()
    cache.resize(0)
    del cache, pixels, views
    gc.collect()
    for name, part in slices.items():
        assert np.array_equal(part, arrays[name].ravel()[5::7])
    assert bytes(buffer) == arrays["raw"].tobytes()


def check_destinations() -> None:
    cache = mw.PixelCache("32 MiB")
    arrays = {"codes": photo(3, 111, 97), "raw": noise.standard_normal((3, 111, 97)), "one": 1.5}
    cache.put("k", {name: np.asarray(array) for name, array in arrays.items()})
    pixels = cache.get("k")
    assert pixels is not None
    for name, (dtype, shape, _) in pixels.spec.items():
        batch = np.full((3, *shape), 9, dtype)
        reverse = (..., *[slice(None, None, -1)] * len(shape))
        row = batch[1, ...]
        for out in (row, row.T.copy().T, row[reverse]):
            pixels.copy_into(name, out)
            assert np.array_equal(out, arrays[name])
        assert (batch[0] == 9).all()
        assert (batch[2] == 9).all()
        gaps = np.zeros([2 * n for n in shape], dtype)
        pixels.copy_into(name, gaps[(..., *[slice(None, None, 2)] * len(shape))])
        assert np.count_nonzero(gaps) <= np.asarray(arrays[name]).size


def check_sources() -> None:
    cache = mw.PixelCache("64 MiB")
    base = photo(120, 90, 4)
    small = noise.integers(0, 256, (37, 41, 4), dtype=np.uint8)
    for array in (base, base.astype("f2"), small):
        for view in (
            array[::-1],
            array.transpose(2, 0, 1),
            array[3:-3, ::-2, 1:3],
            np.asfortranarray(array),
            array[..., :3],
            np.broadcast_to(array[:1], array.shape),
            np.lib.stride_tricks.sliding_window_view(array[0], (5, 2)),
        ):
            assert mw.hash_array(view) == mw.hash_array(view.copy())
            assert cache.put("v", view)
            pixels = cache.get("v")
            assert pixels is not None
            assert np.array_equal(pixels["array"], view)


def check_images() -> None:
    if importlib.util.find_spec("PIL") is None:
        print("no Pillow")
        return
    from PIL import Image

    for width in (*range(1, 40), 255, 1024):
        rows = noise.integers(0, 256, (5, width, 3), dtype=np.uint8)
        assert mw.hash_image(Image.fromarray(rows)) == mw.hash_image(rows)
    images = [Image.fromarray(rows[:, :n]) for n in range(1, 60)]
    assert mw.hash_many(images * 3, threads=4) == [mw.hash_image(i) for i in images] * 3


def check_tensors() -> None:
    if importlib.util.find_spec("torch") is None:
        print("no torch")
        return
    import torch

    cache = mw.PixelCache("32 MiB")
    tensor = torch.from_numpy(photo(60, 1176))
    for view in (tensor, tensor.T, tensor[::3, 5:700], tensor.bfloat16(), tensor[:0]):
        assert cache.put("t", {"x": view})
        pixels = cache.get("t")
        assert pixels is not None
        out = torch.zeros_like(view)
        pixels.copy_into("x", out)
        assert torch.equal(out, view)
    stripped = mw.strip({"x": tensor, "n": 1}, cache)
    del tensor, view
    again = mw.materialize(stripped.data)
    assert again["x"].shape == (60, 1176)


def check_threads() -> None:
    cache = mw.PixelCache("6 MiB")
    rows = [photo(3, 60 + 20 * n, 70) if n % 2 else noise.bytes(30_000 * n) for n in range(8)]
    arrays = [np.frombuffer(row, np.uint8) if isinstance(row, bytes) else row for row in rows]
    failed: list[BaseException] = []
    shared = photo(3, 200, 200)

    def work(seed: int) -> None:
        try:
            kept = []
            for i in range(seed, seed + 300):
                n = i * 7 % 8
                pixels = cache.get_or_load(str(n), lambda n=n: arrays[n], nbytes=arrays[n].nbytes)
                view = pixels["array"]
                assert np.array_equal(view, arrays[n])
                kept.append((n, view[..., 3:]))
                if i % 11 == 0:
                    cache.clear()
                if i % 17 == 0:
                    cache.resize(f"{1 + i % 6} MiB")
                if i % 13 == 0:
                    kept = kept[-3:]
                # Somebody writes to what is hashed and stored meanwhile: any mixture is right.
                shared[i % 3] += 1
                cache.put("shared", shared)
                mw.hash_array(shared)
            for n, part in kept:
                assert np.array_equal(part, arrays[n][..., 3:])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    cache.resize("6 MiB")
    cache.clear()
    assert cache.stats().pinned_bytes == 0


def check_fork() -> None:
    cache = mw.PixelCache("16 MiB")
    arrays = {"codes": photo(3, 100, 100), "raw": noise.standard_normal(30_000)}
    cache.put("k", arrays)
    pixels = cache.get("k")
    assert pixels is not None
    view = pixels["raw"]
    child = os.fork()
    if child == 0:
        try:
            assert np.array_equal(view, arrays["raw"])
            assert np.array_equal(pixels["codes"], arrays["codes"])
            cache.put("k", {"x": photo(3, 90, 90)})
            cache.clear()
            assert np.array_equal(view, arrays["raw"])
        except BaseException as error:
            sys.stderr.write(f"child: {error!r}\n")
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    cache.clear()
    assert np.array_equal(view, arrays["raw"])


def check_records() -> None:
    for length in range(400):
        try:
            _core.Descriptor.decode(noise.bytes(length))
        except ValueError:
            continue
        raise AssertionError("noise was a record")
    record = _core.Descriptor("x" * 300, "<f4", 4, [2, 3], b"d" * 32, origin=b"o" * 500).encode()
    assert _core.Descriptor.decode(record).encode() == record
    for length in range(len(record)):
        try:
            _core.Descriptor.decode(record[:length])
        except ValueError:
            continue
        raise AssertionError(f"{length} bytes were enough")


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process that has threads
    checks = [check for name, check in globals().items() if name.startswith("check_")]
    for check in checks:
        check()
    print(f"address sanitizer: {len(checks)} checks of the extension, nothing found")


if __name__ == "__main__":
    main()
