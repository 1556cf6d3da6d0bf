"""Stripping a big array and bringing it back, beside the least that this could cost."""

from __future__ import annotations

import blake3
import numpy as np

import memweir as mw

from .harness import Ratio, Table

SHAPE = (5328, 1176)
"""Patches of a 1024² image and some more: 25 MB of float32."""


def main() -> None:
    array = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    content = memoryview(array).cast("B")
    out = np.empty_like(array)
    cache = mw.PixelCache("256 MiB", name="bench")
    sample = {"pixel_values": array}

    def there_and_back() -> None:
        mw.materialize(mw.strip(sample, cache).data)

    def fresh() -> None:
        cache.clear()
        there_and_back()

    def least() -> None:
        blake3.blake3(content).digest()
        np.copyto(out, array)

    table = Table(f"strip + materialize of {array.nbytes / 1e6:.0f} MB; other: BLAKE3 + memcpy")
    table.ratio("stored anew each time", Ratio.measure(fresh, least, calls=3), 2)
    table.ratio("already in the cache", Ratio.measure(there_and_back, least, calls=3), 2)


if __name__ == "__main__":
    main()
