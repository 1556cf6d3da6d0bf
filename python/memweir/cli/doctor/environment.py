"""Variables that decide about memory: whether they are understood, and came in time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from memweir.redaction import MARK
from memweir.settings import parts

from .finding import Facts, Finding
from .host import Host

__all__ = ["facts", "findings"]

# glibc reads these once, before the first line of a program; the names end as they do.
NUMBERS = (
    *("MALLOC_ARENA_MAX", "MALLOC_ARENA_TEST", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"),
    *("MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_"),
)
AT_START = (*NUMBERS, "GLIBC_TUNABLES", "MALLOC_CONF", "LD_PRELOAD", "PYTHONMALLOC")
# And these are read when the library is imported, or first used.
AT_IMPORT = {
    "NUMPY_MADVISE_HUGEPAGE": "numpy",
    "OMP_NUM_THREADS": "torch",
    "MKL_NUM_THREADS": "torch",
    "OPENBLAS_NUM_THREADS": "numpy",
    "PYTORCH_ALLOC_CONF": "torch",
    "PYTORCH_CUDA_ALLOC_CONF": "torch",
    "PYTORCH_HIP_ALLOC_CONF": "torch",
    "ARROW_DEFAULT_MEMORY_POOL": "pyarrow",
    "PILLOW_BLOCKS_MAX": "PIL",
}
_OURS = "MEMWEIR_"
# Read by what is not a setting: parts of the core, integrations, and what tests and benches name.
OTHERS = ("SIMD", "MM_EPHEMERAL", "MM_HASH_CACHE", "VLLM", "VERIFIERS")
# As its loader reads them; an empty one is as good as none.
_NUMBER = re.compile(r"\s*([-+]?(0[xX][0-9a-fA-F]+|\d+)\s*)?", re.ASCII)
_WRONG = {name.rstrip("_") if name.endswith("_") else name + "_": name for name in NUMBERS}
_FAMILIES = ("MIMALLOC_", "TCMALLOC_")
_TORCH = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def facts(host: Host) -> dict[str, Any]:
    shown, nothings = {}, unknown(host)
    for name, value in sorted(host.environ.items()):
        if not (name in AT_START or name in AT_IMPORT or name in _WRONG or _known(name)):
            continue
        late = None if host.at_start is None else host.at_start.get(name) != value
        # What nothing reads may be anything: a password of whoever took our prefix.
        shown[name] = {"value": MARK if name in nothings else value, "late": late}
    imported = sorted({module for module in AT_IMPORT.values() if module in host.modules})
    return {"variables": shown, "unknown": nothings, "imported": imported}


def _known(name: str) -> bool:
    return name.startswith((_OURS, *_FAMILIES))


def unknown(host: Host) -> dict[str, str | None]:
    """Our variables that nothing reads, and the name that comes nearest."""
    names = [part.name.upper() for part in parts()] + list(OTHERS)
    found = {}
    for name in sorted(host.environ):
        rest = name.removeprefix(_OURS)
        if name.startswith(_OURS) and rest not in names:
            near = get_close_matches(rest.upper(), names, 1)
            found[name] = _OURS + near[0] if near else None
    return found


def findings(facts: Facts) -> Iterator[Finding]:
    variables = facts["environment"]["variables"]
    for name, nearest in facts["environment"]["unknown"].items():
        yield Finding(
            "warning",
            "variable-unknown",
            f"nothing reads {name}" + (f": did you mean {nearest}?" if nearest else ""),
            f"rename it to {nearest}" if nearest else "take it out",
            name,
        )
    for name, seen in variables.items():
        if name in _WRONG:
            yield Finding(
                "problem",
                "variable-misspelt",
                f"glibc does not read {name}: its name is {_WRONG[name]}",
                f"rename it to {_WRONG[name]}",
                name,
            )
        if seen["late"]:
            yield from _late(name, facts["environment"]["imported"])
        if name in NUMBERS and not _NUMBER.fullmatch(seen["value"]):
            yield Finding(
                "problem",
                "variable-no-number",
                f"glibc reads only digits of {name}={seen['value']}, and no units: 128K are 128 "
                "bytes to it, and what has no digits is as good as not set",
                "write the number out: 131072",
                name,
            )
    yield from _idle(facts)
    yield from _numpy(facts)
    yield from _torch(variables)


def _late(name: str, imported: list[str]) -> Iterator[Finding]:
    library = AT_IMPORT.get(name)
    if name in AT_START or name.startswith(_FAMILIES):
        yield Finding(
            "problem",
            "variable-late",
            f"{name} was set after the process began: it is read before the first line of Python, "
            "and has no effect",
            "set it where the process is started (ENV, Environment=, env:), not in os.environ"
            + ("; or call mw.tune(), which works at run time" if name in NUMBERS else ""),
            name,
        )
    elif library in imported:
        yield Finding(
            "warning",
            "variable-maybe-late",
            f"{name} was set after the process began: it counts only if that was before {library} "
            "was imported or used",
            "set it where the process is started",
            name,
        )


def _idle(facts: Facts) -> Iterator[Finding]:
    """Variables of an allocator that is not the one at work."""
    variables, kind = facts["environment"]["variables"], facts["allocator"]["kind"]
    for name in variables:
        owner = "glibc" if name in (*NUMBERS, "GLIBC_TUNABLES") else None
        owner = "jemalloc" if name == "MALLOC_CONF" else owner
        owner = next((f.lower()[:-1] for f in _FAMILIES if name.startswith(f)), owner)
        tunes = name != "GLIBC_TUNABLES" or "glibc.malloc" in variables[name]["value"]
        if owner not in (None, kind) and tunes:
            yield Finding(
                "warning",
                "variable-idle",
                f"{name} is read by {owner}, and malloc is {kind}'s here: it has no effect",
                f"take it out, or start the process under {owner}",
                name,
            )
    seen = variables.get("MALLOC_CONF")
    if kind == "jemalloc" and "background_thread:true" not in (seen["value"] if seen else ""):
        yield Finding(
            "note",
            "jemalloc-no-background",
            "jemalloc gives memory back while somebody allocates: an idle process keeps it",
            "MALLOC_CONF=background_thread:true,dirty_decay_ms:1000, or mw.tune()",
        )


def _numpy(facts: Facts) -> Iterator[Finding]:
    if (
        "NUMPY_MADVISE_HUGEPAGE" not in facts["environment"]["variables"]
        # Where they are given to all, numpy's asking changes nothing.
        and facts["kernel"]["huge_pages"] == "madvise"
        and facts["allocator"]["kind"] == "glibc"
    ):
        yield Finding(
            "note",
            "numpy-huge-pages",
            "numpy asks for huge pages under arrays of 4 MiB and more, and malloc's free memory "
            "keeps the mark until a trim takes it back: the kernel fills it in again before that",
            "set NUMPY_MADVISE_HUGEPAGE=0 where the process is started, if what is free is to stay "
            "free without a trim",
        )


def _torch(variables: dict[str, Any]) -> Iterator[Finding]:
    values = {name: variables[name]["value"] for name in _TORCH if name in variables}
    if len(set(values.values())) > 1:
        yield Finding(
            "warning",
            "torch-conf-twice",
            f"{' and '.join(values)} say different things: they are names of one setting",
            "keep PYTORCH_ALLOC_CONF (torch before 2.9: PYTORCH_CUDA_ALLOC_CONF)",
        )
