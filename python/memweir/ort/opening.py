"""Opening a session: which model, with what, and what is to be said of it."""

from __future__ import annotations

import os
import stat
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memweir.errors import BadModel, NotPrepacked
from memweir.settings import first_use

from . import _runtime
from ._wire import read_bytes, read_file
from .advice import untuned
from .handle import Inside, Session, Size
from .offload import changing
from .profiles import Plan, plan
from .settings import SessionSettings, Setting, run_options, session_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._wire import Facts
    from .prepacked import Prepacked

__all__ = ["session"]


def session(
    model: str | os.PathLike[str] | bytes,
    profile: str | None = None,
    *,
    providers: Sequence[Any] | None = None,
    threads: int | None = None,
    runtime: Any = None,
    **overrides: Any,
) -> Session:
    """Opens a model in ONNX Runtime, with an end that gives its memory back.

    Profiles: ``"balanced"`` keeps the runtime's arena and lets idle threads sleep; ``"lean"`` runs
    the pre-packed form of the model from clean file pages and shrinks the arena after each run;
    ``"arena_off"`` is the published setting, for comparison; ``"default"`` is the runtime's own.
    ``None`` takes what :class:`~memweir.Settings` say, ``"balanced"`` unless told otherwise.

    ``providers=None`` is what the runtime itself would choose; those that were asked for and are
    not to be had are an error, never the CPU instead. ``threads=None`` is as many as the cpuset and
    the cgroup's quota give. Overrides: ``arena``, ``mem_pattern``, ``spinning``, ``optimization``,
    ``device_initializers``, ``shrink``, ``prepacked``, ``inter_threads``, ``log_severity``,
    ``custom_ops``, ``config``, ``run_config``, ``trim``, and for the pre-packed form ``cache_dir``
    and ``probe``. ``runtime`` is a module in the place of onnxruntime.

    Raises ``OSError`` for a file that cannot be read, :class:`~memweir.BadModel` for one that
    cannot be run, ``ModuleNotFoundError`` without onnxruntime.
    """
    known = first_use("mw.ort.session")
    profile = known.session_profile if profile is None else profile
    cache_dir, probe = overrides.pop("cache_dir", None), overrides.pop("probe", None)
    made = plan(profile, threads, overrides)
    if not isinstance(model, str | bytes | os.PathLike):
        raise TypeError(f"a model is a path or bytes, not {type(model).__name__}")
    source = model if isinstance(model, bytes) else Path(model).absolute()
    if providers is not None:
        if isinstance(providers, str):
            raise TypeError(f"providers is a list: [{providers!r}]")
        providers = list(providers)
    facts = checked(source)
    ort = _runtime.find(runtime)
    settings: list[Setting] = []
    notes: list[str] = []
    prepacked = None
    if made.prepacked:
        prepacked = _prepacked(source, facts, made, providers, ort, cache_dir, probe, settings)
        notes.extend(untuned())
    trim = _trim if made.trim else None
    before = _anon()
    try:
        try:
            inner = _open(ort, source, made, prepacked, providers, facts, settings)
        except BadModel as error:
            if prepacked is None:
                raise
            # A cleaning has taken it since, or the runtime does not like it any more.
            why = f"{prepacked.folder} could not be opened: {error}"
            settings, prepacked = [Setting("prepacked", True, False, why)], None
            inner = _open(ort, source, made, None, providers, facts, settings)
        run_config = run_options(made, settings)
        chosen = list(inner.get_providers())
        notes.extend(_fell_back(ort, chosen, providers))
    finally:
        # What loading took, and all of it where it failed.
        if trim is not None:
            trim()
    settings += [Setting("providers", chosen), Setting("trim", made.trim)]
    after = _anon()
    dropped = isinstance(source, bytes) and profile != "default"
    if dropped and hasattr(inner, "_model_bytes"):
        inner._model_bytes = None
    files = _files(source, facts, prepacked)
    _tell(notes)
    return Session(
        Inside(
            runtime=ort,
            session=inner,
            settings=SessionSettings(profile, tuple(settings), tuple(notes)),
            run_config=run_config,
            size=Size(
                None if before is None or after is None else after - before,
                0 if prepacked is None else prepacked.mapped,
            ),
            files=files,
            trim=trim,
            bytes_dropped=dropped,
        )
    )


def checked(source: Path | bytes) -> Facts:
    """What stands in a model whose files are all there."""
    if isinstance(source, bytes):
        facts = read_bytes(source)
        if facts.external:
            raise BadModel(
                f"the model has weights in {_names(facts)}, which bytes have no place for: give "
                "its path",
                kind="external-data",
            )
        return facts
    facts = read_file(source)
    for name, least in facts.external.items():
        try:
            found = (source.parent / name).stat()
        except ValueError as error:
            raise BadModel(f"{source}: {error} in a file name", kind="external-data") from None
        except FileNotFoundError:
            raise BadModel(
                f"{source} needs {name} beside it, which is missing", kind="external-data"
            ) from None
        if not stat.S_ISREG(found.st_mode):  # a device has no end
            raise BadModel(f"{source} needs {name}, which is no file", kind="external-data")
        size = found.st_size
        if size < least:
            raise BadModel(
                f"{source} needs {least} bytes of {name}, which has {size}: it is cut off",
                kind="external-data",
            )
    return facts


def _names(facts: Facts) -> str:
    return ", ".join(sorted(facts.external))


def _prepacked(
    source: Path | bytes,
    facts: Facts,
    made: Plan,
    providers: Sequence[Any] | None,
    ort: Any,
    cache_dir: Any,
    probe: Any,
    settings: list[Setting],
) -> Prepacked | None:
    from .build import prepack_of

    try:
        wanted = ort.get_available_providers() if providers is None else providers
        others = {_name(one) for one in wanted} - {_runtime.CPU, "AzureExecutionProvider"}
        if others:
            raise NotPrepacked(
                f"weights are packed for the CPU, and {', '.join(sorted(others))} has its own",
                kind="runtime",
            )
        found = prepack_of(
            source,
            facts,
            cache_dir=cache_dir,
            probe=probe,
            custom_ops=made.custom_ops,
            optimization=made.optimization or "all",
            config=made.config,
            runtime=ort,
        )
    except NotPrepacked as error:
        settings.append(Setting("prepacked", True, False, str(error)))
        return None
    how = "built now" if found.built else "from the cache"
    settings.append(
        Setting("prepacked", str(found.folder), True, f"{how}, {found.nbytes} bytes of disk")
    )
    return found


def _open(
    ort: Any,
    source: Path | bytes,
    made: Plan,
    prepacked: Prepacked | None,
    providers: Sequence[Any] | None,
    facts: Facts,
    settings: list[Setting],
) -> Any:
    if prepacked is not None:
        # It was optimised when it was built.
        made = replace(made, optimization="none")
    options, done = _options(ort, made, source)
    settings.extend(done)
    chosen = source if prepacked is None else prepacked.model
    what = chosen if isinstance(chosen, bytes) else str(chosen)
    name = "the model" if isinstance(source, bytes) else str(source)
    try:
        with changing():
            return _made(ort, what, options, providers)
    except Exception as error:
        if isinstance(error, OSError | MemoryError | TypeError):
            raise
        raise _runtime.as_bad_model(error, name, facts.foreign_ops()) from error


def _options(ort: Any, made: Plan, source: Path | bytes) -> tuple[Any, list[Setting]]:
    try:
        return session_options(ort, made)
    except Exception as error:
        if not made.custom_ops or isinstance(error, TypeError):
            raise
        raise BadModel(
            f"a library of custom operators could not be loaded: {error}", kind="custom-ops"
        ) from error


def _made(ort: Any, what: str | bytes, options: Any, providers: Sequence[Any] | None) -> Any:
    # Its own fallback would go on with the CPU and print a line.
    given = None if providers is None else list(providers)
    try:
        return ort.InferenceSession(what, options, providers=given, enable_fallback=0)
    except ValueError as error:
        # Versions that want them named take all they have, in the runtime's own order.
        if given is not None or "explicitly set" not in str(error):
            raise
        every = ort.get_available_providers()
        return ort.InferenceSession(what, options, providers=every, enable_fallback=0)


def _fell_back(ort: Any, chosen: list[str], providers: Sequence[Any] | None) -> list[str]:
    """Says which providers are missing; raises where they were asked for."""
    wanted = ort.get_available_providers() if providers is None else providers
    missing = [
        name
        for name in map(_name, wanted)
        if name not in chosen and (providers is not None or name not in _UNASKED)
    ]
    if not missing:
        return []
    what = f"{', '.join(missing)} could not be used; the session runs on {', '.join(chosen)}"
    if providers is not None:
        raise BadModel(
            f"{', '.join(missing)} was asked for and could not be used, which the runtime's log "
            f"explains; it chose {', '.join(chosen)}",
            kind="providers",
        )
    warnings.warn(what, RuntimeWarning, stacklevel=4)
    return [what]


# What the runtime may leave out of its own choice, and nobody misses.
_UNASKED = (_runtime.CPU, "AzureExecutionProvider")


def _name(provider: Any) -> str:
    return str(provider if isinstance(provider, str) else provider[0])


def _files(source: Path | bytes, facts: Facts, prepacked: Prepacked | None) -> tuple[str, ...]:
    if prepacked is not None:
        return (str(prepacked.weights),)
    if isinstance(source, bytes):
        return ()
    return tuple(str(source.parent / name) for name in facts.external)


def _anon() -> int | None:
    from memweir import _core

    return _core.memory().anon


def _trim() -> Any:
    from memweir.process.trim import trim

    return trim()


def _tell(notes: list[str]) -> None:
    import logging

    for note in notes:
        logging.getLogger("memweir.ort").info("%s", note)
