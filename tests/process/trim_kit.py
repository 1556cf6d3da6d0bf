"""Trims by fakes: steps that wait to be let go, a clock that is turned, memory that is told."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from flight_kit import until
from memweir.process._aside import spawn
from memweir.process._engine import Means, Trims
from memweir.process.hooks import TrimHook

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
LEVELS = ("buffers", "hooks.one", "gc", "allocator", "arenas")


class Gate:
    """A call that stays until it is let go; ``entered`` counts those that came."""

    def __init__(self) -> None:
        self.entered = 0
        self.let = threading.Semaphore(0)

    def __call__(self) -> None:
        self.entered += 1
        self.let.acquire()

    def open(self, n: int = 1) -> None:
        self.let.release(n)


@dataclass
class Job:
    """A heap job that is done when nothing holds it."""

    steps: list[Any]
    held: Callable[[], object] | None = None
    joined: bool = False
    waits: list[float | None] = field(default_factory=list)

    def wait(self, timeout: float | None) -> bool:
        self.waits.append(timeout)
        if self.held is not None:
            self.held()
        return True


def heap_step(name: str, *, ok: bool = True, why: str | None = None, **more: Any) -> Any:
    return SimpleNamespace(name=name, ok=ok, why=why, **{"returned": None, **more})


class World:
    """Everything a trim touches, and a log of what it did."""

    def __init__(self, **changes: Any) -> None:
        self.now = 0.0
        self.anon = 1000 * MIB
        self.done: list[str] = []
        self.gates: dict[str, Gate] = {}
        self.brings: dict[str, int] = {}
        self.hooks: list[TrimHook] = [TrimHook("one", self.hook)]
        means: dict[str, Any] = {
            "memory": self.memory,
            "buffers": self.buffers,
            "hooks": lambda: list(self.hooks),
            "heap_job": self.heap_job,
            "allocator": lambda: SimpleNamespace(kind="fake", version="1", object="libfake.so"),
            "patience": 10.0,
            "collect": self.collect,
            "clock": lambda: self.now,
            "start": spawn,
            "patrol": 0.001,
            **changes,
        }
        self.means = Means(**means)
        self.trims = Trims(self.means)

    def memory(self, full: bool) -> Any:
        return SimpleNamespace(anon=self.anon, full=full)

    def act(self, name: str) -> None:
        self.done.append(name)
        if name in self.gates:
            self.gates[name]()
        self.anon -= self.brings.get(name, 0)

    def buffers(self) -> int:
        self.act("buffers")
        return 7

    def hook(self) -> None:
        self.act("hooks.one")

    def collect(self) -> int:
        self.act("gc")
        return 3

    def heap_job(self, release: bool, sweep: bool) -> Job:
        assert release is not sweep
        if sweep:
            step = heap_step("sweep", sweepers=24, arenas_seen=9, arenas_swept=8, trim_threshold=64)
            return Job([step], lambda: self.act("arenas"))
        return Job([heap_step("malloc_trim", returned=1)], lambda: self.act("allocator"))

    def gate(self, name: str) -> Gate:
        """Makes a step wait."""
        return self.gates.setdefault(name, Gate())

    def at(self, name: str) -> Gate:
        """The gate of a step, once the trim waits there."""
        gate = self.gates[name]
        until(lambda: gate.entered)
        return gate

    def idle(self) -> None:
        """Waits until nothing runs."""
        until(lambda: not self.trims._last().begun or self.trims._last().over)


def names(report: Any) -> list[str]:
    return [step.name for step in report.steps]


def skipped(report: Any) -> dict[str, str]:
    return {step.name: step.skipped for step in report.steps if step.skipped is not None}
