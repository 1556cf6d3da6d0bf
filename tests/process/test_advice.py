"""Huge pages that numpy asked for, where its arrays are gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from preload_kit import GLIBC, environment

pytest.importorskip("numpy")

_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_CHILD = Path(__file__).with_name("advice_child.py")


def run(**variables: str) -> Any:
    if not _MODE.exists() or "[madvise]" not in _MODE.read_text():
        pytest.skip("huge pages are not for those who ask for them here")
    command = [sys.executable, str(_CHILD)]
    env = environment(GLIBC, **variables)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_nearly_empty_after_a_trim_takes_no_huge_pages_and_what_is_full_does() -> None:
    found = run()
    assert found["before"] == [True] * 7, "numpy advised nothing, or its arrays lay elsewhere"
    assert found["after"] == [False] * 6 + [True]
    assert found["sparse"] == 0
    assert found["detail"]["unadvised_ranges"] >= 2
    assert found["detail"]["unadvised_bytes"] >= 16 << 20
    before, after = found["borders"]
    assert after <= before
    assert found["values"]
    assert found["large"]
    assert found["in place"]
    assert found["again"]


def test_what_nobody_advised_stays_as_it_is() -> None:
    found = run(NUMPY_MADVISE_HUGEPAGE="0")
    assert not any(found["before"])
    assert found["detail"]["unadvised_ranges"] == 0
