"""A process watched from outside: its RssAnon, and the charge of a memory cgroup made for it.

The cgroup is made where this process may make one (v1 and v2).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

__all__ = ["GIB", "KIB", "MIB", "Case", "Reader", "play", "watch"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Reader:
    """RssAnon of a process and the charge of its cgroup, in bytes; ``None`` without a cgroup."""

    def __init__(self, pid: int, group: Path | None) -> None:
        self.status = Path(f"/proc/{pid}/status")
        self.usage = None
        if group is not None:
            names = "memory.usage_in_bytes", "memory.current"
            self.usage = next(group / name for name in names if (group / name).exists())

    def __call__(self) -> tuple[int, int | None]:
        anon = next(
            int(line.split()[1]) * KIB
            for line in self.status.read_text().splitlines()
            if line.startswith("RssAnon")
        )
        return anon, None if self.usage is None else int(self.usage.read_text())


Case = Callable[[Reader], Callable[[], Any]]
"""Prepares everything but the caches, and returns the work that is watched."""


def play(prepare: Case, group: str) -> None:
    """Runs a case between two lines on stdin, and prints what it found."""
    sys.stdin.readline()  # by now this process is in its cgroup: what it touches is charged there
    work = prepare(Reader(os.getpid(), Path(group) if group else None))
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(work()), flush=True)


def watch(module: str, case: str) -> dict[str, Any]:
    """Runs ``module`` with ``case`` and the cgroup's folder as arguments, in a fresh process.

    Its highest growth, its maps, and what it printed.
    """
    with own_group() as group:
        command = [sys.executable, "-m", module, case, str(group or "")]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if group is not None:
                (group / "cgroup.procs").write_text(str(process.pid))
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "ready\n"
            seen: dict[str, Any] = {"anon": 0, "charge": None if group is None else 0, "maps": 0}
            stop = Event()
            sampler = Thread(target=sample, args=(process.pid, group, seen, stop))
            sampler.start()
            process.stdin.write("\n")
            process.stdin.flush()
            seen["result"] = json.loads(process.stdout.readline())
            stop.set()
            sampler.join()
        return seen


def sample(pid: int, group: Path | None, seen: dict[str, Any], stop: Event) -> None:
    """Keeps the highest growth and number of maps in ``seen`` until told to stop."""
    read = Reader(pid, group)
    anon, charge = read()
    rounds = 0
    while not stop.wait(0.02):
        now_anon, now_charge = read()
        seen["anon"] = max(seen["anon"], now_anon - anon)
        if now_charge is not None and charge is not None:
            seen["charge"] = max(seen["charge"], now_charge - charge)
        if rounds % 50 == 0:
            maps = Path(f"/proc/{pid}/maps").read_text().count("\n")
            seen["maps"] = max(seen["maps"], maps)
        rounds += 1


@contextmanager
def own_group() -> Iterator[Path | None]:
    """A new memory cgroup, or ``None`` where none can be made."""
    for mount in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        group = mount / f"memweir-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            counts = any((group / n).exists() for n in ("memory.usage_in_bytes", "memory.current"))
            yield group if counts else None
        finally:
            group.rmdir()
        return
    yield None
