"""The command line. Importing this loads neither typer nor rich; :func:`main` does."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of ``memweir`` and ``python -m memweir``."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        print(f"memweir: no module {error.name!r}: pip install 'memweir[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    app()
