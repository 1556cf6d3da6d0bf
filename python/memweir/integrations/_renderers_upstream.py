"""Private names of ``renderers`` that are used here, looked for before they are relied on."""

from __future__ import annotations

import inspect
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

__all__ = ["check", "private"]

_MADE_FOR: Final = "0.1.12"
_METHODS: Final = ("render", "bridge_to_next_turn", "_get_processor", "_process_image")


def private(owner: Any, name: str) -> Any:
    """A private name of an upstream module or object. Raises ``ImportError`` where it has none."""
    try:
        return getattr(owner, name)
    except AttributeError:
        shown = getattr(owner, "__name__", type(owner).__name__)
        raise _missing(f"{shown}.{name}") from None


@cache
def check(kind: Any) -> None:
    """Raises ``ImportError`` unless upstream's class calls what ``kind`` overrides in it."""
    upstream = next(c for c in kind.__mro__ if c.__module__.startswith("renderers."))
    for name in _METHODS:
        if not hasattr(upstream, name):
            raise _missing(f"{upstream.__qualname__}.{name}")
    given = list(inspect.signature(upstream._process_image).parameters)
    ours = list(inspect.signature(kind._process_image).parameters)
    if given != ours:
        raise _missing(f"{upstream.__qualname__}._process_image({', '.join(ours)})")


def _missing(name: str) -> ImportError:
    try:
        found = version("renderers")
    except PackageNotFoundError:
        found = "of an unknown version"
    return ImportError(
        f"renderers {found} has no {name}, which memweir relies on: install renderers {_MADE_FOR}, "
        "or a memweir that knows this version; upstream's own renderer works meanwhile"
    )
