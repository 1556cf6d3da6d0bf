"""The demo of sessions, small: it runs all arms, proves equality and says what broke."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from memweir.cli.demo import sessions
from memweir.cli.demo.report import MIB
from memweir.cli.demo.sessions import ARMS, HELD, claims
from memweir.cli.demo.watch import Run

# One cycle of a model of 20 MiB, and hardly a quiet time.
PREPARE = sessions.PREPARE.replace(
    'encoder.save(folder / "model.onnx")',
    'encoder.save(folder / "model.onnx", encoder.Shape(layers=2, hidden=256, inner=1024, heads=4))',
)
SMALL = """
import sys
from pathlib import Path
from memweir.cli.demo import session_arms

name, plain = sys.argv[1], session_arms.mw.hash_array

def other(array):
    array.view("u4").flat[0] ^= name == {flipped!r}
    return plain(array)

session_arms.mw.hash_array = other
session_arms.CYCLES, session_arms.QUIET = 1, 0.1
session_arms.main(name, Path(sys.argv[2]))
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert PREPARE != sessions.PREPARE
    script = tmp_path / "small.py"
    script.write_text(SMALL.format(flipped=None))
    monkeypatch.setattr(sessions, "PREPARE", PREPARE)
    monkeypatch.setattr(sessions, "COMMAND", [sys.executable, str(script)])
    monkeypatch.setattr(sessions, "STEPS", 3)
    return script


@pytest.mark.usefixtures("small")
def test_a_small_demo_holds_its_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "chart.png"
    assert sessions.run(out) == 0
    with Image.open(out) as chart:
        assert chart.format == "PNG"
        assert chart.width >= 1200
    told = capsys.readouterr().out
    for arm in ("balanced", "lean"):
        assert f"memweir, {arm}: outputs are ONNX Runtime's own, bit for bit: 6 of 6" in told
        assert f"memweir, {arm}: holds at most {HELD} MiB" in told
    assert "BROKEN" not in told


def test_a_changed_bit_is_exit_code_1(
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small.write_text(SMALL.format(flipped="balanced"))
    monkeypatch.setattr(sessions, "ARMS", ARMS[:2])
    assert sessions.run(tmp_path / "chart.png") == 1
    told = capsys.readouterr().out
    assert "BROKEN memweir, balanced: outputs are ONNX Runtime's own, bit for bit: 0 of 6" in told
    assert told.count("BROKEN") == 1


@pytest.mark.usefixtures("small")
def test_an_arm_that_dies_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = [sys.executable, "-c", "print('ready', flush=True); input(); raise SystemExit('ouch')"]
    monkeypatch.setattr(sessions, "COMMAND", dying)
    assert sessions.run(tmp_path / "chart.png") == 1
    assert "ouch" in capsys.readouterr().out
    assert not (tmp_path / "chart.png").exists()


def test_missing_packages_are_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "NEEDS", ("onnx", "no_such_module"))
    assert sessions.run(tmp_path / "chart.png") == 2
    told = capsys.readouterr().err
    assert "'no_such_module'" in told
    assert "pip install 'memweir[demo]'" in told


def full_size(**ends: float) -> dict[str, Run]:
    """Runs that hold every claim, but for what is left in the end (MiB, by arm)."""
    usual = {"plain": 60.0, "balanced": 4.0, "lean": 4.0} | ends
    return {
        name: Run(10.0, 0, [0.0], [240 * MIB], int(end * MIB), {"0/12": "00"})
        for name, end in usual.items()
    }


def test_every_limit_is_judged() -> None:
    def broken(runs: dict[str, Run]) -> list[str]:
        return [claim.text for claim in claims(runs) if not claim.holds]

    assert broken(full_size()) == []
    assert broken(full_size(balanced=HELD, lean=HELD)) == []
    assert broken(full_size(balanced=HELD + 0.1)) == [
        f"memweir, balanced: holds at most {HELD} MiB after one request and a quiet time"
    ]
    assert broken(full_size(lean=HELD + 0.1)) == [
        f"memweir, lean: holds at most {HELD} MiB after one request and a quiet time"
    ]
    runs = full_size()
    runs["lean"].digests = {}
    assert broken(runs) == ["memweir, lean: outputs are ONNX Runtime's own, bit for bit"]
    for run in runs.values():
        run.digests = {}
    assert len(broken(runs)) == 2  # nothing compared proves nothing
