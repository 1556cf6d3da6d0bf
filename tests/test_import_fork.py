"""Names that are imported on first use, and forks in the middle of that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

HALF_IMPORTED = """
import os, signal, sys, threading, time
import memweir as mw

NAME = "memweir.process.memory"
halfway = threading.Event()

class Halfway:
    '''Another thread runs while the module is being imported.'''

    def find_spec(self, name, path, target=None):
        if name == NAME:
            halfway.set()
            time.sleep(0.3)

sys.meta_path.insert(0, Halfway())
first = threading.Thread(target=lambda: mw.memory())
first.start()
assert halfway.wait(60)
assert NAME not in sys.modules
child = os.fork()
if child == 0:
    signal.alarm(60)  # what hangs is ended
    os._exit(0 if mw.memory().rss else 1)
status = os.waitpid(child, 0)[1]
first.join()
assert status == 0, status
"""

FORKED_BY_AN_IMPORT = """
import os, signal, sys
import memweir as mw

class Forks:
    def find_spec(self, name, path, target=None):
        if name == "memweir.process.memory":
            sys.meta_path.remove(self)
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                return None  # both go on with the import
            self.status = os.waitpid(child, 0)[1]

forks = Forks()
sys.meta_path.insert(0, forks)
rss = mw.memory().rss
if not hasattr(forks, "status"):
    os._exit(0 if rss else 1)
assert forks.status == 0 and rss, forks.status
"""


@pytest.mark.parametrize("script", [HALF_IMPORTED, FORKED_BY_AN_IMPORT])
def test_a_child_forked_amid_a_first_use_has_its_own(script: str) -> None:
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
