"""What a processor's answer depends on besides the image, as one digest.

``to_dict()`` will not do: it is equal across back ends whose outputs differ. What counts is the
class, every instance attribute, the call's keyword arguments and the libraries beneath.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from enum import Enum
from typing import Any

import numpy as np
from transformers.image_utils import SizeDict

from memweir._core import Digest
from memweir.errors import UnsupportedType
from memweir.identity import hash_value
from memweir.pixels import cards

_LIBRARIES = ("transformers", "PIL", "numpy")
_TENSOR_LIBRARIES = ("torch", "torchvision")
# Bookkeeping of transformers, without influence on a result.
_SERVICE = frozenset(
    {
        "_auto_class",
        "_commit_hash",
        "_processor_class",
        "_valid_kwargs_names",
        "auto_map",
        "feature_extractor_type",
        "image_processor_type",
        "processor_class",
    }
)
_PLAIN = frozenset({bool, int, str, bytes, type(None)})
_REMEMBERED = 256


class Unfingerprintable(Exception):
    """A value that cannot be compared safely; the message says which."""


def freeze(value: object, where: str) -> Hashable:
    """``value`` as nested tuples that are equal only where the processor would act alike.

    Types count (1, 1.0 and True differ); enums of plain values count as those values, a
    ``SizeDict`` as the dict it stands for. Raises ``Unfingerprintable`` naming ``where``.
    """
    kind = type(value)
    if kind in _PLAIN:
        return (kind.__name__, value)
    if kind is float:
        return ("float", repr(value))  # tells 0.0 from -0.0 and is equal for nan
    if kind is list or kind is tuple:
        return (kind.__name__, *[freeze(item, where) for item in value])  # type: ignore[attr-defined]
    if kind is SizeDict:
        value = {name: size for name, size in vars(value).items() if size is not None}
        kind = dict
    if kind is dict:
        items = [(freeze(k, where), freeze(v, where)) for k, v in value.items()]  # type: ignore[attr-defined]
        return ("dict", *sorted(items, key=repr))
    if isinstance(value, Enum):
        if type(value.value) in _PLAIN:
            return freeze(value.value, where)
        return ("enum", kind.__module__, kind.__qualname__, value.name)
    if isinstance(value, np.generic):
        return ("numpy", value.dtype.str, value.tobytes())
    if kind is np.ndarray and value.dtype != object and value.nbytes <= 4096:  # type: ignore[attr-defined]
        return ("array", value.dtype.str, value.shape, value.tobytes())  # type: ignore[attr-defined]
    if kind.__module__ == "torch" and kind.__name__ in ("dtype", "device"):
        return ("torch", kind.__name__, str(value))
    raise Unfingerprintable(f"{where} is a {kind.__module__}.{kind.__qualname__}")


def libraries(*names: str) -> tuple[tuple[str, str], ...]:
    """Name and version of those libraries that are loaded."""
    loaded = ((name, sys.modules.get(name)) for name in names)
    return tuple((name, str(getattr(m, "__version__", ""))) for name, m in loaded if m is not None)


def without_torch(kind: type) -> bool:
    """Whether a class of transformers makes pixels with Pillow and numpy alone.

    Rollouts that have no torch and trainers that do then agree on what such a processor is.
    """
    modules = [
        c.__module__ for c in kind.__mro__ if c.__module__.startswith("transformers.models.")
    ]
    return bool(modules) and not any(hasattr(sys.modules[name], "torch") for name in modules)


def processor_card(processor: Any, **arguments: object) -> cards.ProcessorCard:
    """The card of ``processor``, a ``CachedProcessor`` or what one wraps, called with arguments.

    Raises ``UnsupportedType`` for settings that cannot be compared.
    """
    engine = vars(processor).get("_engine")
    given = None if engine is None else engine.options["fingerprint"]
    wrapped = processor if engine is None else engine.wrapped
    try:
        digest = Fingerprinter(wrapped, given).digest(arguments)
    except Unfingerprintable as unknown:
        raise UnsupportedType(f"the processor cannot be named: {unknown}") from None
    card = cards.card_of(digest)
    assert card is not None
    return card


class Fingerprinter:
    """Fingerprints of one wrapped processor, taken anew on each call since users mutate it.

    ``given`` stands for what cannot be read off a processor whose code is not part of
    transformers: with it, attributes that cannot be compared are left out instead of refused.
    """

    __slots__ = ("_class", "_digests", "_given", "_plain", "_processor")

    def __init__(self, processor: object, given: bytes | str | Digest | None) -> None:
        kind = type(processor)
        backend = getattr(processor, "backend", None)
        self._processor = processor
        self._class = (kind.__module__, kind.__qualname__, str(backend), *libraries(*_LIBRARIES))
        ours = kind.__module__.startswith("transformers.")
        self._plain = ours and given is None and backend == "pil" and without_torch(kind)
        self._given = bytes(given) if isinstance(given, Digest) else given
        self._digests: dict[Hashable, Digest] = {}

    def digest(self, kwargs: Mapping[str, object]) -> Digest:
        """The fingerprint of a call with ``kwargs``. Raises ``Unfingerprintable``."""
        plain = self._plain and kwargs.get("return_tensors") in (None, "np")
        frozen = (
            self._attributes(),
            tuple([(name, freeze(kwargs[name], f"argument {name}")) for name in sorted(kwargs)]),
            "" if plain else _default_dtype(),
        )
        digest = self._digests.get(frozen)
        if digest is None:
            kind = self._class if plain else (*self._class, *libraries(*_TENSOR_LIBRARIES))
            digest = hash_value(["memweir processor", kind, self._given, _nested(frozen)])
            cards.remember(digest, cards.describe(kind, *frozen))
            if len(self._digests) >= _REMEMBERED:
                self._digests.clear()
            self._digests[frozen] = digest
        return digest

    def _attributes(self) -> Hashable:
        frozen = []
        for name, value in vars(self._processor).items():
            if name in _SERVICE:
                continue
            try:
                frozen.append((name, freeze(value, f"attribute {name}")))
            except Unfingerprintable:
                if self._given is None:
                    raise
        frozen.sort(key=_name)
        return tuple(frozen)


def _name(item: tuple[str, Hashable]) -> str:
    return item[0]


def _default_dtype() -> str:
    """torch's default dtype: normalisation constants are made with it."""
    torch = sys.modules.get("torch")
    return "" if torch is None else str(torch.get_default_dtype())


def _nested(value: Any) -> Any:
    return [_nested(item) for item in value] if isinstance(value, tuple) else value
