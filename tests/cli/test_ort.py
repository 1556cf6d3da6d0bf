"""``memweir ort``: a cache folder listed, filled and cleaned from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import memweir as mw
from memweir.cli.app import app
from memweir.cli.demo import encoder

Told = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.onnx"
    encoder.save(path, encoder.TINY)
    return path


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """Exit code and both streams of ``memweir ort ...``, over a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))

    def run(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["ort", *map(str, words)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    return run


def test_what_is_prepacked_is_listed_and_cleaned(model: Path, told: Told) -> None:
    folder = mw.ort.cache_folder()
    assert told("list") == (0, f"{folder}: 0 B\n")
    code, first = told("prepack", model)
    assert code == 0
    assert "built in" in first
    assert str(folder) in first
    code, again = told("prepack", model)
    assert code == 0
    assert "there already" in again

    (made,) = mw.ort.cached()
    code, text = told("list")
    assert code == 0
    assert made.key[:12] in text
    assert made.runtime in text
    assert text.endswith("tiny.onnx\n")
    code, text = told("list", "--json")
    assert code == 0
    assert [one["key"] for one in json.loads(text)] == [made.key]

    assert told("clean", "--unused", 1)[1].startswith("0 removed, 0 B; 1 left")
    assert told("clean", "--stale")[1].startswith("0 removed, 0 B; 1 left")
    assert told("clean", "--limit", made.nbytes)[1].startswith("0 removed, 0 B; 1 left")
    code, text = told("clean")
    assert code == 0
    assert text.startswith("1 removed, ")
    assert text.endswith("; 0 left\n")
    assert mw.ort.cached() == []


def test_another_folder_can_be_named(model: Path, told: Told, tmp_path: Path) -> None:
    assert told("prepack", model, "--cache-dir", tmp_path / "here")[0] == 0
    assert mw.ort.cached() == []
    assert len(mw.ort.cached(tmp_path / "here")) == 1
    assert "tiny.onnx" in told("list", "--cache-dir", tmp_path / "here")[1]
    assert told("clean", "--cache-dir", tmp_path / "here")[1].startswith("1 removed")


def test_what_cannot_be_prepacked_is_exit_code_1(told: Told, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    for name in ("bad.onnx", "missing.onnx"):
        code, text = told("prepack", tmp_path / name)
        assert code == 1
        assert text.startswith("memweir ort prepack: ")
        assert name in text
    assert mw.ort.cached() == []


def test_a_limit_that_is_no_size_is_exit_code_2(told: Told) -> None:
    code, text = told("clean", "--limit", "much")
    assert code == 2
    assert "memweir ort clean: " in text


def test_without_the_runtime_the_exit_code_is_2(model: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; from memweir.cli import main; main()"
    words = ["ort", "prepack", model, "--cache-dir", tmp_path]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "memweir[onnx]" in done.stderr
