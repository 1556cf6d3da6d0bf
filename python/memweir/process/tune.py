"""Telling the allocator to keep less: at run time, or by the environment of the next process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from memweir import _core
from memweir.process.heap import Allocator
from memweir.process.heap import allocator as _live
from memweir.sizes import format_size, parse_size

__all__ = ["Knob", "Profile", "TuneReport", "recommended_env", "tune", "tuned"]

Profile: TypeAlias = Literal["images", "models", "server"]
_Value: TypeAlias = int | str | bool | None

_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Knob:
    """One thing that was to be set. ``why`` says why it was not, or how far it took effect."""

    name: str
    value: int
    ok: bool
    why: str | None


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What :func:`tune` set. ``late`` says why it comes too late for what is there, if it does."""

    allocator: Allocator
    profile: str
    knobs: tuple[Knob, ...]
    late: str | None

    @property
    def ok(self) -> bool:
        """Whether everything took effect, in time."""
        return self.late is None and all(knob.ok for knob in self.knobs)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.profile}, for {self.allocator}"]
        for knob in self.knobs:
            word = f" ({knob.why})" if knob.why else ""
            lines.append(f"  {knob.name} = {knob.value}{'' if knob.ok else ' not set'}{word}")
        if not self.knobs:
            lines.append("  nothing to set here")
        if self.late:
            lines.append(f"  late: {self.late}")
        return "\n".join(lines)


def _size(most: int) -> Callable[[_Value], int]:
    accepts = f'bytes as an int or text such as "4 MiB", at most {format_size(most)}'

    def check(value: _Value) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise TypeError(accepts)
        try:
            size = parse_size(value)
        except ValueError as error:
            raise ValueError(f"{accepts} ({error})") from None
        if size > most:
            raise ValueError(accepts)
        return size

    return check


def _number(least: int, most: int, meaning: str = "") -> Callable[[_Value], int]:
    accepts = f"an int from {least} to {most}{meaning}"

    def check(value: _Value) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(accepts)
        if not least <= value <= most:
            raise ValueError(accepts)
        return value

    return check


def _flag(value: _Value) -> int:
    if not isinstance(value, bool):
        raise TypeError("True or False")
    return int(value)


_DELAY = _number(-1, 1 << 30, " (milliseconds; -1 never)")

_CHECKS: dict[str, dict[str, Callable[[_Value], int]]] = {
    "glibc": {
        # More than half a heap of a thread is refused; such blocks are maps of their own anyway.
        "mmap_threshold": _size(32 * _MIB),
        "trim_threshold": _size((1 << 31) - 1),
        "top_pad": _size((1 << 31) - 1),
        "arena_max": _number(1, 1 << 16),
    },
    "jemalloc": {"background_thread": _flag, "dirty_decay_ms": _DELAY, "muzzy_decay_ms": _DELAY},
    "mimalloc": {"purge_delay_ms": _DELAY},
    "tcmalloc": {"aggressive_decommit": _flag, "release_rate": _number(0, 1000)},
}


def _arenas() -> int:
    """Few enough that a sweep reaches all of them, and two for each processor before that."""
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:
        processors = os.cpu_count() or 1
    return min(16, max(4, 2 * processors))


def _values(profile: Profile) -> dict[str, dict[str, _Value]]:
    """What a profile sets in each allocator.

    In glibc always both thresholds: to set either stops glibc from moving them, and leaves the
    other wherever it got to.
    """
    if profile == "images":
        # Decoded images, and what a processor makes of them, come and go in maps of their own.
        glibc: dict[str, _Value] = {"mmap_threshold": 4 * _MIB, "trim_threshold": 128 * _KIB}
    elif profile == "models":
        # Tensors of some MiB would lie in the heap, and hold what is around them.
        glibc = {"mmap_threshold": 1 * _MIB, "trim_threshold": 128 * _KIB}
    elif profile == "server":
        # Threads of a pool keep their arenas: few, each with little at its top, and buffers of a
        # request below 4 MiB without a system call.
        glibc = {
            "mmap_threshold": 4 * _MIB,
            "trim_threshold": 1 * _MIB,
            "arena_max": _arenas(),
        }
    else:
        raise ValueError(f'a profile is "images", "models" or "server", not {profile!r}')
    return {
        "glibc": glibc,
        "jemalloc": {"background_thread": True, "dirty_decay_ms": 1000, "muzzy_decay_ms": 0},
        "mimalloc": {"purge_delay_ms": 10},
        "tcmalloc": {"release_rate": 10},
    }


def _checked(profile: Profile, kind: str, overrides: dict[str, _Value]) -> dict[str, int]:
    """The values to set, by name; ``None`` leaves a knob alone."""
    checks = {name: check for knobs in _CHECKS.values() for name, check in knobs.items()}
    for name in overrides:
        if name not in checks:
            raise TypeError(f"tune() knows no {name!r}; it takes {', '.join(checks)}")
    values = _values(profile).get(kind, {}) | overrides
    found = {}
    for name, value in values.items():
        if value is None:
            continue
        try:
            found[name] = checks[name](value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name} is {error}, not {value!r}") from None
    return found


def tune(profile: Profile, **overrides: int | str | bool | None) -> TuneReport:
    """Sets what the live allocator lets be set, for what a process does most.

    ``"images"`` decode and process pictures, ``"models"`` come and go, a ``"server"`` has pools of
    threads. Best called before anything big is allocated: ``report.late`` says when it was not.

    Overrides, by allocator, where ``None`` leaves a knob alone. glibc: ``mmap_threshold``,
    ``trim_threshold``, ``top_pad`` (sizes) and ``arena_max``; jemalloc: ``background_thread``,
    ``dirty_decay_ms``, ``muzzy_decay_ms``; mimalloc: ``purge_delay_ms``; tcmalloc:
    ``release_rate``, ``aggressive_decommit``. A knob of an allocator that is not here is reported
    as not set.

    A forked child keeps what was set, but for jemalloc's background thread, which it lacks.

    Raises ``ValueError`` for other profiles and values out of range, ``TypeError`` for other knobs
    and types.
    """
    live = _live()
    values = _checked(profile, live.kind, overrides)
    # What is set moves what glibc would have said.
    late = _core.heap_late()
    knobs = []
    for name, value in values.items():
        ok, why = _core.heap_tune(name, value)
        knobs.append(Knob(name, value, ok, why))
    report = TuneReport(live, profile, tuple(knobs), late)
    # The first of one process counts: what came too late for it, a second call does not mend.
    _first.setdefault("report", report)
    return report


# Changed by a single operation on the dict only: no lock that a fork could catch.
_first: dict[str, TuneReport] = {}


def tuned() -> TuneReport | None:
    """What the first :func:`tune` of this process reported; ``None`` when there was none."""
    return _first.get("report")


_GLIBC = {
    "mmap_threshold": "MALLOC_MMAP_THRESHOLD_",
    "trim_threshold": "MALLOC_TRIM_THRESHOLD_",
    "top_pad": "MALLOC_TOP_PAD_",
    "arena_max": "MALLOC_ARENA_MAX",
}


def recommended_env(
    profile: Profile, allocator: str | None = None, **overrides: int | str | bool | None
) -> dict[str, str]:
    """Variables that tune a process from its start, to be set before it is started.

    For the live allocator, or for ``"glibc"``, ``"jemalloc"``, ``"mimalloc"``, ``"tcmalloc"``,
    ``"macos"``, ``"musl"`` or ``"windows"``. Overrides as in :func:`tune`.
    """
    live = _live()
    kind = live.kind if allocator is None else allocator
    if kind not in (*_CHECKS, "macos", "musl", "windows", "unknown"):
        raise ValueError(f"an allocator is one of {', '.join(_CHECKS)}, macos, not {kind!r}")
    values = _checked(profile, kind, overrides)
    values = {name: value for name, value in values.items() if name in _CHECKS.get(kind, ())}
    # Pages that numpy asked to be huge are made huge again after they were given back.
    env = {} if kind in ("macos", "windows") else {"NUMPY_MADVISE_HUGEPAGE": "0"}
    if kind == "glibc":
        env |= {_GLIBC[name]: str(value) for name, value in values.items()}
    elif kind == "jemalloc":
        texts = (
            f"{name}:{str(bool(value)).lower() if name == 'background_thread' else value}"
            for name, value in values.items()
        )
        env["MALLOC_CONF"] = ",".join(texts)
    elif kind == "mimalloc":
        # Before 2.1 it had another name.
        old = live.kind == kind and (live.version or "").startswith(("1.", "2.0."))
        name = "MIMALLOC_DECOMMIT_DELAY" if old else "MIMALLOC_PURGE_DELAY"
        if "purge_delay_ms" in values:
            env[name] = str(values["purge_delay_ms"])
    elif kind == "tcmalloc":
        if "release_rate" in values:
            env["TCMALLOC_RELEASE_RATE"] = str(values["release_rate"])
        if values.get("aggressive_decommit"):
            env["TCMALLOC_AGGRESSIVE_DECOMMIT"] = "true"
    elif kind == "macos":
        env |= {"MallocAggressiveMadvise": "1", "MallocLargeCache": "0"}
    return env
