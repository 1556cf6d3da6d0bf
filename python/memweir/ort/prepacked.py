"""The folder of pre-packed models: what is in it, whether it is whole, and what goes first."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memweir import _core
from memweir.sizes import parse_size

from ._lock import held

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "LIMIT",
    "Cleaned",
    "Prepacked",
    "cache_folder",
    "cached",
    "clean",
    "entry",
    "make_room",
    "opened",
    "remove",
    "staging",
]

LIMIT = 8 << 30
"""Bytes of the cache folder that nobody gave a limit."""

MANIFEST, MODEL, WEIGHTS = "manifest.json", "model.onnx", "weights.bin"
_ENTRY, _STAGING, _TRASH = "prepacked-", "building-", "removed-"
_KEY = "[0-9a-f]{32}"
_ENTRIES = re.compile(f"{_ENTRY}{_KEY}")
_STAGINGS = re.compile(f"{_STAGING}{_KEY}-[0-9]+-[0-9a-f]+")
_TRASHES = re.compile(f"{_TRASH}{_ENTRY}{_KEY}-[0-9]+-[0-9a-f]+")
_ABANDONED = 3600.0
"""Seconds after which a build that nobody holds is taken for one that died."""


@dataclass(frozen=True, slots=True)
class Prepacked:
    """A model in pre-packed form, in a folder of the cache."""

    folder: Path
    key: str
    name: str
    """The file name of the model that it was made of."""
    nbytes: int
    """What it takes on disk."""
    mapped: int
    """Of that, the weights that sessions map."""
    runtime: str
    """The version of ONNX Runtime that built it, and the only one that runs it."""
    cpu: str
    """A digest of the processor's features it was packed for."""
    created: float
    used: float
    built: bool = False
    """Whether this call built it."""
    seconds: float = 0.0
    """What building it took."""

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "folder": str(self.folder),
            "key": self.key,
            "name": self.name,
            "nbytes": self.nbytes,
            "runtime": self.runtime,
            "cpu": self.cpu,
            "created": self.created,
            "used": self.used,
        }


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a cleaning removed. ``kept`` counts what is left, ``busy`` what could not be."""

    removed: tuple[Prepacked, ...]
    nbytes: int
    kept: int
    busy: int


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where pre-packed models are kept.

    What is given, else ``memweir/ort`` in ``XDG_CACHE_HOME`` or ``~/.cache``. ``OSError`` where
    nobody is at home.
    """
    if cache_dir is not None:
        return Path(cache_dir).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", "").strip())
    if not base.is_absolute():  # which its standard has one ignore
        try:
            base = Path("~/.cache").expanduser()
        except RuntimeError as error:
            raise FileNotFoundError(
                errno.ENOENT, f"{error}: give cache_dir, or set XDG_CACHE_HOME"
            ) from None
    return base / "memweir" / "ort"


def cached(cache_dir: str | os.PathLike[str] | None = None) -> list[Prepacked]:
    """What is in the folder, the least recently used first."""
    folder = cache_folder(cache_dir)
    try:
        names = [one.name for one in os.scandir(folder) if _ENTRIES.fullmatch(one.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (_read(folder / name, name.removeprefix(_ENTRY)) for name in names)
    return sorted((one for one in found if one is not None), key=lambda one: one.used)


def clean(
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    limit: int | str = 0,
    unused: float = 0.0,
    stale: bool = False,
) -> Cleaned:
    """Removes pre-packed models, the least recently used first, until ``limit`` bytes are left.

    Only those that nobody used for ``unused`` seconds; with ``stale`` only those that no session
    here can run: of another version of ONNX Runtime, or packed for another processor. Sessions that
    run one go on: its disk comes back when they end. What is being built now stays.
    """
    folder = cache_folder(cache_dir)
    most = parse_size(limit)
    sweep(folder)
    present = cached(folder)
    total = sum(one.nbytes for one in present)
    removed, busy = [], 0
    for one in present:
        if stale and _runs_here(one):
            continue
        if total <= most and not stale:
            break
        if time.time() - one.used < unused:
            continue
        if remove(one):
            removed.append(one)
            total -= one.nbytes
        else:
            busy += 1
    freed = sum(one.nbytes for one in removed)
    return Cleaned(tuple(removed), freed, len(present) - len(removed), busy)


def _runs_here(one: Prepacked) -> bool:
    from . import _runtime
    from .keys import features

    try:
        runtime = str(_runtime.find().__version__)
    except ModuleNotFoundError:
        return False
    return one.runtime == runtime and one.cpu == features()


def make_room(folder: Path, keep: str, limit: int) -> None:
    """Removes the least recently used others until all fit ``limit``."""
    present = cached(folder)
    total = sum(one.nbytes for one in present)
    for one in present:
        if total <= limit:
            return
        if one.key != keep and remove(one):
            total -= one.nbytes


def entry(folder: Path, key: str) -> Path:
    """Where the model of that key is, if it is."""
    return folder / (_ENTRY + key)


@contextmanager
def staging(folder: Path, key: str) -> Iterator[Path]:
    """A folder to build in, which is gone afterwards whatever happens."""
    path = folder / f"{_STAGING}{key}-{os.getpid()}-{time.monotonic_ns():x}"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Removes what builders that died left behind."""
    with suppress(OSError):
        for one in os.scandir(folder):
            # The folder may be anybody's: what has another name is not ours.
            if _TRASHES.fullmatch(one.name) or (
                _STAGINGS.fullmatch(one.name)
                and time.time() - one.stat(follow_symlinks=False).st_mtime > _ABANDONED
            ):
                shutil.rmtree(one.path, ignore_errors=True)


def remove(one: Prepacked) -> bool:
    """Removes a model that nobody is building; what is mapped of it stays until it is unmapped."""
    lock = one.folder.with_name(one.folder.name + ".lock")
    try:
        with held(lock, wait=False) as mine:
            if not mine:
                return False
            discard(one.folder)
            with suppress(OSError):
                lock.unlink()
    except OSError:  # it is somebody else's
        return False
    return True


def discard(path: Path) -> None:
    """Takes a folder out of the way at once, then removes it."""
    trash = path.with_name(f"{_TRASH}{path.name}-{os.getpid()}-{time.monotonic_ns():x}")
    with suppress(FileNotFoundError):
        path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


# Files that were found whole, as they were then; single operations only.
_whole: dict[tuple[str, int, int, int, int], str] = {}


def digest(path: str | os.PathLike[str]) -> str:
    """The digest of a file, which is read again when anything about it has changed."""
    found = Path(path).stat()
    stamp = (
        os.fspath(path),
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )
    known = _whole.get(stamp)
    if known is None:
        known = _core.hash_file(path).hex()
        if len(_whole) > 256:
            _whole.clear()
        _whole[stamp] = known
    return known


def opened(folder: Path, key: str, parts: dict[str, Any]) -> Prepacked | None:
    """The model of that key, if it is there, whole, and says it was made for ``parts``."""
    path = entry(folder, key)
    found = _read(path, key)
    if found is None:
        return None
    with suppress(OSError, ValueError):
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["parts"] == parts and all(
            digest(path / name) == manifest["files"][name]["digest"] for name in (MODEL, WEIGHTS)
        ):
            with suppress(OSError):  # a folder that is read-only does not know who was last
                os.utime(path / MANIFEST)
            return found
    return None


def seal(path: Path, name: str, parts: dict[str, Any], seconds: float) -> None:
    """Writes down what is in a folder, and has all of it written out."""
    files = {}
    for part in (MODEL, WEIGHTS):
        with (path / part).open("rb") as file:
            os.fsync(file.fileno())
        size = (path / part).stat().st_size
        files[part] = {"size": size, "digest": digest(path / part)}
    manifest = {
        "format": 1,
        "name": name,
        "parts": parts,
        "files": files,
        "created": time.time(),
        "seconds": seconds,
    }
    with (path / MANIFEST).open("w") as file:
        json.dump(manifest, file)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, key: str) -> Prepacked | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        sizes = {name: (path / name).stat().st_size for name in (MODEL, WEIGHTS)}
        if manifest["format"] != 1 or any(
            manifest["files"][name]["size"] != size for name, size in sizes.items()
        ):
            return None
        return Prepacked(
            folder=path,
            key=key,
            name=str(manifest["name"]),
            nbytes=sum(sizes.values()),
            mapped=sizes[WEIGHTS],
            runtime=str(manifest["parts"]["runtime"]),
            cpu=str(manifest["parts"]["cpu"]),
            created=float(manifest["created"]),
            used=(path / MANIFEST).stat().st_mtime,
            seconds=float(manifest["seconds"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
