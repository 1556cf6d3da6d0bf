"""The ONNX Runtime that there is: found when it is needed, and asked for what differs."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from memweir.errors import BadModel

__all__ = ["CPU", "PREPACKS_FROM", "as_bad_model", "find", "version"]

CPU = "CPUExecutionProvider"
PREPACKS_FROM = (1, 21)
"""The first version that honours the key for pre-packed weights; those before ignore it."""


def find(runtime: Any = None) -> Any:
    """onnxruntime, or what was given in its place; ``ModuleNotFoundError`` says what to install."""
    if runtime is not None:
        return runtime
    try:
        return import_module("onnxruntime")
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ModuleNotFoundError(
            "mw.ort needs ONNX Runtime: pip install 'memweir[onnx]', or onnxruntime-gpu where "
            "there is a GPU",
            name="onnxruntime",
        ) from None


def version(ort: Any) -> tuple[int, ...]:
    """The first two numbers of its version."""
    found = re.match(r"(\d+)\.(\d+)", str(getattr(ort, "__version__", "")))
    return tuple(map(int, found.groups())) if found else (0, 0)


# Words of the runtime's messages, by what they mean; the first that is found counts.
_MEANS = (
    ("custom-ops", re.compile(r"not a registered function/op|No opset import for domain", re.I)),
    ("external-data", re.compile(r"external (data|initializer)|GetExtData", re.I)),
    ("corrupt", re.compile(r"INVALID_PROTOBUF|protobuf parsing failed|No graph was found", re.I)),
)


def as_bad_model(error: Exception, name: str, foreign: list[str]) -> BadModel:
    """What the runtime raised, as an error that says which kind it is."""
    text = str(error)
    kind = next((kind for kind, words in _MEANS if words.search(text)), "refused")
    if kind == "custom-ops":
        ops = ", ".join(foreign[:8]) or text
        return BadModel(
            f"{name} has operators that are not registered: {ops}; give custom_ops=[library]",
            kind=kind,
        )
    return BadModel(f"{name}: {text}", kind=kind)
