"""How long answers are kept, and when a question without one is asked again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import isfinite

__all__ = ["TTL", "Backoff"]


@dataclass(frozen=True, slots=True)
class TTL:
    """Seconds for which each outcome is remembered; ``None`` is for the life of the process.

    ``known`` are values. The others are what cannot be known: access may be granted and
    repositories be created, so those are asked again; a malformed name stays one, and what is
    unsupported changes with the library versions, which belong in the key.
    """

    known: float | None = None
    denied: float | None = 300.0
    absent: float | None = 300.0
    invalid: float | None = None
    unsupported: float | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            _check_seconds(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Backoff:
    """When a question that found no answer is asked again.

    After the n-th failure in a row ``first * factor ** (n - 1)`` seconds, at most ``most``, each
    longer or shorter by a random part of up to ``jitter``. What a server asks for in
    ``Retry-After`` is never undercut, up to ``longest``.
    """

    first: float = 1.0
    most: float = 60.0
    factor: float = 2.0
    jitter: float = 0.2
    longest: float = 3600.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            _check_seconds(name, getattr(self, name))
        if self.factor < 1 or not 0 <= self.jitter < 1:
            raise ValueError("a back-off's factor is at least 1 and its jitter within [0, 1)")

    def delay(self, failures: int, retry_after: float | None) -> float:
        """Seconds to wait after that many failures in a row, at least 1."""
        # No power of a long row is taken: it would overflow.
        delay = self.first
        for _ in range(min(failures - 1, 64)):
            if delay >= self.most:
                break
            delay *= self.factor
        delay = min(delay, self.most) * (1 + self.jitter * random.uniform(-1, 1))
        return delay if retry_after is None else max(delay, min(retry_after, self.longest))


def _check_seconds(name: str, value: float | None) -> None:
    if value is not None and not (isfinite(value) and value >= 0):
        raise ValueError(f"{name} is a number of seconds, at least 0, not {value!r}")
