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


demos = typer.Typer(invoke_without_command=True)
app.add_typer(demos, name="demo")


@demos.callback()
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Where the chart goes.")] = Path("memweir-demo.png"),
    rollouts: Annotated[int, typer.Option(hidden=True, min=1)] = 32,
    turns: Annotated[int, typer.Option(hidden=True, min=1, max=16)] = 8,
) -> None:
    """Four ways to hold the pixels of the same rollouts: memory, time, bit-equality.

    Exits with 1 if memweir breaks a budget, the time limit or the equality of a tensor.
    """
    if context.invoked_subcommand is not None:
        return
    from .demo import command

    raise typer.Exit(command.run(out, rollouts, turns))


@demos.command("rollouts")
def demo_rollouts(
    rollouts: Annotated[int, typer.Option(help="How many, 8 turns each.", min=1, max=32)] = 12,
) -> None:
    """The turns of a VLM's rollouts through renderers: upstream's, and memweir's in its place.

    Exits with 1 if a prompt or a tensor is not upstream's, or a budget is broken.
    """
    from .demo import rollouts as command

    raise typer.Exit(command.run(rollouts))


@demos.command("sessions")
def demo_sessions(
    out: Annotated[Path, typer.Option(help="Where the chart goes.")] = Path("memweir-sessions.png"),
) -> None:
    """A model of 199 MiB that comes and goes: ONNX Runtime's own sessions, and memweir's.

    Exits with 1 if memory is held after a session's end, or an output is not the same.
    """
    from .demo import sessions as command

    raise typer.Exit(command.run(out))


models = typer.Typer(no_args_is_help=True, help="Pre-packed models: what there is, and cleaning.")
app.add_typer(models, name="ort")
Folder = Annotated[Path | None, typer.Option("--cache-dir", help="In place of the user's cache.")]


@models.command("list")
def ort_list(
    cache_dir: Folder = None,
    json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Pre-packed models, the least recently used first."""
    from . import prepacked as command

    raise typer.Exit(command.show(cache_dir, as_json=json))


@models.command("prepack")
def ort_prepack(model: Path, cache_dir: Folder = None) -> None:
    """Writes the pre-packed form of a model, if it is not there."""
    from . import prepacked as command

    raise typer.Exit(command.make(model, cache_dir))


@models.command("clean")
def ort_clean(
    cache_dir: Folder = None,
    limit: Annotated[str, typer.Option(help="Bytes that may stay, such as 2 GiB.")] = "0",
    unused: Annotated[float, typer.Option(help="Only what nobody used for so many days.")] = 0.0,
    stale: Annotated[bool, typer.Option("--stale", help="Only what cannot run here.")] = False,
) -> None:
    """Removes pre-packed models, the least recently used first; sessions that run go on."""
    from . import prepacked as command

    raise typer.Exit(command.clean(cache_dir, limit, unused * 86400, stale=stale))


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """What memweir sees here, what is wrong with it, and what to do.

    Versions, the allocator, memory limits and who sets them, variables, settings. Exits with 1 if
    something is broken or does nothing of what it was meant to; warnings and notes are no failure.
    """
    from . import doctor as command

    raise typer.Exit(command.run(as_json=json))
