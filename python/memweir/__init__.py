"""memweir keeps long-lived multimodal Python processes at a set memory level.

Pixels, models and heap each get a byte budget, an owner and a way back. Importing this package
loads numpy and one shared object; everything else loads when it is first used.
"""

from __future__ import annotations

import os as _os
import threading as _threading
from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from . import _core
from ._core import Digest, Pixels, __version__
from .errors import (
    BadModel,
    BudgetExceeded,
    Busy,
    Conflict,
    EvictionFailed,
    IdentifierError,
    InUse,
    LeaseLost,
    LoadFailed,
    MemweirError,
    MissingPixels,
    NotPrepacked,
    PixelMismatch,
    ProbeFailed,
    Refused,
    Released,
    UnknownVerdict,
    UnsupportedType,
    Unverifiable,
)
from .identity import (
    hash_array,
    hash_bytes,
    hash_file,
    hash_image,
    hash_many,
    hash_value,
)
from .pixels.cache import CacheStats, PixelCache, Spec

if TYPE_CHECKING:
    from . import ort
    from .events import Event
    from .identifiers import check_argv, check_identifier, fingerprint, loggable
    from .logs import RedactingFilter
    from .models.adapters.protocol import Sizes
    from .models.keys import model_key
    from .models.ladder import Idle, Rung
    from .models.lease import AsyncLease, Lease
    from .models.loaded import Loaded, loaded
    from .models.pool import ModelPool
    from .models.report import ShutdownReport, Unloaded, UnloadReport
    from .models.status import BudgetStatus, ModelStatus, PoolStatus
    from .pixels.intern import Interned, intern_sources
    from .pixels.ledger import SendOnce
    from .pixels.processor import CachedProcessor
    from .pixels.refs import PixelRef
    from .pixels.resolve import Recompute, materialize, resolvers
    from .pixels.source_id import source_id
    from .pixels.source_refs import SourceRef, find_source, restore_sources
    from .pixels.sources import PixelId, SourceMemo
    from .pixels.strip import Stripped, strip
    from .probes.auth import AMBIENT, ANONYMOUS, ANY
    from .probes.cache import ProbeCache, ProbeStats
    from .probes.classify import classify_hub
    from .probes.policy import TTL, Backoff
    from .probes.process import run_probe_process
    from .probes.verdict import UNKNOWN, Reason, Verdict
    from .process.explain import Explanation, explain
    from .process.heap import Allocator, Heap, heap
    from .process.hooks import TrimHook, on_trim
    from .process.memory import Limit, Memory, Pressure, limits, memory
    from .process.trim import TrimReport, TrimStep, atrim, trim
    from .process.tune import Knob, TuneReport, recommended_env, tune
    from .redaction import redact
    from .settings import Settings, configure

# What these modules import is not needed to import memweir, and costs more than memweir does.
_LAZY = {
    "AMBIENT": "probes.auth",
    "ANONYMOUS": "probes.auth",
    "ANY": "probes.auth",
    "TTL": "probes.policy",
    "UNKNOWN": "probes.verdict",
    "Allocator": "process.heap",
    "AsyncLease": "models.lease",
    "Backoff": "probes.policy",
    "BudgetStatus": "models.status",
    "CachedProcessor": "pixels.processor",
    "Event": "events",
    "Explanation": "process.explain",
    "Heap": "process.heap",
    "Idle": "models.ladder",
    "Interned": "pixels.intern",
    "Knob": "process.tune",
    "Lease": "models.lease",
    "Limit": "process.memory",
    "Loaded": "models.loaded",
    "Memory": "process.memory",
    "ModelPool": "models.pool",
    "ModelStatus": "models.status",
    "PixelId": "pixels.sources",
    "PixelRef": "pixels.refs",
    "PoolStatus": "models.status",
    "Pressure": "process.memory",
    "ProbeCache": "probes.cache",
    "ProbeStats": "probes.cache",
    "Reason": "probes.verdict",
    "Recompute": "pixels.resolve",
    "RedactingFilter": "logs",
    "Rung": "models.ladder",
    "SendOnce": "pixels.ledger",
    "Settings": "settings",
    "ShutdownReport": "models.report",
    "Sizes": "models.adapters.protocol",
    "SourceMemo": "pixels.sources",
    "SourceRef": "pixels.source_refs",
    "Stripped": "pixels.strip",
    "TrimHook": "process.hooks",
    "TrimReport": "process.trim",
    "TrimStep": "process.trim",
    "TuneReport": "process.tune",
    "UnloadReport": "models.report",
    "Unloaded": "models.report",
    "Verdict": "probes.verdict",
    "atrim": "process.trim",
    "check_argv": "identifiers",
    "check_identifier": "identifiers",
    "classify_hub": "probes.classify",
    "configure": "settings",
    "explain": "process.explain",
    "find_source": "pixels.source_refs",
    "fingerprint": "identifiers",
    "heap": "process.heap",
    "intern_sources": "pixels.intern",
    "limits": "process.memory",
    "loaded": "models.loaded",
    "loggable": "identifiers",
    "materialize": "pixels.resolve",
    "memory": "process.memory",
    "model_key": "models.keys",
    "on_trim": "process.hooks",
    "recommended_env": "process.tune",
    "redact": "redaction",
    "resolvers": "pixels.resolve",
    "restore_sources": "pixels.source_refs",
    "run_probe_process": "probes.process",
    "source_id": "pixels.source_id",
    "strip": "pixels.strip",
    "trim": "process.trim",
    "tune": "process.tune",
}

_MODULES = frozenset({"ort"})

__all__ = [
    "AMBIENT",
    "ANONYMOUS",
    "ANY",
    "TTL",
    "UNKNOWN",
    "Allocator",
    "AsyncLease",
    "Backoff",
    "BadModel",
    "BudgetExceeded",
    "BudgetStatus",
    "Busy",
    "CacheStats",
    "CachedProcessor",
    "Conflict",
    "Digest",
    "Event",
    "EvictionFailed",
    "Explanation",
    "Heap",
    "IdentifierError",
    "Idle",
    "InUse",
    "Interned",
    "Knob",
    "Lease",
    "LeaseLost",
    "Limit",
    "LoadFailed",
    "Loaded",
    "Memory",
    "MemweirError",
    "MissingPixels",
    "ModelPool",
    "ModelStatus",
    "NotPrepacked",
    "PixelCache",
    "PixelId",
    "PixelMismatch",
    "PixelRef",
    "Pixels",
    "PoolStatus",
    "Pressure",
    "ProbeCache",
    "ProbeFailed",
    "ProbeStats",
    "Reason",
    "Recompute",
    "RedactingFilter",
    "Refused",
    "Released",
    "Rung",
    "SendOnce",
    "Settings",
    "ShutdownReport",
    "Sizes",
    "SourceMemo",
    "SourceRef",
    "Spec",
    "Stripped",
    "TrimHook",
    "TrimReport",
    "TrimStep",
    "TuneReport",
    "UnknownVerdict",
    "UnloadReport",
    "Unloaded",
    "UnsupportedType",
    "Unverifiable",
    "Verdict",
    "__version__",
    "atrim",
    "check_argv",
    "check_identifier",
    "classify_hub",
    "configure",
    "explain",
    "find_source",
    "fingerprint",
    "hash_array",
    "hash_bytes",
    "hash_file",
    "hash_image",
    "hash_many",
    "hash_value",
    "heap",
    "intern_sources",
    "limits",
    "loaded",
    "loggable",
    "materialize",
    "memory",
    "model_key",
    "on_trim",
    "ort",
    "recommended_env",
    "redact",
    "resolvers",
    "restore_sources",
    "run_probe_process",
    "source_id",
    "strip",
    "trim",
    "tune",
]

# A child that is forked while another thread imports has that module's lock for ever, and waits for
# it at its own first use. So a fork waits for names that are being looked up for the first time.
_importing = _threading.RLock()

if hasattr(_os, "register_at_fork"):
    _os.register_at_fork(
        before=_importing.acquire,
        after_in_parent=_importing.release,
        after_in_child=_importing.release,
    )
    _os.register_at_fork(after_in_child=_core._after_fork_in_child)


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return _import_module(f"{__name__}.{name}")
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _importing:
        value = getattr(_import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_MODULES})
