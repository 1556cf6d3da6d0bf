"""Settings of memweir: what is in force, where it comes from, and what it did to the process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memweir import settings
from memweir.sizes import format_size, parse_size

from .finding import Facts, Finding
from .host import Host

__all__ = ["facts", "findings"]


def facts(host: Host) -> dict[str, Any]:
    """Of this process; of a new one with the same variables, where nothing was configured."""
    found: dict[str, Any] = {"error": None, "values": {}, "applied": applied()}
    try:
        now = settings.configured() or settings.Settings.from_env(host.environ)
    except ValueError as error:
        return {**found, "error": str(error)}
    origins = now.origins()
    for part in settings.parts():
        found["values"][part.name] = {
            "value": getattr(now, part.name),
            "origin": origins[part.name],
        }
    found["budget"] = parse_size(now.cache_budget)
    return found


def applied() -> dict[str, Any] | None:
    """What settings did to the heap."""
    done = settings.applied()
    if done is None:
        return None
    report = done.report
    return {
        "by": done.by,
        "profile": done.profile,
        "overrides": done.overrides,
        "inherited": done.inherited,
        "why": done.why,
        "late": None if report is None else report.late,
        "knobs": [
            {"name": knob.name, "value": knob.value, "ok": knob.ok, "why": knob.why}
            for knob in (() if report is None else report.knobs)
        ],
    }


def findings(facts: Facts) -> Iterator[Finding]:
    seen = facts["settings"]
    if seen["error"] is not None:
        yield Finding(
            "problem",
            "setting-bad",
            seen["error"],
            "correct the variable: a cache cannot be made until then",
        )
        return
    values, limit = seen["values"], facts["limits"]["limit"]
    if limit is not None and seen["budget"] >= limit:
        # The switch says a size of its own, and a smaller one than the default.
        said = values["cache_budget"]["origin"] not in ("default", "low memory")
        yield Finding(
            "problem" if said else "warning",
            "budget-over-limit",
            f"a cache that is given no budget may take {format_size(seen['budget'])}, and the "
            f"limit is {format_size(limit)}: the process is killed before the cache is full",
            'set MEMWEIR_CACHE_BUDGET to a share of the limit, such as "25%"',
        )
    yield from _tuned(seen)


def _tuned(seen: dict[str, Any]) -> Iterator[Finding]:
    done = seen["applied"]
    if done is None:
        return
    if done["why"] is not None:
        yield Finding(
            "warning",
            "tune-failed",
            f"the heap could not be tuned: {done['why']}",
            "set the variables that mw.recommended_env() names where the process is started",
        )
    if done["late"] is not None:
        yield Finding(
            "warning",
            "tune-late",
            f"the heap was tuned by the first {done['by']}, which was late: {done['late']}",
            "call mw.configure() before anything large is allocated and before threads start",
        )
    for knob in done["knobs"]:
        if not knob["ok"]:
            yield Finding(
                "note",
                "tune-refused",
                f"{knob['name']} was not set to {knob['value']}: {knob['why']}",
                "nothing, if the allocator has no such thing",
                knob["name"],
            )
    wanted = seen["values"]["tune"]["value"]
    if wanted != done["profile"]:
        yield Finding(
            "note",
            "tune-other",
            f"tune is {wanted!r} now, and the heap was tuned as {done['profile']!r} before: "
            "settings do that once",
            "call mw.tune() to change it",
        )
