"""Nested data, rebuilt with some of its leaves replaced and the rest shared.

Containers are mappings (``dict``, ``UserDict`` and their subclasses, and others that define
``__copy__``), lists, tuples, dataclasses, and objects that hold a mapping ``mm_items``. The rest
are leaves.
"""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from types import MappingProxyType, MemberDescriptorType
from typing import Any, Final, NamedTuple

import numpy as np

from memweir.errors import UnsupportedType

__all__ = ["PLAIN", "Trail", "is_label", "rebuild"]

PLAIN: Final = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values are never shown to a leaf function: most of any structure."""


class Trail:
    """The way to a value: the steps from the root, and the nearest name on it."""

    __slots__ = ("_attribute", "_step", "_up", "name")

    def __init__(
        self, up: Trail | None = None, step: object = None, *, attribute: bool = False
    ) -> None:
        self._up = up
        self._step = step
        self._attribute = attribute
        self.name: str | None = (
            step if isinstance(step, str) else up.name if up is not None else None
        )

    def __str__(self) -> str:
        """``data['steps'][3].mm_items``; keys that could hold a secret show as their type."""
        steps = []
        trail = self
        while trail._up is not None:
            steps.append(trail._shown())
            trail = trail._up
        return "".join(["data", *reversed(steps)])

    def _shown(self) -> str:
        step = self._step
        if self._attribute:
            return f".{step}"
        if type(step) is int or (type(step) is str and is_label(step)):
            return f"[{step!r}]"
        return f"[<{type(step).__name__}>]"


def is_label(text: str) -> bool:
    """Whether ``text`` is a short plain name, as no URL, path or data URI is."""
    return len(text) <= 40 and text.isidentifier()


def rebuild(data: object, leaf: Callable[[object, Trail], object], *, named: bool = False) -> Any:
    """``data`` with every leaf that is not :data:`PLAIN` replaced by what ``leaf`` makes of it.

    A container in which something was replaced is a new one of the same type; everything else is
    the very object that was there. What ``data`` holds twice is visited once, and the result holds
    it twice; once for each name it goes by when ``leaf`` looks at names (``named``). Nothing in
    ``data`` is changed.

    Raises ``ValueError`` when a container holds itself.
    """
    return _Walk(leaf, named).visit(data, Trail())


class _Walk:
    __slots__ = ("_done", "_leaf", "_named", "_open")

    def __init__(self, leaf: Callable[[object, Trail], object], named: bool) -> None:
        self._leaf = leaf
        self._named = named
        # The value is kept with its result: ids of values that died would be reused.
        self._done: dict[tuple[int, str | None], tuple[object, object]] = {}
        self._open: set[int] = set()

    def visit(self, value: object, trail: Trail) -> object:
        if type(value) in PLAIN:
            return value
        place = (id(value), trail.name if self._named else None)
        done = self._done.get(place)
        if done is not None:
            return done[1]
        kind = _kind(value)
        if kind is None:
            result = self._leaf(value, trail)
        elif id(value) in self._open:
            raise ValueError(f"{trail} is one of its own parents: a cycle cannot be rebuilt")
        else:
            self._open.add(id(value))
            result = self._rebuilt(value, trail, kind)
            self._open.discard(id(value))
        self._done[place] = (value, result)
        return result

    def _rebuilt(self, value: object, trail: Trail, kind: _Kind) -> object:
        changed = {}
        for step, child in kind.children(value):
            if type(child) not in PLAIN:
                new = self.visit(child, Trail(trail, step, attribute=kind.attributes))
                if new is not child:
                    changed[step] = new
        return kind.replace(value, changed) if changed else value


class _Kind(NamedTuple):
    """How one kind of container is taken apart and put together."""

    children: Callable[[Any], Iterable[tuple[Any, object]]]
    replace: Callable[[Any, dict[Any, object]], object]
    attributes: bool = False


def _kind(value: object) -> _Kind | None:
    exact = _BUILTIN.get(type(value))
    if exact is not None:
        return exact
    if isinstance(value, np.ndarray | type):
        return None
    if isinstance(value, dict | UserDict | MappingProxyType) or (
        isinstance(value, MutableMapping) and hasattr(type(value), "__copy__")
    ):
        return _MAPPING
    if isinstance(value, list):
        return _LIST
    if isinstance(value, tuple):
        return _TUPLE
    if hasattr(type(value), "__dataclass_fields__"):
        return _DATACLASS
    return _MM_ITEMS if _holds_mm_items(value) else None


def _holds_mm_items(value: object) -> bool:
    held = getattr(value, "__dict__", None)
    if isinstance(getattr(type(value), "mm_items", None), MemberDescriptorType):
        return isinstance(getattr(value, "mm_items", None), Mapping)
    # Not a property, which nobody could set, and not what a mock answers to every name.
    return isinstance(held, dict) and isinstance(held.get("mm_items"), Mapping)


def _fields(value: Any) -> list[tuple[str, object]]:
    from dataclasses import fields

    # A field of slots that was never set has no value.
    return [(f.name, getattr(value, f.name)) for f in fields(value) if hasattr(value, f.name)]


def _replace_items(value: Any, changed: dict[Any, object]) -> object:
    if type(value) is dict:
        return {**value, **changed}
    if isinstance(value, MappingProxyType):
        return MappingProxyType({**value, **changed})
    return _with_items(value, changed)


def _with_items(value: Any, changed: dict[Any, object]) -> object:
    new = _copied(value)
    for key, child in changed.items():
        new[key] = child
    return new


def _replace_tuple(value: tuple[object, ...], changed: dict[int, object]) -> object:
    kind: Any = type(value)
    children = tuple(changed.get(index, child) for index, child in enumerate(value))
    if hasattr(kind, "n_sequence_fields"):
        # Struct sequences (torch.return_types.max) are made by their constructor alone.
        return kind(children)
    # Named tuples and other subclasses may ask anything of theirs.
    new = tuple.__new__(kind, children)
    if hasattr(value, "__dict__"):
        new.__dict__.update(value.__dict__)
    return new


def _replace_attributes(value: object, changed: dict[str, object]) -> object:
    new = _copied(value)
    for name, child in changed.items():
        # A frozen dataclass refuses everybody else.
        object.__setattr__(new, name, child)
    return new


def _copied(value: object) -> Any:
    new = copy.copy(value)
    if new is value:
        raise UnsupportedType(f"{type(value).__name__} copies to itself and cannot be rebuilt")
    return new


_MAPPING: Final = _Kind(lambda value: list(value.items()), _replace_items)
_LIST: Final = _Kind(lambda value: enumerate(list(value)), _with_items)
_TUPLE: Final = _Kind(enumerate, _replace_tuple)
_DATACLASS: Final = _Kind(_fields, _replace_attributes, attributes=True)
_MM_ITEMS: Final = _Kind(
    lambda value: [("mm_items", value.mm_items)], _replace_attributes, attributes=True
)
_BUILTIN: Final[dict[type, _Kind]] = {dict: _MAPPING, list: _LIST, tuple: _TUPLE}
