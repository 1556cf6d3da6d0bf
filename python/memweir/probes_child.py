"""``python -m memweir.probes_child module:function``: the other end of ``run_probe_process``.

Reads one JSON request, a line, from standard input, calls the function with the request's
``input`` and ``secrets`` as keyword arguments, and writes one JSON answer to what was its standard
output when it started. Whatever else the function or its libraries print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from typing import Any

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Answers one request."""
    if len(argv) != 1 or ":" not in argv[0]:
        print("usage: python -m memweir.probes_child module:function", file=sys.stderr)
        return 2
    channel = os.dup(1)
    os.set_inheritable(channel, False)
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    if hasattr(signal, "setitimer"):
        # Should the parent die, nobody else will end this process.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, request["deadline"] + 1)
    data = json.dumps(_answer(argv[0], request)).encode()
    while data:
        data = data[os.write(channel, data) :]
    sys.stderr.flush()
    # The answer is given; how libraries take the interpreter down must not change it.
    os._exit(0)


def _answer(target: str, request: dict[str, Any]) -> dict[str, Any]:
    from memweir._flight import is_async
    from memweir.probes.classify import classify_hub
    from memweir.probes.verdict import UNKNOWN

    try:
        module, _, name = target.partition(":")
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        arguments = {**(request["input"] or {}), **request["secrets"]}
        if is_async(function):
            import asyncio

            value = asyncio.run(function(**arguments))
        else:
            value = function(**arguments)
        if value is UNKNOWN:
            return {"error": {"kind": "undecided"}}
        if value is None:
            return {"error": {"kind": "bug", "type": "TypeError"}}
        json.dumps(value)
    except Exception as error:
        failure = classify_hub(error)
        return {
            "error": {
                "kind": failure.kind,
                "type": failure.error,
                "status": failure.status,
                "retry_after": failure.retry_after,
            }
        }
    return {"ok": value}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
