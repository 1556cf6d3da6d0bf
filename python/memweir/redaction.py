"""Access tokens taken out of text that is going to be shown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["redact"]

MARK = "[redacted]"

# Shapes that vendors document, so that nothing else is taken for a secret: there is no rule about
# entropy. A class that a token ends with is always consumed whole.
_VENDORS = (
    r"github_pat_[A-Za-z0-9_]{22,}",
    r"gh[oprsu]_[A-Za-z0-9]{36,}",
    r"glpat-[A-Za-z0-9_-]{20,}",
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
    r"pypi-[A-Za-z0-9_-]{60,}",
    r"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]{20,}",
    r"(?<![A-Za-z0-9])A(?:KIA|SIA)[A-Z0-9]{16}[A-Za-z0-9]*",
    r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35,}",
    r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
)
# Tokens of the Hugging Face Hub carry 34 characters. A name that has 30 is refused; in text 20 are
# hidden. Nothing needs to stand before: org/x_hf_… holds a token.
SECRET = re.compile("|".join((r"hf_[A-Za-z0-9]{30,}", r"api_org_[A-Za-z0-9]{30,}", *_VENDORS)))
# In text, what follows a name that says "secret" is one whatever its shape.
_NAMED = (
    r"(?<=://)[^\s/?#@:\[\]]++:[^\s/?#@\[\]]++(?=@)",
    r"(?i:(?<=bearer )|(?<=basic ))[A-Za-z0-9._~+/=-]{16,}",
    r"(?i:(?<=[?&]token=)|(?<=[?&]access_token=)|(?<=[?&]api_key=)|(?<=[?&]sig=)"
    r"|(?<=[?&]signature=)|(?<=[?&]x-amz-signature=))[^\s&#\"'<>\[\]]+",
)
_SHOWN = re.compile(
    "|".join((*_NAMED, r"hf_[A-Za-z0-9]{20,}", r"api_org_[A-Za-z0-9]{20,}", *_VENDORS))
)
# Most text has none of these, and finding that out this way is fifty times faster.
_HINTS = (
    *("hf_", "api_org_", "github_pat_", "gho_", "ghp_", "ghr_", "ghs_", "ghu_", "glpat-", "xox"),
    *("pypi-", "sk-", "akia", "asia", "aiza", "eyj", "://", "bearer ", "basic ", "token="),
    *("api_key=", "sig=", "signature="),
)
_ANSI = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x9b[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"
    r"|\x1b[ -/]*[0-~]|[\x1b\x9b]"
)


def redact(text: str, *, secrets: Iterable[str] = ()) -> str:
    """`text` with access tokens replaced by ``[redacted]``.

    Found are the given ``secrets``, the longest first, shapes that vendors document, credentials
    in URLs, and what follows ``Bearer`` or ``Basic``. Terminal escapes are looked through: they go
    where one would hide a secret. Text without a secret comes back as it was, and redacting again
    changes nothing. Time is linear in the length.
    """
    known = sorted({s for secret in secrets if (s := secret.strip())}, key=lambda s: (-len(s), s))
    clean = _hidden(text, known)
    if "\x1b" not in clean and "\x9b" not in clean:
        return clean
    plain = _ANSI.sub("", clean)
    again = _hidden(plain, known)
    return clean if again == plain else again


def _hidden(text: str, known: list[str]) -> str:
    # A mark is left as it is, and nothing is found across it.
    return MARK.join(_hide(piece, known) for piece in text.split(MARK))


def _hide(piece: str, known: list[str]) -> str:
    # The literals first, by themselves: what is left of the text is then searched as it will be
    # the next time, so that a second pass finds nothing new.
    parts = _between(piece, known) if known else [piece]
    return MARK.join(_SHOWN.sub(MARK, part) if _hinted(part) else part for part in parts)


def _between(text: str, known: list[str]) -> list[str]:
    """What stands between the literals; of those at one place the first in the list is taken.

    Not by a pattern: `re` would keep it, and the secrets in it, when their owner has let go.
    """
    ahead = {literal: at for literal in known if (at := text.find(literal)) >= 0}
    parts, begin = [], 0
    while ahead:
        literal = min(ahead, key=ahead.__getitem__)
        at = ahead[literal]
        parts.append(text[begin:at])
        begin = at + len(literal)
        for each in [each for each, at in ahead.items() if at < begin]:
            found = text.find(each, begin)
            if found < 0:
                del ahead[each]
            else:
                ahead[each] = found
    return [*parts, text[begin:]]


def _hinted(text: str) -> bool:
    lowered = text.lower()
    return any(hint in lowered for hint in _HINTS)
