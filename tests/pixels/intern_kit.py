"""Messages with images, and a process of its own to measure in."""

from __future__ import annotations

import base64
import io
import os
import random
import subprocess
import sys
import textwrap
from typing import Any

import PIL.Image

SIZE = 9_000
"""Characters of a source, more or less."""


def uri(seed: int, size: int = SIZE) -> str:
    """A data URI, another object each time."""
    payload = random.Random(seed).randbytes(size * 3 // 4)
    return "data:image/png;base64," + base64.b64encode(payload).decode()


def blob(seed: int, size: int = SIZE) -> bytes:
    """Bytes, another object each time."""
    return random.Random(seed).randbytes(size)


def picture(seed: int, width: int = 96, height: int = 72) -> PIL.Image.Image:
    """Noise that no encoding makes small."""
    pixels = random.Random(seed).randbytes(width * height * 3)
    return PIL.Image.frombytes("RGB", (width, height), pixels)


def encode(image: PIL.Image.Image, kind: str = "PNG") -> bytes:
    """The image as the content of a file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def turn(*seeds: int, kind: str = "openai") -> dict[str, Any]:
    """A message with an image for each seed, as one of the usual formats writes it."""
    make = {
        "openai": lambda seed: {"type": "image_url", "image_url": {"url": uri(seed)}},
        "hf": lambda seed: {"type": "image", "image": uri(seed)},
        "base64": lambda seed: {"type": "image", "base64": uri(seed).partition(",")[2]},
        "audio": lambda seed: {"type": "input_audio", "input_audio": {"data": uri(seed)[22:]}},
        "blob": lambda seed: {"type": "image", "image": {"bytes": blob(seed), "path": None}},
    }[kind]
    return {"role": "user", "content": [{"type": "text", "text": "look"}, *map(make, seeds)]}


def sources(data: Any) -> list[str | bytes]:
    """Every long text and bytes in plain nested data, in order."""
    if isinstance(data, dict):
        return [source for value in data.values() for source in sources(value)]
    if isinstance(data, list | tuple):
        return [source for value in data for source in sources(value)]
    return [data] if isinstance(data, str | bytes) and len(data) > 4000 else []


def python(code: str, *, stdin: str = "", timeout: int = 150, **environ: str) -> str:
    """Runs code in a fresh interpreter that turns every warning into an error."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHONMALLOC": "malloc", **environ},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout
