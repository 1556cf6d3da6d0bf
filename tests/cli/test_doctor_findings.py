"""Pairs of libraries that break each other, by the metadata of real releases."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from memweir.cli import doctor

OLDER = Path(__file__).parents[2] / ".venv-hub0" / "lib"


def findings(*paths: Path, package: str = "") -> dict[str, str]:
    """What the doctor finds where these folders come first."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "memweir", "doctor", "--json"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found: dict[str, str] = json.loads(done.stdout)["findings"]
    return found


def older(folder: Path, package: str) -> Path:
    """A folder that says that a package of the generation before is installed."""
    found = next(OLDER.glob(f"python*/site-packages/{package}-*.dist-info"), None)
    if found is None:
        pytest.skip("`make hub0` has not been run: no metadata of that generation")
    shutil.copytree(found, folder / found.name)
    return folder


def test_the_environment_of_the_tests_is_sound() -> None:
    assert not [name for name in findings() if "hub" in name]


def test_a_newer_transformers_with_an_older_hub(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (told,) = [
        text
        for name, text in findings(older(tmp_path, "huggingface_hub")).items()
        if name == "transformers and huggingface-hub"
    ]
    assert told.startswith(f"transformers {metadata.version('transformers')} needs huggingface-hub")
    assert told.endswith("and 0.36.2 is there")


def test_an_older_transformers_with_a_newer_hub(tmp_path: Path) -> None:
    told = findings(older(tmp_path, "transformers"))["transformers and huggingface-hub"]
    assert told.startswith("transformers 4.57.6 needs huggingface-hub<1.0,>=0.34.0")


def test_both_of_the_older_generation_fit(tmp_path: Path) -> None:
    folder = older(older(tmp_path, "transformers"), "huggingface_hub")
    assert "transformers and huggingface-hub" not in findings(folder)


def test_a_package_that_does_not_declare_what_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"renderers": "0.1.12"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    assert "install httpx" in doctor.findings()["renderers without httpx"]
    versions["httpx"] = "0.28"
    assert "renderers without httpx" not in doctor.findings()


def test_a_need_of_another_platform_or_extra_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", {"a": "1", "b-c": "1"}.get)
    needs = [
        'b-c>=9; sys_platform == "nowhere"',
        'b_c>=9; extra == "more"',
        "other>=9",
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda package: needs)
    assert doctor._need("a", "b-c") is None
    needs.append("b_c>=2")
    assert doctor._need("a", "b-c") == "a 1 needs b-c>=2, and 1 is there"
    assert doctor._need("none", "b-c") is None
    monkeypatch.setattr(doctor, "_version", {"a": "1"}.get)
    assert doctor._need("a", "b-c") == "a 1 needs b-c>=2, not installed"
