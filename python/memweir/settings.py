"""What a process configures once: defaults of everything that is not said in a call.

They come from ``MEMWEIR_*`` variables, or from :func:`configure`, and count for what is created
afterwards. ``low_memory`` is one switch over all of them; whatever is said besides it holds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from ._applied import KNOBS, applied, apply
from ._parts import COUNT, SECONDS, SIZE, SWITCH, Kind, choice, size_up_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "Part",
    "Settings",
    "applied",
    "configure",
    "configured",
    "current",
    "first_use",
    "parts",
    "use",
]

_PREFIX = "MEMWEIR_"


class _Unsaid(Enum):
    UNSAID = "not said"

    def __repr__(self) -> str:
        return self.value


_UNSAID = _Unsaid.UNSAID


@dataclass(frozen=True, slots=True)
class Part:
    """One setting: what it may be, and what it is when nobody says."""

    name: str
    kind: Kind
    default: Any
    low: Any
    """What it is when nobody says and ``low_memory`` is on."""

    @property
    def variable(self) -> str:
        return _PREFIX + self.name.upper()


def _part(kind: Kind, default: Any, low: Any = _UNSAID) -> Any:
    low = default if low is _UNSAID else low
    part = {"kind": kind, "default": default, "low": low}
    return field(default=_UNSAID, metadata=part)


class _Said:
    """What was said by name, and where: apart from the fields, which hold what follows from it."""

    __slots__ = ("_origins",)
    _origins: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Settings(_Said):
    """Defaults of this process. Sizes are bytes or text; times are seconds.

    What is not said has the default, or with ``low_memory`` the value behind "low memory".
    ``dataclasses.replace`` says every field; ``Settings.from_dict({**made.said(), ...})`` changes
    some and leaves the unsaid so.
    """

    cache_budget: int | str = _part(SIZE, "1 GiB", low="256 MiB")
    """Budget of a :class:`~memweir.PixelCache` that is given none; low memory: 256 MiB."""

    low_memory: bool = _part(SWITCH, False)
    """One switch over all the others: the values of a process that is to stay small."""

    tune: str | None = _part(choice("images", "models", "server", none=True), None, low="images")
    """Profile that :func:`memweir.tune` takes for the heap, applied once: at the first
    :func:`configure`, :class:`~memweir.PixelCache` or ``mw.ort.session``. ``None``: the heap is
    left alone; low memory: ``"images"``."""

    mmap_threshold: int | str | None = _part(size_up_to(32 << 20), None)
    """In place of the profile's: from this size on malloc maps each block by itself."""

    trim_threshold: int | str | None = _part(size_up_to((1 << 31) - 1), None)
    """In place of the profile's: free memory at the top of the heap that is kept."""

    arena_max: int | None = _part(COUNT, None)
    """In place of the profile's: how many arenas threads share."""

    session_profile: str = _part(
        choice("balanced", "lean", "arena_off", "default"),
        "balanced",
        low="lean",
    )
    """Profile of an ``mw.ort.session`` that is given none; low memory: ``"lean"``."""

    idle_offload: float | None = _part(SECONDS, 30.0, low=0.0)
    """Seconds after its last lease at which a model of a :class:`~memweir.ModelPool` leaves the
    device; low memory: 0, at once. ``None``: never."""

    idle_unload: float | None = _part(SECONDS, 600.0, low=0.0)
    """Seconds after its last lease at which a model leaves memory; low memory: 0, at once."""

    def __post_init__(self) -> None:
        given = {part.name: getattr(self, part.name) for part in parts()}
        said = {name: value for name, value in given.items() if value is not _UNSAID}
        _resolve(self, said, dict.fromkeys(said, "code"))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Settings from ``MEMWEIR_*`` variables; an empty one is as good as none.

        A variable that does not parse is a ``ValueError`` that names it and says what it accepts.
        Other variables are left alone: ``memweir doctor`` tells of names that nothing reads.
        """
        environ = os.environ if environ is None else environ
        said = {}
        for part in parts():
            text = environ.get(part.variable, "").strip()
            if text:
                try:
                    said[part.name] = part.kind.read(text)
                    part.kind.check(said[part.name])
                except ValueError as error:
                    raise ValueError(_refused(part.variable, error, part)) from None
        return _made(said, dict.fromkeys(said, "environment"))

    def as_dict(self) -> dict[str, Any]:
        """Every setting as it is in force: ``None``, bools, numbers and text."""
        return {part.name: getattr(self, part.name) for part in parts()}

    def said(self) -> dict[str, Any]:
        """Only what was said: what :meth:`from_dict` takes, and leaves the rest to the switch."""
        return {name: getattr(self, name) for name in self._origins}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of :meth:`as_dict` and of :meth:`said`; unknown names are a ``TypeError``."""
        return cls(**values)

    def origins(self) -> dict[str, str]:
        """Where each value comes from.

        ``"default"``, ``"low memory"``, ``"environment"``, ``"code"`` or ``"configure"``.
        """
        unsaid = "low memory" if self.low_memory else "default"
        return {
            part.name: self._origins.get(
                part.name, unsaid if part.low != part.default else "default"
            )
            for part in parts()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.said(), dict(self._origins))


def parts() -> Iterator[Part]:
    """What there is to set."""
    return iter(_PARTS)


_PARTS = tuple(Part(name=one.name, **one.metadata) for one in fields(Settings))
_VARIABLES = tuple(part.variable for part in _PARTS)


def _made(said: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
    settings = object.__new__(Settings)
    _resolve(settings, said, origins)
    return settings


def _resolve(settings: Settings, said: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Sets every field from what was said, checked, and from the switch."""
    low = said.get("low_memory", False)
    for part in parts():
        value = said.get(part.name, part.low if low else part.default)
        try:
            part.kind.check(value)
        except (TypeError, ValueError) as error:
            raise type(error)(_refused(part.name, error, part)) from None
        object.__setattr__(settings, part.name, value)
    object.__setattr__(settings, "_origins", dict(origins))
    for name in KNOBS:
        if settings.tune is None and getattr(settings, name) is not None:
            variable = _PREFIX + name.upper()
            shown = variable if origins.get(name) == "environment" else name
            raise ValueError(
                f"{shown}: is in place of a profile's, and there is none: set tune "
                f"({_PREFIX}TUNE) to images, models or server"
            )


def _refused(name: str, error: Exception, part: Part) -> str:
    from .redaction import redact

    why = redact(str(error).partition(";")[0])
    return f"{name}: {why}; it accepts {part.kind.accepts}"


_current: Settings | None = None
# What our variables said when they were read last, and what was made of it.
_read: tuple[tuple[str | None, ...], Settings] | None = None


def current() -> Settings:
    """The settings of this process: those of :func:`configure`, else the environment's."""
    global _read  # noqa: PLW0603  saves reading the same text for every cache
    if _current is not None:
        return _current
    now = tuple(map(os.environ.get, _VARIABLES))
    known = _read
    if known is None or known[0] != now:
        known = _read = now, Settings.from_env()
    return known[1]


def configured() -> Settings | None:
    """What :func:`configure` or :func:`use` installed; ``None``: the environment's count."""
    return _current


def first_use(by: str) -> Settings:
    """:func:`current`, for one who is about to take memory: if they tune the heap, it is now."""
    settings = current()
    apply(settings, by)
    return settings


def configure(settings: Settings | None = None, **changes: Any) -> Settings:
    """Installs ``settings``, else those in force, with ``changes``; returns what is in force now.

    They count for what is created afterwards. If they say how to tune the heap, it is tuned now,
    once for the process. Meant for the start of a process, before its first big allocation.
    """
    known = {part.name for part in parts()}
    for name in changes:
        if name not in known:
            raise TypeError(f"no setting {name!r}; there are {', '.join(sorted(known))}")
    base = current() if settings is None else settings
    if not isinstance(base, Settings):
        raise TypeError(f"settings are memweir.Settings, not {type(base).__name__}")
    origins = {**base._origins, **dict.fromkeys(changes, "configure")}
    made = _made({**base.said(), **changes}, origins)
    apply(made, "configure()")
    use(made)
    return made


def use(settings: Settings | None) -> None:
    """Installs settings and tunes nothing; ``None`` goes back to the environment's."""
    global _current  # noqa: PLW0603  one of the two process-wide things, and it says so
    _current = settings
