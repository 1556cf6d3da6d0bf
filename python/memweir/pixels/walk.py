"""Nested data, rebuilt with some of its leaves replaced and the rest shared.

Containers are mappings (``dict``, ``UserDict`` and their subclasses, and others that define
``__copy__``), lists, tuples, dataclasses, pydantic models, and objects that hold a mapping
``mm_items``. The rest are leaves.
"""

from __future__ import annotations

import copy
import sys
from collections import UserDict
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from types import MappingProxyType, MemberDescriptorType
from typing import Any, Final, NamedTuple

import numpy as np

from memweir.errors import UnsupportedType

__all__ = ["PLAIN", "Trail", "is_label", "rebuild"]

PLAIN: Final = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values are never shown to a leaf function: most of any structure."""


class Trail:
    """The way to a value: the steps from the root, the last one, and the nearest name on it."""

    __slots__ = ("_attribute", "_up", "name", "step")

    def __init__(
        self, up: Trail | None = None, step: object = None, *, attribute: bool = False
    ) -> None:
        self._up = up
        self.step = step
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

    def within(self, name: str) -> bool:
        """Whether the way leads through a key or attribute called ``name``."""
        trail: Trail | None = self
        while trail is not None:
            if trail.step == name and isinstance(trail.step, str):
                return True
            trail = trail._up
        return False

    def _shown(self) -> str:
        step = self.step
        if self._attribute:
            return f".{step}"
        if type(step) is int or (type(step) is str and is_label(step)):
            return f"[{step!r}]"
        return f"[<{type(step).__name__}>]"


def is_label(text: str) -> bool:
    """Whether ``text`` is a short plain name, as no URL, path or data URI is."""
    return len(text) <= 40 and text.isidentifier()


def rebuild(
    data: object,
    leaf: Callable[[object, Trail], object],
    *,
    named: bool = False,
    plain: Collection[type] = PLAIN,
    inplace: bool = False,
) -> Any:
    """``data`` with every leaf that is not ``plain`` replaced by what ``leaf`` makes of it.

    A container in which something was replaced is a new one of the same type; everything else is
    the very object that was there. What ``data`` holds twice is visited once, and the result holds
    it twice; once for each name it goes by when ``leaf`` looks at names (``named``). Nothing in
    ``data`` is changed, and no depth is too much.

    With ``inplace`` the containers of ``data`` are changed instead, where they can be: tuples and
    mapping proxies are still made anew, and put in their own place. A place that another thread
    has filled meanwhile stays as it is.

    Raises ``ValueError`` when a container holds itself and would have to be made anew.
    """
    return _Walk(leaf, named, plain, inplace).run(data)


class _Walk:
    __slots__ = ("_done", "_inplace", "_leaf", "_named", "_open", "_plain")

    def __init__(
        self,
        leaf: Callable[[object, Trail], object],
        named: bool,
        plain: Collection[type],
        inplace: bool,
    ) -> None:
        self._leaf = leaf
        self._named = named
        self._plain = plain
        self._inplace = inplace
        # The value is kept with its result: ids of values that died would be reused.
        self._done: dict[tuple[int, str | None], tuple[object, object]] = {}
        self._open: set[int] = set()

    def run(self, data: object) -> object:
        root = _Frame(None, [data], Trail(), _LIST)
        stack = [root]
        while stack:
            frame = stack[-1]
            inner = self._advance(frame)
            if inner is not None:
                stack.append(inner)
                continue
            stack.pop()
            if stack:
                self._open.discard(id(frame.value))
                result = frame.result()
                self._done[self._place(frame.value, frame.trail)] = (frame.value, result)
                self._put(stack[-1], frame.step, frame.value, result)
        return root.changed.get(0, data)

    def _advance(self, frame: _Frame) -> _Frame | None:
        """Goes on in a container, up to the next one inside it, which is then opened."""
        for step, child in frame.children:
            if type(child) in self._plain:
                continue
            if frame.up is None:
                trail = frame.trail
            else:
                trail = Trail(frame.trail, step, attribute=frame.kind.attributes)
            place = self._place(child, trail)
            done = self._done.get(place)
            if done is not None:
                self._put(frame, step, child, done[1])
                continue
            kind = _kind(child)
            if kind is None:
                result = self._leaf(child, trail)
                self._done[place] = (child, result)
                self._put(frame, step, child, result)
            elif id(child) not in self._open:
                self._open.add(id(child))
                return _Frame(frame, child, trail, kind, step)
            elif not self._inplace or kind.assign is None:
                raise ValueError(f"{trail} is one of its own parents: a cycle cannot be rebuilt")
        return None

    def _place(self, value: object, trail: Trail) -> tuple[int, str | None]:
        return id(value), trail.name if self._named else None

    def _put(self, frame: _Frame, step: Any, old: object, new: object) -> None:
        if new is old:
            return
        if self._inplace and frame.up is not None and frame.kind.assign is not None:
            frame.kind.assign(frame.value, step, old, new)
        else:
            frame.changed[step] = new


class _Frame:
    """A container on the way from the root to where the walk is."""

    __slots__ = ("changed", "children", "kind", "step", "trail", "up", "value")

    def __init__(
        self, up: _Frame | None, value: object, trail: Trail, kind: _Kind, step: Any = None
    ) -> None:
        self.up = up
        self.value = value
        self.trail = trail
        self.kind = kind
        self.step = step
        self.children = iter(kind.children(value))
        self.changed: dict[Any, object] = {}

    def result(self) -> object:
        return self.kind.replace(self.value, self.changed) if self.changed else self.value


class _Kind(NamedTuple):
    """How one kind of container is taken apart and put together, or changed where it stands.

    ``assign(container, step, old, new)`` leaves a place alone that holds something else than
    ``old`` by now. Look and assignment are two operations without a call between them, where an
    interpreter with a GIL does not switch threads.
    """

    children: Callable[[Any], Iterable[tuple[Any, object]]]
    replace: Callable[[Any, dict[Any, object]], object]
    assign: Callable[[Any, Any, object, object], None] | None
    attributes: bool = False


def _kind(value: object) -> _Kind | None:
    exact = _BUILTIN.get(type(value))
    if exact is not None:
        return exact
    if isinstance(value, np.ndarray | type):
        return None
    if isinstance(value, MappingProxyType):
        return _PROXY
    if isinstance(value, dict | UserDict) or (
        isinstance(value, MutableMapping) and hasattr(type(value), "__copy__")
    ):
        return _MAPPING
    if isinstance(value, list):
        return _LIST
    if isinstance(value, tuple):
        return _TUPLE
    if hasattr(type(value), "__dataclass_fields__"):
        return _DATACLASS
    pydantic: Any = sys.modules.get("pydantic.main")
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return _MODEL
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
    return {**value, **changed} if type(value) is dict else _with_items(value, changed)


def _assign_item(value: Any, step: Any, old: object, new: object) -> None:
    try:
        if value[step] is old:
            value[step] = new
    except LookupError:
        pass  # gone meanwhile


def _assign_attribute(value: object, name: str, old: object, new: object) -> None:
    if getattr(value, name, None) is old:
        object.__setattr__(value, name, new)  # a frozen dataclass refuses everybody else


def _model_fields(value: Any) -> list[tuple[str, object]]:
    return [*value.__dict__.items(), *(value.__pydantic_extra__ or {}).items()]


def _replace_fields(value: Any, changed: dict[str, object]) -> object:
    new = _copied(value)
    for name, child in changed.items():
        _held_by(new, name)[name] = child
    return new


def _assign_field(value: Any, name: str, old: object, new: object) -> None:
    _assign_item(_held_by(value, name), name, old, new)


def _held_by(model: Any, name: str) -> dict[str, object]:
    """Where a pydantic model keeps a field: setting it there validates nothing again."""
    held: dict[str, object] = model.__dict__
    return held if name in held else model.__pydantic_extra__ or held


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


def _items(value: Mapping[Any, object]) -> list[tuple[Any, object]]:
    # What a dict holds, whatever a subclass shows to others.
    return list(dict.items(value) if isinstance(value, dict) else value.items())


_MAPPING: Final = _Kind(_items, _replace_items, _assign_item)
_PROXY: Final = _Kind(_items, lambda value, changed: MappingProxyType({**value, **changed}), None)
_LIST: Final = _Kind(lambda value: enumerate(list(value)), _with_items, _assign_item)
_TUPLE: Final = _Kind(enumerate, _replace_tuple, None)
_DATACLASS: Final = _Kind(_fields, _replace_attributes, _assign_attribute, attributes=True)
_MODEL: Final = _Kind(_model_fields, _replace_fields, _assign_field, attributes=True)
_MM_ITEMS: Final = _Kind(
    lambda value: [("mm_items", value.mm_items)],
    _replace_attributes,
    _assign_attribute,
    attributes=True,
)
_BUILTIN: Final[dict[type, _Kind]] = {dict: _MAPPING, list: _LIST, tuple: _TUPLE}
