"""Ids of encoded sources, and what interning them leaves of rollouts that are parsed each turn."""

from __future__ import annotations

import base64
import gc
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3

import memweir as mw

from .harness import Ratio, Table

MIB = 1 << 20
SIZE = 530_000
"""Characters of a data URI: a PNG of 1024² that compresses well."""
ROLLOUTS, TURNS = 32, 8


def main() -> None:
    uris = [uri(number) for number in range(8)]
    encoded = [one.encode() for one in uris]
    table = Table(f"8 data URIs of {SIZE / 1e3:.0f} kB; other: BLAKE3 of the same bytes")

    def least() -> list[bytes]:
        return [blake3.blake3(one).digest() for one in encoded]

    table.ratio("source_id, known", ids(uris, least), 1.25, plus=0.1e-3)
    table.ratio("source_id, known in another spelling", ids([odd(u) for u in uris], least))
    fresh = iter([uri(1000 + number) for number in range(400)])
    first = Ratio.measure(lambda: mw.source_id(next(fresh)), lambda: least()[:1], rounds=9)
    table.ratio("source_id, one seen for the first time; other: 8", first)

    history = [message(0, turn) for turn in range(TURNS)]
    text = json.dumps(history)
    kept = mw.intern_sources(history).data
    table = Table(f"One rollout of {TURNS} turns in JSON; other: json.loads of it")

    def parsed() -> Any:
        return json.loads(text)

    def interned() -> Any:
        return mw.intern_sources(json.loads(text)).data

    store = mw.PixelCache("64 MiB", name="bench")

    def stored() -> Any:
        return mw.intern_sources(json.loads(text), store=store).data

    table.ratio("and intern_sources", Ratio.measure(interned, parsed))
    table.ratio("and intern_sources into a store", Ratio.measure(stored, parsed))
    data = stored()
    table.ratio("restore_sources", Ratio.measure(lambda: mw.restore_sources(data), parsed), 1)
    del kept

    table = Table(
        f"{ROLLOUTS} rollouts of {TURNS} turns, all turns held, {SIZE / 1e3:.0f} kB each: RssAnon "
        "over the baseline",
        ("", "held", "trimmed", "dropped", "collected", "goal"),
        (34, 10, 10, 10, 10, 0),
    )
    distinct = ROLLOUTS * TURNS * SIZE
    for case in CASES:
        held, trimmed, dropped, collected = cell(case)
        most = 2 * distinct if case == "interned" else 1.05 * distinct + 8 * MIB
        bounded = case != "plain"
        table.row(
            case,
            *(f"{size / MIB:.0f} MiB" for size in (held, trimmed, dropped, collected)),
            f"≤ {most / MIB:.0f} MiB held" if bounded else f"distinct: {distinct / MIB:.0f} MiB",
            holds=not bounded or held <= most,
        )


def ids(uris: list[str], other: Callable[[], object]) -> Ratio:
    return Ratio.measure(lambda: [mw.source_id(one) for one in uris], other, calls=5)


def uri(seed: int) -> str:
    payload = random.Random(seed).randbytes(SIZE * 3 // 4)
    return "data:image/png;base64," + base64.b64encode(payload).decode("ascii")


def odd(uri: str) -> str:
    """The same source in lines, as mail programs write it."""
    head, _, body = uri.partition(",")
    return f"{head},\n" + "\n".join(body[at : at + 76] for at in range(0, len(body), 76))


def message(rollout: int, turn: int) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": uri(rollout * 1000 + turn)}}
    return {"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}


# What runs in a process of its own.

_store: mw.PixelCache | None = None


def into_store(history: Any) -> Any:
    return mw.intern_sources(history, store=_store).data


CASES: dict[str, Callable[[Any], Any]] = {
    "plain": lambda history: history,
    "interned": lambda history: mw.intern_sources(history).data,
    "in a store": into_store,
}


def cell(case: str) -> list[int]:
    """Bytes over the baseline: held, after malloc_trim, without the rollouts, after gc."""
    command = [sys.executable, "-m", "benches.sources", case]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[int] = json.loads(done.stdout)
    return found


def play(case: str) -> None:
    """Each turn parses the whole history anew, as a server does, and keeps what it parsed."""
    global _store  # noqa: PLW0603  the one store of this process
    _store = mw.PixelCache("1 GiB", name="bench")
    keep = CASES[case]
    mw.restore_sources(keep([message(-1, 0)]))
    base = anon()
    steps = []
    for rollout in range(ROLLOUTS):
        history: Any = []
        for turn in range(TURNS):
            history = json.loads(json.dumps(mw.restore_sources(history)))
            history = keep([*history, message(rollout, turn)])
            steps.append(history)
    found = [anon() - base]
    trim()
    found.append(anon() - base)
    del steps, history
    found.append(anon() - base)
    gc.collect()
    _store.clear()
    found.append(anon() - base)
    print(json.dumps(found))


def anon() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def trim() -> None:
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    play(*sys.argv[1:])
