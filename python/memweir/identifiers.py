"""Names from outside, checked before they are kept, logged, passed on or put into an argv."""

from __future__ import annotations

import os
import re
import unicodedata
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn, TypeAlias, get_args

from .errors import IdentifierError
from .redaction import SECRET, redact

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AuthId", "Kind", "check_argv", "check_identifier", "fingerprint", "loggable"]

Kind: TypeAlias = Literal["repo", "revision", "variant", "path", "label", "arg"]

_CODES = {
    "empty": "is empty",
    "too-long": "is too long",
    "too-many": "has too many entries",
    "control": "has a control character",
    "surrogate": "has an unpaired surrogate",
    "separator": "has a line or paragraph separator",
    "invisible": "has an invisible or direction-changing character",
    "combining": "has a run of more than 30 combining marks",
    "not-nfc": "is not in Unicode normalization form C",
    "space": "begins or ends with a space",
    "dash": "begins with '-'",
    "dots": "has a '..' segment",
    "character": "has a character that such a name cannot have",
    "form": "is not formed as such a name is",
    "secret": "has an access token in it",
}


class _Rule(NamedTuple):
    longest: int
    form: re.Pattern[str] | None  # what the whole of a name must match
    odd: re.Pattern[str] | None  # a character that no such name has


# One segment as the Hub has them: up to 96 characters, no '-' or '.' at either end.
_SEGMENT = r"(?![-.])[A-Za-z0-9_.-]{1,96}+(?<![-.])"
_RULES: dict[str, _Rule] = {
    "repo": _Rule(
        193,
        re.compile(rf"(?!.*(?:\.git\Z|--))(?:{_SEGMENT}/)?{_SEGMENT}\Z"),
        re.compile(r"[^A-Za-z0-9_./-]"),
    ),
    "revision": _Rule(
        250,
        re.compile(r"(?!.*(?:\.lock|[./])\Z)(?!.*@\{)(?!.*/[/.])[A-Za-z0-9_][!-~]*\Z"),
        re.compile(r"[^!-~]|[~^:?*\[\\]"),
    ),
    "variant": _Rule(
        128, re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]*\Z"), re.compile(r"[^A-Za-z0-9_.+=@-]")
    ),
    "path": _Rule(4096, None, None),
    "label": _Rule(256, None, None),
    "arg": _Rule(131_071, None, None),
}
_DOTS = re.compile(r"(?:\A|[/\\])\.\.(?:\Z|[/\\])")
_JOINERS = "\u200c\u200d\ufe0e\ufe0f"  # which emoji and several scripts need to be written at all
# What Unicode calls default-ignorable and does not class as a format character: yet unassigned
# ones are, too. And the blank pattern of Braille, which looks like a space and is none.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
_RUN = 30  # the limit of Unicode's stream-safe text format, UAX #15


def check_identifier(value: str, *, kind: Kind = "repo", max_len: int | None = None) -> str:
    """`value` itself if it is a clean name of its `kind`, else :class:`~memweir.IdentifierError`.

    Refused everywhere: control characters, unpaired surrogates, line separators, invisible and
    direction-changing characters, and access tokens of known vendors. Nothing is rewritten, and
    the error has a code and an offset but never the input.

    - ``"repo"``: ``name`` or ``owner/name`` as the Hugging Face Hub has them.
    - ``"revision"``: an ASCII git revision. ``"variant"``: letters, digits and ``_.+=@-``.
    - ``"path"``: a file's name; no ``..`` segment. Absolute ones are fine.
    - ``"label"``: text to show; joiners are allowed, spaces at the ends are not.
    - ``"arg"``: one entry of a command line. The only kind that may begin with ``-`` or be empty.

    ``max_len`` in characters replaces the kind's own limit. Names to compare (all but paths and
    arguments) must be in normalization form C. Time is linear in the length.
    """
    if kind not in _RULES:
        raise ValueError(f"kind is one of {', '.join(get_args(Kind))}, not {loggable(kind, 40)}")
    if not isinstance(value, str):
        raise TypeError(f"an identifier is a str, not {type(value).__name__}")
    rule = _RULES[kind]
    longest = rule.longest if max_len is None else max_len
    if len(value) > longest:
        _refuse(kind, "too-long", longest)
    if not value and kind != "arg":
        _refuse(kind, "empty", 0)
    _check_characters(value, kind)
    if rule.odd is not None and (found := rule.odd.search(value)):
        _refuse(kind, "character", found.start())
    if kind != "arg" and value.startswith("-"):
        _refuse(kind, "dash", 0)
    if kind == "path" and (found := _DOTS.search(value)):
        _refuse(kind, "dots", found.start())
    if kind in ("revision", "repo") and ".." in value:
        _refuse(kind, "dots", value.index(".."))
    if kind == "label" and value != value.strip():
        _refuse(kind, "space", 0 if value[0].isspace() else len(value) - 1)
    if rule.form is not None and not rule.form.match(value):
        _refuse(kind, "form", 0)
    if found := SECRET.search(value):
        _refuse(kind, "secret", found.start())
    return value


def _check_characters(value: str, kind: str) -> None:
    if value.isascii():
        if not value.isprintable():
            at = next(n for n, c in enumerate(value) if not c.isprintable())
            _refuse(kind, "control", at)
        return
    marks = 0
    for at, character in enumerate(value):
        category = unicodedata.category(character)
        if category == "Cc":
            _refuse(kind, "control", at)
        if category == "Cs":
            _refuse(kind, "surrogate", at)
        if category in ("Zl", "Zp"):
            _refuse(kind, "separator", at)
        if (category == "Cf" or _BLANK.match(character)) and not (
            kind == "label" and character in _JOINERS
        ):
            _refuse(kind, "invisible", at)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks > _RUN:
            _refuse(kind, "combining", at)
    # Sorting long runs of marks is quadratic: those are refused by now.
    if kind not in ("path", "arg") and not unicodedata.is_normalized("NFC", value):
        _refuse(kind, "not-nfc", 0)


def _refuse(kind: str, code: str, offset: int) -> NoReturn:
    raise IdentifierError(f"the {kind} {_CODES[code]}", code=code, offset=offset, kind=kind)


def check_argv(
    argv: Iterable[str], *, max_tokens: int = 1024, max_bytes: int = 131_072
) -> list[str]:
    """`argv` as a list of clean arguments that may be logged and passed to a process.

    At most ``max_tokens`` entries and ``max_bytes`` in all, as UTF-8 with a terminator each. The
    error's ``index`` is the entry's.
    """
    if isinstance(argv, str | bytes):
        raise TypeError("argv is a sequence of str, not one string")
    checked: list[str] = []
    size = 0
    for index, entry in enumerate(argv):
        if index >= max_tokens:
            raise IdentifierError(
                f"argv {_CODES['too-many']}", code="too-many", offset=index, kind="arg", index=index
            )
        try:
            checked.append(check_identifier(entry, kind="arg"))
        except IdentifierError as error:
            raise IdentifierError(
                f"argument {index} {_CODES[error.code]}",
                code=error.code,
                offset=error.offset,
                kind="arg",
                index=index,
            ) from None
        size += len(entry.encode()) + 1
        if size > max_bytes:
            raise IdentifierError(
                f"argv {_CODES['too-long']}", code="too-long", offset=0, kind="arg", index=index
            )
    return checked


def loggable(value: object, max_len: int = 120) -> str:
    r"""`value` as one printable line, to show what was refused; never raises.

    What is not printable is escaped as in Python source, a backslash is doubled, known shapes of
    access tokens are redacted, and what exceeds ``max_len`` characters is counted, not shown.
    Something that is not a string is shown by its type alone.
    """
    if not isinstance(value, str):
        return f"<{type(value).__name__}>"
    text = redact(value)
    left = max(0, len(text) - max_len)
    shown = text[: len(text) - left]
    escaped = "".join(c if c.isprintable() and c != "\\" else _escaped(c) for c in shown)
    return f"{escaped}… (+{left})" if left else escaped


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class AuthId:
    """A secret's name within this process: equal for equal secrets, of no use elsewhere.

    It is made by :func:`fingerprint`. It cannot be pickled: another process, and a forked child,
    has another key.
    """

    __slots__ = ("_digest",)

    def __init__(self, digest: bytes) -> None:
        self._digest = digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AuthId) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return f"AuthId({self._digest.hex()[:8] or 'anonymous'})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a fingerprint means something in its own process only")


def _rekey() -> None:
    global keyed  # noqa: PLW0603  the key of this process
    keyed = blake2b(key=os.urandom(64), digest_size=32)


keyed: blake2b
_rekey()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_rekey)


def digest(secret: str) -> bytes:
    """32 bytes that stand for `secret` in this process; none for an empty or blank one.

    Keyed BLAKE2b with a random key: a full-width digest, of which nothing can be guessed back.
    """
    secret = secret.strip()
    if not secret:
        return b""
    hashed = keyed.copy()
    hashed.update(secret.encode("utf-8", "surrogatepass"))
    return hashed.digest()


def fingerprint(secret: str | None) -> AuthId:
    """The :class:`AuthId` of a secret; ``None``, ``""`` and blanks are one anonymous identity."""
    if secret is None:
        return AuthId(b"")
    if not isinstance(secret, str):
        raise TypeError(f"a secret is a str or None, not {type(secret).__name__}")
    return AuthId(digest(secret))
