"""What else gives memory back when a trim asks: known libraries, and whoever registers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, overload

from memweir.process._aside import Skip
from memweir.process._devices import empty_caches

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KNOWN", "TrimHook", "on_trim", "registered"]


class TrimHook:
    """A function that a trim calls. It can be called like the function itself, and removed."""

    __slots__ = ("function", "name")

    def __init__(self, name: str, function: Callable[[], object]) -> None:
        self.name = name
        self.function = function

    def __call__(self) -> object:
        return self.function()

    def remove(self) -> bool:
        """Takes it off; whether it was on. Another that took its name's place stays."""
        if _hooks.get(self.name) is not self:
            return False
        taken = _hooks.pop(self.name, None)
        # Another may have come in between: that one is put back.
        if taken is not None and taken is not self:
            _hooks.setdefault(self.name, taken)
        return taken is self

    def __repr__(self) -> str:
        return f"<TrimHook {self.name!r}>"


# Changed by single operations on the dict only: no lock that a fork or a finalizer could meet.
_hooks: dict[str, TrimHook] = {}


@overload
def on_trim(name: str, hook: Callable[[], object]) -> TrimHook: ...


@overload
def on_trim(name: str) -> Callable[[Callable[[], object]], TrimHook]: ...


def on_trim(
    name: str, hook: Callable[[], object] | None = None
) -> TrimHook | Callable[[Callable[[], object]], TrimHook]:
    """Calls ``hook`` in every trim, as the step ``hooks.<name>``; without one, a decorator.

    It runs in a thread of its own, one hook after another, and may take as long as
    :data:`~memweir.process.trim.PATIENCE`: then it is left behind, and left out while it still
    runs. What it raises is reported. A ``trim`` that it calls returns at once. A second hook of
    the same name takes the first one's place, those of known libraries included.
    """
    if not isinstance(name, str):
        raise TypeError(f"a hook's name is a str, not {type(name).__name__}")
    if not name:
        raise ValueError("a hook needs a name to be told by")

    def register(function: Callable[[], object]) -> TrimHook:
        from memweir._flight import is_async

        if not callable(function):
            raise TypeError(f"a hook is called, and {type(function).__name__} cannot be")
        if is_async(function):
            raise TypeError("a hook runs in a thread without an event loop: give a plain function")
        made = TrimHook(name, function)
        _hooks[name] = made
        return made

    return register if hook is None else register(hook)


def registered() -> list[TrimHook]:
    """Hooks of the known libraries that are imported already, then the others, oldest first."""
    hooks = _hooks.copy()
    known = [
        TrimHook(name, function)
        for name, (module, function) in KNOWN.items()
        if name not in hooks and sys.modules.get(module) is not None
    ]
    return [*known, *hooks.values()]


def _pillow() -> None:
    image = sys.modules["PIL.Image"]
    clear = getattr(getattr(image, "core", None), "clear_cache", None)
    if clear is None:
        raise Skip("this Pillow keeps no blocks, or cannot give them back")
    clear()


def _pyarrow() -> None:
    pool = getattr(sys.modules["pyarrow"], "default_memory_pool", None)
    release = None if pool is None else getattr(pool(), "release_unused", None)
    if release is None:
        raise Skip("this pyarrow cannot give its pool's unused memory back")
    release()


def _torch() -> None:
    if not empty_caches():
        raise Skip("no device in use: on the CPU torch allocates from the process's heap")


# ONNX Runtime has nothing for the whole process: its arenas belong to sessions.
KNOWN: dict[str, tuple[str, Callable[[], None]]] = {
    "pillow": ("PIL.Image", _pillow),
    "pyarrow": ("pyarrow", _pyarrow),
    "torch": ("torch", _torch),
}
