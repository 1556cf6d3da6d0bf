"""What an image is: everything that could change what a processor makes of it, and no more."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from PIL import Image

import memweir as mw
from identity_oracle import HASHES
from identity_oracle import hash_image as oracle
from memweir.errors import UnsupportedType

MODES = [
    "1", "L", "P", "LA", "PA", "La", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV",
    "I", "F", "I;16", "I;16B", "I;16L", "I;16N",
]  # fmt: skip


def noise(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    n = len(Image.new(mode, size).tobytes())
    data = np.random.default_rng(seed).bytes(n)
    return Image.frombytes(mode, size, data) if n else Image.new(mode, size)


def encoded(image: Image.Image, form: str, **options: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return Image.open(file)


def expected(image: Image.Image, orientation: int = 1) -> mw.Digest:
    image.load()
    palette = None
    if image.mode in ("P", "PA"):
        mode = image.im.getpalettemode()
        palette = mode, image.im.getpalette(mode, mode)
    digest = oracle(
        HASHES["sha256"],
        image.mode,
        image.size,
        image.tobytes(),
        palette=palette,
        transparency=image.info.get("transparency"),
        orientation=orientation,
    )
    return mw.Digest(digest)


def sha256(image: Any) -> mw.Digest:
    return mw.hash_image(image, algorithm="sha256")


class TestPixels:
    @pytest.mark.parametrize("size", [(0, 0), (0, 3), (3, 0), (1, 1), (5, 3), (333, 177)], ids=str)
    @pytest.mark.parametrize("mode", MODES)
    def test_every_mode_is_its_tobytes(self, mode: str, size: tuple[int, int]) -> None:
        image = noise(mode, size)
        assert sha256(image) == expected(image)

    @pytest.mark.parametrize("size", [(50_000, 1), (1, 50_000)], ids=str)
    @pytest.mark.parametrize("mode", ["L", "LA", "RGB", "1"])
    def test_strips(self, mode: str, size: tuple[int, int]) -> None:
        image = noise(mode, size)
        assert sha256(image) == expected(image)

    @pytest.mark.parametrize(
        ("mode", "size"),
        [("RGB", (2100, 2000)), ("LA", (2100, 2000)), ("P", (4200, 4000)), ("CMYK", (2100, 2000)),
         ("RGB", (4_500_000, 1)), ("RGB", (4_500_000, 2)), ("I;16", (4200, 2000))],
        ids=str,
    )  # fmt: skip
    def test_several_blocks_of_memory(self, mode: str, size: tuple[int, int]) -> None:
        image = noise(mode, size)
        if image.height > 1:
            with pytest.raises(ValueError, match="not contiguous"):
                image.__arrow_c_array__()
        assert sha256(image) == expected(image)

    def test_the_fourth_byte_of_rgb_is_nothing(self) -> None:
        plain = noise("RGB", (64, 48))
        pixels = plain.tobytes()
        pads = [
            plain,
            Image.merge("RGB", plain.split()),
            plain.point(lambda v: v),
            plain.rotate(0, expand=True),
            plain.convert("RGBA").convert("RGB"),
            plain.resize(plain.size),
            plain.crop((-8, -8, 72, 56)).crop((8, 8, 72, 56)),
            plain.transpose(Image.Transpose.ROTATE_90).transpose(Image.Transpose.ROTATE_270),
        ]
        assert all(image.tobytes() == pixels for image in pads)
        assert len({mw.hash_image(image) for image in pads}) == 1

    def test_older_releases_of_pillow_agree(self) -> None:
        sizes = [(333, 177), (0, 3), (9, 5)]
        digests = [mw.hash_image(noise(mode, size)).hex() for mode in MODES for size in sizes]
        code = f"""if True:
            import sys
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            from test_identity_images import MODES, PIL, mw, noise
            PIL.__version__ = "12.3.0"
            def refuse(self): raise AssertionError("exported")
            PIL.Image.Image.__arrow_c_array__ = refuse
            print(*[mw.hash_image(noise(m, s)).hex() for m in MODES for s in {sizes!r}])
        """
        found = subprocess.check_output([sys.executable, "-c", code], text=True)
        assert found.split() == digests

    def test_exports_are_released(self) -> None:
        image = noise("RGB", (64, 64))
        resident = _resident()
        for _ in range(20_000):
            mw.hash_image(image)
        assert _resident() - resident < 4 << 20


class TestArrays:
    @pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
    def test_one_digest_whoever_holds_the_pixels(self, channels: int, mode: str) -> None:
        array = np.random.default_rng(0).integers(0, 256, (150, 30, channels), np.uint8)
        image = Image.frombytes(mode, (30, 150), array.tobytes())
        held = [
            array,
            np.asfortranarray(array),
            array[:, ::-1].copy()[:, ::-1],
            torch.from_numpy(array),
            torch.from_numpy(array).permute(2, 0, 1).contiguous().permute(1, 2, 0),
        ]
        if channels == 1:
            held.append(array[..., 0])
        assert {mw.hash_image(obj) for obj in held} == {mw.hash_image(image)}
        raw = [array.tobytes(), bytearray(array.tobytes()), memoryview(array.tobytes())]
        assert {mw.hash_image(b, shape=array.shape) for b in raw} == {mw.hash_image(image)}
        assert mw.hash_array(array) != mw.hash_image(array)

    def test_rgba_without_alpha_is_rgb(self) -> None:
        rgba = np.random.default_rng(0).integers(0, 256, (70, 90, 4), np.uint8)
        assert mw.hash_image(rgba[..., :3]) == mw.hash_image(rgba[..., :3].copy())

    @pytest.mark.parametrize("shape", [(), (5,), (2, 3, 5), (3, 8, 8), (1, 2, 2, 3), (2, 2, 0)])
    def test_wrong_rank(self, shape: tuple[int, ...]) -> None:
        array = np.zeros(shape, np.uint8)
        with pytest.raises(ValueError, match="height, width"):
            mw.hash_image(array)
        with pytest.raises(ValueError, match="height, width"):
            mw.hash_image(array.tobytes(), shape=shape)

    @pytest.mark.parametrize("dtype", ["f4", "i1", "?", ">u2", object])
    def test_wrong_type(self, dtype: str) -> None:
        with pytest.raises(UnsupportedType, match=r"uint8|dtype"):
            mw.hash_image(np.zeros((4, 4, 3), dtype))

    def test_bytes_need_their_shape(self) -> None:
        with pytest.raises(ValueError, match="shape="):
            mw.hash_image(bytes(12))
        for shape in [(2, 2, 2), (2**40, 2**40, 3), (4, 4)]:
            with pytest.raises(ValueError, match="12 bytes"):
                mw.hash_image(bytes(12), shape=shape)

    def test_no_image(self) -> None:
        for obj in (None, "photo.jpg", 3, [[1, 2]], object(), Path()):
            with pytest.raises(UnsupportedType, match=type(obj).__name__):
                mw.hash_image(obj)  # type: ignore[call-overload]


class TestMetadata:
    def test_orientation_is_the_one_that_would_be_applied(self) -> None:
        plain = noise("RGB", (40, 30))
        digests = set()
        for way in range(9):
            exif = Image.Exif()
            exif[0x0112] = way
            image = encoded(plain, "PNG", exif=exif)
            assert sha256(image) == expected(image, max(way, 1))
            digests.add(sha256(image))
            upright = PIL.ImageOps.exif_transpose(image)
            assert sha256(upright) == expected(upright)
        assert len(digests) == 8  # 0 is no orientation, as 1

    def test_orientation_set_by_hand_or_by_xmp(self) -> None:
        plain = noise("RGB", (40, 30))
        upright = mw.hash_image(plain)
        by_hand = plain.copy()
        by_hand.getexif()[0x0112] = 6
        by_xmp = plain.copy()
        by_xmp.info["xmp"] = b'<x tiff:Orientation="6"/>'
        assert mw.hash_image(by_hand) == mw.hash_image(by_xmp) != upright

    @pytest.mark.parametrize(
        "exif",
        [b"", b"Exif", b"Exif\0\0", b"Exif\0\0garbage!" * 9,
         b"MM\0*\0\0\0\x08\xff\xff" + b"\1" * 50,
         b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\xff\x06\0\0\0"],
    )  # fmt: skip
    def test_malformed_exif_is_no_exif(self, exif: bytes) -> None:
        plain = noise("RGB", (40, 30))
        upright = mw.hash_image(plain)
        plain.info["exif"] = exif
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert [mw.hash_image(plain) for _ in range(3)] == [upright] * 3

    @pytest.mark.parametrize("transparency", [0, 3, b"\x00\xff\x80", (1, 2, 3)])
    def test_transparency(self, transparency: object) -> None:
        image = noise("P", (8, 8))
        opaque = mw.hash_image(image)
        image.info["transparency"] = transparency
        assert mw.hash_image(image) != opaque
        assert sha256(image) == expected(image)

    def test_palettes(self) -> None:
        base = noise("P", (8, 8)).quantize(16)
        reds, blues = base.copy(), base.copy()
        reds.putpalette([*range(48)])
        blues.putpalette([*reversed(range(48))])
        alpha = base.copy()
        alpha.putpalette([*range(64)], "RGBA")
        images = [base, reds, blues, alpha]
        assert len({mw.hash_image(image) for image in images}) == 4
        for image in images:
            assert sha256(image) == expected(image)
            saved = encoded(image, "PNG")
            assert sha256(saved) == expected(saved)

    def test_other_metadata_is_no_identity(self) -> None:
        image = noise("RGB", (8, 8))
        digest = mw.hash_image(image)
        image.info.update(dpi=(72, 72), comment=b"hello", icc_profile=b"...")
        image.getexif()[0x010E] = "a description"
        image.getexif()[0xA420] = "ImageID is not the image"
        assert mw.hash_image(image) == digest


class TestFiles:
    @pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000"])
    def test_lazily_opened_is_loaded(self, form: str) -> None:
        image = encoded(noise("RGB", (64, 48)), form)
        lazy = mw.hash_image(image)
        assert lazy == mw.hash_image(image)
        assert lazy == mw.hash_image(image.copy())

    def test_tiff_is_turned_by_pillow_itself(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        image = encoded(noise("RGB", (64, 48)), "TIFF", exif=exif)
        assert sha256(image) == expected(image)
        assert image.size == (48, 64)

    def test_animations_are_their_current_frame(self) -> None:
        frames = [Image.new("RGB", (32, 24), color) for color in ("red", "green", "blue")]
        image = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        digests = []
        for n in range(3):
            image.seek(n)
            digests.append(mw.hash_image(image))
            assert mw.hash_image(image.copy()) == digests[-1]
        image.seek(0)
        assert mw.hash_image(image) == digests[0]
        assert len(set(digests)) == 3

    def test_truncated_and_corrupt(self) -> None:
        file = io.BytesIO()
        noise("RGB", (64, 48)).save(file, "PNG")
        data = file.getvalue()
        broken = Image.open(io.BytesIO(data[: len(data) // 2]))
        with pytest.raises(OSError, match="truncated"):
            mw.hash_image(broken)
        closed = Image.open(io.BytesIO(data))
        closed.close()
        with pytest.raises(ValueError, match="closed"):
            mw.hash_image(closed)

    def test_bombs_are_pillows_to_refuse(self, monkeypatch: pytest.MonkeyPatch) -> None:
        file = io.BytesIO()
        noise("L", (64, 48)).save(file, "PNG")
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(Image.DecompressionBombError):
            mw.hash_image(Image.open(io.BytesIO(file.getvalue())))

    def test_many_modes_at_once(self) -> None:
        images = [noise(mode, (120, 90)) for mode in MODES] + [noise("RGB", (2100, 2000))]
        assert mw.hash_many(images, threads=3) == [mw.hash_image(image) for image in images]


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096
