"""Images in the traces of verifiers, and in the replies of its environment servers.

::

    episode = export_images(episode)              # on the server, before it is serialized
    trace = adopt_images(trace, cache)            # where it was received
    trace = rehydrate(trace, processor)           # where somebody computes with the pixels

Up to 0.3 a trace's nodes carry processed images. ``export_images`` puts each in the form in which
caches keep it, an eighth of the size for the Qwen-VL kind, into an array of opaque bytes that
verifiers' own serializer carries; ``adopt_images`` moves it into a cache and leaves a reference.
Whoever forgets the second step gets errors of numpy and torch, not a sample without its image.
With ``compat=True`` a peer without memweir gets plain arrays. From 0.4 on traces carry image URLs
and placeholders alone, and there is nothing to export; ``check_trace`` looks at both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from memweir.errors import BudgetExceeded, MissingPixels, UnsupportedType
from memweir.integrations import _frames, _samples
from memweir.integrations._guard import opened
from memweir.pixels.cache import PixelCache
from memweir.pixels.provenance import is_tensor
from memweir.pixels.refs import PixelRef
from memweir.pixels.resolve import Recompute, Resolver, materialize
from memweir.pixels.strip import strip
from memweir.pixels.walk import Trail, rebuild

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "adopt_images",
    "check_trace",
    "export_images",
    "pack_reply",
    "rehydrate",
    "unpack_reply",
]

T = TypeVar("T")

_ABSENT: Final = object()
_ITEMS: Final = "mm_items"
_KINDS: Final = "mm_token_type_id_map"
_LARGE: Final = 16 << 10
_SCRATCH: Final = "512 MiB"
_TAGS: Final = ("__nd__", "__torch_tensor__")


def export_images(data: T, *, compat: bool = False, inplace: bool = False) -> T:
    """``data`` (an episode, traces, nodes, ``mm_items``) as it is serialized for another process.

    References become arrays of opaque bytes with the pixels in compact form; so do arrays of at
    least 16 KiB below ``mm_items``. With ``compat`` references become plain arrays, which any peer
    reads. Containers in which something changes are new ones, or changed with ``inplace``.

    Raises ``MissingPixels`` and ``PixelMismatch`` when the pixels of a reference are nowhere.
    """
    scratch = PixelCache(_SCRATCH, name="export")

    def leaf(value: Any, trail: Trail) -> object:
        if isinstance(value, PixelRef):
            if compat:
                return np.asarray(value)
            frame = _frames.write(value, scratch)
            return np.asarray(value) if frame is None else frame
        plain = type(value) is np.ndarray or is_tensor(value)
        if compat or not plain or value.nbytes < _LARGE or not trail.within(_ITEMS):
            return value
        ref = _only(strip({trail.name: value}, scratch, threshold=0).data)
        return _frames.write(ref, scratch) if isinstance(ref, PixelRef) else value

    result: T = rebuild(data, leaf, inplace=inplace)
    return result


def adopt_images(data: T, cache: PixelCache, *, inplace: bool = False) -> T:
    """``data`` as it was received, with references to images whose bytes are now in ``cache``.

    Plain arrays below ``mm_items``, as peers without memweir send them, are moved into the cache
    too; small ones are copied, so that no message is kept for the sake of 24 bytes. An image
    cannot be evicted while its reference lives. Other arrays stay as they are.

    Raises ``BudgetExceeded`` when an image does not fit, and ``ValueError`` for damaged ones.
    """

    def leaf(value: Any, trail: Trail) -> object:
        return _adopted(value, cache, trail.name) if _is_image(value, trail) else value

    result: T = rebuild(data, leaf, inplace=inplace)
    return result


def pack_reply(response: Any, *, compat: bool = False) -> bytes:
    """``response`` (a pydantic model or plain data) as the environment server packs it.

    Its images are exported, in compact form unless ``compat``. Needs verifiers and msgpack.
    """
    exported = export_images(response, compat=compat)
    dumped = exported.model_dump(mode="python") if hasattr(exported, "model_dump") else exported
    encoder = import_module("verifiers.v1.serve.encoding").msgpack_encoder
    packed: bytes = import_module("msgpack").packb(dumped, default=encoder, use_bin_type=True)
    return packed


def unpack_reply(message: Buffer, cache: PixelCache) -> Any:
    """What a peer packed, with or without memweir, as plain data for ``model_validate``.

    Images are moved into ``cache`` as they are met and references stand for them, in renderers'
    ``MultiModalData``. Nothing keeps ``message``. Beside the cache no more than one image of it is
    held, or the images of one node where a peer sent plain arrays.

    Raises ``ValueError`` for what is no reply, and what :func:`adopt_images` raises.
    """
    msgpack = import_module("msgpack")
    message = memoryview(message)
    try:
        return msgpack.unpackb(
            message,
            raw=False,
            strict_map_key=False,
            object_hook=lambda value: _met(value, cache),
        )
    except (msgpack.UnpackException, RecursionError, TypeError, ValueError) as error:
        if str(error).startswith("malformed"):
            raise
        raise ValueError(f"malformed reply: {type(error).__name__}") from error


def rehydrate(
    trace: T,
    processor: Any = None,
    *,
    fetch: Callable[[PixelRef], Any] | None = None,
    resolvers: Iterable[Resolver] = (),
    merge_size: int | None = None,
) -> T:
    """``trace`` (or a branch, a node, ``mm_items``) with the arrays of its images, verified.

    Pixels come from the live caches of the process, then ``resolvers``; else ``processor``, the
    one that made them, is run on the image that the trace itself holds (data URI, reference to a
    source, ``file:`` URI) or that ``fetch(ref)`` gives. Each array has the digest it had.

    Raises ``PixelMismatch`` for another image or processor, both named; ``MissingPixels`` for an
    image that nobody has or that the trace has lost; and what :func:`check_trace` raises.
    """
    check_trace(trace, merge_size=merge_size)
    ways = list(resolvers)
    if processor is not None:
        ways.append(Recompute(processor, _samples.Sources(trace, fetch)))
    result: T = opened(materialize(trace, *ways))
    return result


def check_trace(trace: Any, *, merge_size: int | None = None) -> None:
    """Raises where the images of a trace are not those of its messages and tokens.

    Node by node: as many processed images as image parts, where nodes carry images; pixels with as
    many rows as their grid has patches; and placeholder tokens for just these. Without
    ``merge_size``, the square root of patches to a token, any that fits is right. Nodes with
    neither tokens nor processed images, as relayed ones, have nothing to be compared.

    ``trace`` may be a reply, an episode, a list of traces, a branch, a node or ``mm_items``, as
    objects or as plain data. ``MissingPixels`` and ``PixelMismatch`` name the node.
    """
    if trace is None:
        return  # no images
    episode = _get(trace, "episode")
    several = trace if isinstance(trace, list | tuple) else _get(episode or trace, "traces")
    if several is not None:
        for each in several:
            check_trace(each, merge_size=merge_size)
        return
    nodes = _get(trace, "nodes")
    if nodes is None and _get(trace, "message") is not None:
        nodes = [trace]
    if nodes is None:
        items = _samples.items_of(trace)
        if items is None:
            raise UnsupportedType(f"{type(trace).__name__} is no trace, node or mm_items")
        _samples.check_items(items)
        return
    kinds = {int(token): kind for token, kind in (_get(trace, _KINDS) or {}).items()}
    for number, node in enumerate(nodes):
        _check_node(node, kinds, f"node {number}", merge_size)


def _get(data: Any, name: str, default: Any = None) -> Any:
    if isinstance(data, Mapping):
        return data.get(name, default)
    return getattr(data, name, default)


def _check_node(node: Any, kinds: Mapping[int, int], where: str, merge_size: int | None) -> None:
    parts = _image_parts(_get(node, "message"))
    tokens = _get(node, "token_ids") or []
    types = [kinds.get(token, 0) for token in tokens]
    data = _get(node, "multi_modal_data", _ABSENT)
    if data is _ABSENT:
        if kinds and tokens:
            _samples.check_tokens(types, parts, where=where)
        return
    items = _samples.items_of(data) or {}
    images = items.get("image", ())
    if (tokens or images) and len(images) != parts:
        raise MissingPixels(
            f"{where} has {parts} images in its message and {len(images)} processed"
        )
    _samples.check_items(items, where)
    for modality, hashes in (_get(data, "mm_hashes") or {}).items():
        if len(hashes) != len(items.get(modality, ())):
            raise MissingPixels(
                f"{where} has {len(hashes)} hashes and {len(items.get(modality, ()))} images"
            )
    if kinds and tokens:
        grids = [item.get("image_grid_thw") for item in images]
        known = all(grid is not None for grid in grids)
        counts = [n for grid in grids for n in _samples.patches(grid)] if known else len(images)
        _samples.check_tokens(types, counts, where=where, merge_size=merge_size)


def _image_parts(message: Any) -> int:
    content = message.get("content") if isinstance(message, Mapping) else None
    content = getattr(message, "content", content)
    if not isinstance(content, list | tuple):
        return 0
    kinds = (p.get("type") if isinstance(p, Mapping) else getattr(p, "type", None) for p in content)
    return sum(kind == "image_url" for kind in kinds)


def _is_image(value: object, trail: Trail) -> bool:
    return _frames.is_frame(value) or (type(value) is np.ndarray and trail.within(_ITEMS))


def _adopted(value: np.ndarray[Any, Any], cache: PixelCache, name: str | None) -> object:
    if _frames.is_frame(value):
        return _frames.adopt(value, cache)
    if value.dtype == _frames.VOID:
        raise ValueError("malformed frame of an image: of no known version")
    stripped = strip({name: value}, cache, threshold=_LARGE)
    if stripped.left:
        raise BudgetExceeded(f"an image of a reply stays out of {cache!r}: {stripped.left[0].why}")
    return _only(stripped.data)


def _only(mapping: Mapping[Any, Any]) -> Any:
    (value,) = mapping.values()
    return value


def _met(value: dict[Any, Any], cache: PixelCache) -> object:
    """What a mapping of a message stands for: called for the inner ones first."""
    if any(value.get(tag) is True for tag in _TAGS):
        # Others are left to whoever validates the reply; they may be anything.
        array = _decoded(value) if value.get("dtype") == VOID_NAME else None
        return value if array is None else _frames.adopt(array, cache)
    items = value.get(_ITEMS)
    return value if items is None else _multi_modal({**value, _ITEMS: _items(items, cache)})


VOID_NAME: Final = str(_frames.VOID)


def _items(items: Any, cache: PixelCache) -> dict[str, list[dict[str, Any]]]:
    found = _samples.items_of({_ITEMS: items})
    if found is None:
        raise ValueError("malformed reply: mm_items that are no lists of images")
    return {
        modality: [{name: _value(name, item[name], cache) for name in item} for item in each]
        for modality, each in found.items()
    }


def _value(name: str, part: Any, cache: PixelCache) -> Any:
    if isinstance(part, Mapping) and any(part.get(tag) is True for tag in _TAGS):
        part = _decoded(part)
    return _adopted(part, cache, name) if isinstance(part, np.ndarray) else part


def _decoded(value: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """The array of a message, over its own bytes. Raises ``ValueError``."""
    data, shape, name = value.get("data"), value.get("shape"), value.get("dtype")
    lengths = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not isinstance(data, bytes) or not lengths or not isinstance(name, str) or len(name) > 32:
        raise ValueError("malformed reply: an array that is none")
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        raise ValueError("malformed reply: an array of no known type") from None
    if dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None:
        raise ValueError("malformed reply: an array of no plain type")
    if not dtype.itemsize or len(data) % dtype.itemsize:
        raise ValueError("malformed reply: an array of another size than its bytes")
    try:
        return np.frombuffer(data, dtype).reshape(shape)
    except ValueError:
        raise ValueError("malformed reply: an array of another size than its bytes") from None


def _multi_modal(value: dict[str, Any]) -> Any:
    """Renderers' own object, which verifiers takes as it is."""
    try:
        base = import_module("renderers.base")
    except ImportError:
        return value
    ranges = value.get("mm_placeholders") or {}
    try:
        return base.MultiModalData(
            mm_hashes={kind: list(each) for kind, each in (value.get("mm_hashes") or {}).items()},
            mm_placeholders={
                kind: [base.PlaceholderRange(offset=p["offset"], length=p["length"]) for p in each]
                for kind, each in ranges.items()
            },
            mm_items=value[_ITEMS],
        )
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError("malformed reply: hashes or placeholders that are none") from error
