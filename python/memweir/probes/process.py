"""A probe in a process of its own: bounded in time and output, and told its secrets in private."""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from math import isfinite
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from memweir.errors import ProbeFailed
from memweir.identifiers import check_argv, loggable
from memweir.probes.classify import KINDS, is_exhausted
from memweir.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["ProcessOutcome", "process_probe", "run_probe_process"]

_LAST_WORDS = 8192  # characters of stderr that are shown
_KEPT_WORDS = 4 * _LAST_WORDS  # bytes that are kept: the first may be the rest of a secret
_PATROL = 0.05  # seconds between looks at a child that cannot be waited for by descriptor
_LONGEST = 3600.0  # seconds between looks at all, since selectors have limits
_TOKENS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN", "HUGGINGFACE_TOKEN"})


class ProcessOutcome(NamedTuple):
    """How a probe's process ended.

    ``ok`` and its ``value``; else ``kind`` as in :class:`~memweir.Reason` or ``"bug"``, with
    ``error``, ``status`` and ``retry_after`` as the child told them. ``returncode`` is negative
    for a signal, and says nothing about the subject. ``stderr`` is the last of it, redacted.
    """

    ok: bool
    value: Any = None
    kind: str = ""
    error: str | None = None
    status: int | None = None
    retry_after: float | None = None
    returncode: int | None = None
    stderr: str = ""
    seconds: float = 0.0

    def unwrap(self) -> Any:
        """The value, or :class:`~memweir.ProbeFailed` as a probe cache understands it."""
        if not self.ok:
            raise ProbeFailed(
                self.kind, error=self.error, status=self.status, retry_after=self.retry_after
            )
        return self.value


def run_probe_process(
    argv: Sequence[str],
    *,
    secrets: Mapping[str, str] | None = None,
    stdin_json: Any = None,
    deadline: float = 10.0,
    max_output: int = 1 << 20,
    env: Mapping[str, str] | None = None,
) -> ProcessOutcome:
    """Runs `argv` and returns what it answered; raises nothing for what goes wrong there.

    The child reads one JSON object, a line, from its standard input, ``{"input": stdin_json,
    "secrets": {...}, "deadline": seconds}``, and writes one to its standard output: ``{"ok":
    value}`` or ``{"error": {"kind": …, "type": …, "status": …, "retry_after": …}}``. Nothing else
    counts: neither its text nor its exit status can make an answer. ``python -m
    memweir.probes_child module:function`` is such a child.

    Secrets travel through that pipe only. A secret in `argv` is a ``ValueError``, and variables
    that hold one, or anything that looks like a token, are left out of the child's environment
    (``env``, by default this process's).

    At ``deadline`` seconds, or once it has written more than ``max_output`` bytes, the child and
    every process of its session are killed. The same becomes of those that it leaves behind, and of
    all that still runs when this interpreter exits.
    """
    if not 0 < deadline < float("inf"):
        raise ValueError("a deadline is a positive number of seconds")
    argv = check_argv(argv)
    secrets = {name: secret for name, secret in (secrets or {}).items() if secret}
    hidden = tuple(secrets.values())
    if any(secret.strip() in entry for secret in hidden for entry in argv if secret.strip()):
        raise ValueError("argv holds a secret: every user of the machine can read it there")
    if os.name != "posix":
        return ProcessOutcome(False, kind="unsupported", error="NotImplementedError")
    request = {"input": stdin_json, "secrets": secrets, "deadline": deadline}
    # One line, so that a child need not wait for the end of a pipe that others may have inherited.
    data = json.dumps(request).encode() + b"\n"
    began = time.monotonic()
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_clean(os.environ if env is None else env, hidden),
            start_new_session=True,
        )
    except OSError as error:
        kind = "exhausted" if is_exhausted(error) else "transient"
        return ProcessOutcome(
            False, kind=kind, error=type(error).__name__, seconds=time.monotonic() - began
        )
    _running[child.pid] = None
    talk = _Talk(child, data, began + deadline, max_output)
    try:
        ended = talk.run()
    finally:
        _kill_session(child.pid)
        returncode = child.wait()
        _running.pop(child.pid, None)
        talk.close()
    said = redact(talk.stderr.decode(errors="replace"), secrets=hidden)[-_LAST_WORDS:]
    answer = _answer(ended, bytes(talk.stdout), returncode, hidden)
    return answer._replace(returncode=returncode, stderr=said, seconds=time.monotonic() - began)


def process_probe(
    target: str, *, deadline: float = 10.0, max_output: int = 1 << 20
) -> Callable[..., Any]:
    """A probe for :class:`~memweir.ProbeCache` that runs ``module:function`` in a child process.

    The function is called with ``subject`` and the cache's keyword arguments, ``token`` among
    them, and returns something that JSON can carry.
    """
    check_argv([target])

    def probe(subject: str, **arguments: Any) -> Any:
        token = arguments.get("token")
        secrets = {"token": arguments.pop("token")} if isinstance(token, str) else None
        return run_probe_process(
            [sys.executable, "-m", "memweir.probes_child", target],
            secrets=secrets,
            stdin_json={"subject": subject, **arguments},
            deadline=deadline,
            max_output=max_output,
        ).unwrap()

    return probe


def _clean(env: Mapping[str, str], hidden: tuple[str, ...]) -> dict[str, str]:
    return {
        name: value
        for name, value in env.items()
        if name not in _TOKENS and redact(value, secrets=hidden) == value
    }


class _Talk:
    """Feeds a child and listens to it until it ends, or has to."""

    def __init__(
        self, child: subprocess.Popen[bytes], request: bytes, end: float, most: int
    ) -> None:
        self._child = child
        self._request = memoryview(request)
        self._end = end
        self._most = most
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._exit = -1
        with suppress(AttributeError, OSError):
            self._exit = os.pidfd_open(child.pid)

    def run(self) -> Literal["ended", "timeout", "too much"]:
        """Until the child has ended and all that it had written is read."""
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        with selectors.DefaultSelector() as selector:
            for pipe, event in (
                (child.stdin, selectors.EVENT_WRITE),
                (child.stdout, selectors.EVENT_READ),
                (child.stderr, selectors.EVENT_READ),
            ):
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, event)
            if self._exit >= 0:
                selector.register(self._exit, selectors.EVENT_READ)
            gone = False
            while True:
                # Its end counts, not that of its pipes: a process that it left may hold those.
                if not gone and _has_ended(child):
                    gone = True
                    _kill_session(child.pid)  # else what it left behind may go on writing
                left = self._end - time.monotonic()
                if left <= 0:
                    return "ended" if gone else "timeout"
                most = _LONGEST if self._exit >= 0 else _PATROL
                wait = 0.0 if gone else min(left, most)
                ready = [key.fileobj for key, _ in selector.select(wait)]
                if child.stdin in ready and not self._feed(child.stdin):
                    selector.unregister(child.stdin)
                    child.stdin.close()
                heard = False
                for pipe in (child.stdout, child.stderr):
                    if pipe in ready:
                        if self._hear(pipe):
                            heard = True
                        else:
                            selector.unregister(pipe)
                if len(self.stdout) > self._most:
                    return "too much"
                if gone and not heard:
                    return "ended"

    def _feed(self, pipe: IO[bytes]) -> bool:
        try:
            self._request = self._request[os.write(pipe.fileno(), self._request[:65536]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:  # it does not want to know
            return False
        return bool(self._request)

    def _hear(self, pipe: IO[bytes]) -> bool:
        try:
            data = os.read(pipe.fileno(), 65536)
        except BlockingIOError:
            return True
        if pipe is self._child.stdout:
            self.stdout += data
        else:
            self.stderr = (self.stderr + data)[-_KEPT_WORDS:]
        return bool(data)

    def close(self) -> None:
        """Closes what is open."""
        if self._exit >= 0:
            os.close(self._exit)
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    # It is not reaped yet: till its session is killed, its number must name nobody else.
    if hasattr(os, "waitid"):
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, child.pid, how) is not None
        except ChildProcessError:  # somebody else reaps, or SIGCHLD is ignored
            return True
    return child.poll() is not None


def _kill_session(leader: int) -> None:
    """Kills a session: its leader's process group, then those that were moved to other groups."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    for _ in range(8):  # one may have been born since they were listed
        members = [pid for pid in _members(leader) if pid != leader]
        if not members:
            return
        for pid in members:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


_running: dict[int, None] = {}  # children of threads that an exit does not wait for


@atexit.register
def _kill_all() -> None:
    for pid in list(_running):
        _kill_session(pid)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)  # they are the parent's


def _members(session: int) -> list[int]:
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:
        return []  # only Linux tells
    found = []
    for pid in pids:
        with suppress(OSError):
            if os.getsid(pid) == session:
                found.append(pid)
    return found


def _answer(ended: str, stdout: bytes, returncode: int, hidden: tuple[str, ...]) -> ProcessOutcome:
    if ended == "timeout":
        return ProcessOutcome(False, kind="timeout")
    if ended == "too much":
        return ProcessOutcome(False, kind="transient", error="OutputTooLarge")
    if returncode:
        how = f"Signal{-returncode}" if returncode < 0 else f"Exit{returncode}"
        return ProcessOutcome(False, kind="transient", error=how)
    try:
        told = _without(json.loads(stdout), hidden)
    except (ValueError, RecursionError):
        return ProcessOutcome(False, kind="transient", error="NotJson")
    if isinstance(told, dict) and told.keys() == {"ok"} and told["ok"] is not None:
        return ProcessOutcome(True, told["ok"])
    failure = told.get("error") if isinstance(told, dict) else None
    if not isinstance(failure, dict):
        return ProcessOutcome(False, kind="transient", error="NotAnAnswer")
    kind: Any = failure.get("kind")
    error = failure.get("type")
    status, retry_after = failure.get("status"), failure.get("retry_after")
    return ProcessOutcome(
        False,
        kind=kind if isinstance(kind, str) and kind in KINDS else "transient",
        error=loggable(error, 80) if isinstance(error, str) else None,
        status=status if type(status) is int and 100 <= status <= 599 else None,
        retry_after=_seconds(retry_after),
    )


def _seconds(told: object) -> float | None:
    try:
        seconds = float(told) if isinstance(told, int | float) else -1.0
    except OverflowError:
        return None
    return seconds if isfinite(seconds) and seconds >= 0 else None


def _without(value: Any, hidden: tuple[str, ...]) -> Any:
    """The value with secrets that the child repeated taken out."""
    if not hidden:
        return value
    if isinstance(value, str):
        return redact(value, secrets=hidden)
    if isinstance(value, list):
        return [_without(each, hidden) for each in value]
    if isinstance(value, dict):
        return {_without(key, hidden): _without(each, hidden) for key, each in value.items()}
    return value
