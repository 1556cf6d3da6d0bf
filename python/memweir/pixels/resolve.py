"""The way back: from references to the arrays they name, each verified before it is handed out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from memweir.errors import MissingPixels
from memweir.pixels.found import Entry, Loose, blank_array, blank_tensor, describe
from memweir.pixels.joiners import place, window
from memweir.pixels.live import held, register, stored
from memweir.pixels.recompute import Recompute
from memweir.pixels.refs import ALONE, PixelRef
from memweir.pixels.walk import Trail, rebuild

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Recompute", "Resolver", "materialize", "register", "resolvers"]

Resolver = Callable[[PixelRef], "np.ndarray[Any, Any] | Tensor | Mapping[str, Any] | None"]
"""Gives the array of one image's reference, or all arrays of its entry by name, or ``None``."""


CONTENT: Final = "array"
"""The name of the only array in an entry whose key is that array's digest."""


class Installed:
    """Resolvers in force: for the process until :meth:`remove`, or inside a ``with``."""

    __slots__ = ("_resolvers", "_tokens")

    def __init__(self, resolvers: tuple[Resolver, ...]) -> None:
        self._resolvers = resolvers
        self._tokens: list[Token[tuple[Resolver, ...]]] = []
        _process[self] = resolvers

    def remove(self) -> None:
        """Takes them out of the process again; harmless when they are not in."""
        _process.pop(self, None)

    def __enter__(self) -> Self:
        self.remove()
        self._tokens.append(_context.set(self._resolvers + _context.get()))
        return self

    def __exit__(self, *error: object) -> None:
        _context.reset(self._tokens.pop())


_context: ContextVar[tuple[Resolver, ...]] = ContextVar("memweir_resolvers", default=())
# Changed by single operations on the dict only: no lock that a fork could catch.
_process: dict[Installed, tuple[Resolver, ...]] = {}


def resolvers(*resolvers: Resolver) -> Installed:
    """Installs ``resolvers`` for the process, or as a context manager for the current context.

    Inner contexts are asked before outer ones, then the process, latest first. A context reaches
    the asyncio tasks and ``to_thread`` calls that start inside it, and no other thread.
    """
    _check(resolvers)
    return Installed(resolvers)


def materialize(data: object, *resolvers: Resolver, writable: bool = False) -> Any:
    """``data`` with every reference replaced by the array it names, bit for bit.

    Pinned entries and the live caches of the process are asked first, then ``resolvers``, then the
    installed ones, and the first right answer is taken. An array out of a cache is
    read-only, and where it is stored as it is a view that keeps its bytes there; with ``writable``
    each reference gives an array of its own. Tensors and joined arrays always own their memory.

    Raises ``MissingPixels`` when nobody has the pixels and ``PixelMismatch`` when only others
    were offered. What a resolver raises goes through.
    """
    _check(resolvers)
    restore = _Restore(resolvers, writable)

    def leaf(value: object, trail: Trail) -> object:
        if not isinstance(value, PixelRef):
            return value
        return restore.tensor(value) if value.tensor else restore.array(value)

    return rebuild(data, leaf)


def restore_array(ref: PixelRef, *, writable: bool) -> np.ndarray[Any, Any]:
    """The array that ``ref`` names, also when it names a tensor."""
    return _Restore((), writable).array(ref)


def restore_tensor(ref: PixelRef) -> Tensor:
    """The array that ``ref`` names, as a tensor that owns its memory."""
    return _Restore((), True).tensor(ref)


def restore_into(ref: PixelRef, out: np.ndarray[Any, Any] | Tensor, *resolvers: Resolver) -> None:
    """Writes the array that ``ref`` names into ``out``, of its type and shape, verified first.

    ``out`` is a writable array or CPU tensor of any strides: a row of a batch, shared memory.
    Raises what :func:`materialize` raises; then nothing of ``out`` can be relied on.
    """
    _check(resolvers)
    _Restore(resolvers, True).fill(ref, out)


class _Restore:
    """One call's resolvers, and the views it has handed out, so that none is verified twice."""

    __slots__ = ("_resolvers", "_views", "_writable")

    def __init__(self, given: tuple[Resolver, ...], writable: bool) -> None:
        installed = [r for each in reversed(_process.copy().values()) for r in each]
        self._resolvers = (*given, *_context.get(), *installed)
        self._writable = writable
        self._views: dict[PixelRef, np.ndarray[Any, Any]] = {}

    def array(self, ref: PixelRef) -> np.ndarray[Any, Any]:
        if self._writable or ref.how != ALONE:
            out = blank_array(ref.descriptor, zeros=_padded(ref))
            self.fill(ref, out)
            return out
        view = self._views.get(ref)
        if view is None:
            view = self._views[ref] = self._find(ref).array()
        return view

    def tensor(self, ref: PixelRef) -> Tensor:
        out = blank_tensor(ref.descriptor, zeros=_padded(ref))
        self.fill(ref, out)
        return out

    def fill(self, ref: PixelRef, out: Any) -> None:
        """Fills ``out``, in which what belongs to no part is zero."""
        _, offsets = place(ref.how, [part.shape for part in ref.parts])
        for part, offset in zip(ref.parts, offsets, strict=True):
            self._find(part).copy_into(out[(*window(offset, part.shape), ...)])

    def _find(self, ref: PixelRef) -> Entry | Loose:
        """Where the very pixels of ``ref`` are: the first place that has them wins."""
        wrong = None
        for found in self._places(ref):
            difference = found.difference()
            if difference is None:
                return found
            wrong = wrong or difference
        raise wrong or _missing(ref)

    def _places(self, ref: PixelRef) -> Iterator[Entry | Loose]:
        if ref.pinned is not None:
            # An entry that came from another process has the names of its maker.
            name = CONTENT if CONTENT in ref.pinned else ref.name
            yield Entry(ref.descriptor, ref.pinned, name)
        if ref.recipe is not None:
            for pixels in held(ref.recipe.key):
                yield Entry(ref.descriptor, pixels, ref.name)
        for pixels in stored(ref.digest):
            yield Entry(ref.descriptor, pixels, CONTENT)
        for resolver in self._resolvers:
            given = resolver(ref)
            if given is not None:
                yield Loose(ref.descriptor, given)


def _padded(ref: PixelRef) -> bool:
    """Whether some of the array belongs to none of its parts."""
    return sum(part.nbytes for part in ref.parts) != ref.nbytes


def _missing(ref: PixelRef) -> MissingPixels:
    recipe = ref.recipe
    if recipe is None:
        way = "it has no recipe, so that only the process that stripped it could have it"
    else:
        kind, digest = ("source", recipe.source) if recipe.source else ("image", recipe.image)
        named = "" if digest is None else f" {digest.hex()}"
        way = f"mw.Recompute(processor, fetch=...) makes it again from the {kind}{named}"
    return MissingPixels(
        f"{describe(ref.descriptor)} {ref.digest.hex()} is in no live cache of this process, "
        f"and no resolver has it; {way}. Give a resolver to mw.materialize(), or install one "
        "with mw.resolvers().",
        digest=ref.digest.hex(),
    )


def _check(resolvers: tuple[Resolver, ...]) -> None:
    for resolver in resolvers:
        if not callable(resolver):
            kind = type(resolver).__name__
            raise TypeError(f"a resolver is called with a reference; {kind} cannot be called")
