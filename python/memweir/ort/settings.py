"""The one place where session options are made, and the record of what took effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .profiles import Plan

__all__ = ["SessionSettings", "Setting", "run_options", "session_options"]

SHRINK = "memory.enable_memory_arena_shrinkage"
DEVICE_INITIALIZERS = "session.use_device_allocator_for_initializers"
SPINNING = ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning")


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that was to be set; ``why`` says why it was not, or what to know of it."""

    name: str
    value: Any
    applied: bool = True
    why: str | None = None


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What was set in a session, and what there is to know of it."""

    profile: str
    items: tuple[Setting, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        """The value of what took effect; ``KeyError`` for what did not."""
        for item in self.items:
            if item.name == name and item.applied:
                return item.value
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(item.name == name and item.applied for item in self.items)

    def __iter__(self) -> Iterator[str]:
        return (item.name for item in self.items if item.applied)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of what took effect, or ``default``."""
        try:
            return self[name]
        except KeyError:
            return default

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "profile": self.profile,
            "applied": {item.name: item.value for item in self.items if item.applied},
            "left_out": {item.name: item.why for item in self.items if not item.applied},
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [self.profile]
        for item in self.items:
            word = f" ({item.why})" if item.why else ""
            lines.append(f"  {item.name} = {item.value}{'' if item.applied else ' not set'}{word}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def session_options(ort: Any, plan: Plan) -> tuple[Any, list[Setting]]:
    """The runtime's options for a plan, and what came of each. What it lacks is no error."""
    options, done = ort.SessionOptions(), []

    def attribute(name: str, shown: str, value: Any) -> None:
        if value is None:
            return
        try:
            if not hasattr(options, name):
                raise AttributeError("this runtime does not know it")
            setattr(options, name, value)
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            done.append(Setting(shown, value, False, str(error)))
        else:
            done.append(Setting(shown, value))

    def entry(key: str, value: str, shown: str | None = None, told: Any = None) -> None:
        name, told = shown or key, value if told is None else told
        try:
            options.add_session_config_entry(key, value)
        except Exception as error:  # the runtime's own classes, which differ by version
            done.append(Setting(name, told, False, f"{type(error).__name__}: {error}"))
        else:
            done.append(Setting(name, told))

    attribute("intra_op_num_threads", "threads", plan.threads)
    attribute("inter_op_num_threads", "inter_threads", plan.inter_threads)
    attribute("enable_cpu_mem_arena", "arena", plan.arena)
    attribute("enable_mem_pattern", "mem_pattern", plan.mem_pattern)
    attribute("log_severity_level", "log_severity", plan.log_severity)
    if plan.optimization is not None:
        levels = ort.GraphOptimizationLevel
        name = "DISABLE_ALL" if plan.optimization == "none" else f"ENABLE_{plan.optimization}"
        attribute(
            "graph_optimization_level", "optimization", getattr(levels, f"ORT_{name.upper()}")
        )
        if done[-1].applied:
            done[-1] = Setting("optimization", plan.optimization)
    if plan.spinning is not None:
        for key in SPINNING:
            entry(key, str(int(plan.spinning)), f"{key.split('.')[1]}_spinning", plan.spinning)
    if plan.device_initializers is not None:
        value = plan.device_initializers
        entry(DEVICE_INITIALIZERS, str(int(value)), "device_initializers", value)
    for key, text in plan.config.items():
        entry(key, text)
    for library in plan.custom_ops:
        # What fails here is an error: without them the model cannot be run.
        options.register_custom_ops_library(library)
        done.append(Setting("custom_ops", library))
    return options, done


def run_options(plan: Plan, notes: list[Setting]) -> dict[str, str]:
    """Entries for the configuration of each run."""
    entries = {}
    if plan.shrink:
        if plan.arena is False:
            notes.append(Setting("shrink", True, False, "there is no arena to shrink"))
        else:
            entries[SHRINK] = "cpu:0"
            notes.append(Setting("shrink", True))
    for key, value in plan.run_config.items():
        entries[key] = value
        notes.append(Setting(key, value))
    return entries
