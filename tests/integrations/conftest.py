"""Finds vLLM: an unpacked wheel named by MEMWEIR_VLLM, imported once, on the CPU."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import pytest


@pytest.fixture(scope="session")
def vllm() -> Any:
    """The parts of vLLM that images pass through."""
    path = os.environ.get("MEMWEIR_VLLM")
    if not path:
        pytest.skip("MEMWEIR_VLLM names no unpacked vLLM wheel")
    sys.path.append(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm_kit
    return vllm_kit
