"""What happens in a call of a cached processor: identify, look up, process what is missing, join.

Anything out of the ordinary goes to the wrapped processor itself, with what the caller gave:
its answer or its error is then the caller's, uncached and counted.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import transformers
from transformers.utils.generic import TensorType

from memweir.identity import hash_bytes
from memweir.pixels import families
from memweir.pixels.assemble import Part, assemble
from memweir.pixels.fingerprint import Fingerprinter, Unfingerprintable
from memweir.pixels.forms import Unrepresentable, form_of, same, take_apart
from memweir.pixels.joiners import HOWS, Unjoinable
from memweir.pixels.lazy import BrokenImage, defer, resolve
from memweir.pixels.recipe import Recipe
from memweir.pixels.source_id import Memo, path_of
from memweir.pixels.sources import (
    Seen,
    Source,
    SourceChanged,
    Sources,
    Unidentified,
    Unloadable,
    identify_pixels,
)

if TYPE_CHECKING:
    from memweir._core import Digest, Pixels
    from memweir.pixels.cache import PixelCache

logger = logging.getLogger("memweir.processor")

# Arguments whose lists are one setting. Any other list may hold one item per image.
_LISTS = frozenset({"size", "crop_size", "pad_size", "image_mean", "image_std"})
_VERDICTS = 1024  # fingerprints that something is remembered about
_DISPROVEN = "the join does not hold for this version of transformers"
_VERSION = ".".join(transformers.__version__.split(".")[:2])


class Through(Exception):
    """This call is the wrapped processor's own; the message says why."""


@dataclass(frozen=True, slots=True)
class ProcessorStats:
    """Counters since the processor was wrapped.

    ``images == hits + misses`` are those of the calls that were served, ``through`` the calls that
    went to the wrapped processor, by reason. Counting takes no lock: on a free-threaded
    interpreter the numbers are approximate.
    """

    calls: int
    images: int
    hits: int
    misses: int
    through: dict[str, int]


@dataclass(frozen=True, slots=True)
class Call:
    """A call that can be served: its images by sample, and what they are processed with."""

    samples: list[list[Any]]
    kwargs: dict[str, Any]
    fingerprint: Digest
    tensors: str | None

    @property
    def images(self) -> list[Any]:
        return [image for sample in self.samples for image in sample]

    def key(self, seen: Seen) -> Digest:
        parts = bytes(self.fingerprint), seen.id.kind.encode().ljust(8), bytes(seen.id.digest)
        return hash_bytes(b"memweir processed image\x01" + b"".join(parts))


@dataclass(frozen=True, slots=True)
class Lone:
    """One image of a call that can be served, and its key in the cache."""

    call: Call
    seen: Seen
    key: Digest

    @property
    def recipe(self) -> Recipe:
        """How its entry comes to be, from the source that it was given by."""
        return _recipe(self.call, self.key, self.seen)


class Engine:
    """One wrapped processor and the cache of its answers."""

    def __init__(
        self,
        wrapped: Any,
        cache: PixelCache,
        fingerprint: bytes | str | Digest | None,
        join: str | None,
        memo: int,
        fetch: Callable[[str], Any] | None = None,
    ) -> None:
        if join is not None and join not in HOWS:
            raise ValueError(f"join must be one of {', '.join(HOWS)}, not {join!r}")
        kind = type(wrapped)
        self.wrapped = wrapped
        self.cache = cache
        self.options: dict[str, Any] = {
            "fingerprint": fingerprint,
            "join": join,
            "memo": memo,
            "fetch": fetch,
        }
        self.sources = Sources(fetch or wrapped.fetch_images, memo)
        self._family = families.family(kind)
        self._how = families.how(kind)
        if self._how is None and fingerprint is not None:
            self._how = join or "alone"
        self._settings = frozenset(
            getattr(getattr(kind, "valid_kwargs", None), "__annotations__", ())
        ) | {"return_tensors"}
        self._fingerprinter = Fingerprinter(wrapped, fingerprint)
        # By fingerprint: why no entry can carry the answers, whether parts once did not join,
        # whether a join was seen to hold.
        self._refused, self._ragged, self._held = Memo(_VERDICTS), Memo(_VERDICTS), Memo(_VERDICTS)
        self._counts: Counter[str] = Counter()
        self._through: Counter[str] = Counter()

    def stats(self) -> ProcessorStats:
        n = self._counts
        through = dict(self._through)
        return ProcessorStats(n["calls"], n["images"], n["hits"], n["misses"], through)

    def run(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The answer to ``wrapped.method(*args, **kwargs)``."""
        self._counts["calls"] += 1
        process = getattr(self.wrapped, method)
        fetched: dict[int, Any] = {}
        try:
            call = self._understand(args, kwargs)
            return self._serve(call, process, fetched)
        except Through as reason:
            self._count_through(str(reason))
        if args:
            args = (_plainly(args[0], fetched), *args[1:])
        elif "images" in kwargs:
            kwargs = {**kwargs, "images": _plainly(kwargs["images"], fetched)}
        return process(*args, **kwargs)

    def lookup(self, images: Any, kwargs: Mapping[str, Any]) -> list[Pixels | None]:
        """The entries of ``images`` as far as they are known and cached; decodes nothing."""
        try:
            call = self._understand((images,), kwargs)
        except Through:
            return [None for sample in _samples(images)[0] for _ in sample]
        found: list[Pixels | None] = []
        for image in call.images:
            try:
                seen = self.sources.see(image, known=True)
            except Exception:  # whatever is wrong with it, it is not in the cache
                seen = None
            found.append(None if seen is None else self.cache.get(call.key(seen)))
        return found

    def call(self, kwargs: Mapping[str, Any]) -> Call:
        """A call with these arguments, for images that are given one by one. Raises ``Through``."""
        return self._understand(([None],), kwargs)

    def lone(self, call: Call, image: Any) -> Lone:
        """One image of a call, decoded only if it is not known.

        Raises whatever reading or decoding it raises.
        """
        seen = self.sources.see(image)
        assert seen is not None
        return Lone(call, seen, call.key(seen))

    def part(self, lone: Lone) -> Part:
        """The entry of one image, made if need be. Raises what the processor raises."""
        try:
            return self._part(lone.call, lone.key, lone.seen, self.wrapped)[0]
        except Through as reason:
            raise reason.__cause__ or reason from None

    def fetch(self, images: Any) -> Any:
        """``wrapped.fetch_images(images)``, opening only sources that are not known yet."""
        if isinstance(images, (list, tuple)):
            return [self.fetch(image) for image in images]
        if not isinstance(images, (str, bytes)) and not hasattr(images, "__fspath__"):
            return self.wrapped.fetch_images(images)
        try:
            seen = self.sources.see(images)
        except Exception:
            return self.wrapped.fetch_images(_fetchable(images))  # raises what it would raise
        assert seen is not None
        return seen.image() if seen.id.kind == "array" else defer(seen)

    def _understand(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """The call in known terms. Raises ``Through``."""
        kind = type(self.wrapped).__qualname__
        if self._how is None and self._family is None:
            raise Through(f"{kind} is not of transformers and was given no fingerprint")
        if self._how is None:
            raise Through(f"{kind} is not known to work image by image")
        given = dict(kwargs)
        if len(args) + ("images" in given) != 1:
            raise Through("positional arguments")
        samples, nested = _samples(args[0] if args else given.pop("images"))
        for name, value in given.items():
            if name not in self._settings:
                raise Through(f"argument {name}")
            if isinstance(value, (list, tuple)) and name not in _LISTS:
                raise Through(f"argument {name} is a list")
        device = self._effective("device", given)
        if device is not None and not str(device).startswith("cpu"):
            raise Through("device")
        if self._set(families.RANDOM, given):
            raise Through("randomness")
        try:
            fingerprint = self._fingerprinter.digest(given)
        except Unfingerprintable as unknown:
            raise Through(str(unknown)) from None
        refused = self._refused.get(fingerprint)
        if refused is not None:
            raise Through(refused)
        if not all(samples):
            raise Through("no images")
        if sum(map(len, samples)) > 1:
            if self._held.get(fingerprint) is False:
                raise Through(_DISPROVEN)
            samples = self._joinable(samples, nested, given)
        return Call(samples, given, fingerprint, self._tensors(given))

    def _joinable(
        self, samples: list[list[Any]], nested: bool, given: Mapping[str, Any]
    ) -> list[list[Any]]:
        """The samples as they are joined; for most families a nested list is a flat one."""
        if self._how == "alone" or self._set(families.LONERS, given):
            raise Through(f"no join is known for {type(self.wrapped).__qualname__}")
        if not nested or self._how == "nest":
            return samples
        if self._family in families.ONE_EACH and max(map(len, samples)) > 1:
            raise Through("several images in a sample")
        return [[image for sample in samples for image in sample]]

    def _tensors(self, given: Mapping[str, Any]) -> str | None:
        wanted = self._effective("return_tensors", given)
        if wanted is None:
            return None
        try:
            return str(TensorType(wanted).value)
        except ValueError:
            raise Through("argument return_tensors") from None

    def _effective(self, name: str, given: Mapping[str, Any]) -> Any:
        """What the processor takes for a setting: the argument, or else its own attribute."""
        return given[name] if name in given else getattr(self.wrapped, name, None)

    def _set(self, settings: Mapping[str, str], given: Mapping[str, Any]) -> bool:
        """Whether the setting that ``settings`` names for this family is on."""
        name = settings.get(self._family or "")
        return name is not None and bool(self._effective(name, given))

    def _serve(self, call: Call, process: Callable[..., Any], fetched: dict[int, Any]) -> Any:
        """The answer from entries, made where they are missing. Raises ``Through``."""
        seen = [self._see(image, fetched) for image in call.images]
        if len({one.id.mixes for one in seen}) > 1:
            raise Through("images of several types")
        keys = [call.key(one) for one in seen]
        if (
            self._ragged.get(call.fingerprint)
            and len({one.id.layout for one in seen}) > 1
            and not all(key in self.cache for key in keys)
        ):  # it would be processed twice, most likely
            raise Through("the parts differ in shape")
        parts: dict[Digest, Part] = {}
        misses = 0
        for key, one in zip(keys, seen, strict=True):
            if key not in parts:
                parts[key], loaded = self._part(call, key, one, process)
                misses += loaded
        in_order = iter([parts[key] for key in keys])
        samples = [[next(in_order) for _ in sample] for sample in call.samples]
        how = "alone" if len(keys) == 1 else str(self._how)
        told = bool(self._effective("do_pad", call.kwargs))
        pads = told and (how != "nest" or self._family in families.FILLED_SAMPLES)
        uneven = not told and self._family in families.UNEVEN
        try:
            answer = assemble(how, samples, pads=pads, uneven=uneven)
        except Unjoinable as reason:
            self._ragged.put(call.fingerprint, True)
            raise Through(str(reason)) from None
        if len(keys) > 1 and not self._holds(call, answer, process, fetched):
            raise Through(_DISPROVEN)
        self._counts["images"] += len(keys)
        self._counts["hits"] += len(keys) - misses
        self._counts["misses"] += misses
        return answer

    def _see(self, image: Any, fetched: dict[int, Any]) -> Seen:
        try:
            seen = self.sources.see(image)
        except Unidentified as unknown:
            raise Through(str(unknown)) from None
        except Unloadable as broken:
            fetched[id(image)] = BrokenImage(image, broken.error)
            raise Through(str(broken)) from None
        except Exception as error:  # the processor will meet it too, and say it its own way
            raise Through(f"{type(error).__name__} in an image") from None
        assert seen is not None
        if seen.private and seen.source is not None and seen.source.digest is None:
            fetched[id(image)] = seen.image()
        return seen

    def _part(
        self, call: Call, key: Digest, seen: Seen, process: Callable[..., Any]
    ) -> tuple[Part, bool]:
        """The entry of one image, and whether it was made just now."""
        loaded = False

        def load() -> dict[str, Any]:
            nonlocal loaded
            loaded = True
            image = seen.image()
            arrays = take_apart(process([image], **call.kwargs), call.tensors)
            if not seen.private and identify_pixels(image) != seen.id:
                raise SourceChanged("an image was written to while it was processed")
            return arrays

        try:
            pixels = self.cache.get_or_load(key, load)
        except Unrepresentable as reason:
            refused = f"{type(self.wrapped).__qualname__} {reason}"
            self._refused.put(call.fingerprint, refused)
            raise Through(refused) from None
        except Exception as error:  # alone or with others, the processor has the last word
            raise Through(f"{type(error).__name__} in processing") from error
        spec = pixels.spec
        form = form_of(pixels, list(spec), call.tensors)
        return Part(pixels, spec, form, _recipe(call, key, seen)), loaded

    def _holds(
        self, call: Call, answer: Any, process: Callable[..., Any], fetched: dict[int, Any]
    ) -> bool:
        """Whether the table of joins may be trusted with this call.

        It was checked with one version of transformers. With another, the first batch of a
        kind is processed both ways, and the kind joins from then on if the bytes agree.
        """
        if families.REVIEWED == _VERSION or self._held.get(call.fingerprint):
            return True
        images = [[_plainly(image, fetched) for image in sample] for sample in call.samples]
        plain = process(images if len(images) > 1 else images[0], **call.kwargs)
        held = same(answer, plain, call.tensors)
        self._held.put(call.fingerprint, held)
        return held

    def _count_through(self, reason: str) -> None:
        self._through[reason] += 1
        if self._through[reason] == 1:
            kind = type(self.wrapped).__qualname__
            logger.warning("calls of %s go through uncached: %s", kind, reason)


def _recipe(call: Call, key: Digest, seen: Seen) -> Recipe:
    source = seen.source
    return Recipe(
        bytes(key),
        call.fingerprint,
        seen.id.digest,
        None if source is None else source.digest,
        None if source is None else source.origin,
        tuple(call.kwargs.items()),
    )


def _samples(images: Any) -> tuple[list[list[Any]], bool]:
    """The images of each sample, and whether the caller gave samples or a flat list."""
    if type(images) is not list and type(images) is not tuple:
        return [[images]], False
    if images and all(type(item) is list or type(item) is tuple for item in images):
        return [list(sample) for sample in images], True
    return [list(images)], False


def _plainly(images: Any, fetched: Mapping[int, Any]) -> Any:
    """``images`` in terms that the wrapped processor understands."""
    if isinstance(images, (list, tuple)):
        return type(images)([_plainly(image, fetched) for image in images])
    if id(images) in fetched:
        return fetched[id(images)]
    return resolve(_fetchable(images))


def _fetchable(item: Any) -> Any:
    if isinstance(item, bytes):
        return Source(item, None).fetchable()
    if hasattr(item, "__fspath__"):
        return os.fspath(item)
    if isinstance(item, str) and item.startswith("file://"):
        return path_of(item)
    return item
