"""Redaction for the standard library's logging."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from .redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["RedactingFilter"]

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
            message = f"{record.msg} (its arguments do not fit)"
            record.msg, record.args = message, None
        clean = redact(message, secrets=self._secrets)
        if clean != message:
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
        for name in record.__dict__.keys() - _STANDARD:
            record.__dict__[name] = self._clean(record.__dict__[name])
        return True

    def _clean(self, value: Any, depth: int = 8) -> Any:
        if isinstance(value, str):
            return redact(value, secrets=self._secrets)
        if depth and type(value) in (list, tuple):
            return type(value)(self._clean(each, depth - 1) for each in value)
        if depth and type(value) is dict:
            return {key: self._clean(each, depth - 1) for key, each in value.items()}
        return value

    def __repr__(self) -> str:
        return f"RedactingFilter({self.name!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a RedactingFilter holds secrets and is not pickled")
