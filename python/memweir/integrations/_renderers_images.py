"""From a part of a message to its image: what it is told by, and its place in the cache."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlparse

import numpy as np
import PIL.Image

from memweir._core import Digest
from memweir.errors import LoadFailed, Refused, UnsupportedType
from memweir.integrations._renderers_homes import Compact, Home, Known, home_of
from memweir.pixels.engine import Call, Engine, Lone, Through
from memweir.pixels.provenance import known_in
from memweir.pixels.records import Layout, record
from memweir.pixels.source_refs import PREFIX, SourceRef
from memweir.pixels.unique import one

if TYPE_CHECKING:
    from memweir._core import Descriptor, Pixels
    from memweir.pixels.assemble import Part
    from memweir.pixels.recipe import Recipe

__all__ = ["Family", "Images", "Prompt", "Rendered"]

_WEB: Final = ("http", "https")
_BIG: Final = 16 << 10
"""Bytes from which an array is kept as a reference."""


class Family(NamedTuple):
    """How a family of renderers uses its image processor.

    ``load(part)`` and ``hash_of(image)`` are upstream's own. ``keys`` are what it takes of the
    processor's answer, ``tokens(entry, image_processor)`` the placeholders that an image has in
    the prompt, ``tensors`` the ``return_tensors`` it asks for.
    """

    load: Callable[[Mapping[str, Any]], PIL.Image.Image]
    hash_of: Callable[[PIL.Image.Image], str]
    keys: tuple[str, ...]
    tokens: Callable[[Pixels, Any], int]
    tensors: str = "np"


class Rendered(NamedTuple):
    """An image as a prompt needs it: references and small arrays by name, its length and hash."""

    values: dict[str, Any]
    tokens: int
    hash: str


class Images:
    """The images of one renderer."""

    def __init__(
        self,
        family: Family,
        *,
        budget: int | str | None,
        compact: Compact | None,
        upstream_hash: bool,
        refs: bool,
        fingerprint: str | None,
    ) -> None:
        self._made_of = family, budget, compact, upstream_hash, refs, fingerprint
        self._family = family
        self._budget = budget
        self._compact = compact
        self._upstream_hash = upstream_hash
        self._refs = refs
        self._code = fingerprint
        self._kwargs = {"return_tensors": family.tensors}
        self._mine: tuple[Any, Engine] | None = None
        self._home: Home | None = None

    def prompt(self, processor: Any) -> Prompt:
        """A prompt's images, by an image processor as its settings are now."""
        engine = self._engine(processor)
        try:
            call = engine.call(self._kwargs)
        except Through as reason:
            raise UnsupportedType(
                f"{type(processor).__name__} cannot be cached: {reason}. For a processor whose "
                "code is not part of transformers give the renderer fingerprint=, a name that "
                "changes when the code does; otherwise use upstream's own renderer"
            ) from None
        home = self._home
        if home is None or home.fingerprint != call.fingerprint:
            home = self._home = home_of(
                call.fingerprint,
                processor,
                partial(_open, self._family.load),
                budget=self._budget,
                compact=self._compact,
                code=self._code,
            )
        return Prompt(self, home, call, processor)

    def render(self, home: Home, call: Call, processor: Any, part: Mapping[str, Any]) -> Rendered:
        """The image of a message part; decoded and processed only if it was not before.

        Raises what upstream raises for a part that it cannot read or process.
        """
        source = _kept(_source(part))
        recent = home.recent(source)
        known = None if recent is None else self._known(home, *recent)
        if recent is not None and known is not None:
            key = recent[0]
        else:
            lone = self._identify(home, call, source, part)
            key = lone.key
            known = self._known(home, key) or self._fly(home, lone, processor)
            known = self._named(home, lone, known)
        if key in home.cache:
            home.cache.get(key)  # looked at again: not the next to go
        name = known.upstream_hash if self._upstream_hash else key.hex()
        assert name is not None
        values = {each: self._value(home, key, known, each, source) for each in self._family.keys}
        return Rendered(values, known.tokens, name)

    def _known(self, home: Home, *key: Digest | None) -> Known | None:
        """What is known of an image, from the source of this digest where one is given."""
        known: Known | None = home.known.get(key)
        lacks = known is not None and self._upstream_hash and known.upstream_hash is None
        return None if lacks else known

    def _named(self, home: Home, lone: Lone, known: Known) -> Known:
        """The same with references that name the source at hand, so that it makes them again."""
        recipe = lone.recipe
        named = self._known(home, lone.key, recipe.source)
        if named is None:
            if known.source != recipe.source:
                known = known._replace(
                    big={name: _renamed(old, recipe) for name, old in known.big.items()},
                    source=recipe.source,
                )
            named = known
            home.known.put((lone.key, recipe.source), named)
        return named

    def _fly(self, home: Home, lone: Lone, processor: Any) -> Known:
        """Makes an image, once for all that ask for it and want to know as much of it."""
        try:
            return home.flights.run(
                (lone.key, self._upstream_hash),
                lambda: self._make(home, lone, processor),
                check=lambda: self._known(home, lone.key),
            )
        except LoadFailed as failed:  # in another's hands; the error is what upstream raises
            error: BaseException = failed
            while isinstance(error, LoadFailed) and error.__cause__ is not None:
                error = error.__cause__
            raise error from None

    def _engine(self, processor: Any) -> Engine:
        """For fingerprints alone: each renderer has a processor object of its own."""
        mine = self._mine
        if mine is None or mine[0] is not processor:
            from memweir.pixels.cache import PixelCache

            nothing = PixelCache(0, name="fingerprint")
            mine = self._mine = processor, Engine(processor, nothing, self._code, None, 1)
        return mine[1]

    def __deepcopy__(self, memo: object) -> Images:
        """Itself: what it keeps of a processor is told by the processor."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process a renderer finds the caches of that process."""
        return _made_again, self._made_of

    def _identify(self, home: Home, call: Call, source: Any, part: Mapping[str, Any]) -> Lone:
        if isinstance(source, SourceRef):
            return home.engine.lone(call, source.load())
        try:
            return home.engine.lone(call, _identifiable(source))
        except Exception:
            # Upstream has the last word on what cannot be read, and says it its own way.
            return home.engine.lone(call, self._family.load(part))

    def _make(self, home: Home, lone: Lone, processor: Any) -> Known:
        if home.engine.call(self._kwargs).fingerprint != home.fingerprint:
            # That of another renderer, who has changed it since: this one's goes on in its place.
            home.adopt(processor, self._code)
            if home.engine.call(self._kwargs).fingerprint != home.fingerprint:
                raise Refused(
                    "an image processor was changed while a prompt was rendered with it: change "
                    "it between prompts, and render this one again"
                )
        part = home.engine.part(lone)
        big, small = {}, {}
        for key in self._family.keys:
            spec = part.spec[key]
            if spec.nbytes < _BIG:
                small[key] = np.array(part.pixels[key])
            else:
                big[key] = self._describe(part, key)
        tokens = self._family.tokens(part.pixels, home.processor.wrapped)
        hashed = self._family.hash_of(lone.seen.image()) if self._upstream_hash else None
        known = Known(big, small, tokens, hashed, part.recipe.source)
        home.known.put((lone.key,), known)
        return known

    def _describe(self, part: Part, key: str) -> Any:
        entry = known_in(part.pixels, part.recipe.key, key)
        itemsize = part.spec[key].nbytes // math.prod(entry.shape)
        layout = Layout(entry.dtype, itemsize, entry.shape)
        torch = self._family.tensors == "pt"
        return record(key, layout, entry.digest, torch=torch, recipe=part.recipe)

    def _value(self, home: Home, key: Digest, known: Known, name: str, source: Any) -> Any:
        if name in known.small:
            return known.small[name].copy()
        ref = home.reference(known.big[name], source)
        if self._refs:
            return ref
        array = home.arrays.get((key, name))  # one for all that hold it, as upstream has it
        if array is None:
            array = home.arrays[key, name] = ref.torch() if ref.tensor else np.array(ref)
        return array


def _made_again(family: Family, *given: Any) -> Images:
    names = ("budget", "compact", "upstream_hash", "refs", "fingerprint")
    return Images(family, **dict(zip(names, given, strict=True)))


class Prompt:
    """The images of one prompt: what does not change from one to the next is looked up once."""

    def __init__(self, images: Images, home: Home, call: Call, processor: Any) -> None:
        self._images = images
        self._call = call
        self._processor = processor
        self.home = home

    def render(self, part: Mapping[str, Any]) -> Rendered:
        """See :meth:`Images.render`."""
        return self._images.render(self.home, self._call, self._processor, part)


def _renamed(descriptor: Descriptor, recipe: Recipe) -> Descriptor:
    """The record of the same array, made from another source."""
    layout = Layout(descriptor.dtype, descriptor.itemsize, descriptor.shape)
    digest, torch = Digest(descriptor.digest), descriptor.torch
    return record(descriptor.name, layout, digest, torch=torch, recipe=recipe)


def _open(load: Callable[[Mapping[str, Any]], PIL.Image.Image], source: Any) -> PIL.Image.Image:
    """The image of a source, decoded as upstream decodes it."""
    return load({"image": source})


def _source(part: Mapping[str, Any]) -> Any:
    """Where upstream looks for the image of a part, in its order."""
    if "image" in part:
        return part["image"]
    if "image_url" in part:
        url = part["image_url"]
        return url.get("url") if isinstance(url, dict) else url
    return part.get("url") or part.get("path")


def _kept(source: Any) -> Any:
    """A source as a reference keeps it: the caller's own object, or one that cannot change."""
    if isinstance(source, bytearray):
        return one(bytes(source))
    if not isinstance(source, str) or isinstance(source, SourceRef) or source.startswith("data:"):
        return source
    if source.startswith(PREFIX):
        return SourceRef(source)
    parsed = urlparse(source)  # forgives spaces and capitals, for upstream as well
    if parsed.scheme == "file":
        return parsed.path if parsed.path.startswith("/") else str(Path.cwd() / parsed.path)
    return parsed.geturl() if parsed.scheme in _WEB and not _is_url(source) else source


def _identifiable(source: Any) -> Any:
    """A kept source in terms that tell it without decoding it.

    Raises ``UnsupportedType`` for what upstream refuses, or may.
    """
    if isinstance(source, PIL.Image.Image):
        plain = type(source).__module__.startswith(("PIL.", "memweir."))
        return source if source.mode == "RGB" and plain else source.convert("RGB")
    if isinstance(source, bytes):
        return source
    if isinstance(source, str):
        if source.startswith("data:") or _is_url(source):
            return source
        if not urlparse(source).scheme and os.path.isfile(source):  # noqa: PTH113  "a/" is none
            return source
    raise UnsupportedType(f"{type(source).__name__} is no source of an image")


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))
