"""A small encoder, embedded and external, and a cache folder that is nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from memweir.cli.demo import encoder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    encoder.save(folder / "tiny.onnx", encoder.TINY)
    encoder.save(folder / "apart.onnx", encoder.TINY, external=True)
    return folder


@pytest.fixture
def tiny(models: Path) -> Path:
    return models / "tiny.onnx"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "memweir" / "ort"
