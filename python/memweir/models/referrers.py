"""Who still refers to an object, in words. Slow: only for one that should be gone."""

from __future__ import annotations

import gc
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import weakref
    from collections.abc import Iterator

__all__ = ["describe_referrers"]

SHOWN = 8
_LIVE_LOCALS = sys.version_info >= (3, 13)


def describe_referrers(ref: weakref.ref[Any]) -> tuple[str, ...]:
    """Variables of running functions, attributes, globals and containers that hold the object."""
    target = ref()
    if target is None:
        return ()
    told = list(dict.fromkeys(_frames(target)))
    mine = sys._getframe()
    for holder in gc.get_referrers(target):
        if holder is mine or isinstance(holder, types.FrameType):
            continue  # frames were looked through above
        told.append(_describe(holder, target))
        if len(told) >= SHOWN:
            break
    return tuple(dict.fromkeys(told)) or ("something that the collector does not see",)


def _frames(target: Any) -> Iterator[str]:
    """Local variables of every thread, where the object is one."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        thread = names.get(ident, f"thread {ident}")
        walk: types.FrameType | None = frame
        while walk is not None:
            if not str(walk.f_globals.get("__name__", "")).startswith("memweir."):
                for name in _variables(walk, target):
                    code = walk.f_code
                    where = f"{code.co_qualname} ({code.co_filename}:{walk.f_lineno})"
                    yield f"{name!r} in {where}, thread {thread!r}"
            walk = walk.f_back


def _variables(frame: types.FrameType, target: Any) -> list[str]:
    if frame.f_locals is frame.f_globals:
        return []  # a module's, which is found as what it is
    seen = frame.f_locals
    names = [name for name, value in list(seen.items()) if value is target]
    # Before 3.13 this was a snapshot that lives as long as the frame and would keep what the
    # function lets go. It is emptied, unless somebody else has it, or it is no copy at all.
    copied = frame.f_code.co_flags & 1 and not _LIVE_LOCALS  # CO_OPTIMIZED: a function's
    if copied and frame.f_trace is None and sys.getrefcount(seen) <= 3:
        seen.clear()
    return names


def _describe(holder: Any, target: Any) -> str:
    if isinstance(holder, dict):
        name = next((_shown(key) for key, value in list(holder.items()) if value is target), "?")
        module = holder.get("__name__")
        if isinstance(module, str) and getattr(sys.modules.get(module), "__dict__", None) is holder:
            return f"global {name} of module {module}"
        for owner in gc.get_referrers(holder):
            if getattr(owner, "__dict__", None) is holder:
                return f"attribute {name} of a {_kind(owner)}"
        return f"entry {name} of a dict of {len(holder)}"
    if isinstance(holder, list | tuple | set | frozenset):
        return f"a {type(holder).__name__} of {len(holder)}"
    if isinstance(holder, types.CellType):
        return "a variable that a function closes over"
    if isinstance(holder, types.MethodType):
        return f"bound method {holder.__func__.__qualname__}"
    code = (
        getattr(holder, "gi_code", None)
        or getattr(holder, "cr_code", None)
        or getattr(holder, "ag_code", None)
    )
    if isinstance(code, types.CodeType):
        return f"suspended {code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"
    attributes = getattr(holder, "__dict__", None)
    if isinstance(attributes, dict):
        for key, value in list(attributes.items()):
            if value is target:
                return f"attribute {_shown(key)} of a {_kind(holder)}"
    return f"a {_kind(holder)}"


def _kind(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _shown(key: object) -> str:
    from memweir.identifiers import loggable

    return repr(loggable(key, 60)) if isinstance(key, str) else f"<{type(key).__name__}>"
