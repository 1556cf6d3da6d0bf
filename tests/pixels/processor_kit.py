"""Photographs, encodings and strict comparison for the tests of `CachedProcessor`."""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path
from typing import Any

import PIL.Image
from skimage import data

sys.path.append(str(Path(__file__).parents[2]))
import benches.processors
import benches.stored

bench, stored = benches.processors, benches.stored
difference = bench.difference


def photo(width: int = 96, height: int = 72, name: str = "astronaut") -> PIL.Image.Image:
    return PIL.Image.fromarray(getattr(data, name)()).resize((width, height))


def encode(image: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def attempt(processor: Any, images: Any, **kwargs: Any) -> tuple[Any, str | None]:
    """The answer, or the error with addresses left out."""
    try:
        return processor(images, **kwargs), None
    except Exception as error:
        return None, re.sub("0x[0-9a-fA-F]+", "0x", f"{type(error).__name__}: {error}")


def assert_same(expected: tuple[Any, str | None], got: tuple[Any, str | None]) -> None:
    """Equal errors, or answers equal in type and bit for bit."""
    assert got[1] == expected[1]
    assert difference(expected[0], got[0]) is None
