"""What a process configures once: defaults of everything that is not said in a call."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from .sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Settings", "current", "use"]

_PREFIX = "MEMWEIR_"


@dataclass(frozen=True, slots=True)
class Settings:
    """Defaults of this process.

    ``cache_budget``: budget of a :class:`~memweir.PixelCache` that is given none; bytes or text.
    """

    cache_budget: int | str = "1 GiB"

    def __post_init__(self) -> None:
        parse_size(self.cache_budget)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Settings from ``MEMWEIR_*`` variables; a variable that does not parse is an error."""
        environ = os.environ if environ is None else environ
        given = {f.name: environ.get(_PREFIX + f.name.upper()) for f in fields(cls)}
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValueError as error:
            raise ValueError(f"in the {_PREFIX}* environment: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of :meth:`to_dict`; unknown names are a ``TypeError``."""
        return cls(**values)


_current: Settings | None = None


def current() -> Settings:
    """The settings of this process: those of :func:`use`, else the environment's."""
    return _current if _current is not None else Settings.from_env()


def use(settings: Settings | None) -> None:
    """Installs settings for the process; ``None`` goes back to the environment's."""
    global _current  # noqa: PLW0603  one of the two process-wide things, and it says so
    _current = settings
