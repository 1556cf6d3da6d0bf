"""``python -m benches [NAME ...]``: prints every table, or those named."""

from __future__ import annotations

import importlib
import os
import sys

TIMES = (
    *("imports", "identity", "cache", "compact", "render", "refs", "sources", "probes", "wire"),
    *("replies", "reading", "trim"),
)
ALL = (
    *TIMES,
    *("memory", "images", "churn", "rollouts", "decode", "deploy", "models", "ort", "races"),
)


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in ALL]
    if unknown:
        raise SystemExit(f"no bench {', '.join(unknown)}; there are {', '.join(ALL)}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in names or ALL:
        importlib.import_module(f"benches.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
