"""What models cost those who have none, and what unloading needs: nothing that was not there."""

from __future__ import annotations

import subprocess
import sys

HEAD = """
import sys

class Absent:
    asked = []

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in {"torch", "onnxruntime", "transformers", "safetensors", "PIL", "psutil"}:
            self.asked.append(name)
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import memweir as mw
import numpy as np

def foreign():
    tops = {name.partition(".")[0] for name in sys.modules}
    return tops - sys.stdlib_module_names - {"memweir", "numpy", "__mp_main__"}

before = foreign()
"""
POOL = """
import threading
assert not any(name.startswith("memweir.models") for name in sys.modules)
pool = mw.ModelPool("1 GiB", idle=mw.Idle(unload=None))
assert threading.active_count() == 1
pool.add("encoder", load=lambda: np.ones((1 << 20,), np.float32))
pool.add("other", load=lambda: np.ones((1 << 20,), np.float32))
assert threading.active_count() == 1
for turn in range(2):
    for key in ("encoder", "other"):
        with pool.lease(key) as model:
            assert model[0] == 1
            del model
    seen = set(sys.modules)
    report = pool.unload("encoder", "other")
    assert [each.verdict for each in report.released] == ["dead", "dead"], report
    assert not report.errors, report
    new = set(sys.modules) - seen
    assert not new if turn else all(
        name.partition(".")[0] in sys.stdlib_module_names | {"memweir"} for name in new
    ), new
assert mw.loaded(lambda: np.zeros(5)).run(len) == 5
assert pool.close().finished
assert mw.model_key("a", device="cuda", dtype="fp16", path=".")
assert foreign() == before, foreign()
assert not Absent.asked, Absent.asked
"""


def test_pools_and_unloads_work_and_import_nothing_where_no_runtime_is():
    run(HEAD + POOL)


def run(code: str) -> None:
    subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code], check=True, timeout=180
    )
