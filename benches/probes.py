"""``ProbeCache`` beside caches of values: what a hit costs, and what each does under load."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

import cachebox
import cachetools
from async_lru import alru_cache

import memweir as mw
from memweir.identifiers import digest

from .harness import Ratio, Table, duration

TOKEN = "hf_" + "B3nchB3nchB3nchB3nchB3nchB3nchB3nc"
CALLS = 20_000
MOST = 3.5e-6


def main() -> None:
    hits()
    guarantees()


def probe(subject: str, *, token: Any = False, **_: Any) -> bool:
    return True


def hits() -> None:
    """A remembered answer. The limit in seconds is that of the project's machine."""
    table = Table(
        "ProbeCache.get of a remembered answer; beside: dict and keyed BLAKE2b of the token"
    )
    cache = mw.ProbeCache(probe)
    key = os.urandom(64)
    plain = {("org/model", digest(TOKEN), None): True}
    plain[("org/model", blake2b(TOKEN.encode(), key=key, digest_size=32).digest(), None)] = True

    def beside() -> bool:
        name = blake2b(TOKEN.encode(), key=key, digest_size=32).digest()
        return plain[("org/model", name, None)]

    def row(what: str, get: Callable[[], object], most: float | None = None) -> None:
        measured = Ratio.measure(get, beside, calls=CALLS)
        table.ratio(what, measured, most)
        if most is not None and (ours := median(measured.ours)) > MOST:
            limit = f"≤ {duration(MOST)}"
            table.row(f"{what}, in seconds", duration(ours), "", "", limit, holds=False)

    row("token given", lambda: cache.get("org/model", token=TOKEN), 3)
    row("token given, one dimension", lambda: cache.get("org/model", token=TOKEN, revision="main"))
    row("ANONYMOUS", lambda: cache.get("org/model", token=mw.ANONYMOUS))
    nobody = mw.ProbeCache(probe, auth=False)
    row("auth=False", lambda: nobody.get("org/model"))
    fixed = mw.ProbeCache(probe, environment=("5.0", "2.0", False), ttl=3600.0)
    row("token given, with a TTL", lambda: fixed.get("org/model", token=TOKEN))
    os.environ["HF_TOKEN"] = TOKEN
    row("AMBIENT, from the environment", lambda: cache.get("org/model", token=mw.AMBIENT))
    del os.environ["HF_TOKEN"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_TOKEN_PATH"] = f"{folder}/token"
        Path(f"{folder}/token").write_text(TOKEN)
        login = mw.ProbeCache(probe)
        row("AMBIENT, from a token file", lambda: login.get("org/model", token=mw.AMBIENT))
        del os.environ["HF_TOKEN_PATH"]
        Path(f"{folder}/config.json").write_text("{}")
        local = mw.ProbeCache(probe, auth=False, identify=_stamp)
        row("a local file, by its stat", lambda: local.get(f"{folder}/config.json"))
        try:
            from memweir.integrations.transformers import probe_cache
        except ModuleNotFoundError:
            pass
        else:
            model = probe_cache(probe)
            row("a model's folder, by probe_cache", lambda: model.get(folder, token=TOKEN))
            row("a model's name, by probe_cache", lambda: model.get("org/model", token=TOKEN))

    boxed = cachebox.cached(cachebox.LRUCache(1024))(probe)
    tools = cachetools.cached(cachetools.LRUCache(1024), lock=threading.Lock())(probe)
    memo = lru_cache(1024)(probe)
    for name, other in (("cachebox", boxed), ("cachetools", tools), ("lru_cache", memo)):
        row(f"{name}: raw token as key", lambda other=other: other("org/model", token=TOKEN))  # type: ignore[misc]


def _stamp(path: str) -> object:
    stat = os.stat(path)  # noqa: PTH116
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


class Slow:
    """A probe of 50 ms that counts how often it runs, and may fail."""

    def __init__(self, *, fails: bool = False) -> None:
        self.runs = 0
        self.fails = fails

    def __call__(self, subject: str, *, token: object = None) -> bool:
        self.runs += 1
        sleep(0.05)
        if self.fails:
            raise ConnectionError
        return True

    async def later(self, subject: str, *, token: object = None) -> bool:
        self.runs += 1
        await asyncio.sleep(0.05)
        if self.fails:
            raise ConnectionError
        return True


def guarantees() -> None:
    """How often a probe runs where it should once."""
    table = Table(
        "Probes run where one is enough (64 threads; 4 loops of 8 tasks; 50 calls that fail)",
        ("", "threads", "loops", "failing calls", "goal"),
        (30, 10, 10, 20, 0),
    )
    for name, (threads, loops, wants) in WAYS.items():
        herd, tasks, failing = Slow(), Slow(), Slow(fails=True)
        if threads is not None:
            ask = threads(herd)
            with ThreadPoolExecutor(64) as pool:
                list(pool.map(lambda _, ask=ask: quietly(ask), range(64)))  # type: ignore[misc]
            ask = threads(failing)
            for _ in range(50):
                quietly(ask)
        if loops is not None:
            ask = loops(tasks)
            workers = [threading.Thread(target=in_loop, args=(ask,)) for _ in range(4)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        shown = [str(slow.runs or "–") for slow in (herd, tasks, failing)]
        table.row(name, *shown, "1, 1, 1" if wants else "", holds=not wants or set(shown) == {"1"})


def quietly(ask: Callable[[], object]) -> None:
    try:
        ask()
    except ConnectionError:
        pass


def in_loop(ask: Callable[[], Any]) -> None:
    async def crowd() -> None:
        await asyncio.gather(*(ask() for _ in range(8)), return_exceptions=True)

    asyncio.run(crowd())


def _memweir(slow: Slow) -> Callable[[], object]:
    cache = mw.ProbeCache(slow, backoff=mw.Backoff(60.0))
    return lambda: cache.get("org/model", token=TOKEN)


def _memweir_async(slow: Slow) -> Callable[[], Any]:
    cache = mw.ProbeCache(slow.later)
    return lambda: cache.aget("org/model", token=TOKEN)


def _hand_written(slow: Slow) -> Callable[[], object]:
    memo: dict[tuple[str, str], bool] = {}

    def ask() -> bool:
        if ("org/model", TOKEN) not in memo:
            memo["org/model", TOKEN] = slow("org/model", token=TOKEN)
        return memo["org/model", TOKEN]

    return ask


def _called(
    wrap: Callable[[Any], Any], method: str = "__call__"
) -> Callable[[Slow], Callable[[], Any]]:
    def make(slow: Slow) -> Callable[[], Any]:
        probe = getattr(slow, method)
        if method == "later":
            cached = wrap(probe)
        else:
            cached = wrap(lambda subject, *, token: probe(subject, token=token))
        return lambda: cached("org/model", token=TOKEN)

    return make


# Each comes with a cache of its own every time.
def _boxed(probe: Any) -> Any:
    return cachebox.cached(cachebox.LRUCache(64))(probe)


def _tools(probe: Any) -> Any:
    return cachetools.cached(cachetools.LRUCache(64), lock=threading.Lock())(probe)


def _tools_waiting(probe: Any) -> Any:
    return cachetools.cached(cachetools.LRUCache(64), condition=threading.Condition())(probe)


def _alru(probe: Any) -> Any:
    return alru_cache(64)(probe)


def _lru(probe: Any) -> Any:
    return lru_cache(64)(probe)


WAYS: dict[str, tuple[Any, Any, bool]] = {
    "memweir": (_memweir, _memweir_async, True),
    "cachebox": (_called(_boxed), _called(_boxed, "later"), False),
    "cachetools, lock": (_called(_tools), None, False),
    "cachetools, condition": (_called(_tools_waiting), None, False),
    "async-lru": (None, _called(_alru, "later"), False),
    "functools.lru_cache": (_called(_lru), None, False),
    "a dict by hand": (_hand_written, None, False),
}


if __name__ == "__main__":
    main()
