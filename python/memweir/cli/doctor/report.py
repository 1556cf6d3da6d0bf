"""The doctor's report as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from memweir.sizes import format_size

from .finding import Facts, Finding

__all__ = ["show"]

_COLOURS = {"problem": "red", "warning": "yellow", "note": "cyan"}
_BYTES = frozenset(
    {"ram", "available", "limit", "charge", "working_set", "shared_memory", "in_use", "free"}
    | {"swap", "bytes", "budget"}
)


def show(facts: Facts, found: list[Finding], console: Console | None = None) -> None:
    """Prints what is wrong, and above it what was seen."""
    console = console or Console()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for section, entries in facts.items():
        table.add_row(f"[bold]{section}[/bold]")
        for name, text in _rows(section, entries):
            table.add_row(f"  {escape(name)}", escape(text) if text else "[dim]none[/dim]")
    console.print(table)
    console.print()
    if not found:
        console.print("[green]nothing found[/green]")
    for one in found:
        console.print(
            f"[{_COLOURS[one.severity]}]{one.severity}[/] {escape(one.what)} "
            f"[dim]({one.name})[/dim]\n  → {escape(one.do)}",
            highlight=False,
        )


def _rows(section: str, entries: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if section == "settings":
        yield from _settings(entries)
        return
    if section == "environment":
        for name, seen in entries["variables"].items():
            yield name, seen["value"] + (" (set after the start)" if seen["late"] else "")
        return
    for name, value in entries.items():
        if isinstance(value, list):
            for one in value:
                yield name.replace("_", " "), _item(one)
        else:
            yield name.replace("_", " "), _text(name, value)


def _settings(entries: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, part in entries["values"].items():
        value = "none" if part["value"] is None else part["value"]
        yield name, f"{value} ({part['origin']})"
    done = entries["applied"]
    if done is not None:
        who = "a parent's " if done["inherited"] else ""
        knobs = ", ".join(f"{k['name']}={k['value']}" for k in done["knobs"] if k["ok"])
        yield "heap tuned", f"{done['profile']}, by {who}{done['by']}: {knobs or 'nothing set'}"


def _item(one: dict[str, Any]) -> str:
    if "bytes" in one:
        return f"{format_size(one['bytes'])} by {one['source']}"
    return f"{one['name']}{'' if one['there'] else ' (not there)'}"


def _text(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format_size(value) if name in _BYTES and isinstance(value, int) else str(value)
