"""Runs an arm in a fresh process and samples its memory from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import IO, Self

import psutil  # type: ignore[import-untyped]

__all__ = ["ArmError", "Run", "watch"]

COMMAND = [sys.executable, "-m", "memweir.cli.demo.arms"]
PERIOD = 0.02
"""Seconds between two samples."""


class ArmError(RuntimeError):
    """An arm's process ended before its work did; the message is what it wrote to stderr."""


@dataclass(slots=True)
class Run:
    """What was seen of one arm: its time, its memory, its tensors."""

    seconds: float = 0.0
    """Spent in rollouts and trainer; the digests that prove equality are not counted."""
    baseline: int = 0
    """Resident bytes after imports and one warm-up."""
    times: list[float] = field(default_factory=list)
    """The arm's own clock when each sample was taken: ``seconds`` so far."""
    growth: list[int] = field(default_factory=list)
    """Resident bytes over the baseline."""
    end: int = 0
    """The growth that is left when the trainer has let its batch go."""
    digests: dict[str, str] = field(default_factory=dict)
    """Digest of each tensor, by rollout, turn and name."""

    @property
    def peak(self) -> int:
        """The largest growth seen, in bytes."""
        return max(self.growth, default=0)


def watch(
    name: str,
    folder: Path,
    steps: int,
    progress: Callable[[], None],
    command: Sequence[str] | None = None,
    *,
    anonymous: bool = False,
) -> Run:
    """Runs the arm ``name`` on ``folder/job.json``; calls ``progress`` after each of its ``steps``.

    ``command`` is what plays it, in place of the arms of ``memweir demo``. ``anonymous`` looks at
    anonymous memory only, where the kernel tells. Raises ``ArmError``.
    """
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [*(command or COMMAND), name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            run = Run()
            if process.stdout.readline() == "ready\n":
                with _Sampler(process.pid, run, anonymous) as sampler:
                    _go_on(process.stdin)
                    for line in islice(process.stdout, steps):
                        run.seconds = float(line)
                        progress()
                    if process.stdout.readline() == "done\n":
                        run.end = sampler.growth()
                        _go_on(process.stdin)
            if process.wait() != 0:
                errors.seek(0)
                raise ArmError(f"arm {name!r} ended with {process.returncode}:\n{errors.read()}")
        except BaseException:
            process.kill()
            raise
    run.digests = json.loads((folder / f"{name}.json").read_text())
    return run


def _go_on(stdin: IO[str]) -> None:
    stdin.write("\n")
    stdin.flush()


class _Sampler:
    """Notes the resident memory of a process until it ends."""

    def __init__(self, pid: int, run: Run, anonymous: bool = False) -> None:
        self._process = psutil.Process(pid)
        self._anonymous = anonymous
        self._run = run
        self._stop = Event()
        self._thread = Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._run.baseline = self._resident()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def growth(self) -> int:
        """Resident bytes over the baseline, now."""
        return self._resident() - self._run.baseline

    def _resident(self) -> int:
        seen = self._process.memory_info()
        # What psutil calls shared are pages of files and of shared memory.
        shared = getattr(seen, "shared", 0) if self._anonymous else 0
        return int(seen.rss) - int(shared)

    def _sample(self) -> None:
        while not self._stop.wait(PERIOD):
            try:
                growth = self.growth()
            except psutil.NoSuchProcess:
                return
            if growth == -self._run.baseline:  # it has exited and only waits to be reaped
                return
            self._run.times.append(self._run.seconds)
            self._run.growth.append(growth)
