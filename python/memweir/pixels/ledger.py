"""Which images an engine still holds, so that each is sent to it once."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, Final, Literal, NamedTuple

from memweir._core import Digest
from memweir.errors import Refused
from memweir.identity import hash_value
from memweir.sizes import format_size, parse_size

__all__ = ["Engine", "Item", "LedgerStats", "Plan", "Route", "SendOnce"]

Engine = Literal["safe", "lru", "shm", "processor_only", "none"]
Route = Literal["features", "content_parts"]

ENGINES: Final = 4096
"""Ledgers that :meth:`SendOnce.at` keeps; a forgotten one only makes pixels travel again."""

_REFUSED: Final = {
    ("features", "shm"): "it keeps processed images where a reference sent by a client finds "
    "nothing, and its worker fails. Start it with --mm-processor-cache-type lru",
    ("features", "processor_only"): "with several API servers, or data parallelism inside one "
    "deployment, its engine processes keep no images and a reference stops them. Start it with "
    "--api-server-count 1 and one data parallel rank (or --data-parallel-external-lb)",
}
_OFF: Final = (
    "it keeps no images at all. Start it with --mm-processor-cache-gb above 0; models with an "
    "encoder and a decoder never keep any"
)


class Item(NamedTuple):
    """An image of a request: its name in the engine, and the bytes of its tensors there."""

    hash: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How the images of one request go out, in the order of the prompt.

    ``send[i]`` tells whether the data of ``items[i]`` must be in the request, or its hash will do.
    """

    items: tuple[Item, ...]
    send: tuple[bool, ...]
    resets: int
    misses: int

    @property
    def references(self) -> tuple[str, ...]:
        """Hashes of the images that go without data."""
        pairs = zip(self.items, self.send, strict=True)
        return tuple(item.hash for item, send in pairs if not send)

    def sized(self, nbytes: Iterable[int]) -> Plan:
        """The same plan, now that the engine has told how large its images are."""
        sizes = zip(self.items, nbytes, strict=True)
        return replace(self, items=_checked(Item(item.hash, n) for item, n in sizes))


class LedgerStats(NamedTuple):
    """A ledger at one moment, with those that came from its ``at``.

    ``claims``: images that engines are believed to hold, and their ``bytes`` there; ``budget`` is
    that of one engine. Since the start: images of accepted requests that were ``sent`` and
    ``referenced``, ``misses``, and ``resets``, in which all claims on an engine were dropped.
    """

    claims: int
    bytes: int
    budget: int
    sent: int
    referenced: int
    misses: int
    resets: int


class SendOnce:
    """What one engine's image cache holds, as far as its answers tell.

    ``budget`` is the size of that cache: bytes or text (for vLLM ``--mm-processor-cache-gb``, 4 GiB
    unless it was started otherwise). The ledger repeats what an LRU by bytes does with the
    accepted requests, in the engine's own sizes. ``engine`` says which kind of cache that is:
    ``"safe"`` sends all data always; ``"lru"`` refers to what was sent before. ``route`` is how
    images travel: processed ``"features"``, or sources as ``"content_parts"``.

    One ledger is for one engine; :meth:`at` gives that of each. A hash that the engine lost costs
    one more request, see :meth:`miss`. Threads share a ledger freely. A forked child, a copy and a
    pickle start without claims.

    Raises ``Refused`` for kinds of engine that a reference would break or that keep nothing, and
    ``ValueError`` for unknown ones.
    """

    def __init__(
        self,
        budget: int | str = "4 GiB",
        *,
        engine: Engine = "safe",
        route: Route = "features",
    ) -> None:
        self._budget = parse_size(budget)
        _permit(engine, route, self._budget)
        self._engine: Engine = engine
        self._route: Route = route
        self._states: dict[int, _State] = {}

    @property
    def budget(self) -> int:
        """Bytes that the engine's cache may hold."""
        return self._budget

    @property
    def engine(self) -> Engine:
        """The kind of cache that the engine has; ``"safe"`` makes no use of any."""
        return self._engine

    @property
    def route(self) -> Route:
        """How images travel to the engine."""
        return self._route

    def at(self, endpoint: str, identity: str = "") -> SendOnce:
        """The ledger, with these settings, of one engine.

        ``identity`` tells engines behind one ``endpoint`` apart: whatever always reaches the same
        one, such as the session id that a router pins requests by. Neither is kept or shown.
        """
        name = hash_value((endpoint, identity))
        state = self._state()
        with state.lock:
            ledger = state.engines.pop(name, None)
            if ledger is None:
                ledger = SendOnce(self._budget, engine=self._engine, route=self._route)
                if len(state.engines) >= ENGINES:
                    state.engines.popitem(last=False)
            state.engines[name] = ledger
        return ledger

    def plan(self, items: Iterable[tuple[str, int]], *, whole: bool = False) -> Plan:
        """What of a request's images, given as hash and bytes, the engine needs the data of.

        An image is referred to only after a request with its data was confirmed, so that two
        threads with the same new image both send it. ``whole`` sends everything.
        """
        checked = _checked(Item(*item) for item in items)
        state = self._state()
        with state.lock:
            known = () if whole or self._engine == "safe" else state.claims
            send = tuple(item.hash not in known for item in checked)
            return Plan(checked, send, state.resets, state.misses)

    def confirm(self, plan: Plan) -> None:
        """Notes that the engine accepted the request that ``plan`` was made for.

        Without effect when everything was dropped in between: the engine may have lost it.
        """
        state = self._state()
        with state.lock:
            state.sent += sum(plan.send)
            state.referenced += len(plan.send) - sum(plan.send)
            if self._engine != "safe" and plan.resets == state.resets:
                state.accepted(plan, self._budget)

    def miss(self, hashes: Plan | Iterable[str] | None = None) -> None:
        """Drops claims, because the engine did not know an image.

        ``hashes`` are those that it named; ``None`` stands for all, as after a restart. A plan
        says that one of its references failed and the engine did not say which: they go, and what
        was used less recently than any of them, since an LRU loses that first. When this happens
        again before any older claim has proved right, the engine has lost everything, and so
        does the ledger.
        """
        if isinstance(hashes, str):
            raise TypeError(f"hashes come as a list, not as a str: {hashes!r}")
        state = self._state()
        with state.lock:
            state.missed += 1
            if hashes is None:
                state.clear()
            elif isinstance(hashes, Plan):
                state.doubt(hashes)
            else:
                for name in hashes:
                    state.drop(name)

    def reset(self) -> None:
        """Drops all claims, those of the ledgers that came from :meth:`at` too.

        For those who know that engines start anew or clear their caches: vLLM does when
        generation pauses for new weights.
        """
        state = self._state()
        with state.lock:
            state.clear()
            others = list(state.engines.values())
        for ledger in others:
            ledger.reset()

    def __contains__(self, name: object) -> bool:
        """Whether the engine is believed to hold the image of this hash."""
        return name in self._state().claims

    def stats(self) -> LedgerStats:
        """Counts of this ledger and of those that came from :meth:`at`."""
        state = self._state()
        with state.lock:
            others = list(state.engines.values())
            own = LedgerStats(
                claims=len(state.claims),
                bytes=state.bytes,
                budget=self._budget,
                sent=state.sent,
                referenced=state.referenced,
                misses=state.missed,
                resets=state.resets,
            )
        total = LedgerStats(*map(sum, zip(own, *[each.stats() for each in others], strict=True)))
        return total._replace(budget=self._budget)

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(SendOnce, engine=self._engine, route=self._route)
        return make, (self._budget,)

    def __repr__(self) -> str:
        now = self.stats()
        held = f"{now.claims} images, {format_size(now.bytes)}"
        return f"SendOnce({format_size(now.budget)!r}, {self._engine!r}, {self._route!r}: {held})"

    def _state(self) -> _State:
        # A forked child starts afresh: its parent's lock may be held by a thread that it has not.
        pid = os.getpid()
        return self._states.get(pid) or self._states.setdefault(pid, _State())


class _Claim(NamedTuple):
    """An image that the engine accepted: its size there, and how many misses there were by then."""

    nbytes: int
    misses: int


class _State:
    """The claims of a process on one engine, least recently used first."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.claims: OrderedDict[str, _Claim] = OrderedDict()
        self.engines: OrderedDict[Digest, SendOnce] = OrderedDict()
        self.bytes = 0
        self.sent = 0
        self.referenced = 0
        self.missed = 0
        self.resets = 0
        # Misses since the last reset whose images the engine did not name.
        self.misses = 0
        # How many of them there were when a claim from before the last one proved right.
        self.proven = 0

    def accepted(self, plan: Plan, budget: int) -> None:
        """Does what the engine's LRU did: touch all, then store or touch each in turn."""
        for item in plan.items:
            if item.hash in self.claims:
                self.claims.move_to_end(item.hash)
        for item, sent in zip(plan.items, plan.send, strict=True):
            if sent:
                self.drop(item.hash)
                self.store(item, budget)
            elif item.hash in self.claims:
                self.claims.move_to_end(item.hash)
                if self.claims[item.hash].misses < plan.misses == self.misses:
                    self.proven = self.misses

    def store(self, item: Item, budget: int) -> None:
        """Adds a claim at the recent end, if the engine has room for it at all."""
        if item.nbytes > budget:
            return
        while self.bytes + item.nbytes > budget:
            self.bytes -= self.claims.popitem(last=False)[1].nbytes
        self.claims[item.hash] = _Claim(item.nbytes, self.misses)
        self.bytes += item.nbytes

    def drop(self, name: str) -> None:
        """Removes the claim of a hash, if there is one."""
        claim = self.claims.pop(name, None)
        if claim is not None:
            self.bytes -= claim.nbytes

    def doubt(self, plan: Plan) -> None:
        """Removes what a miss of one of the plan's references makes unlikely."""
        if plan.resets != self.resets:
            return  # what it relied on has been dropped since
        if plan.misses == self.misses > self.proven:
            self.clear()
            return
        self.misses += 1
        references = {name for name in plan.references if name in self.claims}
        if references:
            while next(iter(self.claims)) not in references:
                self.bytes -= self.claims.popitem(last=False)[1].nbytes
        for name in references:
            self.drop(name)

    def clear(self) -> None:
        """Removes all claims, and makes the plans that rest on them void."""
        self.claims.clear()
        self.bytes = self.misses = self.proven = 0
        self.resets += 1


def _checked(items: Iterable[Item]) -> tuple[Item, ...]:
    checked = tuple(items)
    for name, nbytes in checked:
        if not isinstance(name, str) or not isinstance(nbytes, int):
            kinds = f"{type(name).__name__} and {type(nbytes).__name__}"
            raise TypeError(f"an item is a hash (str) and its bytes (int), not {kinds}")
        if not name or nbytes < 0:
            raise ValueError(f"an item needs a hash and a size: {name!r}, {nbytes} bytes")
    return checked


def _permit(engine: Engine, route: Route, budget: int) -> None:
    if route not in ("features", "content_parts"):
        raise ValueError(f'route is "features" or "content_parts", not {route!r}')
    if engine not in ("safe", "lru", "shm", "processor_only", "none"):
        raise ValueError(f'engine is "safe" or the kind of its cache ("lru"), not {engine!r}')
    if engine == "safe":
        return
    why = _REFUSED.get((route, engine))
    if engine == "none" or budget == 0:
        why = _OFF
    if why is not None:
        raise Refused(f'images cannot be sent once to this engine: {why}, or use engine="safe"')
