"""Which adapter a model gets, once there is one to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memweir.models.adapters.opaque import Opaque
from memweir.models.adapters.session import Session, is_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from memweir.models.adapters.protocol import Adapter

__all__ = ["chooser"]

_NAMED: dict[str, Callable[[Any], Adapter]] = {"opaque": Opaque, "session": Session}


def chooser(given: Any, release: Callable[[Any], object] | None) -> Callable[[Any], Adapter]:
    """What makes the adapter of a model, as ``adapter=`` says."""
    if isinstance(given, str):
        if given == "auto":
            return lambda model: (Session if is_session(model) else Opaque)(release)
        made = _NAMED.get(given)
        if made is None:
            raise ValueError(f'adapter is "auto", "opaque", "session" or an adapter, not {given!r}')
        return lambda model: made(release)
    if callable(given):
        return lambda model: given()
    return lambda model: given
