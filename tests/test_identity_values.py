"""Nested data: what must not collide, what must agree, what is refused."""

from __future__ import annotations

import collections
import enum
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from PIL import Image

import memweir as mw
from memweir.errors import UnsupportedType

array = np.arange(4, dtype=np.uint8).reshape(2, 2)

# Each line is one attack on keys that somebody's cache fell for.
APART: dict[str, list[Any]] = {
    "numbers of different types": [1, 1.0, True, "1", b"1", np.int64(1), np.float64(1.0)],
    "a float and the integer of its bits": [1.0, 4607182418800017408, 5e-324],
    "zeros": [0, 0.0, -0.0, False, None, "", b"", [], (), {}],
    "text and bytes": ["a", b"a", ["a"], ("a",)],
    "integers beyond 64 bits": [10**30, 10**30 + 1, -(10**30), str(10**30)],
    "one bit of sign": [127, 128, -128, -129, 255, -1, 2**63, -(2**63), 2**64 - 1],
    "list and tuple": [[1, 2], (1, 2)],
    "list and mapping of its indices": [["x"], {0: "x"}, {"0": "x"}],
    "keys of different types": [{1: "x"}, {"1": "x"}, {1.0: "x"}, {True: "x"}, {b"1": "x"}],
    "empty and absent": [{"a": []}, {"a": None}, {"a": {}}, {"a": ""}, {}],
    "nested and flat": [[[1], 2], [1, [2]], [1, 2], [[1, 2]], [[1], [2]], [[], 1, 2]],
    "nested and dotted": [{"a": {"b": 1}}, {"a.b": 1}, {"a": {"b": {}}, "c": 1}],
    "pieces of text": [["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], "abc"],
    "lengths as content": [b"", b"\0" * 8, [b""], [b"", b""], b"Y" + b"\0" * 8],
    "value and key": [{"a": "b"}, {"b": "a"}, {"a": "a", "b": "b"}, {"a": "b", "b": "a"}],
    "arrays and their parts": [array, array.tolist(), array.tobytes(), array.reshape(4), [array]],
    "an array and an image": [array, Image.fromarray(array), mw.hash_array(array)],
    "digests and their bytes": [mw.Digest(bytes(32)), bytes(32), bytes(32).hex()],
}


@pytest.mark.parametrize("name", APART)
def test_apart(name: str) -> None:
    values = APART[name]
    digests = [mw.hash_value(value) for value in values]
    assert len(set(digests)) == len(values)
    assert [mw.hash_value(value) for value in values] == digests


class TestArraysApart:
    def test_shape(self) -> None:
        rows = np.zeros(4500, np.uint8)
        assert mw.hash_array(rows.reshape(30, 150)) != mw.hash_array(rows.reshape(150, 30))
        assert mw.hash_image(rows.reshape(30, 150)) != mw.hash_image(rows.reshape(150, 30))
        assert mw.hash_image(Image.new("RGB", (30, 150))) != mw.hash_image(
            Image.new("RGB", (150, 30))
        )

    def test_equal_bits_of_different_types(self) -> None:
        bits = np.arange(16, dtype="<u2")
        types = ["<u2", "<i2", ">i2", "<f2", "S2", "V2", ml_dtypes.bfloat16]
        assert len({mw.hash_array(bits.view(t)) for t in types}) == len(types)
        halves = torch.arange(16, dtype=torch.int16)
        assert mw.hash_array(halves.view(torch.bfloat16)) != mw.hash_array(halves.view(torch.half))

    def test_structures_of_equal_size(self) -> None:
        types = [
            [("a", "<f4"), ("b", "<i4")], [("a", "<i4"), ("b", "<f4")],
            [("b", "<f4"), ("a", "<i4")], [("a", "<f4"), ("c", "<i4")],
            [("a", "<f8")], [("a", "<f4", (2,))], "V8", "<f8",
        ]  # fmt: skip
        assert len({mw.hash_array(np.zeros(3, t)) for t in types}) == len(types)


class TestAgree:
    def test_order_of_a_dict(self) -> None:
        items = [("b", 1), ("a", [2]), (3, None), ((1, "x"), 1.5), (None, b"")]
        digests = {mw.hash_value(dict(items[n:] + items[:n])) for n in range(len(items))}
        assert len(digests) == 1

    def test_equal_pieces(self) -> None:
        one = {"a": [10**30, "é", array], "b": (True, None)}
        two = {"b": (True, None), "a": [10**30, "\xe9", array.copy(order="F")]}
        assert mw.hash_value(one) == mw.hash_value(two)

    def test_large_leaves(self) -> None:
        for leaf in (b"x" * 5000, "x" * 5000, "é" * 5000, np.zeros(5000)):
            assert mw.hash_value([leaf]) == mw.hash_value([leaf])

    def test_images_by_what_they_are(self) -> None:
        image = Image.fromarray(array)
        assert mw.hash_value([image]) == mw.hash_value([image.copy()])


class TestRefused:
    class Colour(enum.IntEnum):
        RED = 1

    @pytest.mark.parametrize(
        "value",
        [
            object(), {1, 2}, frozenset(), range(3), bytearray(b"a"), memoryview(b"a"), 1j,
            Colour.RED, collections.OrderedDict(a=1), collections.defaultdict(int),
            collections.Counter(), collections.namedtuple("Point", "x")(1), type, len, iter([]),
            np.dtype("f4"), torch.float32, {"a": [object()]}, {object(): 1}, np.array([object()]),
        ],
        ids=lambda value: type(value).__name__,
    )  # fmt: skip
    def test_unknown_types(self, value: object) -> None:
        with pytest.raises(UnsupportedType):
            mw.hash_value(value)

    def test_says_which(self) -> None:
        with pytest.raises(UnsupportedType, match=r"Colour"):
            mw.hash_value({"a": [1, (self.Colour.RED,)]})

    def test_text_that_is_no_text(self) -> None:
        with pytest.raises(UnicodeEncodeError):
            mw.hash_value(["\ud800"])
        with pytest.raises(UnicodeEncodeError):
            mw.hash_value(["\ud800" * 5000])

    @pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {"a": v}])
    def test_depth(self, wrap: Any) -> None:
        value: object = 1
        for _ in range(200):
            value = wrap(value)
        mw.hash_value(value)
        for _ in range(100_000):
            value = wrap(value)
        with pytest.raises(ValueError, match="deeper than 200"):
            mw.hash_value(value)
        while isinstance(value, list | tuple | dict):  # the interpreter would recurse to free it
            value = value["a"] if isinstance(value, dict) else value[0]

    def test_containers_that_contain_themselves(self) -> None:
        loop: list[Any] = [1]
        loop.append(loop)
        table: dict[str, Any] = {}
        table["a"] = (table,)
        for value in (loop, table, [loop, 1], {"b": table}):
            with pytest.raises(ValueError, match="contains itself"):
                mw.hash_value(value)
        twice = [1]
        assert mw.hash_value([twice, twice]) == mw.hash_value([[1], [1]])

    def test_the_depth_of_keys_counts(self) -> None:
        key: Any = 1
        for _ in range(150):
            key = (key,)
        value: Any = {key: 1}
        mw.hash_value(value)
        for _ in range(50):
            value = [value]
        with pytest.raises(ValueError, match="deeper than 200"):
            mw.hash_value(value)


def test_a_list_that_changes_meanwhile() -> None:
    big = b"x" * 200_000
    shared: list[Any] = [big, big]
    allowed = {mw.hash_value([big] * n) for n in range(5)}
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            shared.append(big)
            shared.pop()

    changer = threading.Thread(target=change)
    changer.start()
    try:
        assert all(mw.hash_value(shared) in allowed for _ in range(300))
    finally:
        stop.set()
        changer.join()
