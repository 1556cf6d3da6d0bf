"""A machine with nothing to find, and ways to look at others."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from memweir.cli.doctor import Host, judge
from memweir.cli.doctor.finding import Facts, Finding
from memweir.settings import Settings, parts

GIB = 1 << 30

SOUND: Facts = {
    "versions": {},
    "allocator": {"kind": "glibc", "preload": []},
    "kernel": {
        "huge_pages": "madvise",
        "overcommit_memory": 0,
        "max_map_count": 65530,
        "maps": 400,
        "pressure": True,
        "swap": GIB,
    },
    "limits": {
        "ram": 16 * GIB,
        "limit": 16 * GIB,
        "bounds": [{"kind": "host", "source": "host", "bytes": 16 * GIB}],
        "charge": None,
        "working_set": None,
        "cpus": 4,
        "cpu_quota": None,
        "shared_memory": GIB,
    },
    "environment": {
        "variables": {"NUMPY_MADVISE_HUGEPAGE": {"value": "0", "late": False}},
        "unknown": {},
        "imported": ["numpy"],
    },
    "settings": {"error": None, "values": {}, "budget": GIB, "applied": None},
}


def settings_facts(made: Settings) -> dict[str, Any]:
    origins = made.origins()
    return {
        part.name: {
            "value": getattr(made, part.name),
            "origin": origins[part.name],
        }
        for part in parts()
    }


SOUND["settings"]["values"] = settings_facts(Settings())


def sound() -> Facts:
    return copy.deepcopy(SOUND)


def found(facts: Facts) -> list[Finding]:
    """What is found, less what the libraries that are installed here have to do with it."""
    return [one for one in judge(facts) if one.name not in ("pair-broken", "undeclared-missing")]


def names(facts: Facts) -> set[str]:
    return {one.name for one in found(facts)}


def host(root: Path, files: dict[str, str], environ: dict[str, str] | None = None) -> Host:
    """A machine made of these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root, environ or {}, environ or {}, 4)


def doctor(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    quiet = {k: v for k, v in os.environ.items() if not k.startswith(("MEMWEIR_", "MALLOC_"))}
    return subprocess.run(
        [sys.executable, "-m", "memweir", "doctor", *options],
        env={**quiet, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def report(**variables: str) -> dict[str, Any]:
    done = doctor("--json", **variables)
    shown: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if shown["healthy"] else 1), done.stderr
    return shown
