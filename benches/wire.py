"""What one rollout sends to vLLM, and what that costs its client: each case in its own process.

Eight turns through the real ``generate()`` of ``renderers``, a new 1024² image in each. Bodies are
counted and thrown away as they are sent; what an engine does with them is not in these figures.
A rollout of sources takes so little that each process plays several, after one to warm up, and the
median counts; every rollout has its own copies of the sources.
``MEMWEIR_VLLM`` names an unpacked vLLM wheel: its encoder is today's.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from statistics import median
from time import perf_counter, process_time
from typing import Any

import httpx
from renderers.client import generate

import memweir as mw
from memweir.integrations.vllm import SendOnceClient

from .harness import Table
from .qwen3_vl import make_renderer, message, screenshot

TURNS = 8
ROUNDS = 3
REPEATS = 9
MB = 1e6


def main() -> None:
    columns = ("", "bytes out", "largest body", "CPU", "of today's (all rounds)", "goal")
    widths = (46, 10, 12, 9, 24, 0)
    table = Table("One rollout, 8 turns, a new 1024² image in each", columns, widths)
    for today, cases in (("pixels", PIXELS), ("sources", SOURCES)):
        if today == "pixels" and not os.environ.get("MEMWEIR_VLLM"):
            table.row("pixels: skipped, MEMWEIR_VLLM names no unpacked vLLM wheel", *[""] * 5)
            continue
        rounds = [{name: play_apart(name) for name in (today, *cases)} for _ in range(ROUNDS)]
        for name, (what, most, share) in {today: (TODAY[today], None, None), **cases}.items():
            seen = [each[name] for each in rounds]
            shares = [each[name]["cpu"] / each[today]["cpu"] for each in rounds]
            ratio, goal, holds = "", "", True
            if name != today:
                ratio = f"{median(shares):.2f} ({min(shares):.2f}–{max(shares):.2f})"
            if most is not None:
                goal = f"≤ {most:g} MB, ≤ {share:g}"
                holds = seen[0]["bytes"] <= most * MB and median(shares) <= share
            assert len({(one["bytes"], one["largest"]) for one in seen}) == 1
            sizes = (f"{seen[0]['bytes'] / MB:.2f} MB", f"{seen[0]['largest'] / MB:.2f} MB")
            cpu = f"{median(one['cpu'] for one in seen):.3f} s"
            table.row(what, *sizes, cpu, ratio, goal, holds=holds)
        for key, unit in (("wall", "s"), ("peak", "MB")):
            medians = (median(each[name][key] for each in rounds) for name in (today, *cases))
            what = {"wall": "wall time", "peak": "growth of the peak RSS"}[key]
            print(f"  {what}, in this order: {', '.join(f'{one:.3g} {unit}' for one in medians)}")


TODAY = {
    "pixels": "pixels in every turn (today)",
    "sources": "sources in every turn (today)",
}
PIXELS = {
    "exact": ("pixels once, float32", 270.0, 0.4),
    "references": ("the same, from references into a cache", 270.0, 0.4),
    "bfloat16": ("pixels once, bfloat16", 136.0, 0.25),
}
SOURCES = {
    "named": ("sources once, then names", 4.5, 0.25),
    "rendering": ("rendering alone, nothing sent", None, None),
}


class Sink:
    """Takes bodies as an OpenAI client does, and counts what it would send."""

    base_url = "http://engine/v1"

    def __init__(self, *, deaf: bool = False) -> None:
        self.sizes: list[int] = []
        self.deaf = deaf

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        return {}

    async def post(
        self,
        path: str,
        *,
        cast_to: Any,
        body: Any = None,
        content: AsyncIterator[bytes] | None = None,
        options: Any = None,
    ) -> httpx.Response:
        if self.deaf:
            size = 0
        elif content is None:
            size = len(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
        else:
            size = 0
            async for piece in content:
                size += len(piece)
        self.sizes.append(size)
        places = [{"offset": 0, "length": 1024}] * len(self.sizes)
        logprobs = {"content": [{"token": "token_id:1", "logprob": -0.1}]}
        choice = {"index": 0, "token_ids": [1], "finish_reason": "stop", "logprobs": logprobs}
        reply = {"prompt_token_ids": [0], "mm_placeholders": {"image": places}, "choices": [choice]}
        return httpx.Response(200, json=reply)


def play(case: str) -> None:
    """Runs a case, and prints what it found."""
    if case == "pixels":
        sys.path.append(os.environ["MEMWEIR_VLLM"])
    renderer = make_renderer(torchvision())
    urls = [screenshot(seed, 1024) for seed in range(TURNS)]
    warm = renderer.render([message(screenshot(TURNS, 1024))])
    if case == "pixels":
        from renderers.client import _build_mm_features

        assert warm.multi_modal_data is not None
        _build_mm_features(renderer, warm.multi_modal_data)
    renderer._image_cache.clear()
    del warm
    light = case in ("sources", *SOURCES)
    rollout, rollouts = (of_sources, REPEATS + 1) if light else (of_pixels, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(rollouts):
        sink = Sink(deaf=case == "rendering")
        own = [url.encode().decode() for url in urls]
        wall, cpu = perf_counter(), process_time()
        asyncio.run(rollout(case, sink, renderer, own))
        times.append((perf_counter() - wall, process_time() - cpu))
        assert len(sink.sizes) == TURNS
    counted = times[1:] if light else times
    found = {"wall": median(wall for wall, _ in counted), "cpu": median(cpu for _, cpu in counted)}
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    print(json.dumps({**found, "peak": peak, "bytes": sum(sink.sizes), "largest": max(sink.sizes)}))


async def of_pixels(case: str, sink: Sink, renderer: Any, urls: list[str]) -> None:
    cache = mw.PixelCache("1 GiB", name="bench")
    ledger = mw.SendOnce(engine="lru")
    client = SendOnceClient(sink, ledger, wire="bfloat16" if case == "bfloat16" else "exact")
    last: Any = None
    data: Any = None
    for url in urls:
        new: Any = [message(url)]
        if last is None:
            out = renderer.render(new, add_generation_prompt=True)
        else:
            ids = last["prompt_ids"], last["completion_ids"]
            out = renderer.bridge_to_next_turn(*ids, new, previous_multi_modal_data=data)
        data = out.multi_modal_data
        if case == "references":
            data = mw.strip(data, cache).data
        today = case == "pixels"
        last = await generate(
            client=sink if today else client.carrying(data),  # type: ignore[arg-type]
            renderer=renderer,
            messages=new,
            model="m",
            prompt_ids=out.token_ids,
            prompt_attribution=out,
            multi_modal_data=data if today else None,
        )
        last["prompt_ids"] = out.token_ids


async def of_sources(case: str, sink: Sink, renderer: Any, urls: list[str]) -> None:
    ledger = mw.SendOnce(engine="lru", route="content_parts")
    client: Any = SendOnceClient(sink, ledger) if case == "named" else sink
    messages: list[Any] = []
    for url in urls:
        messages.append(message(url))
        await generate(
            client=client, renderer=renderer, messages=messages, model="m", process_multimodal=False
        )
        messages.append({"role": "assistant", "content": "ok"})


def torchvision() -> Any:
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor


def play_apart(case: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benches.wire", case]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    play(*sys.argv[1:]) if sys.argv[1:] else main()
