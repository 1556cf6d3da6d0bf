"""Where vLLM and verifiers come from, and a process with no cache but the test's."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import pytest

import memweir as mw
from memweir.pixels import live


@pytest.fixture(scope="session")
def vllm() -> Any:
    """The parts of vLLM that images pass through, from an unpacked wheel, on the CPU."""
    path = os.environ.get("MEMWEIR_VLLM")
    if not path:
        pytest.skip("MEMWEIR_VLLM names no unpacked vLLM wheel")
    sys.path.append(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm_kit
    return vllm_kit


@pytest.fixture
def vf() -> Any:
    """verifiers: the installed release, or the unpacked wheel that MEMWEIR_VERIFIERS names."""
    path = os.environ.get("MEMWEIR_VERIFIERS")
    if path and path not in sys.path:
        sys.path.insert(0, path)
    return pytest.importorskip("verifiers.v1")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other cache of this process is found by a reference."""
    monkeypatch.setattr(live, "_caches", {})


@pytest.fixture
def cache() -> mw.PixelCache:
    return mw.PixelCache("256 MiB")
