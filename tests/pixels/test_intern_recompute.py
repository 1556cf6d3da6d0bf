"""Pixels and the text that they came from, both as references, and the way back to the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from processor_kit import difference, encode, photo, uri
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import memweir as mw


def test_pixels_are_made_again_from_an_interned_source() -> None:
    """Both the pixels and the text that they came from are references; nothing else is kept."""
    processor = Qwen2VLImageProcessorPil()
    pixels, store = mw.PixelCache("32 MiB"), mw.PixelCache("8 MiB")
    text = uri(encode(photo(640, 480)))
    cached = mw.CachedProcessor(processor, pixels)
    answer = cached(text, return_tensors="np")
    plain = processor(text, return_tensors="np")
    messages = mw.intern_sources([{"image": text}], store=store)
    kept = mw.strip(dict(answer), pixels).data
    pixels.clear()
    with pytest.raises(mw.MissingPixels):
        mw.materialize(kept)
    recompute = mw.Recompute(processor, fetch=mw.find_source)
    assert difference(dict(plain), mw.materialize(kept, recompute)) is None
    assert mw.find_source(mw.source_id(text)) == text
    del messages
    store.clear()
    assert mw.find_source(mw.source_id(text)) is None
    assert mw.find_source(mw.strip(np.zeros(9000), pixels).data) is None
