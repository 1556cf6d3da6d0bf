"""Probes to be run in child processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import Any

from memweir.probes import UNKNOWN, ProbeFailed


def answer(subject: str = "", **arguments: Any) -> Any:
    return {"subject": subject, **arguments}


async def answer_later(subject: str) -> str:
    await asyncio.sleep(0)
    return subject


class Nested:
    @staticmethod
    def yes(**_: Any) -> bool:
        return True


def unknown(**_: Any) -> Any:
    return UNKNOWN


def nothing(**_: Any) -> None:
    return None


def not_json(**_: Any) -> object:
    return object()


def bug(**_: Any) -> None:
    raise TypeError("a bug")


def denied(**_: Any) -> None:
    error = OSError("wrapped")
    error.__cause__ = type("GatedRepoError", (OSError,), {})()
    raise error


def limited(**_: Any) -> None:
    raise ProbeFailed("transient", status=429, retry_after=30.0)


def wait(**_: Any) -> None:
    time.sleep(3600)


def noise(**_: Any) -> bool:
    os.write(1, b'{"ok": "a lie"}\n')
    print("noise" * 10)
    subprocess.run(["echo", '{"ok": "another lie"}'], check=True)
    return True


def last_words(**_: Any) -> bool:
    for n in range(20_000):
        print("line", n, file=sys.stderr)
    return True


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def leave(code: int) -> None:
    os._exit(code)


def crash_late(**_: Any) -> bool:
    import atexit

    atexit.register(os.kill, os.getpid(), signal.SIGSEGV)
    return True


def children(pids: str, then: str) -> bool:
    """Leaves behind a child in this group and one in a group of its own."""
    keep = "import time; time.sleep(3600)"
    grown = [
        subprocess.Popen([sys.executable, "-c", keep]),
        subprocess.Popen([sys.executable, "-c", keep], process_group=0),
    ]
    with open(pids, "w") as file:  # noqa: PTH123
        file.write(" ".join(str(child.pid) for child in grown))
    if then == "wait":
        time.sleep(3600)
    return True
