"""Pairs of libraries that break each other, by the metadata of real releases."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest
from doctor_kit import report, sound

from memweir.cli.doctor import Host, versions

OLDER = Path(__file__).parents[2] / ".venv-hub0" / "lib"


def broken(*paths: Path) -> dict[str | None, str]:
    """What the doctor finds to be broken where these folders come first."""
    found = report(PYTHONPATH=os.pathsep.join([*map(str, paths), *sys.path]))["findings"]
    named = ("pair-broken", "undeclared-missing")
    assert all(one["severity"] == "problem" and one["do"] for one in found if one["name"] in named)
    return {one["subject"]: one["what"] for one in found if one["name"] in named}


def older(folder: Path, package: str) -> Path:
    """A folder that says that a package of the generation before is installed."""
    found = next(OLDER.glob(f"python*/site-packages/{package}-*.dist-info"), None)
    if found is None:
        pytest.skip("`make hub0` has not been run: no metadata of that generation")
    shutil.copytree(found, folder / found.name)
    return folder


def test_the_environment_of_the_tests_is_sound() -> None:
    assert not [name for name in broken() if name and "hub" in name]


def test_a_newer_transformers_with_an_older_hub(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (told,) = [
        text
        for name, text in broken(older(tmp_path, "huggingface_hub")).items()
        if name == "transformers and huggingface-hub"
    ]
    assert told.startswith(f"transformers {metadata.version('transformers')} needs huggingface-hub")
    assert told.endswith("and 0.36.2 is there")


def test_an_older_transformers_with_a_newer_hub(tmp_path: Path) -> None:
    told = broken(older(tmp_path, "transformers"))["transformers and huggingface-hub"]
    assert told.startswith("transformers 4.57.6 needs huggingface-hub<1.0,>=0.34.0")


def test_both_of_the_older_generation_fit(tmp_path: Path) -> None:
    folder = older(older(tmp_path, "transformers"), "huggingface_hub")
    assert "transformers and huggingface-hub" not in broken(folder)


def test_a_package_that_does_not_declare_what_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"renderers": "0.1.12"}
    monkeypatch.setattr(versions, "_version", installed.get)
    (one,) = versions.findings(sound())
    assert (one.name, one.subject) == ("undeclared-missing", "renderers without httpx")
    assert one.do == "install httpx"
    installed["httpx"] = "0.28"
    assert list(versions.findings(sound())) == []


def test_a_need_of_another_platform_or_extra_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_version", {"a": "1", "b-c": "1"}.get)
    needs = [
        'b-c>=9; sys_platform == "nowhere"',
        'b_c>=9; extra == "more"',
        "other>=9",
    ]
    monkeypatch.setattr(versions.metadata, "requires", lambda package: needs)
    assert versions._need("a", "b-c") is None
    needs.append("b_c>=2")
    assert versions._need("a", "b-c") == "a 1 needs b-c>=2, and 1 is there"
    assert versions._need("none", "b-c") is None
    monkeypatch.setattr(versions, "_version", {"a": "1"}.get)
    assert versions._need("a", "b-c") == "a 1 needs b-c>=2, not installed"


def test_metadata_that_make_no_sense_are_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "_version", {"a": "1", "b": "of yesterday"}.get)
    monkeypatch.setattr(versions.metadata, "requires", lambda package: ["b (>=", "b>=2", ""])
    assert versions._need("a", "b") is None
    monkeypatch.undo()
    (tmp_path / "left_behind-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings(action="ignore"):  # of a metadata module that will raise
        assert versions._version("left-behind") is None


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "PACKAGES", ("pytest", "no-such-package"))
    found = versions.facts(Host.here())
    assert found["pytest"] == metadata.version("pytest")
    assert found["no-such-package"] is None
