"""What makes a question: the subject, who asks, the environment, and what else is asked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from memweir.identifiers import digest, loggable
from memweir.probes.auth import AMBIENT, ANONYMOUS, UNREADABLE, HubAmbient, _Auth
from memweir.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    Key = tuple[Any, ...]

__all__ = ["OMITTED", "UNCACHEABLE", "Auth", "Keys"]

Auth: TypeAlias = Literal["required", _Auth.AMBIENT, _Auth.ANONYMOUS, False]


class _Omitted:
    """The default of ``token=``, where it is required."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<required>"


OMITTED: Any = _Omitted()
UNCACHEABLE = object()


class Keys:
    """Turns the arguments of a call into the key of its question."""

    def __init__(
        self,
        *,
        auth: Auth,
        normalize: Callable[[str], str] | None,
        identify: Callable[[str], Hashable] | None,
        environment: Hashable | Callable[[], Hashable],
        ambient: Callable[[], str | None] | None,
        log: Callable[..., None],
    ) -> None:
        if auth is not False and auth not in ("required", AMBIENT, ANONYMOUS):
            raise ValueError('auth is "required", mw.AMBIENT, mw.ANONYMOUS or False')
        self._auth = auth
        self._normalize = normalize
        self._identify = identify
        self._fixed = None if callable(environment) else environment
        self._environment = environment if callable(environment) else None
        self._ambient = HubAmbient() if ambient is None else ambient
        self._ambient_digest = getattr(self._ambient, "digest", None)
        self._log = log
        self.normalize_fallbacks = self.ambient_failures = 0

    def key(self, subject: Any, token: Any, dims: dict[str, Any]) -> Key:
        """The key: subject, identity, environment, then the rest. It holds no secret."""
        if type(subject) is not str:
            subject = self.text(subject)
        if self._normalize is not None:
            subject = self.normalized(subject, token)
        if type(token) is str and self._auth is not False:
            auth: bytes | None = digest(token)
        else:
            auth = self.identity(token)
        environment = self._fixed if self._environment is None else self._environment()
        if self._identify is None and not dims:
            return (subject, auth, environment)
        key = (subject, auth, environment, self.identified(subject))
        # 1, 1.0 and True are equal, and different questions.
        return key + tuple((name, type(value), value) for name, value in sorted(dims.items()))

    def text(self, subject: object) -> str:
        """The subject as a plain string; paths are taken as what they spell."""
        if isinstance(subject, os.PathLike):
            subject = os.fspath(subject)
        if not isinstance(subject, str):
            raise TypeError(f"a subject is a str or a path, not {type(subject).__name__}")
        return str(subject)

    def normalized(self, subject: str, token: Any = None) -> str | tuple[str]:
        """The spelling to look up and to probe; in a tuple where it is not normalised."""
        if self._normalize is None:
            return subject
        try:
            normal = self._normalize(subject)
            if type(normal) is str:
                return normal
            error = type(normal).__qualname__
        except Exception as raised:
            error = type(raised).__qualname__
        self.normalize_fallbacks += 1
        secrets = (token,) if isinstance(token, str) else ()
        self._log("%s: not normalised, %s", loggable(redact(subject, secrets=secrets)), error)
        return (subject,)  # which no normalised subject equals

    def identity(self, token: Any) -> bytes | None:
        """The digest of who asks: empty for anonymous, ``None`` where nobody has to be asked as."""
        if self._auth is False:
            if token is not OMITTED:
                raise TypeError("this cache was made with auth=False and takes no token")
            return None
        if token is OMITTED:
            if self._auth == "required":
                raise TypeError("token= is required: a str, mw.AMBIENT or mw.ANONYMOUS")
            token = self._auth
        if isinstance(token, str):
            return digest(token)
        if token is ANONYMOUS:
            return b""
        if token is not AMBIENT:
            raise TypeError(
                f"token is a str, mw.AMBIENT or mw.ANONYMOUS, not {type(token).__name__}: "
                "None could mean either of the last two"
            )
        try:
            if self._ambient_digest is not None:
                return cast(bytes, self._ambient_digest())
            return digest(self._ambient() or "")
        except Exception as error:
            self._ambient_failed(error)
            return UNREADABLE

    def resolved(self, token: Any) -> tuple[str | Literal[False], bytes]:
        """The token that a probe is handed, ``False`` for none, and its digest."""
        if token is OMITTED:
            token = self._auth
        if token is AMBIENT:
            try:
                token = self._ambient() or ""
            except Exception as error:
                self._ambient_failed(error)
                return False, UNREADABLE
        if token is ANONYMOUS:
            return False, b""
        return token.strip() or False, digest(token)

    def _ambient_failed(self, error: Exception) -> None:
        self.ambient_failures += 1
        self._log("the ambient token cannot be read, %s", type(error).__qualname__)

    def identified(self, subject: str | tuple[str]) -> object:
        """What the answer depends on beside the key's other parts."""
        if self._identify is None:
            return None
        try:
            return self._identify(subject if isinstance(subject, str) else subject[0])
        except OSError:
            return UNCACHEABLE
