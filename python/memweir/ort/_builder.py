"""Builds a pre-packed model and proves that it gives the same bits.

``python -m memweir.ort._builder`` reads a job as JSON on stdin and tells in its last line on stdout
what came of it. What building takes of memory goes with the process.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["feeds", "same", "work"]

SMALLEST = "1024"
"""Bytes from which weights lie outside the model's own file."""
_TYPES = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "bool": np.bool_,
    "string": np.str_,
    **{f"int{bits}": np.dtype(f"int{bits}").type for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": np.dtype(f"uint{bits}").type for bits in (8, 16, 32, 64)},
}


def work(job: dict[str, Any], ort: Any) -> dict[str, Any]:
    """Writes the model into ``job["out"]``; returns a ``kind`` if it may not be used."""
    out = Path(job["out"])
    try:
        options = _options(ort, job)
        level = job["optimization"]
        name = "DISABLE_ALL" if level == "none" else f"ENABLE_{level}"
        options.graph_optimization_level = getattr(
            ort.GraphOptimizationLevel, f"ORT_{name.upper()}"
        )
        options.optimized_model_filepath = str(out / "model.onnx")
        for key, value in (
            ("session.optimized_model_external_initializers_file_name", "weights.bin"),
            ("session.optimized_model_external_initializers_min_size_in_bytes", SMALLEST),
            ("session.save_external_prepacked_constant_initializers", "1"),
        ):
            options.add_session_config_entry(key, value)
        _open(ort, job["source"], options)
    except Exception as error:
        return {"kind": "build", "why": f"the runtime did not write it: {error}"}
    if not (out / "weights.bin").exists():
        return {"kind": "format", "why": "the model has no weights to keep apart"}
    try:
        plain = _open(ort, job["source"], _options(ort, job))
        options = _options(ort, job)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        packed = _open(ort, str(out / "model.onnx"), options)
    except Exception as error:
        return {"kind": "build", "why": f"what was written cannot be read: {error}"}
    return _proved(plain, packed, job.get("probe"))


def _proved(plain: Any, packed: Any, probe: str | None) -> dict[str, Any]:
    tried, why = 0, "it takes inputs that no probe is known for"
    for feed in feeds(plain, probe):
        try:
            one, again = plain.run(None, feed), plain.run(None, feed)
        except Exception as error:
            why = f"it does not run on the probe: {error}"
            continue
        if not same(one, again):
            return {"kind": "random", "why": "the model gives other outputs for the same inputs"}
        try:
            other = packed.run(None, feed)
        except Exception as error:
            return {"kind": "mismatch", "why": f"the pre-packed form does not run: {error}"}
        if not same(one, other):
            return {"kind": "mismatch", "why": "the pre-packed form gives other outputs"}
        tried += 1
    if not tried:
        return {"kind": "probe", "why": f"{why}; give probe={{name: array}}"}
    return {"tried": tried}


def feeds(session: Any, probe: str | None = None) -> Iterator[dict[str, Any]]:
    """Inputs to compare outputs on: the caller's, else small ones and smaller ones."""
    if probe is not None:
        with np.load(probe, allow_pickle=False) as found:
            yield {name: found[name] for name in found.files}
        return
    for unknown in (8, 1):
        feed = {}
        for number, one in enumerate(session.get_inputs()):
            kind = str(one.type)
            dtype = _TYPES.get(kind[7:-1]) if kind.startswith("tensor(") else None
            if dtype is None:
                return
            # The first unknown dimension is the batch.
            shape = [
                size if isinstance(size, int) else 1 if place == 0 else unknown
                for place, size in enumerate(one.shape)
            ]
            feed[one.name] = _filled(str(one.name), dtype, shape, number)
        yield feed


def _filled(name: str, dtype: Any, shape: list[int], number: int) -> Any:
    if dtype is np.str_:
        return np.full(shape, "a", dtype=object)
    if "mask" in name.lower() or dtype is np.bool_:
        return np.ones(shape, dtype)
    if issubclass(dtype, np.floating):
        return np.random.default_rng(number).standard_normal(shape).astype(dtype)
    return np.zeros(shape, dtype)


def same(one: Any, other: Any) -> bool:
    """Whether outputs are equal, bit for bit."""
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return one.tolist() == other.tolist() if one.dtype == object else _bits(one) == _bits(other)
    return bool(one == other)


def _bits(array: Any) -> bytes:
    bits: bytes = array.tobytes()
    return bits


def _options(ort: Any, job: dict[str, Any]) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for key, value in job.get("config", {}).items():
        options.add_session_config_entry(key, value)
    for library in job["custom_ops"]:
        options.register_custom_ops_library(library)
    return options


def _open(ort: Any, path: str, options: Any) -> Any:
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main() -> None:
    job = json.loads(sys.stdin.read())
    print(json.dumps(work(job, import_module("onnxruntime"))), flush=True)


if __name__ == "__main__":
    main()
