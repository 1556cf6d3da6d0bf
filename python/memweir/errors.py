"""The errors of memweir: each says what happened and what to do about it.

Bad arguments raise ``ValueError`` and wrong types ``TypeError``, as everywhere in Python.
"""

from __future__ import annotations

__all__ = [
    "BudgetExceeded",
    "Busy",
    "LoadFailed",
    "MemweirError",
    "MissingPixels",
    "PixelMismatch",
    "Released",
    "UnsupportedType",
]


class MemweirError(Exception):
    """Base of every error that memweir defines."""


class BudgetExceeded(MemweirError):
    """Something cannot fit into its byte budget, whatever is evicted."""


class MissingPixels(MemweirError, LookupError):
    """Pixels that a reference names are nowhere to be found.

    ``digest`` is the hex digest of the missing array.
    """

    def __init__(self, message: str, *, digest: str | None = None) -> None:
        super().__init__(message)
        self.digest = digest


class PixelMismatch(MemweirError):
    """Pixels were found or recomputed, and are not the ones that were stripped.

    ``expected`` and ``got`` are hex digests (``got`` is ``None`` when a layout differed first).
    """

    def __init__(
        self, message: str, *, expected: str | None = None, got: str | None = None
    ) -> None:
        super().__init__(message)
        self.expected = expected
        self.got = got


class UnsupportedType(MemweirError, TypeError):
    """A value has no canonical bytes; it is refused instead of pickled."""


class Released(MemweirError):
    """The memory behind a handle was given back."""


class LoadFailed(MemweirError):
    """A loader that others were waiting for failed; the cause is chained."""


class Busy(MemweirError):
    """No room or no turn right now: the same call may succeed later."""
