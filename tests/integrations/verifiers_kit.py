"""Images in the wire form of traces and replies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rollout_kit import truth

import memweir as mw
from memweir.pixels import cards, live


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> mw.PixelCache:
    """A cache of a process that has no other."""
    monkeypatch.setattr(live, "_caches", {})
    monkeypatch.setattr(cards, "_own", {})
    monkeypatch.setattr(cards, "_foreign", {})
    return mw.PixelCache("256 MiB")


def encoded(array: Any) -> dict[str, Any]:
    """The form that arrays have in a reply, in the field names of the published wire."""
    flat = np.ascontiguousarray(array)
    fields = {"dtype": str(flat.dtype), "shape": [*flat.shape], "data": flat.tobytes()}
    return {"__nd__": True, **fields}


def decoded(wire: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(wire["data"], np.dtype(wire["dtype"])).reshape(wire["shape"])


def over_the_wire(data: dict[str, Any]) -> dict[str, Any]:
    """``mm_items`` through a reply and back, as a release with images on nodes does it."""
    return {
        kind: [{k: decoded(encoded(v)) for k, v in image.items()} for image in images]
        for kind, images in data.items()
    }


def assert_true(images: list[dict[str, Any]], seeds: Any) -> None:
    for image, seed in zip(images, seeds, strict=True):
        for name, array in truth(seed).items():
            assert np.asarray(image[name]).dtype == array.dtype
            assert np.array_equal(np.asarray(image[name]), array)
