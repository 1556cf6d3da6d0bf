"""A reply with images, memweir's form beside plain arrays, through the same packer."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import memweir as mw
from memweir.integrations.verifiers import export_images, unpack_reply

from .harness import Ratio, Table

IMAGES = 4


def main() -> None:
    try:
        import msgpack
    except ImportError:
        print("benches replies: needs msgpack, which verifiers brings")
        return
    processor = Qwen2VLImageProcessorPil(
        patch_size=16,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 65536, "longest_edge": 1 << 24},
    )
    cache = mw.PixelCache("512 MiB", name="sender")
    cached = mw.CachedProcessor(processor, cache)
    made = [dict(cached([source(seed)], return_tensors="np")) for seed in range(IMAGES)]
    items = {"mm_items": {"image": [mw.strip(each, cache).data for each in made]}}
    del made

    def packed(data: Any) -> bytes:
        """The form of arrays in a reply of verifiers, packed as it packs."""
        images = data["mm_items"]["image"]
        plain = [{name: wire(value) for name, value in image.items()} for image in images]
        message: bytes = msgpack.packb({"mm_items": {"image": plain}}, use_bin_type=True)
        return message

    ours, upstream = packed(export_images(items)), packed(arrays(items))
    there = mw.PixelCache("512 MiB", name="receiver")

    def receive() -> None:
        unpack_reply(ours, there)
        there.clear()

    def receive_plain() -> None:
        read = msgpack.unpackb(upstream, raw=False)
        for image in read["mm_items"]["image"]:
            for each in image.values():
                np.frombuffer(each["data"], each["dtype"]).reshape(each["shape"])

    plain = arrays(items)
    table = Table(f"a reply with {IMAGES} images of 1024²; other: plain arrays")
    print(f"bytes: {len(ours) / 1e6:.1f} MB, plain {len(upstream) / 1e6:.1f} MB, "
          f"{len(upstream) / len(ours):.2f} times")  # fmt: skip
    send = Ratio.measure(lambda: packed(export_images(items)), lambda: packed(plain), rounds=9)
    table.ratio("packing it", send, 1)
    table.ratio("unpacking it, into a cache", Ratio.measure(receive, receive_plain, rounds=9), 1)


def source(seed: int) -> str:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:1024, :1024]
    ramp = np.stack([rows / 4, columns / 4, (rows + columns) / 8], axis=-1)
    noisy = ramp * 7 / 8 + rng.integers(0, 32, ramp.shape)
    out = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def arrays(items: Any) -> Any:
    return mw.materialize(items, writable=True)


def wire(value: Any) -> dict[str, Any]:
    array = np.ascontiguousarray(value)
    fields = {"dtype": str(array.dtype), "shape": list(array.shape), "data": array.tobytes()}
    return {"__nd__": True, **fields}


if __name__ == "__main__":
    main()
