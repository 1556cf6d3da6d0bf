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
    most: int | None = None
    """MiB that the process may grow by, the processor's working memory and the batch included."""
    left: int | None = None
    """MiB of growth that may be left at the end."""


ARMS = (
    ArmInfo("own", "a", "every rollout owns its pixels"),
    ArmInfo("dict", "b", "one unbounded dict"),
    ArmInfo("256 MiB", "c", "memweir, 256 MiB", 256, 192, 96),
    ArmInfo("16 MiB", "d", "memweir, 16 MiB", 16, 160, 64),
)

READING = (
    "Growth is resident memory over the process's own baseline, at its highest and at the end, when"
    " the trainer has let its batch go. Every arm runs all rollouts, then a trainer that builds"
    " every batch; the digests that prove equality are taken off the clock.",
    "(a) is what happens when every rollout keeps its own processed pixels.",
    "(b) processes each image once. It is the fastest, and fine while images repeat; but it keeps"
    " every image it ever saw, and all rollouts share writable tensors.",
    "(c) has room for all images, in an eighth of their floats, and processes each once; it copies"
    " and checks what it hands out. (d) has room for 9 of 16, evicts, and decodes and processes"
    " again what it lost. What either takes beyond that is the trainer's batch and the processor's"
    " working memory.",
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
        yield Claim("(c) takes at most an eighth of (a)'s time", f"{share:.1%}", share <= 1 / 8)
    for arm in ARMS:
        run = runs[arm.name]
        for when, grown, limit in (
            ("at its peak", run.peak, arm.most),
            ("at the end", run.end, arm.left),
        ):
            if limit is not None:
                yield Claim(
                    f"({arm.letter}) grows by at most {limit} MiB {when}",
                    f"{grown / MIB:.0f} MiB",
                    grown <= limit * MIB,
                )
        if arm.name != "own":
            equal = sum(run.digests.get(key) == digest for key, digest in own.digests.items())
            yield Claim(
                f"({arm.letter}) gives the trainer the tensors of (a), bit for bit",
                f"{equal} of {len(own.digests)}",
                0 < len(own.digests) == equal,
            )
