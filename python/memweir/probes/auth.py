"""Whose question it is: the caller's token, or whichever the process would use."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeAlias

from memweir import identifiers

__all__ = ["AMBIENT", "ANONYMOUS", "ANY", "UNREADABLE", "HubAmbient", "Token"]


class _Auth(Enum):
    AMBIENT = "AMBIENT"
    ANONYMOUS = "ANONYMOUS"
    ANY = "ANY"

    def __repr__(self) -> str:
        return self.value


AMBIENT: Literal[_Auth.AMBIENT] = _Auth.AMBIENT
"""The token that the process would use at this moment: environment, token file, none."""
ANONYMOUS: Literal[_Auth.ANONYMOUS] = _Auth.ANONYMOUS
"""No token, and none from the environment either. A probe is handed ``False`` for it."""
ANY: Literal[_Auth.ANY] = _Auth.ANY
"""Every identity, for :meth:`~memweir.ProbeCache.invalidate`."""

Token: TypeAlias = str | Literal[_Auth.AMBIENT, _Auth.ANONYMOUS]

# In place of a digest where there may be a token and it cannot be read: never anonymous.
UNREADABLE = b"ambient-unreadable"


class HubAmbient:
    """The ambient token as ``huggingface_hub`` finds it, looked up anew for each question.

    ``HF_TOKEN`` or ``HUGGING_FACE_HUB_TOKEN``, else the file that a login leaves, at
    ``HF_TOKEN_PATH`` or ``HF_HOME/token``; none with ``HF_HUB_DISABLE_IMPLICIT_TOKEN``. As in that
    library the place of the file and that switch are taken from the environment once. The file is
    read again when its stat changes; between reads only a digest of the token is kept.
    """

    __slots__ = ("_disabled", "_path", "_seen")

    def __init__(self) -> None:
        said = os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "")
        self._disabled = said.upper() in ("1", "ON", "YES", "TRUE")
        self._path = _token_file()
        self._seen: tuple[Any, bytes] = (None, b"")

    def __call__(self) -> str | None:
        """The token, or ``None`` for anonymous; an ``OSError`` if a file cannot be read."""
        if self._disabled:
            return None
        if token := _given():
            return token
        try:
            return Path(self._path).read_text().strip() or None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError:
            raise OSError("the token file is not text") from None

    def digest(self) -> bytes:
        """:func:`memweir.identifiers.digest` of the token, without reading an unchanged file."""
        if self._disabled:
            return b""
        if token := _given():
            return identifiers.digest(token)
        try:
            stat = os.stat(self._path)  # noqa: PTH116  this is on the way of every hit
        except (FileNotFoundError, NotADirectoryError):
            return b""
        stamp = (
            identifiers.keyed,
            stat.st_ino,
            stat.st_size,
            stat.st_mtime_ns,
            stat.st_ctime_ns,
        )
        seen, digest = self._seen
        if seen != stamp:
            digest = identifiers.digest(self() or "")
            self._seen = (stamp, digest)
        return digest


def _given() -> str:
    get = os.environ.get
    return (get("HF_TOKEN") or get("HUGGING_FACE_HUB_TOKEN") or "").strip()


def _token_file() -> str:
    get = os.environ.get
    if path := get("HF_TOKEN_PATH"):
        return path
    home = get("HF_HOME") or f"{get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return os.path.expandvars(os.path.expanduser(f"{home}/token"))  # noqa: PTH111
