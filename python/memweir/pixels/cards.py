"""What stands behind a fingerprint, in words: so that a mismatch can name both sides.

A card says of one processor with its arguments what its fingerprint digests: class, back end,
versions of the libraries beneath, settings. It explains and proves nothing: what is compared is
the fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from typing import Any, Final, NamedTuple, Self

from memweir._core import Digest

__all__ = ["ProcessorCard", "card_of", "disagreement", "learn", "remember"]

_LINES: Final = 256
_LENGTH: Final = 240
_REMEMBERED: Final = 512
_SHOWN: Final = 6


class ProcessorCard(NamedTuple):
    """A processor and its arguments: their fingerprint, and what it was made of, line by line."""

    fingerprint: Digest
    lines: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain data, some 1 to 2 KB, to go with a training run's configuration."""
        return {"fingerprint": self.fingerprint.hex(), "lines": dict(self.lines)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | str) -> Self:
        """What :meth:`to_json` wrote, as the object or its text. Raises ``ValueError``."""
        try:
            record = json.loads(value) if isinstance(value, str) else value
        except RecursionError:
            raise ValueError("malformed card: nested too deep") from None
        if not isinstance(record, Mapping) or set(record) != {"fingerprint", "lines"}:
            raise ValueError("malformed card: a fingerprint and lines were expected")
        text, lines = record["fingerprint"], record["lines"]
        if not isinstance(text, str) or not isinstance(lines, Mapping) or len(lines) > _LINES:
            raise ValueError("malformed card")
        for name, said in lines.items():
            for part in (name, said):
                if not isinstance(part, str) or len(part) > _LENGTH or not part.isprintable():
                    raise ValueError("malformed card: a line that is no short text")
        return cls(Digest.from_hex(text), dict(lines))

    def __repr__(self) -> str:
        return f"ProcessorCard({self.name()}, {self.fingerprint.hex()[:12]}…)"

    def name(self) -> str:
        """Class, back end and versions."""
        whole = [self.lines.get("class", "a processor")]
        whole += [f"{k} {v}" for k, v in self.lines.items() if "." not in k and k != "class"]
        return ", ".join(whole)


def describe(kind: Any, attributes: Any, arguments: Any, default: str) -> dict[str, str]:
    """The lines of a card from what a fingerprint is made of, frozen."""
    module, name, backend, *libraries = kind
    lines = {"class": f"{module}.{name}", "backend": backend, **dict(libraries)}
    lines |= {f"settings.{key}": _shown(value) for key, value in attributes}
    lines |= {f"arguments.{key}": _shown(value) for key, value in arguments}
    if default:
        lines["torch.default_dtype"] = default
    return {key[:_LENGTH]: _cut(value) for key, value in list(lines.items())[:_LINES]}


def remember(fingerprint: Digest, lines: dict[str, str]) -> None:
    """Keeps the card of a processor of this process."""
    _put(_own, ProcessorCard(fingerprint, lines))


def learn(card: ProcessorCard) -> None:
    """Keeps a card that came from elsewhere; one of this process is believed first."""
    _put(_foreign, card)


def card_of(fingerprint: Digest) -> ProcessorCard | None:
    """The card behind a fingerprint, where one is known."""
    return _own.get(fingerprint) or _foreign.get(fingerprint)


def disagreement(expected: ProcessorCard | Digest, got: ProcessorCard | Digest) -> str:
    """How two processors of different fingerprints differ, both sides named."""
    there, here = (c if isinstance(c, ProcessorCard) else card_of(c) for c in (expected, got))
    if there is not None and here is not None:
        names = [*here.lines, *(name for name in there.lines if name not in here.lines)]
        differing = [n for n in names if there.lines.get(n) != here.lines.get(n)]
        said = [
            f"{n} was {there.lines.get(n, 'not set')} there and is {here.lines.get(n, 'not set')}"
            " here"
            for n in differing[:_SHOWN]
        ]
        more = len(differing) - len(said)
        if said:
            return "; ".join(said) + (f"; and {more} more" if more else "")
    sides = [
        f"{word} {'a processor that is not described' if card is None else card.name()}"
        for word, card in (("there it was", there), ("here it is", here))
    ]
    return "; ".join(sides)


# Changed by single operations on the dicts only: no lock that a fork could catch.
_own: Final[dict[Digest, ProcessorCard]] = {}
_foreign: Final[dict[Digest, ProcessorCard]] = {}


def _put(cards: dict[Digest, ProcessorCard], card: ProcessorCard) -> None:
    if len(cards) >= _REMEMBERED:
        cards.clear()
    cards[card.fingerprint] = card


def _shown(frozen: Hashable) -> str:
    """A frozen value as its user wrote it, more or less."""
    if not isinstance(frozen, tuple) or not frozen:
        return str(frozen)
    kind, *rest = frozen
    if kind in ("list", "tuple"):
        return f"[{', '.join(map(_shown, rest))}]"
    if kind == "dict":
        pairs = (f"{_shown(key)}: {_shown(value)}" for key, value in rest)
        return f"{{{', '.join(pairs)}}}"
    if len(rest) == 1:
        return rest[0] if kind == "float" else repr(rest[0])
    return " ".join(map(str, rest))


def _cut(text: str) -> str:
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _LENGTH else text[: _LENGTH - 1] + "…"
