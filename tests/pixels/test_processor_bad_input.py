"""What one may hand to a processor by mistake: the same answer or the same error as without us."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from processor_kit import assert_same, attempt, encode, photo, uri
from transformers import (
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
    ViTImageProcessorPil,
)

import memweir as mw

# Read-only arrays and torchvision's decoder warn with and without us.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The given NumPy array:UserWarning"),
    pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore:Casting complex values"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning"),
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning"),
]

KINDS = [ViTImageProcessorPil, Qwen2VLImageProcessor]
A = photo(60, 45)
N = np.array(A)


def opened(content: bytes, frame: int = 0) -> PIL.Image.Image:
    image = PIL.Image.open(io.BytesIO(content))
    if frame:
        image.seek(frame)
    return image


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(40) + content[middle + 40 :]


def transparent(mode: str, transparency: int | bytes) -> PIL.Image.Image:
    image = A.convert(mode)
    image.info["transparency"] = transparency
    return image


def closed() -> PIL.Image.Image:
    image = A.copy()
    image.close()
    return image


def frozen(array: Any) -> Any:
    array = array.copy()
    array.flags.writeable = False
    return array


def turned(orientation: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[274] = orientation
    return encode(A, "JPEG", exif=exif)


GREY16 = PIL.Image.fromarray((np.arange(48 * 64).reshape(48, 64) * 7).astype(np.uint16))
GIF = encode(A, "GIF", save_all=True, append_images=[A.rotate(90), A.rotate(180)])
FORMATS = {name: encode(A, name) for name in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM")}

CASES: dict[str, Callable[[], Any]] = {
    **{f"truncated {name}": lambda c=c: opened(cut(c)) for name, c in FORMATS.items()},
    **{f"damaged {name}": lambda c=c: opened(damaged(c)) for name, c in FORMATS.items()},
    **{f"truncated {name} URI": lambda c=c: uri(cut(c)) for name, c in FORMATS.items()},
    **{f"damaged {name} URI": lambda c=c: uri(damaged(c)) for name, c in FORMATS.items()},
    **{
        f"mode {mode}": lambda mode=mode: A.convert(mode)
        for mode in ("1", "L", "LA", "P", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F")
    },
    "palette, one transparent": lambda: transparent("P", 3),
    "palette, alphas": lambda: transparent("P", bytes(range(256))),
    "grey, one transparent": lambda: transparent("L", 30),
    "palette URI": lambda: uri(encode(A.convert("P"), transparency=3)),
    "grey with alpha URI": lambda: uri(encode(A.convert("LA"))),
    "CMYK URI": lambda: uri(encode(A.convert("CMYK"), "JPEG")),
    "16 bit": lambda: GREY16,
    "16 bit URI": lambda: uri(encode(GREY16)),
    **{f"EXIF {n}": lambda n=n: opened(turned(n)) for n in (3, 6)},
    **{f"EXIF {n} URI": lambda n=n: uri(turned(n)) for n in (3, 6)},
    **{f"GIF frame {n}": lambda n=n: opened(GIF, n) for n in (0, 2)},
    "GIF URI": lambda: uri(GIF),
    "no width": lambda: PIL.Image.new("RGB", (0, 5)),
    "no size": lambda: PIL.Image.new("RGB", (0, 0)),
    "one pixel": lambda: PIL.Image.new("RGB", (1, 1), (1, 2, 3)),
    "strip": lambda: PIL.Image.new("RGB", (50_000, 1)),
    "standing strip": lambda: PIL.Image.new("RGB", (1, 50_000)),
    "closed": closed,
    "Fortran order": lambda: np.asfortranarray(N),
    "upside down": lambda: N[::-1],
    "BGR": lambda: N[:, :, ::-1],
    "every other": lambda: N[::2, ::3],
    "read-only": lambda: frozen(N),
    "channels first": lambda: np.moveaxis(N, -1, 0),
    "big-endian": lambda: N.astype(">u2"),
    "float32": lambda: (N / 255).astype(np.float32),
    "float64": lambda: N / 255.0,
    "nan": lambda: np.full((8, 8, 3), np.nan, np.float32),
    "bool": lambda: N > 100,
    "object": lambda: N.astype(object),
    "complex": lambda: N.astype(complex),
    "text": lambda: np.array(["a"]),
    "empty": lambda: N[:0],
    "0-d": lambda: np.array(3),
    "1-d": lambda: N[0, 0],
    "2-d": lambda: np.array(N[..., 0]),
    "4-d": lambda: N[None],
    "5-d": lambda: N[None, None],
    "1 channel": lambda: np.array(N[..., :1]),
    "2 channels": lambda: np.array(N[..., :2]),
    "4 channels": lambda: np.concatenate([N, N[..., :1]], -1),
    "5 channels": lambda: np.concatenate([N, N[..., :2]], -1),
    "ambiguous channels": lambda: np.zeros((3, 3, 3), np.uint8),
    "tensor": lambda: torch.from_numpy(N),
    "permuted tensor": lambda: torch.from_numpy(N).permute(2, 0, 1),
    "bfloat16 tensor": lambda: torch.full((3, 20, 20), 0.3).bfloat16(),
    "tensor with gradient": lambda: torch.full((3, 20, 20), 0.4, requires_grad=True),
    "sparse tensor": lambda: torch.zeros(3, 8, 8).to_sparse(),
    **{
        f"odd {value!r}": lambda value=value: value
        for value in (None, 3, "", "hello", "/tmp", "a\0b", "data:image/png", {}, {1}, [[]])
    },
}


# torchvision's own decoder crashes the process on some damaged files.
FRAGILE = {name for name in CASES if name.startswith("damaged") and name.endswith("URI")}


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n in CASES for k in KINDS if n not in FRAGILE or k.__name__.endswith("Pil")],
)
def test_answers_and_errors_are_the_processors_own(name: str, kind: Any) -> None:
    # Each attempt gets inputs of its own: a failed load leaves its mark on a PIL image.
    make, plain, proc = CASES[name], kind(), mw.CachedProcessor(kind(), mw.PixelCache("64 MiB"))
    for wrap in (lambda x: x, lambda x: [A, x], lambda x: [x, N]):
        expected = attempt(plain, wrap(make()), return_tensors="pt")
        for _ in range(2):
            assert_same(expected, attempt(proc, wrap(make()), return_tensors="pt"))


def test_decompression_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    kind = Qwen2VLImageProcessorPil
    proc = mw.CachedProcessor(kind(), mw.PixelCache("64 MiB"))
    for _ in range(2):
        assert_same(attempt(kind(), uri(encode(A))), attempt(proc, uri(encode(A))))
        _, error = attempt(proc, encode(A))
        assert error is not None
        assert "decompression bomb" in error
    assert len(proc.cache) == 0


def test_what_a_view_s_order_forbids_stays_forbidden_after_a_hit() -> None:
    """The same pixels were served before; torch still refuses negative strides."""
    kind = Qwen2VLImageProcessor
    proc = mw.CachedProcessor(kind(), mw.PixelCache("64 MiB"))
    proc(N[::-1].copy())
    expected = attempt(kind(), N[::-1])
    assert "negative" in str(expected[1])
    assert_same(expected, attempt(proc, N[::-1]))
