"""The compact form's speed through the public API, beside copying the same floats.

Each level of SIMD runs in a process of its own: ``python -m benches.compact [portable | avx2]``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import ml_dtypes
import numpy as np
from PIL import Image
from skimage import data
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import memweir as mw
from memweir.cli.demo.workload import data_uri

from .harness import Ratio, Table, duration, quiet, seconds

Array = np.ndarray[Any, Any]

SIZE = {"shortest_edge": 3136, "longest_edge": 12_845_056}
"""The pixels that Qwen2-VL's processor takes an image for: 1024² as it is."""
WARM = {"portable": 20, "avx2": 30}
"""How many times faster a hit is to be than the processor."""
REJECTED = 0.2e-3
"""Seconds that finding no compact form may take, of an array of any size."""


def main() -> None:
    for level in WARM:
        if level == "portable" or has_avx2():
            command = [sys.executable, "-m", "benches.compact", level]
            subprocess.run(command, env={**os.environ, "MEMWEIR_SIMD": level}, check=True)


def has_avx2() -> bool:
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return {"avx2", "fma"} <= words


def play(level: str) -> None:
    photo = noisy_photograph()
    qwen = Qwen2VLImageProcessorPil(size=SIZE)
    frames = qwen(photo, return_tensors="np")["pixel_values"]
    planes = PixtralImageProcessorPil()(photo, return_tensors="np")["pixel_values"]
    print(f"\nCompact form, {level}; frames {frames.shape}, planes {planes.shape}, float32")

    table = Table("decode into warm memory; other: np.copyto of the floats")
    decoded(table, "copy_into, 25.8 MB, a frame repeated", frames, 1.2)
    decoded(table, "copy_into, 12.6 MB, CHW", planes, 0.9)
    least = 0.25 if level == "portable" else None
    for name, dtype in (("f16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        decoded(table, f"copy_into, {name}, a frame repeated", frames.astype(dtype), least)
        decoded(table, f"copy_into, {name}, CHW", planes.astype(dtype), least)

    table = Table("decode into fresh memory; other: ndarray.copy()")
    fresh(table, "px[name], 25.8 MB, all kept", frames, 0.6)
    fresh(table, "px[name], 12.6 MB, all kept", planes, 0.6)
    released(table, "px[name], 25.8 MB, each released", frames)

    table = Table("put into a full cache; other: np.copyto of the floats")
    encoded(table, "25.8 MB, a frame repeated", frames, 0.9)
    encoded(table, "12.6 MB, CHW", planes, 0.35)

    table = Table("the first image of a cache; other: the same again, in as warm pages")
    learned(table, "25.8 MB, a frame repeated", frames, 1.3)
    learned(table, "12.6 MB, CHW", planes, 1.7)

    columns = ("", "median", "slowest", "median, out of CPU caches", "goal")
    table = Table('put of noise: time over compact="off" until the form is rejected', columns)
    for what, noise in noises(frames.shape, planes.shape):
        rejected(table, what, noise)
    stored_raw(Table('put of noise into a full cache; other: compact="off"'), frames.shape)

    table = Table("a hit of CachedProcessor; other: the processor on the same image")
    for what, image in (("decoded image", photo), ("data URI", data_uri(photo))):
        hits(table, what, qwen, image, WARM[level])


def noisy_photograph() -> Image.Image:
    """A photograph of 1024² with the noise of a sensor."""
    smooth = Image.fromarray(data.astronaut()).resize((1024, 1024), Image.Resampling.LANCZOS)
    noise = np.random.default_rng(0).normal(0, 3, (1024, 1024, 3))
    return Image.fromarray((np.asarray(smooth) + noise).round().clip(0, 255).astype(np.uint8))


def entry(array: Array) -> tuple[mw.PixelCache, Any]:
    """A cache, which keeps some pages that it decoded into, and the entry of an array."""
    cache = mw.PixelCache("256 MiB", name="bench")
    assert cache.put("key", array)
    pixels = cache.get("key")
    assert pixels is not None
    assert pixels.encoding["array"] != "raw"
    return cache, pixels


def copier(array: Array) -> Callable[[], None]:
    """A plain copy of the array's bytes into warm memory."""
    plain = array.view(f"u{array.itemsize}")  # numpy has no fast copy of foreign types
    out = np.zeros_like(plain)
    return lambda: np.copyto(out, plain)


def decoded(table: Table, what: str, array: Array, least: float | None) -> None:
    _, pixels = entry(array)
    out = np.zeros_like(array)
    measured = Ratio.measure(lambda: pixels.copy_into("array", out), copier(array), calls=3)
    assert out.tobytes() == array.tobytes()
    table.ratio(what, measured, least=least)


def fresh(table: Table, what: str, array: Array, least: float) -> None:
    """Nothing is released before the end, so that every array has pages of its own."""
    _, pixels = entry(array)
    ours: list[Array] = []
    other: list[Array] = []
    measured = Ratio.measure(
        lambda: ours.append(pixels["array"]), lambda: other.append(array.copy()), rounds=9
    )
    table.ratio(what, measured, least=least)
    table.row("    of it in huge pages", huge(ours[-1]), huge(other[-1]), "", "")


def huge(array: Array) -> str:
    """The part of the memory around an array that is mapped in huge pages."""
    at, found = array.__array_interface__["data"][0], {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, value, *_ = line.split()
        if not name.endswith(":"):
            start, end = (int(part, 16) for part in name.split("-"))
            inside = start <= at < end
        elif inside:
            found[name] = value
    return f"{100 * int(found['AnonHugePages:']) / int(found['Rss:']):.0f} %"


def released(table: Table, what: str, array: Array) -> None:
    """Both sides may keep the pages of the last one for the next."""
    cache, pixels = entry(array)
    table.ratio(what, Ratio.measure(lambda: pixels["array"], array.copy, calls=3))
    assert cache.stats().bytes > array.nbytes


def encoded(table: Table, what: str, array: Array, least: float) -> None:
    """Every put takes the pages of an evicted entry."""
    cache = mw.PixelCache("16 MiB", name="bench")
    keys = count()

    def put() -> None:
        assert cache.put(f"{next(keys)}", array)

    for _ in range(12):
        put()
    before = cache.stats().evictions
    measured = Ratio.measure(put, copier(array), calls=3)
    assert cache.stats().evictions > before
    table.ratio(what, measured, least=least)


def learned(table: Table, what: str, array: Array, most: float) -> None:
    """A cache whose pages are warm and whose books are empty: it was full of bytes."""
    raw = np.random.default_rng(0).integers(256, size=1 << 20, dtype=np.uint8)
    first, again = [], []
    with quiet():
        for _ in range(16):
            cache = mw.PixelCache("16 MiB", name="bench")
            for number in range(16):
                cache.put(f"raw {number}", raw)
            first.append(seconds(lambda cache=cache: cache.put("first", array)))
            again.append(seconds(lambda cache=cache: cache.put("again", array)))
            assert cache.get("first") is not None
    table.ratio(what, Ratio(first[1:], again[1:]), most)


def noises(*shapes: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(0)
    for shape in shapes:
        yield f"random floats {shape}", rng.random(shape, np.float32)
    bits = rng.integers(1 << 32, size=shapes[0], dtype=np.uint32)
    yield f"random bits {shapes[0]}", bits.view(np.float32)
    yield f"random halves {shapes[0]}", bits.view(np.float16)[:, ::2].copy()


def rejected(table: Table, what: str, noise: Array) -> None:
    """A cache that has no room for the array refuses it once its form is settled: no copy."""
    auto, off = (
        mw.PixelCache("64 KiB", name="bench", compact=compact) for compact in ("auto", "off")
    )
    sweep = np.zeros(64 << 20, np.uint8)
    warm, cold = [], []
    with quiet():
        for number in range(15):
            sweep.fill(number)
            cold.append(seconds(lambda: auto.put("key", noise)))
            warm.append(
                seconds(lambda: auto.put("key", noise), 5)
                - seconds(lambda: off.put("key", noise), 5)
            )
    assert auto.stats().refused == 15 * 6
    slow = max(median(warm), median(cold))
    times = duration(median(warm)), duration(max(warm)), duration(median(cold))
    table.row(what, *times, f"≤ {duration(REJECTED)}", holds=slow <= REJECTED)


def stored_raw(table: Table, shape: tuple[int, ...]) -> None:
    what, noise = next(noises(shape))
    sides = []
    for compact in ("auto", "off"):
        cache = mw.PixelCache("64 MiB", name="bench", compact=compact)  # type: ignore[arg-type]
        keys = count()
        sides.append(lambda cache=cache, keys=keys: cache.put(f"{next(keys)}", noise))
    for side in 4 * sides:
        assert side()
    table.ratio(what, Ratio.measure(*sides, calls=3))


def hits(table: Table, what: str, plain: Any, image: Any, least: int) -> None:
    cached = mw.CachedProcessor(plain, mw.PixelCache("256 MiB", name="bench"))
    shape = cached([image], return_tensors="np")["pixel_values"].shape
    batch = np.zeros((2, *shape), np.float32)

    def into_row() -> None:
        (pixels,) = cached.lookup([image], return_tensors="np")
        assert pixels is not None
        pixels.copy_into("pixel_values", batch[1])

    def process() -> object:
        return plain(plain.fetch_images([image]), return_tensors="np")

    assert (
        process()["pixel_values"].tobytes()
        == cached([image], return_tensors="np")["pixel_values"].tobytes()
    )
    into_row()
    assert batch[1].tobytes() == process()["pixel_values"].tobytes()
    table.ratio(
        f"{what}: the call, a new array",
        Ratio.measure(lambda: cached([image], return_tensors="np"), process, rounds=9),
        least=10,
    )
    table.ratio(
        f"{what}: look-up and copy_into a row",
        Ratio.measure(into_row, process, rounds=9),
        least=least,
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        play(sys.argv[1])
    else:
        main()
