"""The demo, small: it plans, runs all four arms, proves equality and says what broke."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from memweir.cli.demo import command, watch
from memweir.cli.demo.report import ARMS, MIB, claims
from memweir.cli.demo.watch import Run
from memweir.cli.demo.workload import BYTES_PER_IMAGE, Plan, photographs

# An arm whose trainer is handed one tensor with one bit changed.
BROKEN = """
import sys
from pathlib import Path
from memweir.cli.demo import arms

class Flipped(arms.Budgeted):
    def samples(self, kept):
        tensors = [dict(one) for one in super().samples(kept)]
        pixels = tensors[0]["pixel_values"].copy()
        pixels.view("u4")[0, 0] ^= 1
        tensors[0]["pixel_values"] = pixels
        return tensors

arms.Budgeted = Flipped
arms.main(sys.argv[1], Path(sys.argv[2]))
"""


def test_a_small_demo_holds_its_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "chart.png"
    assert command.run(out, 2, 2) == 0
    with Image.open(out) as chart:
        assert chart.format == "PNG"
        assert chart.width >= 1200
    told = capsys.readouterr().out
    assert "(c) gives the trainer the tensors of (a), bit for bit: 8 of 8" in told
    assert "BROKEN" not in told


def test_the_end_is_taken_without_the_batch(tmp_path: Path) -> None:
    plan = Plan(rollouts=4, turns=1)
    job = {"plan": asdict(plan), "uris": photographs()}
    (tmp_path / "job.json").write_text(json.dumps(job))
    run = watch.watch("dict", tmp_path, steps=5, progress=lambda: None)
    batch = 4 * BYTES_PER_IMAGE
    assert run.end < batch < run.peak


def test_one_changed_bit_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    monkeypatch.setattr(watch, "COMMAND", [sys.executable, str(script)])
    assert command.run(tmp_path / "chart.png", 1, 1) == 1
    told = capsys.readouterr().out
    assert "BROKEN (c) gives the trainer the tensors of (a), bit for bit: 1 of 2" in told
    assert "holds  (b) gives the trainer the tensors of (a), bit for bit: 2 of 2" in told


def test_an_arm_that_dies_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = [sys.executable, "-c", "print('ready', flush=True); input(); raise SystemExit('ouch')"]
    monkeypatch.setattr(watch, "COMMAND", dying)
    assert command.run(tmp_path / "chart.png", 1, 1) == 1
    assert "ouch" in capsys.readouterr().out
    assert not (tmp_path / "chart.png").exists()


def test_missing_packages_are_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "NEEDS", ("PIL", "no_such_module"))
    assert command.run(tmp_path / "chart.png", 1, 1) == 2
    told = capsys.readouterr().err
    assert "'no_such_module'" in told
    assert "pip install 'memweir[demo]'" in told


def test_groups_share_their_images() -> None:
    plan = Plan()
    seen: dict[int, set[int]] = {}
    for step in plan.steps():
        seen.setdefault(step.rollout, set()).add(step.image)
    assert len(seen) == 32
    assert all(len(images) == 8 for images in seen.values())
    for first, second in pairwise(range(32)):
        assert (seen[first] == seen[second]) == (first // 8 == second // 8)
    assert set.union(*seen.values()) == set(range(16))


def test_the_trainer_takes_every_step_once() -> None:
    plan = Plan(rollouts=3, turns=3)
    assert [step for batch in plan.batches() for step in batch] == list(plan.steps())
    assert len(set(plan.steps())) == 9


@pytest.mark.parametrize(
    ("images", "rollouts"), [(10_000, 32), (256, 32), (255, 24), (65, 8), (63, 7), (0, 1)]
)
def test_rollouts_fit_the_room(images: int, rollouts: int) -> None:
    plan = Plan().scaled_to(images * BYTES_PER_IMAGE)
    assert plan.rollouts == rollouts
    assert plan.turns == 8


def full_size(
    seconds: float = 1.25, ends: dict[str, float] | None = None, **growth: float
) -> dict[str, Run]:
    """Runs that hold every claim, except with other growth (MiB, by arm letter) or time of (c)."""
    usual = {"a": 3400.0, "b": 300.0, "c": 192.0, "d": 160.0}
    usual_ends = {"a": 3350.0, "b": 250.0, "c": 96.0, "d": 64.0}
    runs = {}
    for arm in ARMS:
        peak = int({**usual, **growth}[arm.letter] * MIB)
        end = int({**usual_ends, **(ends or {})}[arm.letter] * MIB)
        runs[arm.name] = Run(10.0, 0, [0.0], [peak], end, {"0/0/pixels": "00"})
    runs["256 MiB"].seconds = seconds
    return runs


def broken(runs: dict[str, Run], plan: Plan | None = None) -> list[str]:
    return [claim.text for claim in claims(plan or Plan(), runs) if not claim.holds]


def test_every_limit_is_judged() -> None:
    assert broken(full_size()) == []
    assert broken(full_size(seconds=1.26)) == ["(c) takes at most an eighth of (a)'s time"]
    assert broken(full_size(a=3000)) == ["(a) grows by at least 3.2 GB"]
    assert broken(full_size(c=192.1)) == ["(c) grows by at most 192 MiB at its peak"]
    assert broken(full_size(d=160.1)) == ["(d) grows by at most 160 MiB at its peak"]
    assert broken(full_size(ends={"c": 96.1})) == ["(c) grows by at most 96 MiB at the end"]
    assert broken(full_size(ends={"d": 64.1})) == ["(d) grows by at most 64 MiB at the end"]


def test_a_small_plan_is_not_judged_by_full_size() -> None:
    small = Plan(rollouts=8)
    assert broken(full_size(a=100, seconds=9.0), small) == []
    assert broken(full_size(d=161), small) == ["(d) grows by at most 160 MiB at its peak"]


def test_no_tensors_are_not_equal_tensors() -> None:
    runs = full_size()
    for run in runs.values():
        run.digests = {}
    assert len(broken(runs)) == 3
