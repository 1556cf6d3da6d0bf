"""Pre-packing: the optimised model with weights as the processor wants them, built once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from memweir import _flight
from memweir.errors import LoadFailed, NotPrepacked
from memweir.sizes import format_size, parse_size

from . import _runtime
from ._lock import held
from .keys import key_of, parts_of
from .prepacked import (
    LIMIT,
    Prepacked,
    cache_folder,
    discard,
    entry,
    make_room,
    opened,
    seal,
    staging,
    sweep,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._wire import Facts

__all__ = ["prepack", "prepack_of"]

_flights = _flight.Flights()


def prepack(
    model: str | os.PathLike[str] | bytes,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    probe: Mapping[str, Any] | None = None,
    limit: int | str | None = None,
    custom_ops: Sequence[str | os.PathLike[str]] = (),
    optimization: str = "all",
) -> Prepacked:
    """The optimised, pre-packed form of a model, from the cache or built now.

    Weights lie in a file of their own in the layout of this processor and this version of ONNX
    Runtime; sessions map it, and its pages are clean and shared. It is built in a process of its
    own, once for all callers, and kept only if it gives the same bits as the model itself on a
    probe: zeros for integers, ones for masks, noise for floats, unknown dimensions 1 and 8; or the
    inputs in ``probe``. Of the folder's ``limit`` (8 GiB) the least recently used goes first.

    Raises :class:`~memweir.NotPrepacked` where that cannot be, ``OSError`` and
    :class:`~memweir.BadModel` as :func:`session` does.
    """
    from .opening import checked

    if not isinstance(model, str | bytes | os.PathLike):
        raise TypeError(f"a model is a path or bytes, not {type(model).__name__}")
    source = model if isinstance(model, bytes) else Path(model).absolute()
    return prepack_of(
        source,
        checked(source),
        cache_dir=cache_dir,
        probe=probe,
        limit=limit,
        custom_ops=tuple(map(str, custom_ops)),
        optimization=optimization,
        runtime=_runtime.find(),
    )


def prepack_of(
    source: Path | bytes,
    facts: Facts,
    *,
    cache_dir: Any = None,
    probe: Mapping[str, Any] | None = None,
    limit: int | str | None = None,
    custom_ops: tuple[str, ...] = (),
    optimization: str = "all",
    config: Mapping[str, str] | None = None,
    runtime: Any,
) -> Prepacked:
    """:func:`prepack` of a model that was looked at already."""
    _refused(facts, runtime)
    most = LIMIT if limit is None else parse_size(limit)
    config = dict(config or {})
    parts = parts_of(source, facts, runtime, optimization, custom_ops, config)
    key = key_of(parts)
    try:
        folder = cache_folder(cache_dir)
    except OSError as error:
        raise NotPrepacked(str(error.strerror), kind="disk") from error
    try:
        if (found := opened(folder, key, parts)) is not None:
            return found
        folder.mkdir(parents=True, exist_ok=True)

        def lead() -> Prepacked:
            # Another process may be at it: then its work is what we get.
            with held(entry(folder, key).with_name(entry(folder, key).name + ".lock")):
                if (found := opened(folder, key, parts)) is not None:
                    return found
                job = {
                    "custom_ops": list(custom_ops),
                    "optimization": optimization,
                    "config": config,
                }
                found = _build(source, facts, folder, key, parts, job, probe, most, runtime)
            # Not before its lock is free: of those who build at a time the last must see them all.
            make_room(folder, key, most)
            return found

        return _flights.run((str(folder), key), lead)
    except OSError as error:
        where = f"{folder}: {error.strerror or error}"
        raise NotPrepacked(f"the cache folder cannot be used: {where}", kind="disk") from error
    except LoadFailed as error:
        if isinstance(error.__cause__, NotPrepacked):
            raise NotPrepacked(str(error.__cause__), kind=error.__cause__.kind) from None
        if isinstance(error.__cause__, OSError):
            raise NotPrepacked(f"{folder}: {error.__cause__}", kind="disk") from None
        raise


def _refused(facts: Facts, runtime: Any) -> None:
    if facts.ort_format:
        raise NotPrepacked(
            "the model is in ORT format, which has no weights to pack", kind="format"
        )
    if random := facts.random_ops():
        raise NotPrepacked(
            f"the model has random operators ({', '.join(random)}): nothing shows that its "
            "pre-packed form gives the same",
            kind="random",
        )
    if _runtime.version(runtime) < _runtime.PREPACKS_FROM:
        needs = ".".join(map(str, _runtime.PREPACKS_FROM))
        raise NotPrepacked(
            f"ONNX Runtime {getattr(runtime, '__version__', '?')} ignores the key for pre-packed "
            f"weights: it takes {needs} or newer",
            kind="runtime",
        )


def _build(
    source: Path | bytes,
    facts: Facts,
    folder: Path,
    key: str,
    parts: dict[str, Any],
    job: dict[str, Any],
    probe: Mapping[str, Any] | None,
    limit: int,
    runtime: Any,
) -> Prepacked:
    begun = monotonic()
    sweep(folder)
    discard(entry(folder, key))  # what is there is stale or damaged
    size = _size(source, facts)
    _room(folder, 2 * size + (size if isinstance(source, bytes) else 0), limit)
    with staging(folder, key) as place:
        if isinstance(source, bytes):
            name, path = "", place / "source.onnx"
            path.write_bytes(source)
        else:
            name, path = source.name, source
        made = place / "made"
        made.mkdir()
        _work({**job, "source": str(path), "out": str(made)}, probe, place, runtime)
        custom_ops, optimization = tuple(job["custom_ops"]), job["optimization"]
        if parts_of(source, facts, runtime, optimization, custom_ops, job["config"]) != parts:
            raise NotPrepacked("the model was changed while it was built", kind="build")
        seal(made, name, parts, monotonic() - begun)
        made.rename(entry(folder, key))
    found = opened(folder, key, parts)
    if found is None:
        raise NotPrepacked("what was written does not read back as it was", kind="disk")
    return replace(found, built=True)


def _size(source: Path | bytes, facts: Facts) -> int:
    if isinstance(source, bytes):
        return len(source)
    beside = (source.parent / name for name in facts.external)
    return sum(path.stat().st_size for path in (source, *beside))


def _room(folder: Path, needed: int, limit: int) -> None:
    if needed > limit:
        raise NotPrepacked(
            f"it takes about {format_size(needed)} of disk, and the limit is {format_size(limit)}",
            kind="disk",
        )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise NotPrepacked(
            f"it takes about {format_size(needed)} of disk, and {folder} has {format_size(free)} "
            "left",
            kind="disk",
        )


def _work(job: dict[str, Any], probe: Mapping[str, Any] | None, place: Path, runtime: Any) -> None:
    """Builds and proves in a child, whose end gives its memory back; here where there is none."""
    import numpy as np

    if probe is not None:
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in probe.items()}
        np.savez(place / "probe.npz", **arrays)
        job["probe"] = str(place / "probe.npz")
    from . import _builder

    if not sys.executable or runtime is not sys.modules.get("onnxruntime"):
        result = _builder.work(job, runtime)
    else:
        result = _child(job)
    if result.get("kind") is not None:
        raise NotPrepacked(result["why"], kind=result["kind"])


def _child(job: dict[str, Any]) -> dict[str, Any]:
    try:
        done = subprocess.run(
            # Modules are found as here: the working folder is none of the places by itself.
            [sys.executable, "-P", "-m", "memweir.ort._builder"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(one or str(Path.cwd()) for one in sys.path),
            },
        )
    except OSError as error:
        return {"kind": "build", "why": f"no process could be started to build it: {error}"}
    with suppress(ValueError, IndexError):
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    told = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
    return {"kind": "build", "why": f"the builder ended with {done.returncode}: {told[0]}"}
