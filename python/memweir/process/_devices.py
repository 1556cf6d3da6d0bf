"""Accelerators of runtimes that are imported already: what they keep, and what they give back.

Nothing here imports a runtime or starts a device: what was not used holds nothing.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["device_bytes", "empty_caches"]


def empty_caches() -> tuple[str, ...]:
    """Gives back what the allocators of devices in use keep; the names of those asked."""
    torch = sys.modules.get("torch")
    acted = []
    cuda = _used(torch, "cuda")
    if cuda is not None:
        cuda.empty_cache()
        acted.append("cuda")
        host = getattr(getattr(torch, "_C", None), "_host_emptyCache", None)
        if host is not None:  # pinned memory
            host()
    xpu = _used(torch, "xpu")
    if xpu is not None:
        xpu.empty_cache()
        acted.append("xpu")
    mps = _mps(torch)
    if mps is not None:
        mps.empty_cache()
        acted.append("mps")
    return tuple(acted)


def device_bytes() -> int | None:
    """What this process's runtimes hold on devices; ``None`` where no device is in use."""
    torch = sys.modules.get("torch")
    held: list[int] = []
    for name in ("cuda", "xpu"):
        backend = _used(torch, name)
        if backend is not None:
            held += (backend.memory_reserved(each) for each in range(backend.device_count()))
    mps = _mps(torch)
    if mps is not None:
        held.append(mps.driver_allocated_memory())
    return sum(held) if held else None


def _used(torch: Any, name: str) -> Any:
    backend = getattr(torch, name, None)
    started = getattr(backend, "is_initialized", None)
    return backend if started is not None and started() else None


def _mps(torch: Any) -> Any:
    mps = sys.modules.get("torch.mps")
    backend = getattr(getattr(torch, "backends", None), "mps", None)
    return mps if backend is not None and backend.is_available() else None
