"""The cache against a dict that forgets: whatever happens, in whatever order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import memweir as mw

BUDGET = 1 << 20
BYTES = np.random.default_rng(0).integers(256, size=1_300_000, dtype=np.uint8)
LEVELS = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
KEYS = st.integers(0, 15).map(str)
SIZES = st.one_of(st.integers(0, 100), st.integers(0, 300_000), st.integers(900_000, 1_200_000))


class Forgetful(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = mw.PixelCache(BUDGET)
        self.values: dict[str, np.ndarray[Any, Any]] = {}
        self.held: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self.counter = 0

    def array(self, size: int) -> np.ndarray[Any, Any]:
        """Of ``size`` bytes: such that stay as they are, runs, or what an image processor makes."""
        self.counter += 1
        start = 997 * self.counter % 100_000
        match self.counter % 3:
            case 0:
                return np.full(size, self.counter % 251, np.uint8)
            case 1:
                return LEVELS[BYTES[start : start + size // 4]]
        return BYTES[start : start + size]

    @rule(key=KEYS, size=SIZES)
    def put(self, key: str, size: int) -> None:
        array = self.array(size)
        self.values.pop(key, None)
        if self.cache.put(key, array):
            self.values[key] = array
            assert key in self.cache
        else:
            assert key not in self.cache

    @rule(key=KEYS, hold=st.booleans())
    def get(self, key: str, hold: bool) -> None:
        pixels = self.cache.get(key)
        assert (pixels is not None) == (key in self.cache)
        if pixels is not None:
            assert np.array_equal(pixels["array"], self.values[key])
            if hold:
                self.held.append((pixels["array"], self.values[key]))

    @rule(key=KEYS, size=SIZES, guess=st.none() | SIZES)
    def load(self, key: str, size: int, guess: int | None) -> None:
        there = key in self.cache
        array = self.array(size)
        pixels = self.cache.get_or_load(key, lambda: array, nbytes=guess)
        assert np.array_equal(pixels["array"], self.values[key] if there else array)
        if not there:
            self.values[key] = array
            assert pixels.kept == (key in self.cache)

    @rule(key=KEYS, size=SIZES)
    def fail(self, key: str, size: int) -> None:
        def load() -> Any:
            raise OSError(key)

        if key not in self.cache:
            with pytest.raises(OSError, match=key):
                self.cache.get_or_load(key, load, nbytes=size)
            assert key not in self.cache

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))

    @rule(to=st.integers(0, BUDGET))
    def evict(self, to: int) -> None:
        self.cache.evict(to)
        assert self.cache.stats().bytes <= to or not self.unpinned()

    @rule(budget=st.integers(0, 2 * BUDGET))
    def resize(self, budget: int) -> None:
        excess = self.cache.resize(budget)
        assert excess == max(0, self.cache.stats().bytes - budget)
        assert excess == 0 or not self.unpinned()

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        assert len(self.cache) == 0

    def unpinned(self) -> int:
        stats = self.cache.stats()
        return stats.bytes - stats.pinned_bytes > 64 << 10  # bookkeeping stays

    @invariant()
    def within_budget_and_true(self) -> None:
        self.values = {k: v for k, v in self.values.items() if k in self.cache}
        stats = self.cache.stats()
        assert stats.entries == len(self.values) == len(self.cache)
        assert stats.bytes <= stats.budget or stats.pinned_bytes > 0
        assert stats.pinned_bytes <= stats.bytes
        for view, array in self.held:
            assert np.array_equal(view, array)

    def teardown(self) -> None:
        self.held.clear()
        self.cache.clear()
        stats = self.cache.stats()
        assert (stats.bytes, stats.logical_bytes, stats.pinned_bytes) == (0, 0, 0)


Forgetful.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestForgetful = Forgetful.TestCase
