"""Runs in an interpreter with one generation of libraries: how they report, how we read it.

Arguments: how to ask, then names of repositories. Prints one JSON line for each.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from memweir.probes import ProbeCache


def by_hub(subject, *, token):
    """One file, by the library that fetches files."""
    from huggingface_hub import hf_hub_download

    return bool(hf_hub_download(subject, "config.json", token=token))


def by_transformers(subject, *, token):
    """The way that wraps what went wrong."""
    from transformers import AutoConfig

    return bool(AutoConfig.from_pretrained(subject, token=token))


def chain(error):
    """The class names from the outermost error to the innermost."""
    names = []
    while error is not None and len(names) < 10:
        names.append(type(error).__name__)
        error = error.__cause__ or error.__context__
    return names


def main(how, subjects):
    ask = {"hub": by_hub, "transformers": by_transformers}[how]
    seen = {}

    def probe(subject, *, token):
        try:
            return ask(subject, token=token)
        except Exception as error:
            seen[subject] = chain(error)
            raise

    # Importing takes longer than a deadline.
    if how == "transformers":
        import transformers

        transformers.AutoConfig.for_model("bert")
    else:
        import huggingface_hub.file_download  # noqa: F401
    cache = ProbeCache(probe, deadline=float(os.environ["DEADLINE"]))

    def report(subject):
        began = time.monotonic()
        verdict = cache.get(subject, token="")
        reason = verdict.reason
        return {
            "subject": subject,
            "known": verdict.known,
            "kind": reason and reason.kind,
            "status": reason and reason.status,
            "error": reason and reason.error,
            "retry_after": verdict.retry_after,
            "seconds": time.monotonic() - began,
            "chain": seen.get(subject, []),
        }

    with ThreadPoolExecutor(len(subjects)) as pool:
        for line in pool.map(report, subjects):
            print(json.dumps(line))
    sys.stdout.flush()
    os._exit(0)  # threads of probes that were given up on still wait


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
