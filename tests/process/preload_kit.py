"""Python processes under one allocator or another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIBRARIES = {
    "jemalloc": ("libjemalloc.so.2", "libjemalloc2"),
    "tcmalloc": ("libtcmalloc_minimal.so.4", "libtcmalloc-minimal4"),
    "mimalloc": ("libmimalloc.so.2.0", "libmimalloc2.0"),
}
GLIBC = "glibc"
EVERY = (GLIBC, *LIBRARIES)

_CHILD = Path(__file__).with_name("heap_child.py")
_ALLOCATORS = ("LD_PRELOAD", "GLIBC_TUNABLES", "NUMPY_MADVISE_HUGEPAGE")
_PREFIXES = ("MALLOC_", "MIMALLOC_", "TCMALLOC_", "MEMWEIR_", "_RJEM_")


def library(name: str) -> str:
    """The path of an allocator's library; skips the test where it is not installed."""
    file, package = LIBRARIES[name]
    for folder in (*Path("/usr/lib").glob("*-linux-gnu"), Path("/usr/lib64"), Path("/usr/lib")):
        if (folder / file).exists():
            return str(folder / file)
    pytest.skip(f"{file} is not installed (Debian: apt-get install {package})")


def need_glibc() -> None:
    """Skips the test where Python is not built for the GNU C library."""
    try:
        known = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):
        known = None
    if not known:
        pytest.skip("this Python does not use the GNU C library")


def environment(allocator: str, **variables: str) -> dict[str, str]:
    """This process's environment with that allocator and nothing that tunes one."""
    need_glibc()
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in _ALLOCATORS and not name.startswith(_PREFIXES)
    }
    if allocator != GLIBC:
        env["LD_PRELOAD"] = library(allocator)
    return env | variables


def run(scenario: str, *args: object, allocator: str = GLIBC, **variables: str) -> Any:
    """What a function of ``heap_child.py`` returns in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(_CHILD), scenario, json.dumps(args)],
        env=environment(allocator, **variables),
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])
