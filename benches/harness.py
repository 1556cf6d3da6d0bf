"""Times two ways of doing a thing in turns, and prints the figures beside their goals."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

__all__ = ["Ratio", "Table", "seconds"]

Work = Callable[[], object]
ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Ratio:
    """Times of ours and of the other in the same rounds, in seconds for one operation."""

    ours: list[float]
    other: list[float]

    @classmethod
    def measure(
        cls, ours: Work, other: Work, *, calls: int = 1, operations: int = 1, rounds: int = ROUNDS
    ) -> Ratio:
        """``calls`` of each in every round, taking turns; each call is ``operations`` of them.

        One untimed round comes first.
        """
        ours(), other()
        a, b = [], []
        with quiet():
            for number in range(rounds):
                # Who goes first alternates: the second finds the caches that the first left.
                for times, work in [(a, ours), (b, other)][:: 1 if number % 2 else -1]:
                    times.append(seconds(work, calls) / operations)
        return cls(a, b)

    @property
    def value(self) -> float:
        """The median of the rounds' ratios."""
        return median(self.by_round())

    def by_round(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.other, strict=True)]


def seconds(work: Work, calls: int = 1) -> float:
    """Seconds for one call, as the mean of ``calls``."""
    start = perf_counter()
    for _ in range(calls):
        work()
    return (perf_counter() - start) / calls


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection, and nothing old for it to look at afterwards."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


@dataclass(slots=True)
class Table:
    """Rows of text under one title, printed as they come in aligned columns."""

    title: str
    columns: tuple[str, ...] = ("", "memweir", "other", "ratio (all rounds)", "goal")
    widths: tuple[int, ...] = (46, 10, 10, 20, 0)
    missed: int = field(default=0, init=False)
    """Rows whose goal was not reached."""

    def __post_init__(self) -> None:
        print(f"\n{self.title}")
        self._line(self.columns)

    def ratio(
        self,
        what: str,
        measured: Ratio,
        most: float | None = None,
        *,
        least: float | None = None,
        plus: float = 0.0,
    ) -> None:
        """A row of two times and their ratio.

        The goal is ours ≤ ``most`` × the other + ``plus`` seconds; or ours ``least`` times faster.
        """
        spread = sorted(measured.by_round())
        ours, other = median(measured.ours), median(measured.other)
        goal, holds = "", True
        shown = f"{measured.value:.2f} ({spread[0]:.2f}–{spread[-1]:.2f})"
        if measured.value < 0.1 or least is not None:
            fastest, slowest = 1 / spread[0], 1 / spread[-1]
            shown = f"1/{1 / measured.value:.3g} (1/{slowest:.3g}–1/{fastest:.3g})"
        if most is not None:
            goal = f"≤ {most:.3g}" + (f" × other + {duration(plus)}" if plus else "")
            holds = measured.value <= most + plus / other
        elif least is not None:
            goal, holds = f"≤ 1/{least:g}", 1 / measured.value >= least
        self.row(what, duration(ours), duration(other), shown, goal, holds=holds)

    def row(self, *cells: str, holds: bool = True) -> None:
        """A row of text whose last cell is the goal; marked where it does not hold."""
        self.missed += not holds
        self._line(cells if holds else (*cells[:-1], f"{cells[-1]}  MISSED"))

    def _line(self, cells: tuple[str, ...]) -> None:
        padded = (f"{cell:<{width}}" for cell, width in zip(cells, self.widths, strict=True))
        print("  ".join(padded).rstrip(), flush=True)


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
