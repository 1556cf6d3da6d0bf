"""The images of one request to vLLM, and the part of its body that carries them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np

from memweir.errors import UnsupportedType
from memweir.integrations._json_stream import LongText, ReadyText
from memweir.integrations._vllm_items import WireItem, WireType
from memweir.pixels.ledger import Item, Plan, Route
from memweir.pixels.unique import digest_of, is_known

__all__ = ["TOKEN_BYTES", "ContentParts", "Features"]

TOKEN_BYTES: Final = 24_576
"""Bytes of tensors behind a placeholder token, at most: four patches of Qwen-VL in float32."""

_LONG: Final = 16 << 10

_LIGHT: Final = 1 << 20
"""Bytes of sources that are named in less time than it takes to ask a thread to."""

_UNTOLD: Final = 32 << 20
"""Bytes that an image is taken to have in an engine that does not tell its placeholders."""


class Features:
    """Processed images, as ``renderers`` keeps them for a prompt, on their way to an engine.

    ``data`` is a ``MultiModalData`` or a mapping with ``mm_hashes``, ``mm_placeholders`` and
    ``mm_items``; arrays may be references. Nothing is restored or encoded before it is sent, and
    then one image at a time. ``wire="bfloat16"`` sends pixels as the engine casts them anyway,
    half as large; their hashes end in ``-bf16``.

    Raises ``ValueError`` where hashes, placeholders and items do not correspond, and
    ``UnsupportedType`` for anything but images of the families that are known here.
    """

    route: ClassVar[Route] = "features"
    light: ClassVar[bool] = False

    def __init__(self, data: object, wire: WireType = "exact") -> None:
        found = []
        for modality, rows in _parallel(data, "mm_items"):
            if modality != "image":
                raise UnsupportedType(f"only images are sent as features, not {modality}")
            for number, (name, place, values) in enumerate(rows):
                item = WireItem(name, values, wire)
                found.append(_Image(modality, number, place, item.hash, item.nbytes, item))
        self._images = sorted(found, key=lambda image: image.place["offset"])

    @classmethod
    def encoded(cls, features: Mapping[str, Any]) -> Features:
        """The ``features`` of a request that someone else encoded whole, of any family.

        They are taken to be as large in the engine as their records are.
        """
        found = []
        for modality, rows in _parallel(features, "kwargs_data"):
            for number, (name, place, text) in enumerate(rows):
                if not isinstance(text, str):
                    raise ValueError(f"{modality} {number} is not encoded: {type(text).__name__}")
                nbytes = len(text) // 4 * 3
                found.append(_Image(modality, number, place, name, nbytes, ReadyText(text)))
        self = cls.__new__(cls)
        self._images = sorted(found, key=lambda image: image.place["offset"])
        return self

    @property
    def items(self) -> tuple[Item, ...]:
        """What a ledger plans by, in the order of the prompt."""
        return tuple(Item(image.hash, image.nbytes) for image in self._images)

    def fill(self, body: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
        """``body`` with these images; where all of them are references without ``kwargs_data``."""
        counts = {image.modality: 0 for image in self._images}
        for image in self._images:
            counts[image.modality] += 1
        part: dict[str, dict[str, list[Any]]] = {
            key: {modality: [None] * count for modality, count in counts.items()}
            for key in ("mm_hashes", "mm_placeholders", "kwargs_data")
        }
        for image, send in zip(self._images, plan.send, strict=True):
            row = image.hash, image.place, image.text if send else None
            for lists, value in zip(part.values(), row, strict=True):
                lists[image.modality][image.number] = value
        if not any(plan.send):
            del part["kwargs_data"]
        return {**body, "features": part} if counts else dict(body)

    def measured(self, plan: Plan, reply: object) -> Plan:
        """``plan`` itself: how large these images are was known before."""
        return plan


class ContentParts:
    """Image sources, as ``renderers`` sends them, each with a name that the engine keeps it by.

    ``parts`` are those of the request. An image with a ``data:`` URL is named by
    ``identify(url)``, unless it has a ``uuid`` already; other URLs are short, and what they lead
    to may change, so that these parts and other media stay as they are unless they have one.

    How large an image is in the engine shows only in its reply: ``token_bytes`` for each
    placeholder token.
    """

    route: ClassVar[Route] = "content_parts"

    def __init__(
        self,
        parts: Sequence[Mapping[str, Any]],
        *,
        identify: Callable[[str], str] | None = None,
        token_bytes: int = TOKEN_BYTES,
    ) -> None:
        images = [part for part in parts if part.get("type") == "image_url"]
        if not all(part.get("url") for part in images):
            raise ValueError("an image's URL must be there to be sent again, and is missing")
        self._given = parts
        self._identify = identify or _identify
        self._token_bytes = token_bytes

    @property
    def light(self) -> bool:
        """Whether a request is prepared before a thread would have begun to."""
        if self._identify is not _identify:
            return False
        urls = [part["url"] for part in self._given if _to_be_named(part)]
        return sum(len(url) for url in urls if not is_known(url)) <= _LIGHT

    @property
    def items(self) -> tuple[Item, ...]:
        """What a ledger plans by, in order; their sizes are in the reply."""
        return tuple(Item(name, 0) for name, _ in self._images)

    @cached_property
    def _parts(self) -> list[tuple[Mapping[str, Any], str | None]]:
        """The parts as they are sent whole, and the names of those that are images to be named."""
        named: list[tuple[Mapping[str, Any], str | None]] = []
        for part in self._given:
            name = part.get("uuid") if part.get("type") == "image_url" else None
            if _to_be_named(part):
                name = self._identify(part["url"])
            named.append(({**part, "uuid": name}, name) if name else (part, None))
        return named

    @cached_property
    def _images(self) -> list[tuple[str, int]]:
        """The names, and which image of the request each is of."""
        images = [name for part, name in self._parts if part.get("type") == "image_url"]
        return [(name, number) for number, name in enumerate(images) if name]

    def fill(self, body: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
        """``body`` with these parts; references have a ``uuid`` and no ``url``."""
        filled, sends = [], iter(plan.send)
        for part, name in self._parts:
            new = dict(part)
            if name and not next(sends):
                del new["url"]
            elif "url" in new:
                new["url"] = _quotable(new["url"])
            filled.append(new)
        return {**body, "content_parts": filled}

    def measured(self, plan: Plan, reply: object) -> Plan:
        """``plan`` with the sizes that the placeholders in the engine's ``reply`` tell."""
        try:
            lengths = [int(place["length"]) for place in _placeholders(reply)["image"]]
        except Exception:  # the engine may write anything, and its answer must not be lost by that
            lengths = []
        sizes = []
        for _, index in self._images:
            known = index < len(lengths) and lengths[index] >= 0
            sizes.append(lengths[index] * self._token_bytes if known else _UNTOLD)
        return plan.sized(sizes)


class _Image(NamedTuple):
    """An image of a request: which of its modality it is, where it goes, and its data."""

    modality: str
    number: int
    place: dict[str, int]
    hash: str
    nbytes: int
    text: LongText


def _quotable(text: str) -> str | LongText:
    """A long text that JSON has no escapes for as one that nobody needs to look through again."""
    if len(text) < _LONG or not text.isascii() or '"' in text or "\\" in text:
        return text
    data = text.encode("ascii")
    control = np.frombuffer(data, np.uint8).min() < ord(" ")
    # Of what is longer no second copy is held while the request is on its way.
    return text if control else ReadyText(data if len(data) <= _LIGHT else text)


_Row = tuple[str, dict[str, int], Any]


def _parallel(data: object, values: str) -> Iterator[tuple[str, Iterable[_Row]]]:
    """Hash, placeholder and value of every item, by modality."""
    names, places, held = (_member(data, key) for key in ("mm_hashes", "mm_placeholders", values))
    for modality in dict.fromkeys((*names, *places, *held)):
        lists = [list(part.get(modality) or ()) for part in (names, places, held)]
        if len({len(each) for each in lists}) > 1:
            counts = ", ".join(map(str, map(len, lists)))
            raise ValueError(f"{modality}: hashes, placeholders and items differ: {counts}")
        ranges = [_range(place) for place in lists[1]]
        yield modality, zip(lists[0], ranges, lists[2], strict=True)


def _member(data: object, key: str) -> Mapping[str, Any]:
    value = data.get(key) if isinstance(data, Mapping) else getattr(data, key)
    return value or {}


def _range(place: Any) -> dict[str, int]:
    if isinstance(place, Mapping):
        return {"offset": int(place["offset"]), "length": int(place["length"])}
    return {"offset": int(place.offset), "length": int(place.length)}


def _to_be_named(part: Mapping[str, Any]) -> bool:
    named = part.get("type") != "image_url" or part.get("uuid")
    return not named and part["url"].startswith("data:")


def _identify(url: str) -> str:
    return digest_of(url).hex()


def _placeholders(reply: Any) -> Mapping[str, Any]:
    """The placeholders in a reply: a mapping, or an HTTP response, which is not read whole."""
    if isinstance(reply, Mapping):
        return reply.get("mm_placeholders") or {}
    content = getattr(reply, "content", b"")
    # Quotes inside of JSON's strings are escaped: this is a key.
    start = content.find(b'"mm_placeholders":')
    if start < 0:
        return {}
    text = content[start + len(b'"mm_placeholders":') :].lstrip().decode()
    value, _ = json.JSONDecoder().raw_decode(text)
    return value or {}
