"""Questions about Hugging Face models: does it see, does it hear, does it embed.

Each is a probe for a :class:`~memweir.ProbeCache`; :func:`probe_cache` makes one with the spelling,
the environment and the file stamps that these questions need::

    vision = probe_cache(vision_support)
    vision.get("Qwen/Qwen2-VL-2B-Instruct", token=mw.AMBIENT)

They read the model's own ``config.json`` or ``modules.json``, and which model types the installed
transformers has processors for: no model is loaded, torch is not imported, no process is started,
and nothing is run from a repository. What cannot be told from that is unsupported, never "no".
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from memweir.errors import IdentifierError, ProbeFailed
from memweir.identifiers import check_identifier
from memweir.probes import ProbeCache

if TYPE_CHECKING:
    import ast
    from collections.abc import Callable, Hashable

__all__ = [
    "audio_support",
    "embedding_model",
    "file_stamps",
    "hub_environment",
    "hub_name",
    "probe_cache",
    "vision_support",
]

T = TypeVar("T")

_FILES = ("config.json", "modules.json")
# How the towers of composed models are called in their configurations.
_SEES = ("vision_config", "vision_tower", "mm_vision_tower", "visual", "img_processor")
_HEARS = ("audio_config", "audio_encoder", "audio_tower", "speech_config", "audio_processor")


def probe_cache(probe: Callable[..., T], **options: Any) -> ProbeCache[T]:
    """A cache for one of the probes here, or for one like them.

    Options are those of :class:`~memweir.ProbeCache` and replace what is set here.
    """
    defaults: dict[str, Any] = {
        "name": getattr(probe, "__name__", "probe"),
        "normalize": hub_name,
        "identify": file_stamps,
        "environment": hub_environment,
    }
    return ProbeCache(probe, **{**defaults, **options})


def vision_support(subject: str, *, token: str | bool, revision: str | None = None) -> bool:
    """Whether a model takes images. One that only hears does not."""
    config = _configuration(subject, token, revision)
    # A tower on its own is told by its pictures; spectrograms have channels, too.
    alone = "image_size" in config or ("num_channels" in config and "num_mel_bins" not in config)
    return alone or _has_tower(config, _SEES) or _type_of(config) in _tables().images


def audio_support(subject: str, *, token: str | bool, revision: str | None = None) -> bool:
    """Whether a model takes sound. One that only speaks does not."""
    config = _configuration(subject, token, revision)
    alone = "num_mel_bins" in config and "vocab_size" not in config
    return alone or _has_tower(config, _HEARS) or _type_of(config) in _tables().sounds


def embedding_model(subject: str, *, token: str | bool, revision: str | None = None) -> bool:
    """Whether a repository is a sentence-transformers model: whether its ``modules.json`` says so.

    "No" needs a repository that is there and has no such file.
    """
    try:
        modules = _read(subject, "modules.json", token, revision)
    except ProbeFailed as failed:
        if failed.kind != "absent" or failed.error != _NO_ENTRY:
            raise
        return False
    if not isinstance(modules, list):
        raise ProbeFailed("invalid", error="NotAModuleList")
    types = [str(module.get("type")) for module in modules if isinstance(module, dict)]
    return any(kind.startswith("sentence_transformers.") for kind in types)


def hub_name(subject: str) -> str:
    """The one spelling of a model's name: a folder's real path, or a repository's name.

    The Hub ignores case. A name that is cached here, however spelt, is taken as it is cached: the
    same case if there is one, else the first in order. One that is not is lower-cased.
    """
    if os.path.isdir(subject):  # noqa: PTH112  strings in, strings out
        return os.path.realpath(subject)
    name = subject.strip().strip("/")
    try:
        check_identifier(name)
    except IdentifierError:
        return subject
    from huggingface_hub import constants

    folder = str(constants.HF_HUB_CACHE)
    try:
        changed = os.stat(folder).st_mtime_ns  # noqa: PTH116
    except OSError:
        return name.lower()
    return _cached_spelling(name, folder, changed)


@lru_cache(maxsize=4096)
def _cached_spelling(name: str, cache: str, changed: int) -> str:
    """The spelling in a cache folder that changed last at that time."""
    folder = "models--" + name.replace("/", "--")
    cached = os.listdir(cache)  # noqa: PTH208
    if folder in cached:
        return name
    alike = sorted(each for each in cached if each.lower() == folder.lower())
    if not alike:
        return name.lower()
    spelt, owner = alike[0].removeprefix("models--"), name.partition("/")[0]
    # '/' is written as two dashes, and a name has other dashes.
    return spelt if owner == name else f"{spelt[: len(owner)]}/{spelt[len(owner) + 2 :]}"


def file_stamps(subject: str) -> Hashable:
    """What tells one state of a local folder from another; ``None`` for a repository's name.

    Stats of the folder and of the files that are read, so that one that appears is noticed.
    """
    if not os.path.isabs(subject):  # noqa: PTH117
        return None
    return tuple(_stamp(path) for path in (subject, *(f"{subject}/{name}" for name in _FILES)))


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        stat = os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, ValueError):  # no file has such a name
        return None
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def hub_environment() -> Hashable:
    """Versions of the libraries, the Hub's address, the cache's place, and whether it is offline.

    The address is kept as a digest, since it may hold credentials.
    """
    import huggingface_hub
    import transformers
    from huggingface_hub import constants

    return (
        transformers.__version__,
        huggingface_hub.__version__,
        _digest(constants.ENDPOINT),
        constants.HF_HUB_CACHE,
        constants.HF_HUB_OFFLINE or _is_set("TRANSFORMERS_OFFLINE"),
    )


@lru_cache(maxsize=8)
def _digest(address: str) -> bytes:
    # Without a key: a forked child goes on with the same one. Each address comes by here once, and
    # so the first probe does not import its library on its own time.
    from huggingface_hub import hf_hub_download  # noqa: F401

    return blake2b(address.encode(), digest_size=32).digest()


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


_NO_ENTRY = "NoSuchFile"


def _read(subject: str, filename: str, token: str | bool, revision: str | None) -> Any:
    """A JSON file of a folder or repository; one that is not there is a ``ProbeFailed``."""
    if os.path.isabs(subject):  # noqa: PTH117
        try:
            os.stat(subject)  # noqa: PTH116
        except ValueError as error:  # no file has such a name
            raise ProbeFailed("invalid", error=type(error).__name__) from None
        except OSError:
            pass
        path = Path(subject) / filename
        if not path.exists() and Path(subject).is_dir():
            raise ProbeFailed("absent", error=_NO_ENTRY)
    else:
        path = Path(_fetched(subject, filename, token, revision))
    # A file that is being written is torn: its JSON error is one of those that pass.
    return json.loads(path.read_text(encoding="utf-8"))


def _fetched(subject: str, filename: str, token: str | bool, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        check_identifier(subject)
    except IdentifierError:
        raise ProbeFailed("invalid", error="IdentifierError") from None
    try:
        return str(hf_hub_download(subject, filename, token=token, revision=revision))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError as error:  # the repository answered
        raise ProbeFailed("absent", error=_NO_ENTRY, status=404) from error


def _configuration(subject: str, token: str | bool, revision: str | None) -> dict[str, Any]:
    config = _read(subject, "config.json", token, revision)
    if not isinstance(config, dict):
        raise ProbeFailed("invalid", error="NotAConfiguration")
    return config


def _has_tower(config: dict[str, Any], towers: tuple[str, ...], depth: int = 3) -> bool:
    if any(config.get(name) for name in towers):
        return True
    inner = [value for name, value in config.items() if name.endswith("_config")]
    return depth > 0 and any(
        isinstance(each, dict) and _has_tower(each, towers, depth - 1) for each in inner
    )


def _type_of(config: dict[str, Any]) -> str:
    """The model type, where the installed transformers knows it."""
    name = config.get("model_type")
    if not isinstance(name, str) or name not in _tables().known:
        raise ProbeFailed("unsupported", error="UnknownModelType")
    return name


class _Tables(NamedTuple):
    known: frozenset[str]
    images: frozenset[str]
    sounds: frozenset[str]


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    """The model types that transformers knows, and those it has processors for.

    They are read from its source: importing them would import torch.
    """
    import transformers

    known = _pairs("CONFIG_MAPPING_NAMES", "configuration_auto")
    images = _pairs("IMAGE_PROCESSOR_MAPPING_NAMES", "image_processing_auto")
    sounds = _pairs("FEATURE_EXTRACTOR_MAPPING_NAMES", "feature_extraction_auto")
    if not known or not images or not sounds:
        raise ProbeFailed("unsupported", error="UnknownTransformersLayout")
    if transformers.__version__.startswith("4."):
        # Image processors were listed among the feature extractors, by the names they had before.
        older = {
            name.replace("ImageProcessor", "FeatureExtractor")
            for names in images.values()
            for name in names
        }
        sounds = {kind: names for kind, names in sounds.items() if not names & older}
    return _Tables(frozenset(known), frozenset(images), frozenset(sounds))


def _pairs(table: str, module: str) -> dict[str, set[str]]:
    """Model types and class names of one of transformers' tables of literals."""
    import ast
    from importlib.util import find_spec

    found: dict[str, set[str]] = {}
    for name in ("auto_mappings", module):
        spec = find_spec(f"transformers.models.auto.{name}")
        if spec is None or spec.origin is None:
            continue
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
            for row in _rows(node, table):
                words = [
                    w.value for each in row for w in ast.walk(each) if isinstance(w, ast.Constant)
                ]
                texts = [word for word in words if isinstance(word, str)]
                if texts:
                    found.setdefault(texts[0], set()).update(texts[1:])
    return found


def _rows(node: ast.AST, table: str) -> list[list[ast.expr]]:
    """The rows that a statement writes to a table, by ``=`` or by ``.update``."""
    import ast

    changed: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        changed = node.targets
    elif isinstance(node, ast.AnnAssign):
        changed = [node.target]
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = node.value.func
        changed = [called.value] if isinstance(called, ast.Attribute) else []
    if not any(isinstance(each, ast.Name) and each.id.endswith(table) for each in changed):
        return []
    rows: list[list[ast.expr]] = []
    parts = [node.value] if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr) else []
    while parts:
        part = parts.pop()
        if isinstance(part, ast.Call):
            parts += [*part.args, *(keyword.value for keyword in part.keywords)]
        elif isinstance(part, ast.List):
            rows += [row.elts for row in part.elts if isinstance(row, ast.Tuple)]
        elif isinstance(part, ast.Dict):
            rows += [[key, row] for key, row in zip(part.keys, part.values, strict=True) if key]
    return rows
