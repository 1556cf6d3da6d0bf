"""Where the doctor looks: files of the kernel, and variables now and at the start."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Host"]


@dataclass(frozen=True, slots=True)
class Host:
    """A machine as this process sees it; a folder of a test in place of ``/`` is one, too."""

    root: Path
    environ: Mapping[str, str]
    at_start: Mapping[str, str] | None
    """The variables that the process was started with; ``None`` where that is not to be seen."""
    cpus: int
    """On how many it may run, whatever their share: what libraries count."""
    modules: frozenset[str] = frozenset()
    """What is imported."""

    @classmethod
    def here(cls) -> Host:
        root, environ = Path("/"), dict(os.environ)
        return cls(root, environ, started(root, environ), usable_cpus(), frozenset(sys.modules))

    def text(self, path: str) -> str | None:
        """What stands in a file, without white space around; ``None`` if it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(errors="replace").strip()
        except (OSError, ValueError):
            return None

    def number(self, path: str) -> int | None:
        text = self.text(path)
        return int(text) if text is not None and text.isascii() and text.isdecimal() else None

    def chosen(self, path: str) -> str | None:
        """The word in brackets: ``always [madvise] never``."""
        return (self.text(path) or "").partition("[")[2].partition("]")[0] or None


def usable_cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def started(root: Path, environ: Mapping[str, str]) -> dict[str, str] | None:
    """The variables that a process was started with, where the kernel still has them."""
    try:
        raw = (root / "proc/self/environ").read_bytes()
    except OSError:
        return None
    lines = (os.fsdecode(line).partition("=") for line in raw.split(b"\0") if b"=" in line)
    found = {name: value for name, _, value in lines}
    # Who renames a process writes over them: what has nothing in common with now is not them.
    return found if any(found.get(name) == value for name, value in environ.items()) else None
