"""What each profile says of a session, and how a call changes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

__all__ = ["PROFILES", "Plan", "Profile", "plan"]

Profile: TypeAlias = Literal["balanced", "lean", "arena_off", "default"]
Level: TypeAlias = Literal["all", "extended", "basic", "none"]

_LEVELS = ("all", "extended", "basic", "none")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a session is to be made; ``None`` leaves a thing to the runtime."""

    arena: bool | None = None
    """Whether activations come from an arena of the session's own."""
    mem_pattern: bool | None = None
    """Whether the runtime plans one block for all activations of a shape it has seen."""
    spinning: bool | None = None
    """Whether idle threads of the session spin for a while before they sleep."""
    optimization: Level | None = None
    device_initializers: bool | None = None
    """Whether weights are allocated outside the arena."""
    shrink: bool | None = None
    """Whether the arena gives back what a run does not use any more, after each run."""
    prepacked: bool = False
    """Whether to run the pre-packed form of the model."""
    threads: int | None = None
    inter_threads: int | None = None
    trim: bool = True
    """Whether memory is given back to the system after the load and after the close."""
    log_severity: int | None = None
    custom_ops: tuple[str, ...] = ()
    """Libraries with operators to register."""
    config: Mapping[str, str] = field(default_factory=dict)
    """Further entries of the session's configuration."""
    run_config: Mapping[str, str] = field(default_factory=dict)
    """Further entries of each run's configuration."""


PROFILES: Mapping[str, Plan] = MappingProxyType(
    {
        # Blocks of one shape do not fit the next: an arena that keeps them peaks 16 MiB higher.
        # Weights in it make older versions double it: 370 MiB for a model of 199.
        "balanced": Plan(
            arena=True,
            mem_pattern=True,
            spinning=False,
            device_initializers=True,
            shrink=True,
        ),
        "lean": Plan(
            arena=True,
            mem_pattern=True,
            spinning=False,
            device_initializers=True,
            shrink=True,
            prepacked=True,
        ),
        "arena_off": Plan(arena=False, mem_pattern=False),
        "default": Plan(),
    }
)


def plan(profile: str, threads: int | None, overrides: Mapping[str, Any]) -> Plan:
    """The plan of a profile with what a call says besides.

    Raises ``ValueError`` and ``TypeError`` for what there is not.
    """
    try:
        base = PROFILES[profile]
    except (KeyError, TypeError):
        known = ", ".join(PROFILES)
        raise ValueError(f"no profile {profile!r}; there are {known}") from None
    for name, value in overrides.items():
        _check(name, value)
    if threads is None and profile != "default":
        from memweir.process.cpus import processors

        threads = processors()
    _threads("threads", threads)
    said = dict(overrides)
    if "custom_ops" in said:
        said["custom_ops"] = tuple(map(str, said["custom_ops"]))
    made = replace(base, threads=threads, **said)
    if profile == "arena_off" and sys.platform == "win32" and made.arena is False:
        raise ValueError(
            "arena_off is refused on Windows: each allocation of a run becomes a system call "
            'there, and a run takes minutes; take "balanced"'
        )
    return made


_SWITCHES = (
    *("arena", "mem_pattern", "spinning", "device_initializers", "shrink", "prepacked", "trim"),
)

_OVERRIDES = (
    *_SWITCHES,
    *("optimization", "inter_threads", "log_severity", "custom_ops", "config", "run_config"),
    *("cache_dir", "probe"),
)


def _check(name: str, value: Any) -> None:
    if name in _SWITCHES:
        if not isinstance(value, bool):
            raise TypeError(f"{name} is True or False, not {type(value).__name__}")
    elif name == "optimization":
        if value not in _LEVELS:
            raise ValueError(f"optimization is one of {', '.join(_LEVELS)}, not {value!r}")
    elif name == "inter_threads":
        _threads(name, value)
    elif name == "log_severity":
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"log_severity is an int from 0 to 4, not {type(value).__name__}")
        if not 0 <= value <= 4:
            raise ValueError(f"log_severity is an int from 0 to 4, not {value}")
    elif name == "custom_ops":
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise TypeError("custom_ops is a list of paths of libraries")
    elif name in ("config", "run_config"):
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} is a dict of str, not {type(value).__name__}")
        for key, entry in value.items():
            if not (isinstance(key, str) and isinstance(entry, str)):
                raise TypeError(f"{name} is a dict of str to str: {key!r}")
    else:
        raise TypeError(f"session() knows no {name!r}; it takes {', '.join(_OVERRIDES)}")


def _threads(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is an int from 1 or None, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} is an int from 1 or None, not {value}")
