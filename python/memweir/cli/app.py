"""The commands and their options; what they do stands in a module each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import rich  # noqa: F401  so that it is missed here, where the way to install it is known
import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Keeps long-lived multimodal Python processes at a set memory level.",
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the chart goes.")] = Path("memweir-demo.png"),
    rollouts: Annotated[int, typer.Option(hidden=True, min=1)] = 32,
    turns: Annotated[int, typer.Option(hidden=True, min=1, max=16)] = 8,
) -> None:
    """Four ways to hold the pixels of the same rollouts: memory, time, bit-equality.

    Exits with 1 if memweir breaks a budget, the time limit or the equality of a tensor.
    """
    from .demo import command

    raise typer.Exit(command.run(out, rollouts, turns))


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """What memweir sees here: versions, the allocator, memory limits."""
    from . import doctor as command

    command.run(as_json=json)
