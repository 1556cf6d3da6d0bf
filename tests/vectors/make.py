"""Writes ``identity.json``: ``python tests/vectors/make.py``. Needs the ``blake3`` package.

The expected digests come from the oracle, not from memweir.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import identity_oracle as oracle

HERE = Path(__file__).parent


def plain(value: Any) -> dict[str, Any]:
    """A nested value in JSON, without losing its type."""
    match value:
        case None:
            return {"none": True}
        case bool():
            return {"bool": value}
        case int():
            bits = (value if value >= 0 else ~value).bit_length()
            twos = value.to_bytes(bits // 8 + 1, "little", signed=True)
            return {"int": str(value), "twos": twos.hex()}
        case float():
            return {"float": repr(value), "bits": struct.pack("<d", value).hex()}
        case str():
            return {"str": value}
        case bytes():
            return {"bytes": value.hex()}
        case list():
            return {"list": [plain(item) for item in value]}
        case tuple():
            return {"tuple": [plain(item) for item in value]}
        case dict():
            return {"dict": [[plain(key), plain(item)] for key, item in value.items()]}
        case _:
            raise TypeError(type(value))


def content(n: int) -> bytes:
    """The content that a vector means by its length: no two rows or blocks of it are equal."""
    return bytes((i % 251) ^ (i >> 8 & 0xFF) for i in range(n))


def digests(name: str, *args: Any, **kwargs: Any) -> dict[str, str]:
    function = getattr(oracle, name)
    return {key: function(h, *args, **kwargs).hex() for key, h in sorted(oracle.HASHES.items())}


def bytes_vector(n: int) -> dict[str, Any]:
    return {"kind": "bytes", "length": n} | digests("hash_bytes", content(n))


def array_vector(token: str, itemsize: int, *shape: int) -> dict[str, Any]:
    n = itemsize
    for axis in shape:
        n *= axis
    described = {"token": token, "itemsize": itemsize, "shape": list(shape), "length": n}
    return {"kind": "array"} | described | digests("hash_packed", token, shape, content(n))


def image_vector(mode: str, width: int, height: int, length: int, **more: Any) -> dict[str, Any]:
    palette = more.get("palette")
    written = {
        "palette": palette and [palette[0], palette[1].hex()],
        "transparency": plain(more.get("transparency")),
        "orientation": more.get("orientation", 1),
    }
    vector = {"kind": "image", "mode": mode, "width": width, "height": height, "length": length}
    return vector | written | digests("hash_image", mode, (width, height), content(length), **more)


def value_vector(value: Any) -> dict[str, Any]:
    vector = {"kind": "value", "value": plain(value)}
    frames = oracle.frames(oracle.HASHES["sha256"], value).hex()
    return vector | {"frames": frames} | digests("hash_value", value)


VECTORS = [
    *(bytes_vector(n) for n in (0, 1, 63, 64, 65, 1023, 1024, 1025, 131_071, 131_072, 400_000)),
    array_vector("|u1", 1, 3),
    array_vector("|u1", 1, 3, 0, 7),
    array_vector("|b1", 1, 2, 2),
    array_vector("<f4", 4),
    array_vector("<f4", 4, 1),
    array_vector("<f4", 4, 2, 3),
    array_vector("<f4", 4, 3, 2),
    array_vector(">f4", 4, 2, 3),
    array_vector("<i4", 4, 2, 3),
    array_vector("<f2", 2, 5),
    array_vector("bfloat16", 2, 5),
    array_vector("<c16", 16, 2),
    array_vector("<M8[ns]", 8, 2),
    array_vector("<U3", 12, 2),
    array_vector("|S0", 0, 4),
    array_vector("[('a', '<f4'), ('b', '<i2', (2,))]", 8, 3),
    array_vector("<f4", 4, 100, 300),
    image_vector("RGB", 30, 150, 13_500),
    image_vector("RGB", 150, 30, 13_500),
    image_vector("RGB", 0, 4, 0),
    image_vector("RGB", 300, 200, 180_000),
    image_vector("RGB", 30, 150, 13_500, orientation=6),
    image_vector("RGB", 30, 150, 13_500, transparency=(1, 2, 3)),
    image_vector("L", 30, 150, 4_500),
    image_vector("LA", 30, 150, 9_000),
    image_vector("RGBA", 30, 150, 18_000),
    image_vector("CMYK", 30, 150, 18_000),
    image_vector("1", 16, 5, 10),
    image_vector("I;16", 30, 150, 9_000),
    image_vector("P", 4, 4, 16, palette=("RGB", bytes(range(30)))),
    image_vector("P", 4, 4, 16, palette=("RGB", bytes(range(30)[::-1]))),
    image_vector("P", 4, 4, 16, palette=("RGB", bytes(range(30))), transparency=3),
    image_vector("P", 4, 4, 16, palette=("RGB", bytes(range(30))), transparency=b"\x00\xff"),
    *map(
        value_vector,
        [
            None, False, True, 0, 1, -1, 127, 128, -128, -129, 255, 256, 2**63 - 1, 2**63, -(2**63),
            10**30, -(10**30), 4607182418800017408, 0.0, -0.0, 1.0, 5e-324, float("inf"), "", "a",
            "é", "\U0001f40e", b"", b"a", [], (), {}, [[]], [(), ()], [1, [2]], [[1], 2], [1, 2],
            (1, 2), {"1": "x"}, {1: "x"}, {"a": []}, {"a": {"b": 1}}, {"a.b": 1},
            {"b": 1, "a": 2, 3: None, (1, b"k"): True}, ["x" * 3000, b"y" * 3000],
        ],
    ),
]  # fmt: skip

if __name__ == "__main__":
    lines = ",\n".join(json.dumps(vector) for vector in VECTORS)
    (HERE / "identity.json").write_text(f"[\n{lines}\n]\n")
