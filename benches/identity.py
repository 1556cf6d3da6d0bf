"""Identity beside raw BLAKE3 of the same packed bytes, one thread, and beside a real peer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import blake3
import numpy as np
import torch
from PIL import Image
from renderers.qwen3_vl import _image_hash

import memweir as mw

from .harness import Ratio, Table

MANY = 32


def main() -> None:
    photo = noise(1024, 1024)
    pixels = np.asarray(photo)
    table = Table("identity; other: BLAKE3 of the same packed bytes, one thread")
    images(table, photo)
    arrays(table, pixels)
    sources(table)

    table = Table("identity of a decoded 1024² RGB image; other: what others do")
    peer = Ratio.measure(lambda: mw.hash_image(photo), lambda: _image_hash(photo))
    table.ratio("renderers 0.1.12 (SHA-256, 128 bits)", peer, least=3)
    bytes_first = Ratio.measure(
        lambda: mw.hash_image(photo), lambda: blake3.blake3(photo.tobytes()).digest()
    )
    table.ratio("BLAKE3 of tobytes()", bytes_first)
    sha = Ratio.measure(
        lambda: mw.hash_image(photo, algorithm="sha256"),
        lambda: hashlib.sha256(photo.tobytes()).digest(),
    )
    table.ratio("SHA-256 of tobytes(); ours with SHA-256 too", sha)

    several = [noise(1024, 1024, seed) for seed in range(MANY)]
    table = Table(f"hash_many of {MANY} decoded 1024² RGB images; other: a loop of hash_image")
    loop = lambda: [mw.hash_image(image) for image in several]  # noqa: E731
    for threads, least in ((None, 1.6), (1, None)):
        measured = Ratio.measure(lambda n=threads: mw.hash_many(several, threads=n), loop)
        table.ratio(f"threads={threads}", measured, least=least)


def images(table: Table, photo: Image.Image) -> None:
    table.ratio("hash_image, 1024² RGB", against(mw.hash_image, photo, photo.tobytes()), 1.25)
    small = noise(224, 224)
    table.ratio("hash_image, 224² RGB", against(mw.hash_image, small, small.tobytes(), 20))
    wide = noise(3840, 2160)
    table.ratio(
        "hash_image, 3840×2160 RGB, by strips", against(mw.hash_image, wide, wide.tobytes())
    )
    grey = photo.convert("L")
    table.ratio("hash_image, 1024² L", against(mw.hash_image, grey, grey.tobytes(), 5))


def arrays(table: Table, pixels: np.ndarray) -> None:
    packed = pixels.tobytes()
    table.ratio("hash_image, 1024² ndarray HWC", against(mw.hash_image, pixels, packed))
    floats = np.random.default_rng(0).random((5476, 1176), np.float32)
    table.ratio("hash_array, 25.8 MB float32", against(mw.hash_array, floats, floats.tobytes()))
    half = torch.from_numpy(floats).bfloat16()
    data = half.view(torch.uint8).numpy().tobytes()
    table.ratio("hash_array, 12.9 MB bfloat16 tensor", against(mw.hash_array, half, data))
    planes = pixels.transpose(2, 0, 1)
    table.ratio("hash_array, HWC seen as CHW", against(mw.hash_array, planes, packed))
    tiny = np.zeros(1024, np.float32)
    table.ratio("hash_array, 4 KiB", against(mw.hash_array, tiny, tiny.tobytes(), 500))


def sources(table: Table) -> None:
    uri = "data:image/jpeg;base64," + "/9j/4AAQSkZJRgABAQ" * 27_700
    encoded = uri.encode()
    table.ratio("hash_bytes, 0.5 MB data URI as str", against(mw.hash_bytes, uri, encoded, 20))
    table.ratio("hash_bytes, the same as bytes", against(mw.hash_bytes, encoded, encoded, 20))
    table.ratio("hash_value, [the URI]", against(mw.hash_value, [uri], encoded, 20))


def against(hash_: Callable[[Any], mw.Digest], thing: Any, packed: bytes, calls: int = 2) -> Ratio:
    return Ratio.measure(lambda: hash_(thing), lambda: blake3.blake3(packed).digest(), calls=calls)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A photograph to a hash: bytes that do not repeat."""
    data = np.random.default_rng(seed).bytes(width * height * 3)
    return Image.frombytes("RGB", (width, height), data)


if __name__ == "__main__":
    main()
