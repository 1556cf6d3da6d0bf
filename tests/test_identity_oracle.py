"""memweir against the definition: the vectors, and a second implementation in plain Python."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import identity_oracle as oracle
import memweir as mw

VECTORS = json.loads((Path(__file__).parent / "vectors" / "identity.json").read_text())
ALGORITHMS = sorted(oracle.HASHES)


def content(n: int) -> bytes:
    return bytes((i % 251) ^ (i >> 8 & 0xFF) for i in range(n))


def value(plain: dict[str, Any]) -> Any:
    (kind, inner), *_ = plain.items()
    match kind:
        case "none":
            return None
        case "int":
            return int(inner)
        case "float":
            return struct.unpack("<d", bytes.fromhex(plain["bits"]))[0]
        case "bytes":
            return bytes.fromhex(inner)
        case "list":
            return [value(item) for item in inner]
        case "tuple":
            return tuple(value(item) for item in inner)
        case "dict":
            return {value(key): value(item) for key, item in inner}
        case _:
            return inner


def dtype(token: str) -> np.dtype:
    if token == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(eval(token) if token.startswith("[") else token)


def picture(vector: dict[str, Any]) -> Image.Image:
    size = vector["width"], vector["height"]
    data = content(vector["length"])
    image = Image.frombytes(vector["mode"], size, data) if data else Image.new("RGB", size)
    if vector["palette"]:
        mode, palette = vector["palette"]
        image.putpalette(bytes.fromhex(palette), mode)
    if (transparency := value(vector["transparency"])) is not None:
        image.info["transparency"] = transparency
    image.getexif()[0x0112] = vector["orientation"]
    return image


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['kind']} {v['sha256'][:8]}")
def test_vectors(vector: dict[str, Any], algorithm: Any) -> None:
    match vector["kind"]:
        case "bytes":
            digest = mw.hash_bytes(content(vector["length"]), algorithm=algorithm)
        case "array":
            data = bytearray(content(vector["length"]))
            array = np.ndarray(vector["shape"], dtype(vector["token"]), data)
            digest = mw.hash_array(array, algorithm=algorithm)
        case "image":
            digest = mw.hash_image(picture(vector), algorithm=algorithm)
        case "value":
            digest = mw.hash_value(value(vector["value"]), algorithm=algorithm)
    assert digest.hex() == vector[algorithm]


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text()
    | st.binary()
    | st.text(min_size=1).map(lambda s: s * 3000),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.none() | st.integers() | st.text() | st.binary(), inner)
    ),
    max_leaves=30,
)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(deadline=None, max_examples=120)
@given(value=plain)
def test_values(algorithm: Any, value: object) -> None:
    expected = oracle.hash_value(oracle.HASHES[algorithm], value)
    assert bytes(mw.hash_value(value, algorithm=algorithm)) == expected


@settings(deadline=None, max_examples=120)
@given(one=plain, two=plain)
def test_values_agree_only_when_they_are_equal(one: object, two: object) -> None:
    h = oracle.HASHES["sha256"]
    same = oracle.frames(h, one) == oracle.frames(h, two)
    assert (mw.hash_value(one) == mw.hash_value(two)) == same


@st.composite
def views(draw: st.DrawFn) -> np.ndarray:
    """Arrays with any strides: steps, reversals, transposes, broadcasts."""
    types = (
        hnp.scalar_dtypes()
        | hnp.byte_string_dtypes(max_len=5)
        | hnp.array_dtypes(hnp.scalar_dtypes(), max_size=3, allow_subarrays=True)
    )
    kind = draw(types)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6))
    size = int(np.prod(shape)) * kind.itemsize
    array = np.ndarray(shape, kind, draw(st.binary(min_size=size, max_size=size)))
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    steps = [slice(None, None, draw(st.sampled_from([1, -1, 2, -3]))) for _ in shape]
    array = array[(*steps, ...)]
    if draw(st.booleans()) and array.ndim < 5:
        array = np.broadcast_to(array, (2, *array.shape))
    return array


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(deadline=None, max_examples=150)
@given(array=views())
def test_arrays(algorithm: Any, array: np.ndarray) -> None:
    token = None
    if array.dtype.names is not None:
        token = repr(np.lib.format.dtype_to_descr(array.dtype))
    expected = oracle.hash_array(oracle.HASHES[algorithm], array, token)
    assert bytes(mw.hash_array(array, algorithm=algorithm)) == expected
    contents = oracle.hash_bytes(oracle.HASHES[algorithm], array.tobytes())
    assert bytes(mw.hash_bytes(array, algorithm=algorithm)) == contents


@settings(deadline=None, max_examples=100)
@given(data=st.data(), mode=st.sampled_from(["1", "L", "P", "LA", "RGB", "RGBA", "I;16", "F"]))
def test_images(data: st.DataObject, mode: str) -> None:
    size = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    n = len(Image.new(mode, size).tobytes())
    seed = data.draw(st.integers(0, 2**32))
    image = Image.frombytes(mode, size, np.random.default_rng(seed).bytes(n))
    options: dict[str, Any] = {"orientation": data.draw(st.integers(1, 8))}
    image.getexif()[0x0112] = options["orientation"]
    if mode == "P":
        options["palette"] = "RGB", data.draw(st.binary(min_size=3, max_size=768).map(_thirds))
        image.putpalette(options["palette"][1])
    if data.draw(st.booleans()):
        options["transparency"] = data.draw(st.integers(0, 255) | st.binary(max_size=9))
        image.info["transparency"] = options["transparency"]
    expected = oracle.hash_image(oracle.HASHES["sha256"], mode, size, image.tobytes(), **options)
    assert bytes(mw.hash_image(image, algorithm="sha256")) == expected


def _thirds(palette: bytes) -> bytes:
    return palette[: len(palette) // 3 * 3]
