"""Digests, and what has one: bytes, files, arrays, many at once."""

from __future__ import annotations

import array
import copy
import io
import mmap
import os
import pickle
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import memweir as mw
from memweir.errors import UnsupportedType


class TestDigest:
    digest = mw.hash_bytes(b"weir")

    def test_bytes_and_hex(self) -> None:
        assert bytes(self.digest).hex() == self.digest.hex()
        assert len(bytes(self.digest)) == 32
        assert mw.Digest(bytes(self.digest)) == self.digest
        assert mw.Digest.from_hex(self.digest.hex()) == self.digest
        assert mw.Digest.from_hex(self.digest.hex().upper()) == self.digest
        assert eval(repr(self.digest), {"Digest": mw.Digest.from_hex}) == self.digest

    def test_equality_order_and_hash(self) -> None:
        low, high = mw.Digest(bytes(32)), mw.Digest(b"\xff" * 32)
        assert low < self.digest < high
        assert low != high
        assert self.digest != bytes(self.digest)
        assert self.digest != self.digest.hex()
        assert {self.digest: 1}[mw.hash_bytes(b"weir")] == 1
        assert hash(low) != hash(high)
        with pytest.raises(TypeError):
            _ = low < b""  # type: ignore[operator]

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_travels(self, protocol: int) -> None:
        assert pickle.loads(pickle.dumps(self.digest, protocol)) == self.digest
        assert copy.deepcopy([self.digest]) == [self.digest]

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(AttributeError):
            self.digest.x = 1  # type: ignore[attr-defined]

    @pytest.mark.parametrize("bad", [b"", bytes(31), bytes(33)])
    def test_wrong_length(self, bad: bytes) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            mw.Digest(bad)

    @pytest.mark.parametrize("bad", ["", "0" * 63, "0" * 65, "g" * 64, "é" * 32])
    def test_wrong_hex(self, bad: str) -> None:
        with pytest.raises(ValueError, match="malformed digest"):
            mw.Digest.from_hex(bad)


class TestBytes:
    def test_everything_that_holds_the_same_bytes(self) -> None:
        data = bytes(range(97, 123)) * 1000
        expected = mw.hash_bytes(data)
        with mmap.mmap(-1, len(data)) as mapped:
            mapped.write(data)
            held = [
                data.decode(),
                bytearray(data),
                memoryview(data),
                memoryview(data + data)[::2][: len(data)],
                array.array("B", data),
                np.frombuffer(data, "<f4"),
                np.frombuffer(data, ">u2").reshape(2, -1),
                torch.frombuffer(bytearray(data), dtype=torch.bfloat16),
                mapped,
            ]
            digests = [mw.hash_bytes(obj) for obj in held]  # type: ignore[arg-type]
        assert [digest == expected for digest in digests] == [
            True, True, True, data[::2] * 2 == data, True, True, True, True, True,
        ]  # fmt: skip

    def test_text_is_its_utf8(self) -> None:
        for text in ["", "é", "weir " * 2000, "wéir " * 2000, "\U0001f40e" * 5000]:
            assert mw.hash_bytes(text) == mw.hash_bytes(text.encode())
        with pytest.raises(UnicodeEncodeError):
            mw.hash_bytes("\ud800")

    def test_no_bytes(self) -> None:
        for obj in (None, 1, 1.5, [], object(), Path()):
            with pytest.raises(UnsupportedType, match=type(obj).__name__):
                mw.hash_bytes(obj)  # type: ignore[arg-type]

    def test_a_released_view_says_so(self) -> None:
        view = memoryview(b"abc")
        view.release()
        with pytest.raises(ValueError, match="released"):
            mw.hash_bytes(view)

    def test_algorithms(self) -> None:
        assert mw.hash_bytes(b"", algorithm="sha256") != mw.hash_bytes(b"")
        with pytest.raises(ValueError, match='"md5"'):
            mw.hash_bytes(b"", algorithm="md5")  # type: ignore[arg-type]

    def test_a_buffer_is_given_back(self) -> None:
        data = bytearray(5000)
        mw.hash_bytes(data)
        mw.hash_array(data)
        data.append(1)  # BufferError while exported


class TestFiles:
    @pytest.mark.parametrize("size", [0, 1, 1000, 262_144, 262_145, 1_000_000])
    def test_a_file_is_its_bytes(self, tmp_path: Path, size: int) -> None:
        path = tmp_path / "ünïcode"
        path.write_bytes(os.urandom(size))
        expected = mw.hash_bytes(path.read_bytes())
        assert mw.hash_file(path) == expected
        assert mw.hash_file(str(path)) == expected
        assert mw.hash_file(os.fsencode(path)) == expected

    def test_errors_are_the_systems(self, tmp_path: Path) -> None:
        missing = tmp_path / "missing"
        with pytest.raises(FileNotFoundError) as error:
            mw.hash_file(missing)
        assert error.value.filename == str(missing)
        assert "No such file" in str(error.value)
        with pytest.raises(IsADirectoryError):
            mw.hash_file(tmp_path)
        with pytest.raises(TypeError):
            mw.hash_file(io.BytesIO())  # type: ignore[arg-type]

    def test_a_pipe_is_read_off_the_gil(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        data = os.urandom(300_000)
        writer = threading.Thread(target=path.write_bytes, args=(data,))
        writer.start()
        assert mw.hash_file(path) == mw.hash_bytes(data)
        writer.join()


DTYPES = [
    "?", "i1", "u1", "<i2", ">i2", "<u4", "<i8", ">i8", "<f2", "<f4", ">f4", "<f8", "<c8", ">c16",
    "longdouble", "<M8[ns]", "<M8[D]", "<m8[s]", "S5", "U5", "V3", "S0",
    [("a", "<f4"), ("b", ">i2", (2,))], ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2, ml_dtypes.int4,
]  # fmt: skip


class TestArrays:
    @pytest.mark.parametrize("dtype", [t for t in DTYPES if t != "S0"], ids=str)  # copies are S1
    def test_layout_in_memory_does_not_matter(self, dtype: object) -> None:
        dt = np.dtype(dtype)
        plain = np.ndarray((6, 8), dt, np.random.default_rng(0).bytes(6 * 8 * dt.itemsize))
        expected = mw.hash_array(plain)
        views = [
            plain.copy(),
            np.asfortranarray(plain),
            plain[::-1, ::-1].copy()[::-1, ::-1],
            np.repeat(plain, 3, axis=1)[:, ::3],
            np.ascontiguousarray(plain.T).T,
            plain[None][0],
        ]
        assert [mw.hash_array(view) for view in views] == [expected] * len(views)
        assert mw.hash_array(plain.reshape(8, 6)) != expected

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_scalars_and_empty_arrays_have_a_name(self, dtype: object) -> None:
        dt = np.dtype(dtype)
        shapes = [(), (1,), (1, 1), (0,), (0, 3), (3, 0)]
        digests = {mw.hash_array(np.zeros(shape, dt)) for shape in shapes}
        assert len(digests) == len(shapes)
        scalar = np.ones((), dt)[()] if dt.kind not in "SUV" else np.zeros((), dt)[()]
        assert mw.hash_array(scalar) == mw.hash_array(np.asarray(scalar))

    def test_no_two_types_share_a_name(self) -> None:
        arrays = [np.zeros(0, np.dtype(dtype)) for dtype in DTYPES]
        assert len({mw.hash_array(a) for a in arrays}) == len(DTYPES)

    def test_broadcast_and_unaligned(self) -> None:
        broadcast = np.broadcast_to(np.float32(3), (4, 5))
        assert mw.hash_array(broadcast) == mw.hash_array(np.full((4, 5), 3, np.float32))
        shifted = np.frombuffer(b"x" + np.arange(9, dtype="<f8").tobytes(), np.uint8)[1:]
        assert mw.hash_array(shifted.view("<f8")) == mw.hash_array(np.arange(9, dtype="<f8"))

    def test_many_axes(self) -> None:
        deep = np.arange(2**12, dtype="<i4").reshape((2,) * 12)
        turned = deep.transpose(range(12)[::-1])
        assert mw.hash_array(turned) == mw.hash_array(turned.copy())
        assert mw.hash_array(turned) != mw.hash_array(deep)
        flat = np.zeros((1,) * 64)
        assert mw.hash_array(flat) != mw.hash_array(flat[0])

    def test_subclasses_are_arrays_but_masks_are_not(self, tmp_path: Path) -> None:
        plain = np.arange(12.0).reshape(3, 4)
        np.save(tmp_path / "a.npy", plain)
        mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
        assert mw.hash_array(mapped) == mw.hash_array(plain)
        with pytest.raises(UnsupportedType, match="mask"):
            mw.hash_array(np.ma.masked_array(plain, plain > 3))

    @pytest.mark.parametrize(
        "refused",
        [
            np.array([object()]),
            np.array([], object),
            np.zeros(2, [("a", object)]),
            np.zeros(2, [("a", ml_dtypes.bfloat16)]),
            np.zeros(2, np.dtype(ml_dtypes.bfloat16).newbyteorder(">")),
            np.array(["a"], np.dtypes.StringDType()),
        ],
        ids=["object", "empty", "field", "nameless field", "swapped", "strings"],
    )
    def test_types_without_bytes_of_their_own(self, refused: np.ndarray) -> None:
        with pytest.raises(UnsupportedType, match="dtype"):
            mw.hash_array(refused)

    def test_not_an_array(self) -> None:
        for obj in (None, [1, 2], "text", 3.5, {"a": 1}):
            with pytest.raises(UnsupportedType, match=type(obj).__name__):
                mw.hash_array(obj)  # type: ignore[arg-type]


class TestTensors:
    @pytest.mark.parametrize(
        ("torch_dtype", "dtype"),
        [
            (torch.bool, "?"), (torch.uint8, "u1"), (torch.int8, "i1"), (torch.int16, "<i2"),
            (torch.int64, "<i8"), (torch.uint32, "<u4"), (torch.float16, "<f2"),
            (torch.float32, "<f4"), (torch.float64, "<f8"), (torch.complex64, "<c8"),
            (torch.bfloat16, ml_dtypes.bfloat16), (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
            (torch.float8_e5m2, ml_dtypes.float8_e5m2),
        ],
        ids=str,
    )  # fmt: skip
    def test_a_tensor_is_the_array(self, torch_dtype: torch.dtype, dtype: object) -> None:
        raw = np.random.default_rng(0).integers(0, 2, (3, 4 * np.dtype(dtype).itemsize), np.uint8)
        tensor = torch.from_numpy(raw).view(torch_dtype)
        assert mw.hash_array(tensor) == mw.hash_array(raw.view(dtype))
        assert mw.hash_array(tensor.T) == mw.hash_array(raw.view(dtype).T)
        assert mw.hash_array(tensor[1:, 1]) == mw.hash_array(raw.view(dtype)[1:, 1])
        assert mw.hash_array(tensor[0, 0]) == mw.hash_array(raw.view(dtype)[0, 0])
        assert mw.hash_array(tensor[:0]) == mw.hash_array(raw.view(dtype)[:0])

    def test_what_autograd_and_laziness_add(self) -> None:
        plain = torch.arange(6, dtype=torch.float32)
        expected = mw.hash_array(plain)
        assert mw.hash_array(plain.clone().requires_grad_()) == expected
        assert mw.hash_array(torch.nn.Parameter(plain)) == expected
        turned = torch.complex(plain, plain).conj()
        assert mw.hash_array(turned) == mw.hash_array(turned.resolve_conj())
        assert mw.hash_array(turned.imag) == mw.hash_array(-plain)
        assert mw.hash_array(plain.expand(3, 6)) == mw.hash_array(plain.repeat(3, 1))

    @pytest.mark.filterwarnings("ignore:Sparse")
    def test_what_is_not_plain_memory(self) -> None:
        for tensor in (torch.eye(3).to_sparse(), torch.empty(3, device="meta")):
            with pytest.raises(UnsupportedType, match=r"Tensor|tensor on"):
                mw.hash_array(tensor)


class TestMany:
    def test_the_same_as_one_by_one(self) -> None:
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (n, 2 * n, 3), np.uint8) for n in (0, 1, 7, 200, 300, 700)]
        expected = [mw.hash_image(image) for image in images]
        for threads in (None, 1, 2, 5):
            assert mw.hash_many(images, threads=threads) == expected
        assert mw.hash_many(iter(images)) == expected
        assert mw.hash_many([]) == []

    def test_bytes_and_text_among_them(self) -> None:
        image = np.zeros((4, 4), np.uint8)
        expected = [mw.hash_bytes(b"a"), mw.hash_image(image), mw.hash_bytes("é")]
        assert mw.hash_many([b"a", image, "é"]) == expected

    def test_one_bad_object_is_an_error(self) -> None:
        with pytest.raises(UnsupportedType, match="object"):
            mw.hash_many([b"a", object()])  # type: ignore[list-item]
        with pytest.raises(OverflowError):
            mw.hash_many([b"a"], threads=-1)
