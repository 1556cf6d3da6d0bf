"""Names of models that are equal exactly where what would be loaded is."""

from __future__ import annotations

import os
import re
import sys
from enum import Enum
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Any

import numpy as np

from memweir.errors import IdentifierError, UnsupportedType
from memweir.identifiers import check_identifier, loggable
from memweir.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["model_key"]

_DEEPEST = 16
_DEVICE = re.compile(r"([a-z][a-z_]*)(?::([0-9]+))?")
_ONE = frozenset({"cpu", "mps", "meta"})  # of these a process has one
_DTYPES = {
    **dict.fromkeys(("fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("bf16",), "bfloat16"),
    **dict.fromkeys(("fp32", "f32", "float"), "float32"),
    **dict.fromkeys(("fp64", "f64", "double"), "float64"),
}
# `pad_token` and its like name no secret.
_SECRET_NAME = re.compile(
    r"(?:(?:hf|auth|use_auth|access|api|bearer|refresh)_?)?token|(?:api|access|secret)_?key"
    r"|(?:client_?)?secret|password|passwd|credentials?|auth(?:orization)?",
    re.I,
)


def model_key(
    name: str,
    /,
    *,
    path: str | os.PathLike[str] | None = None,
    device: Any = None,
    dtype: Any = None,
    **options: Any,
) -> str:
    """A pool's key for a model: its name, and everything that its loader is given.

    ``path`` is resolved, symlinks too, so that it does not depend on the working directory; bare
    ``"cuda"`` is the current device, and ``torch.float16``, ``np.float16`` and ``"fp16"`` are one
    dtype. Options may be ``None``, bools, numbers, text, bytes, paths (resolved, too), dtypes,
    devices, enums, classes and functions that can be imported, and lists, sets and dicts of those.
    ``1``, ``1.0``, ``True`` and ``"1"`` are four values; a list is what the same tuple is. Their
    order does not matter.

    Raises ``IdentifierError`` for a name that is not clean, for one with an equals sign, and
    wherever there is a secret: a token says who loads, not what. ``UnsupportedType`` names a value
    that has no text of its own.
    """
    check_identifier(name, kind="label")
    if "=" in name:
        raise IdentifierError(
            "the name has an equals sign", code="character", offset=name.index("="), kind="label"
        )
    told = {each: _value(each, value, 0) for each, value in options.items()}
    if path is not None:
        told["path"] = quoted(_path(path))
    if device is not None:
        told["device"] = quoted(_device(device))
    if dtype is not None:
        told["dtype"] = quoted(_dtype(dtype))
    _refuse_secrets(options, told)
    if not told:
        return name
    return f"{name}:{','.join(f'{each}={told[each]}' for each in sorted(told))}"


def _path(path: Any) -> str:
    return os.path.normcase(os.path.realpath(os.fsdecode(path)))


def _device(device: Any) -> str:
    """``kind`` or ``kind:index``; an int is a CUDA device, as in transformers."""
    if isinstance(device, bool):
        raise TypeError("a device is a str, an int or a torch.device, not bool")
    if isinstance(device, int):
        device = f"cuda:{device}"
    elif not isinstance(device, str) and type(device).__name__ != "device":
        raise TypeError(f"a device is a str, an int or a torch.device, not {_kind(device)}")
    match = _DEVICE.fullmatch(str(device).strip().lower())
    if match is None:
        raise ValueError(f"not a device: {loggable(str(device), 40)!r}; one is 'cpu' or 'cuda:0'")
    kind, index = match.groups()
    if kind in _ONE:
        return kind
    if index is None:
        if kind not in ("cuda", "xpu"):
            return kind
        index = str(_current(kind))
    return f"{kind}:{int(index)}"


def _current(kind: str) -> int:
    """The device that a bare name means now; the first where none was used yet."""
    backend = getattr(sys.modules.get("torch"), kind, None)
    started = getattr(backend, "is_initialized", None)
    if backend is None or started is None or not started():
        return 0
    return int(backend.current_device())


def _dtype(dtype: Any) -> str:
    text = dtype if isinstance(dtype, str) else _dtype_name(dtype)
    if text is None:
        raise TypeError(f"a dtype is a str, or one of numpy or torch, not {_kind(dtype)}")
    text = text.strip().lower().removeprefix("torch.")
    return _DTYPES.get(text, text)


def _dtype_name(value: Any) -> str | None:
    if isinstance(value, np.dtype):
        return str(value.name)
    if isinstance(value, type) and issubclass(value, np.generic):
        return str(np.dtype(value).name)
    torch = getattr(sys.modules.get("torch"), "dtype", None)
    if isinstance(torch, type) and isinstance(value, torch):
        return str(value).removeprefix("torch.")
    return None


def _value(name: str, value: Any, depth: int) -> str:
    """One spelling for each value, and none for two: what a type writes begins as no other does."""
    if depth > _DEEPEST:
        raise ValueError(f"{loggable(name)} is nested more than {_DEEPEST} deep")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Enum):
        return f"<{_kind(value)}.{value.name}>"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float | complex):
        kind = next(kind for kind in (int, float, complex) if isinstance(value, kind))
        return kind.__repr__(value)
    if isinstance(value, str):
        return quoted(str(value))
    if isinstance(value, bytes | bytearray):
        return f"b{quoted(value.hex())}"
    if isinstance(value, os.PathLike):
        return f"path({quoted(_path(value))})"
    if isinstance(value, list | tuple):
        return f"[{','.join(_value(name, each, depth + 1) for each in value)}]"
    if isinstance(value, set | frozenset):
        return f"set({','.join(sorted(_value(name, each, depth + 1) for each in value))})"
    if isinstance(value, dict):
        pairs = {_value(name, key, depth + 1): _value(name, value[key], depth + 1) for key in value}
        return "{" + ",".join(f"{key}:{pairs[key]}" for key in sorted(pairs)) + "}"
    if (dtype := _dtype_name(value)) is not None:
        return f"dtype({dtype})"
    if _kind(value) == "torch.device":
        return f"device({_device(value)})"
    if callable(value) and (spelled := _importable(value)) is not None:
        return f"<{spelled}>"
    raise UnsupportedType(
        f"{loggable(name)}: a {_kind(value)} has no text of its own; give what it is made of"
    )


def _importable(value: Any) -> str | None:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    found: Any = sys.modules.get(module) if isinstance(module, str) else None
    for part in name.split(".") if isinstance(name, str) else ("",):
        found = getattr(found, part, None)
    return f"{module}.{name}" if found is value else None


def _refuse_secrets(options: Mapping[str, Any], told: Mapping[str, str]) -> None:
    for name, value in options.items():
        if _SECRET_NAME.fullmatch(name) and not (value is None or isinstance(value, bool)):
            _refuse(name)
    for name, text in told.items():
        if redact(text) != text or redact(name) != name:
            _refuse(name)


def _refuse(name: str) -> None:
    raise IdentifierError(
        f"{loggable(name)} holds a secret: leave it out, as it says who loads and not what",
        code="secret",
        offset=0,
        kind="label",
    )


def _kind(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
