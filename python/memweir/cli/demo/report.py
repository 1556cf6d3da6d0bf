"""What the demo claims of each arm, and whether it held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .watch import Run
from .workload import Plan

__all__ = ["ARMS", "MIB", "READING", "ArmInfo", "Claim", "claims"]

MIB = 1 << 20
FULL = 32 * 8
"""Steps from which the claims about all of (a) are judged; less is too small to tell."""


@dataclass(frozen=True, slots=True)
class ArmInfo:
    """An arm as the reader sees it."""

    name: str
    letter: str
    title: str
    budget: int | None = None
    """The cache's budget in MiB."""
    allowance: int = 0
    """MiB over the budget for the processor's working memory and the trainer's batch."""

    @property
    def limit(self) -> int | None:
        """MiB that the process may grow by."""
        return None if self.budget is None else self.budget + self.allowance


ARMS = (
    ArmInfo("own", "a", "every rollout owns its pixels"),
    ArmInfo("dict", "b", "one unbounded dict"),
    ArmInfo("256 MiB", "c", "memweir, 256 MiB", 256, 96),
    ArmInfo("64 MiB", "d", "memweir, 64 MiB", 64, 128),
)

READING = (
    "Growth is resident memory over the process's own baseline, at its highest. Every arm runs all"
    " rollouts, then a trainer that builds every batch; the digests that prove equality are taken"
    " off the clock.",
    "(a) is what happens when every rollout keeps its own processed pixels.",
    "(b) processes each image once. It is the fastest, and fine while images repeat; but it keeps"
    " every image it ever saw, and all rollouts share writable tensors.",
    "(c) has room for all images and processes each once; it copies and checks what it hands out."
    " (d) has room for 4 of 16, evicts, and decodes and processes again what it lost. What either"
    " takes beyond its budget is the trainer's batch and the processor's working memory.",
)
"""How to read the table, by paragraph."""


class Claim(NamedTuple):
    """Something the demo promises, with what was seen."""

    text: str
    seen: str
    holds: bool


def claims(plan: Plan, runs: Mapping[str, Run]) -> Iterator[Claim]:
    """Every promise that can be judged at the size of ``plan``."""
    own, roomy = runs["own"], runs["256 MiB"]
    if plan.rollouts * plan.turns >= FULL:
        yield Claim("(a) grows by at least 3.2 GB", f"{own.peak / 1e9:.2f} GB", own.peak >= 3.2e9)
        share = roomy.seconds / own.seconds
        yield Claim("(c) takes at most a fifth of (a)'s time", f"{share:.0%}", share <= 0.2)
    for arm in ARMS:
        run = runs[arm.name]
        if arm.limit is not None:
            yield Claim(
                f"({arm.letter}) grows by at most {arm.budget} + {arm.allowance} MiB",
                f"{run.peak / MIB:.0f} MiB",
                run.peak <= arm.limit * MIB,
            )
        if arm.name != "own":
            equal = sum(run.digests.get(key) == digest for key, digest in own.digests.items())
            yield Claim(
                f"({arm.letter}) gives the trainer the tensors of (a), bit for bit",
                f"{equal} of {len(own.digests)}",
                0 < len(own.digests) == equal,
            )
