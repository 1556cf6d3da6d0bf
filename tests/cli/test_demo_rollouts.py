"""The demo of rollouts, small: it runs all arms, proves equality and says what broke."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from memweir.cli.demo import rollouts
from memweir.cli.demo.report import MIB
from memweir.cli.demo.rollouts import ARMS, PROCESSED, TURNS, claims
from memweir.cli.demo.watch import Run
from memweir.cli.demo.workload import frames

# An arm of memweir whose trainer is handed one bit that is not upstream's.
BROKEN = """
import sys
from pathlib import Path
from memweir.cli.demo import rollout_arms

name, plain = sys.argv[1], rollout_arms.mw.hash_array

def other(array):
    array.view("u4")[0, 0] ^= name == "64 MiB"
    return plain(array)

rollout_arms.mw.hash_array = other
rollout_arms.main(name, Path(sys.argv[2]))
"""


@pytest.fixture(scope="module", autouse=True)
def _renderers() -> None:
    pytest.importorskip("renderers")


def test_a_small_demo_holds_its_claims(capsys: pytest.CaptureFixture[str]) -> None:
    assert rollouts.run(1) == 0
    told = capsys.readouterr().out
    assert "memweir's, 64 MiB: prompts are upstream's, bit for bit: 8 of 8" in told
    assert "memweir's, 1 GiB: pixels are upstream's, bit for bit: 8 of 8" in told
    assert "BROKEN" not in told


def test_a_changed_bit_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    monkeypatch.setattr(rollouts, "COMMAND", [sys.executable, str(script)])
    monkeypatch.setattr(rollouts, "ARMS", ARMS[::2])
    assert rollouts.run(1) == 1
    told = capsys.readouterr().out
    assert "BROKEN memweir's, 64 MiB: pixels are upstream's, bit for bit: 0 of 8" in told
    assert told.count("BROKEN") == 1


def test_an_arm_that_dies_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = [sys.executable, "-c", "print('ready', flush=True); input(); raise SystemExit('ouch')"]
    monkeypatch.setattr(rollouts, "COMMAND", dying)
    assert rollouts.run(1) == 1
    assert "ouch" in capsys.readouterr().out


def test_missing_packages_are_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "NEEDS", ("PIL", "no_such_module"))
    assert rollouts.run(1) == 2
    told = capsys.readouterr().err
    assert "'no_such_module'" in told
    assert "pip install 'memweir[demo,renderers]'" in told


def test_every_claim_is_judged() -> None:
    def runs(**changed: str) -> dict[str, Run]:
        found = {f"0/{turn}/{kind}": "00" for turn in range(TURNS) for kind in ("prompt", "pixels")}
        found[PROCESSED] = str(TURNS)
        made = {arm.name: Run(1.0, 0, [0.0], [184 * MIB], 0, dict(found)) for arm in ARMS}
        made["1 GiB"].digests |= changed
        return made

    def broken(seen: dict[str, Run]) -> list[str]:
        return [claim.text for claim in claims(seen, 1) if not claim.holds]

    assert broken(runs()) == []
    assert broken(runs(processed="9")) == [
        "memweir's, 1 GiB: rollouts have each image processed once"
    ]
    assert broken(runs(**{"0/3/prompt": "01"})) == [
        "memweir's, 1 GiB: prompts are upstream's, bit for bit"
    ]
    grown = runs()
    grown["64 MiB"].growth = [185 * MIB]
    assert broken(grown) == ["memweir's, 64 MiB: grows by at most 184 MiB"]


def test_frames_are_distinct() -> None:
    uris = list(frames(257, 64))
    assert len(set(uris)) == 257
