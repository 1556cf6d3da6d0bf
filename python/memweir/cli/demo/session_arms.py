"""A model that comes and goes, opened three ways. Each runs alone in a process of its own.

``python -m memweir.cli.demo.session_arms NAME FOLDER`` plays six cycles of load, use and drop or
close on FOLDER/model.onnx. On stdout it says ``ready``, waits for a line, then reports each step.
"""

from __future__ import annotations

import gc
import json
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import memweir as mw

from .encoder import inputs

CYCLES, QUIET = 6, 3.0
LENGTHS = (12, 200, 48, 512, 90, 150)


def opened(name: str, model: Path) -> Any:
    """The session of an arm: the runtime's own where NAME is ``plain``, else a profile of ours."""
    if name != "plain":
        return mw.ort.session(model, name, cache_dir=model.parent / "cache", log_severity=3)
    ort: Any = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def main(name: str, folder: Path) -> None:
    """Plays the arm called ``name``."""
    if name != "plain":
        mw.tune("models")
    import_module("onnxruntime")
    mw.ort.session  # noqa: B018  what it imports belongs to the baseline
    gc.collect()
    print("ready", flush=True)
    sys.stdin.readline()

    begun, found = perf_counter(), {}
    for cycle in range(CYCLES):
        session = opened(name, folder / "model.onnx")
        print(f"{perf_counter() - begun}", flush=True)
        for tokens in LENGTHS:
            (scores,) = session.run(None, inputs(tokens))
            found[f"{cycle}/{tokens}"] = mw.hash_array(scores).hex()
        with suppress(AttributeError):  # the runtime's own has no end
            session.close()
        del session, scores
        gc.collect()
        print(f"{perf_counter() - begun}", flush=True)
    # One request, then nobody comes: an idle minute, in as many seconds as a demo has.
    session = opened(name, folder / "model.onnx")
    session.run(None, inputs(LENGTHS[0]))
    with suppress(AttributeError):
        session.close()
    del session
    gc.collect()
    sleep(QUIET)
    print(f"{perf_counter() - begun}", flush=True)
    print("done", flush=True)
    sys.stdin.readline()
    (folder / f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
