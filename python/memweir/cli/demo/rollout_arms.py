"""Rollouts whose prompts real renderers make. Each way to do that runs in a process of its own.

``python -m memweir.cli.demo.rollout_arms NAME FOLDER`` plays FOLDER/job.json as ``arms`` does: with
upstream's renderer where NAME is ``upstream``, else with memweir's and NAME as its byte budget.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import memweir as mw

from .arms import Clock  # keeps torch from being loaded where it is installed, too
from .offline import count_calls, make_processor, make_tokenizer
from .rollouts import PROCESSED, TURNS, UPSTREAM


def make_renderer(name: str, processor: Any) -> Any:
    """The renderer of an arm. Both name images as upstream does, so that prompts are equal."""
    if name == UPSTREAM:
        from renderers.qwen3_vl import Qwen3VLRenderer  # type: ignore[import-untyped]

        return Qwen3VLRenderer(make_tokenizer(), None, processor=processor)
    from memweir.integrations import renderers

    config = renderers.Qwen3VLRendererConfig(byte_budget=name, mm_hash="upstream")
    return renderers.Qwen3VLRenderer(make_tokenizer(), config, processor=processor)


def play(
    renderer: Any, uris: list[str], kept: list[list[Any]]
) -> Iterator[tuple[float, dict[str, str]]]:
    """All turns of all rollouts, which keep their prompts in ``kept``, then a trainer.

    Every turn renders the whole conversation, with a new image in it, as verifiers does. Yields
    after every turn, and after every image that the trainer takes, the seconds so far, and
    digests of prompts or pixels by rollout and turn.
    """
    clock = Clock()
    for rollout, mine in enumerate(kept):
        messages: list[dict[str, Any]] = []
        for turn in range(TURNS):
            url = {"url": uris[rollout * TURNS + turn]}
            image, text = {"type": "image_url", "image_url": url}, {"type": "text", "text": "step"}
            messages += [{"role": "user", "content": [image, text]}]
            with clock.running():
                mine.append(renderer.render(messages, add_generation_prompt=True))
            yield clock.seconds, {f"{rollout}/{turn}/prompt": prompt_digest(mine[-1])}
            messages += [{"role": "assistant", "content": "click"}]
    batch: Any = None
    for rollout, mine in enumerate(kept):
        for turn, item in enumerate(mine[-1].multi_modal_data.mm_items["image"]):
            with clock.running():
                pixels = np.asarray(item["pixel_values"])
                batch = np.empty_like(pixels) if batch is None else batch
                np.copyto(batch, pixels)
                del pixels
            yield clock.seconds, {f"{rollout}/{turn}/pixels": mw.hash_array(batch).hex()}


def prompt_digest(rendered: Any) -> str:
    """Of all that an engine is sent beside pixels: tokens, places and names of images."""
    images = rendered.multi_modal_data
    places = [(place.offset, place.length) for place in images.mm_placeholders["image"]]
    return mw.hash_value([rendered.token_ids, places, images.mm_hashes]).hex()


def main(name: str, folder: Path) -> None:
    """Plays the job in ``folder`` as the arm ``name``."""
    job = json.loads((folder / "job.json").read_text())
    rollouts, uris, warm = job["rollouts"], job["uris"], job["warm"]
    processor = make_processor()
    calls = count_calls(type(processor.image_processor))

    # Imports, code paths and the heap's working memory belong to the baseline, pixels do not.
    for _ in play(make_renderer(name, processor), [warm] * TURNS, [[]]):
        pass
    renderer = make_renderer(name, processor)
    if name != UPSTREAM:
        renderer.pixel_cache.clear()
    gc.collect()
    calls.clear()
    print("ready", flush=True)
    sys.stdin.readline()

    found: dict[str, str] = {}
    kept: list[list[Any]] = [[] for _ in range(rollouts)]
    for turns, (seconds, some) in enumerate(play(renderer, uris, kept), 1):
        if turns == rollouts * TURNS:
            found[PROCESSED] = str(len(calls))
        found.update(some)
        print(seconds, flush=True)
    print("done", flush=True)
    sys.stdin.readline()
    (folder / f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
