"""One spelling for all ways to write the same data URI or base64 text (RFC 2397, RFC 4648).

Nothing is decoded but percent-escapes. Text is read a mebibyte at a time, so that a check of a
long one takes no memory to speak of, and every step takes time in proportion to its length.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Final, NoReturn
from urllib.parse import quote, unquote_to_bytes

import numpy as np

__all__ = ["base64_spelling", "data_uri_spelling"]

SCHEME: Final = "data:"
# No media type is longer; a text without a comma need not be searched to its end.
_LONGEST_HEADER: Final = 4096
_CHUNK: Final = 1 << 20
_WHITE: Final = b"\t\n\f\r "
_DIGITS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_FROM_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
# The value of a hexadecimal digit; 16 and more for what is none.
_HEX: Final = np.full(256, 255, np.uint8)
_HEX[list(b"0123456789abcdef")] = _HEX[list(b"0123456789ABCDEF")] = range(16)


def data_uri_spelling(text: str) -> str:
    """``data:TYPE;PARAMETERS;base64,PAYLOAD`` as it is usually written; ``text`` itself if it is.

    Raises ``ValueError`` for what is no data URI; the message shows nothing of it.
    """
    uri = text.strip(_WHITE.decode())
    if uri[: len(SCHEME)].lower() != SCHEME:
        _malformed("it does not begin with data:")
    comma = uri.find(",", 0, _LONGEST_HEADER)
    if comma < 0:
        _malformed(f"no comma ends its media type within {_LONGEST_HEADER} characters")
    media_type, encoded = _header(uri[len(SCHEME) : comma])
    head = f"{SCHEME}{media_type};base64,"
    if not encoded:
        if "#" in uri:
            _malformed("an unescaped # would begin a fragment")
        payload = b"".join(_unescaped(uri, comma + 1))
        return head + base64.b64encode(payload).decode("ascii")
    if uri.startswith(head) and len(head) == comma + 1 and _is_canonical(uri, comma + 1):
        return uri
    return head + _digits(_unescaped(uri, comma + 1))


def base64_spelling(text: str) -> str:
    """``text`` in the standard alphabet, padded and without white space; itself if it is so.

    Raises ``ValueError`` for what is no base64; the message shows nothing of it.
    """
    spelling = text if _is_canonical(text, 0) else _digits(_chunks(text, 0))
    if not spelling:
        _malformed("it is empty")
    return spelling


def _header(header: str) -> tuple[str, bool]:
    """The media type with its parameters, and whether base64 follows."""
    if not header.isascii() or not header.isprintable():
        _malformed("characters that no media type has")
    kind, *parameters = [part.strip() for part in header.split(";")]
    encoded = bool(parameters) and parameters[-1].lower() == "base64"
    if encoded:
        parameters.pop()
    if any(part.lower() == "base64" for part in parameters):
        _malformed("base64 is not the last of its parameters")
    if not kind:
        kind = "text/plain"
        parameters = parameters or ["charset=us-ascii"]
    if "/" not in kind or " " in kind:
        _malformed("its media type is not TYPE/SUBTYPE")
    return ";".join([kind.lower(), *sorted(_parameter(part) for part in parameters)]), encoded


def _parameter(part: str) -> str:
    """One ``name=value``. Names have no case, and neither have the values of charset."""
    name, equals, value = part.partition("=")
    name, value = name.strip().lower(), value.strip()
    if not equals:
        return name
    value = unquote_to_bytes(value).decode("utf-8", "surrogateescape")
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    if name == "charset":
        value = value.lower()
    return f"{name}={quote(value, safe='', errors='surrogateescape')}"


def _is_canonical(text: str, start: int) -> bool:
    """Whether the base64 from ``start`` on has its only spelling, checked to the last digit."""
    if (len(text) - start) % 4 or not text.isascii():
        return False
    end = len(text)
    while end > start and end > len(text) - 2 and text[end - 1] == "=":
        end -= 1
    if any(
        text[at : min(at + _CHUNK, end)].encode("ascii").translate(None, _DIGITS)
        for at in range(start, end, _CHUNK)
    ):
        return False
    return end == len(text) or text[end - 1] == _last(text[end - 1], len(text) - end)


def _digits(pieces: Iterator[bytes]) -> str:
    """Canonical base64 from base64 in any spelling. Raises ``ValueError``."""
    kept = []
    seen: set[int] = set()
    for piece in pieces:
        digits = piece.translate(None, _WHITE)
        seen.update(digit for digit in b"+/-_" if digit in digits)
        kept.append(digits.translate(_FROM_URL_SAFE))
    if seen & set(b"+/") and seen & set(b"-_"):
        _malformed("its base64 mixes two alphabets")
    whole = b"".join(kept)
    digits = whole.rstrip(b"=")
    padding, missing = len(whole) - len(digits), -len(digits) % 4
    if digits.translate(None, _DIGITS):
        _malformed("characters that are not base64")
    if missing == 3:
        _malformed("its base64 is one character too long or too short")
    if padding not in (0, missing):
        _malformed("its base64 has the wrong padding")
    text = digits.decode("ascii")
    if missing:
        text = text[:-1] + _last(text[-1], missing) + "=" * missing
    return text


def _last(digit: str, missing: int) -> str:
    """The last digit with the bits that no byte uses set to zero: RFC 4648, section 3.5."""
    return chr(_DIGITS[_DIGITS.index(digit.encode()) >> 2 * missing << 2 * missing])


def _chunks(text: str, start: int) -> Iterator[bytes]:
    for at in range(start, len(text), _CHUNK):
        yield text[at : at + _CHUNK].encode("utf-8", "surrogatepass")


def _unescaped(text: str, start: int) -> Iterator[bytes]:
    """The bytes that percent-encoded ``text`` stands for; what is no escape stands for itself."""
    rest = b""
    for chunk in _chunks(text, start):
        piece = rest + chunk
        cut = piece.rfind(b"%", max(0, len(piece) - 2))  # an escape may go on in the next chunk
        rest = b"" if cut < 0 else piece[cut:]
        yield _unescape(piece if cut < 0 else piece[:cut])
    yield _unescape(rest)


def _unescape(piece: bytes) -> bytes:
    if b"%" not in piece:
        return piece
    codes = np.frombuffer(piece + b"..", np.uint8).copy()
    at = np.flatnonzero(codes == ord("%"))
    high, low = _HEX[codes[at + 1]], _HEX[codes[at + 2]]
    real = np.maximum(high, low) < 16
    at = at[real]
    codes[at] = (high << 4 | low)[real]
    kept = np.ones(len(codes), bool)
    kept[at + 1] = kept[at + 2] = kept[-2:] = False
    return codes[kept].tobytes()


def _malformed(why: str) -> NoReturn:
    raise ValueError(f"malformed source: {why}")
