"""What a pre-packed model is good for: one model, one version, one kind of processor."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memweir import _core
from memweir.errors import BadModel

from .prepacked import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._wire import Facts

__all__ = ["features", "key_of", "parts_of"]


def parts_of(
    source: Path | bytes,
    facts: Facts,
    ort: Any,
    optimization: str,
    custom_ops: tuple[str, ...],
    config: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that another form would follow from, as plain data."""
    external = {}
    if isinstance(source, bytes):
        model = _core.hash_bytes(source).hex()
    else:
        model = digest(source)
        external = {name: digest(source.parent / name) for name in sorted(facts.external)}
    return {
        "format": 1,
        "model": model,
        "external": external,
        "runtime": str(ort.__version__),
        "build": _build(ort),
        "cpu": features(),
        "optimization": optimization,
        "custom_ops": [_library(one) for one in custom_ops],
        "config": dict(config or {}),
    }


def _library(path: str) -> str:
    try:
        return digest(path)
    except OSError as error:
        raise BadModel(
            f"a library of custom operators could not be loaded: {error}", kind="custom-ops"
        ) from error


def key_of(parts: dict[str, Any]) -> str:
    """The name of what these parts give."""
    return _core.hash_bytes(json.dumps(parts, sort_keys=True)).hex()[:32]


def _build(ort: Any) -> str:
    info = getattr(ort, "get_build_info", None)
    return "" if info is None else str(info())


def features() -> str:
    """A digest of what the processor can do: the runtime packs weights for that."""
    seen = [platform.machine(), platform.system()]
    try:
        with Path("/proc/cpuinfo").open() as file:
            for line in file:
                if not line.strip() and len(seen) > 2:
                    break  # the first processor stands for all
                name, _, value = line.partition(":")
                if name.strip() in ("flags", "Features", "CPU part", "CPU implementer"):
                    seen.append(" ".join(sorted(value.split())))
    except OSError:
        seen.append(platform.processor())
    return _core.hash_bytes("\n".join(seen)).hex()[:16]
