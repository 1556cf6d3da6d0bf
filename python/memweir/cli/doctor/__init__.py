"""``memweir doctor``: what memweir sees in this process, what is wrong, and what to do about it.

A section is a module with two functions: ``facts`` reads, and ``findings`` judges what all of them
read, so that every judgement can be tried on facts that no machine here has.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from typing import Any

from memweir.redaction import redact

from . import allocator, configuration, environment, kernel, limits, versions
from .finding import Facts, Finding
from .host import Host

__all__ = ["Finding", "Host", "examine", "judge", "run", "see"]

SECTIONS = {
    "versions": versions,
    "allocator": allocator,
    "kernel": kernel,
    "limits": limits,
    "environment": environment,
    "settings": configuration,
}
_ORDER = ("problem", "warning", "note")


def see(host: Host | None = None) -> Facts:
    """What there is, by section: plain JSON data. Sizes are bytes; ``None`` is none or unknown."""
    host = host or Host.here()
    # Here, so that no section can forget: what is judged and shown holds no secrets.
    return {name: _clean(dict(section.facts(host))) for name, section in SECTIONS.items()}


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {_clean(key): _clean(part) for key, part in value.items()}
    return [_clean(part) for part in value] if isinstance(value, list) else value


def judge(facts: Facts) -> list[Finding]:
    """What somebody should know of it, the worst first."""

    def each() -> Iterator[Finding]:
        for section in SECTIONS.values():
            yield from section.findings(facts)

    return sorted(each(), key=lambda one: _ORDER.index(one.severity))


def examine(host: Host | None = None) -> dict[str, Any]:
    """Facts and findings as one JSON object; names in it stay, and more may come."""
    facts = see(host)
    return _report(facts, judge(facts))


def run(*, as_json: bool) -> int:
    """Prints the report; 1 if there is a problem, else 0."""
    facts = see()
    found = judge(facts)
    if as_json:
        print(json.dumps(_report(facts, found), indent=2))
    else:
        from .report import show

        # A terminal of another encoding, or a variable that is no text, is no reason to fail.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        show(facts, found)
    return 0 if _healthy(found) else 1


def _report(facts: Facts, found: list[Finding]) -> dict[str, Any]:
    shown = [one.as_dict() for one in found]
    return {"format": 1, "healthy": _healthy(found), "findings": shown, **facts}


def _healthy(found: list[Finding]) -> bool:
    return all(one.severity != "problem" for one in found)
