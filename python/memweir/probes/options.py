"""What a probe cache can be told, and what it tells about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from memweir.probes.classify import Failure
    from memweir.probes.keys import Auth
    from memweir.probes.policy import TTL, Backoff

__all__ = ["Options", "ProbeStats", "refuse_reserved"]

_RESERVED = frozenset({"timeout", "refresh", "stale_ok"})


class Options(TypedDict, total=False):
    """The keyword arguments of :class:`ProbeCache`."""

    name: str
    auth: Auth
    normalize: Callable[[str], str] | None
    identify: Callable[[str], Hashable] | None
    environment: Hashable | Callable[[], Hashable]
    classify: Callable[[BaseException], Failure]
    ambient: Callable[[], str | None] | None
    ttl: TTL | float | None
    backoff: Backoff | None
    deadline: float | None
    max_entries: int
    max_inflight: int
    clock: Callable[[], float]


class ProbeStats(NamedTuple):
    """A probe cache at one moment.

    ``entries`` kept and ``running`` probes, those past their deadline included. Since the start:
    ``hits`` (remembered answers, those that cannot be known included), ``misses`` (calls that had
    to ask), ``probes`` that ran, ``shared`` (callers that waited for another's), ``backoff``
    (callers told not to ask again yet), ``stale`` answers served, ``unknown`` verdicts made,
    ``busy`` (no place for a probe), ``bugs`` in the probe, ``evicted`` entries, ``fenced`` answers
    whose subject changed meanwhile, ``uncacheable`` questions, ``normalize_fallbacks``, and
    ``ambient_failures`` (the ambient token could not be read). Threads may lose a count between
    them; answers are never affected.
    """

    entries: int
    running: int
    hits: int
    misses: int
    probes: int
    shared: int
    backoff: int
    stale: int
    unknown: int
    busy: int
    bugs: int
    evicted: int
    fenced: int
    uncacheable: int
    normalize_fallbacks: int
    ambient_failures: int


def refuse_reserved(probe: Callable[..., Any]) -> None:
    """Refuses a probe with an argument that no caller could give it."""
    from inspect import signature

    try:
        taken = _RESERVED & signature(probe).parameters.keys()
    except (TypeError, ValueError):  # not every builtin says
        return
    if taken:
        raise ValueError(f"get() keeps {', '.join(sorted(taken))} for itself: name it otherwise")
