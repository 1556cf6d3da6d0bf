"""``memweir doctor``: what memweir sees in this process, as text or as one JSON object."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

from . import machine

__all__ = ["examine", "run"]

PACKAGES = ("memweir", "numpy", "pillow", "transformers", "huggingface-hub", "torch")

# Pairs that break each other when they are installed apart: the first declares which versions of
# the second it works with, and an installer that is told not to look does not look.
PAIRS = (
    ("transformers", "huggingface-hub"),
    ("transformers", "tokenizers"),
    ("transformers", "safetensors"),
    ("tokenizers", "huggingface-hub"),
    ("datasets", "huggingface-hub"),
    ("diffusers", "huggingface-hub"),
    ("sentence-transformers", "transformers"),
    ("sentence-transformers", "huggingface-hub"),
    ("torchvision", "torch"),
    ("torchaudio", "torch"),
)
# What is imported and not declared.
UNDECLARED = (("renderers", "httpx"),)


def examine() -> dict[str, Any]:
    """Facts by section, as plain JSON data. Sizes are bytes; ``None`` is none or unknown."""
    return {
        "versions": versions(),
        "allocator": allocator(),
        "limits": limits(),
        "findings": findings(),
    }


def run(*, as_json: bool) -> None:
    """Prints what :func:`examine` found."""
    facts = examine()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for section, entries in facts.items():
        table.add_row(f"[bold]{section}[/bold]")
        for name, value in (entries or {"": None}).items():
            table.add_row(f"  {name.replace('_', ' ')}", _shown(name, value))
    Console().print(table)


def versions() -> dict[str, str | None]:
    """Versions by package, read from metadata: nothing is imported for it."""
    found: dict[str, str | None] = {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
    }
    found |= {package: _version(package) for package in PACKAGES}
    return found


def findings() -> dict[str, str]:
    """What is wrong, by what it is wrong with: pairs of libraries that break each other."""
    found = {}
    for package, other in PAIRS:
        need = _need(package, other)
        if need is not None:
            found[f"{package} and {other}"] = need
    for package, other in UNDECLARED:
        if _version(package) is not None and _version(other) is None:
            found[f"{package} without {other}"] = (
                f"{package} {_version(package)} imports {other}, does not declare it, and it is "
                f"not installed: install {other}"
            )
    return found


def _need(package: str, other: str) -> str | None:
    """What `package` says about the `other` that is installed, if that does not fit."""
    has, version = _version(other), _version(package)
    if version is None:
        return None
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return None
    for line in metadata.requires(package) or ():
        requirement = Requirement(line)
        if requirement.name.lower().replace("_", "-") != other:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if has is None:
            return f"{package} {version} needs {other}{requirement.specifier}, not installed"
        if not requirement.specifier.contains(has, prereleases=True):
            return f"{package} {version} needs {other}{requirement.specifier}, and {has} is there"
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def allocator() -> dict[str, str | None]:
    """Who serves ``malloc`` here, the C library under it, and what was preloaded."""
    library = libc()
    return {
        "malloc": replaced_malloc(ctypes.CDLL(None)) or library,
        "libc": library,
        "LD_PRELOAD": os.environ.get("LD_PRELOAD") or None,
    }


def libc() -> str:
    """The C library and, for glibc, its version."""
    name, version = platform.libc_ver()
    if name:
        return f"{name} {version}"
    musl = "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or "")
    return "musl" if musl else platform.system()


def replaced_malloc(process: ctypes.CDLL) -> str | None:
    """The allocator in front of libc's, with its version where it tells.

    Known by symbols that only it has: ``malloc_trim`` can be called under all of them.
    """
    if hasattr(process, "mallctl"):
        text, size = ctypes.c_char_p(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_char_p))
        process.mallctl(b"version", ctypes.byref(text), ctypes.byref(size), None, 0)
        return f"jemalloc {(text.value or b'').decode().partition('-')[0]}".strip()
    if hasattr(process, "mi_version"):
        number = process.mi_version()
        return f"mimalloc {number // 100}.{number // 10 % 10}.{number % 10}"
    if hasattr(process, "MallocExtension_ReleaseFreeMemory"):
        return "tcmalloc"
    return None


def limits() -> dict[str, int | str | None]:
    """What bounds this process's memory."""
    groups = list(machine.groups())
    bounds = [group.limit for group in groups if group.limit is not None]
    return {
        "ram": machine.meminfo().get("MemTotal"),
        "available": machine.available(),
        "cgroup": f"v{groups[0].version}" if groups else None,
        "cgroup_limit": min(bounds, default=None),
        "address_space": _address_space(),
        "max_map_count": _number("/proc/sys/vm/max_map_count"),
        "huge_pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
    }


def _address_space() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _number(path: str) -> int | None:
    text = _text(path)
    return int(text) if text else None


def _chosen(path: str) -> str | None:
    """The word in brackets: ``always [madvise] never``."""
    return _text(path).partition("[")[2].partition("]")[0] or None


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _shown(name: str, value: object) -> str:
    from memweir.sizes import format_size

    if value is None:
        return "[dim]none[/dim]"
    counted = name == "max_map_count"
    return format_size(value) if isinstance(value, int) and not counted else str(value)
