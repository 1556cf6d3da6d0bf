"""Memory that is back after models were let go, by the kernel's count: short runs of the bench."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("torch")

from benches.kernel import MIB, watch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells RssAnon")


def test_weights_that_a_live_thread_loaded_are_back_after_each_unload(monkeypatch):
    monkeypatch.setenv("MEMWEIR_BENCH_CYCLES", "8")
    warm, *cycles = watch("benches.models", "many memweir")["result"]
    assert len(cycles) == 8
    assert max(cycles) <= warm + 5 * MIB
    assert max(cycles) - min(cycles) <= 5 * MIB


def test_models_do_not_wait_for_each_other():
    found = watch("benches.models", "meet memweir")["result"]
    assert found == {"loads": 4, "uses": 4}
