"""Redaction for the standard library's logging."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from .redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["RedactingFilter"]

_NAMES = frozenset({"threadName", "processName", "taskName"})  # which somebody gave
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class RedactingFilter(logging.Filter):
    """A filter that takes secrets out of records: put it on handlers, or on a logger.

    ``secrets`` are literals to hide beside the shapes that :func:`~memweir.redact` knows. The
    message, the traceback, the stack and text in ``extra=`` are searched; a record without a
    secret is left exactly as it was. Where a traceback holds one, ``exc_info`` goes and its
    redacted text stays.
    """

    def __init__(self, name: str = "", *, secrets: Iterable[str] = ()) -> None:
        super().__init__(name)
        self._secrets = tuple(secrets)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record's logger is the filter's; the record is redacted in place."""
        if not super().filter(record):
            return False
        try:
            message = record.getMessage()
        except Exception:  # the handler would report it together with its arguments
            try:
                message = f"{record.msg} (its arguments do not fit)"
            except Exception:
                message = f"<{type(record.msg).__name__}> (it cannot be shown)"
            record.msg, record.args = message, None
        clean = redact(message, secrets=self._secrets)
        # What is not shown, a formatter that dumps records shows all the same.
        if clean != message or self._clean(record.args) is not record.args:
            record.msg, record.args = clean, None
        if record.exc_info:
            told = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            clean = redact(told, secrets=self._secrets)
            if clean != told:
                record.exc_text, record.exc_info = clean, None
        if record.exc_text:
            record.exc_text = redact(record.exc_text, secrets=self._secrets)
        if record.stack_info:
            record.stack_info = redact(record.stack_info, secrets=self._secrets)
        for name in record.__dict__.keys() - _STANDARD | record.__dict__.keys() & _NAMES:
            record.__dict__[name] = self._clean(record.__dict__[name])
        return True

    def _clean(self, value: Any, depth: int = 8) -> Any:
        """`value` without secrets in its strings: the same object if there are none."""
        if isinstance(value, str):
            clean = redact(value, secrets=self._secrets)
            return value if clean == value else clean
        kind = type(value)
        if kind not in (list, tuple, set, frozenset, dict):
            return value
        if not depth:  # or it holds itself
            text = repr(value)
            return value if (clean := self._clean(text)) is text else clean
        parts = [part for pair in value.items() for part in pair] if kind is dict else [*value]
        cleaned = [self._clean(part, depth - 1) for part in parts]
        if all(old is new for old, new in zip(parts, cleaned, strict=True)):
            return value
        if kind is dict:
            return dict(zip(cleaned[::2], cleaned[1::2], strict=True))
        return kind(cleaned)

    def __repr__(self) -> str:
        return f"RedactingFilter({self.name!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a RedactingFilter holds secrets and is not pickled")
