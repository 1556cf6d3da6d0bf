"""What a wheel must do on any interpreter with nothing but numpy beside it."""

import asyncio
import sys
import threading

import numpy as np

import memweir as mw

cache = mw.PixelCache("8 MiB")
rows = np.arange(3 * 100 * 100, dtype=np.float32).reshape(3, 100, 100)
key = mw.hash_array(rows)

assert cache.put(key, {"pixel_values": rows, "grid": np.array([[1, 10, 10]])})
pixels = cache.get(key)
assert pixels is not None
assert np.array_equal(pixels["pixel_values"], rows)
assert not pixels["pixel_values"].flags.writeable
assert pixels.digest("pixel_values") == key

out = np.empty((2, 3, 100, 100), np.float32)
pixels.copy_into("pixel_values", out[1])
assert np.array_equal(out[1], rows)


async def main() -> None:
    loaded = await cache.aget_or_load("other", lambda: rows + 1)
    assert np.array_equal(loaded["array"], rows + 1)


asyncio.run(main())
assert cache.stats().bytes <= cache.budget
assert threading.active_count() <= 2  # the loop's own executor
print(f"memweir {mw.__version__} on Python {sys.version.split()[0]}: ok")
