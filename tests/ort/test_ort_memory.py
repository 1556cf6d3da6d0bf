"""What sessions hold and give back, by the kernel's count, in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ort_kit import child

import memweir as mw
from memweir.cli.demo.encoder import Shape, save

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 1 << 20
SMALL = Shape(layers=2, hidden=256, inner=1024, heads=4)
"""20 MiB of weights, for words as the bench has them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("small")
    save(made / "model.onnx", SMALL)
    mw.ort.prepack(made / "model.onnx", made / "cache")
    return made


CYCLES = """
import json, sys
from pathlib import Path
from benches.ort import cycles
print(json.dumps(cycles(Path(sys.argv[1]), sys.argv[2], True)))
"""


@pytest.mark.parametrize(("arm", "loaded"), [("lean", 5), ("balanced", 26)])
def test_44_eight_lives_of_a_session_end_where_they_began(folder, arm, loaded):
    found = child(CYCLES, folder, arm)["cycles"]
    assert len(found) == 8
    for cycle in found:
        assert cycle["loaded"] <= loaded
        assert cycle["closed"] <= 6
    assert found[-1]["closed"] - found[1]["closed"] <= 1.5


def test_46_arms_are_measured_in_processes_of_their_own(folder):
    plain = child(CYCLES, folder, "ORT's defaults")
    lean = child(CYCLES, folder, "lean")
    # The peak counts pages of files, and so does the part that is said to be those.
    assert lean["file"] > 15
    assert lean["peak"] > lean["file"]
    assert max(one["loaded"] for one in plain["cycles"]) > 18
    assert max(one["loaded"] for one in lean["cycles"]) < 5


def test_45_sessions_have_a_place_in_what_is_explained(folder):
    found = child(
        """
import json, sys
import memweir as mw
session = mw.ort.session(sys.argv[1] + "/model.onnx")
told = mw.explain()
(part,) = [one for one in told.parts if "memweir.ort.Session" in one.name]
parts = sum(one.bytes or 0 for one in told.parts if one.place == "anonymous")
adds = told.anon == parts + told.unexplained
resident = told.resident == told.anon + told.file + told.shmem
session.close()
left = [one for one in mw.explain().parts if "memweir.ort.Session" in one.name]
print(json.dumps([part.bytes, part.place, adds, resident, len(left), session.nbytes]))
""",
        folder,
    )
    size, place, adds, resident, left, nbytes = found
    assert size > 15 * MIB
    assert nbytes == size
    assert place == "heap"
    assert adds
    assert resident
    assert left == 0
