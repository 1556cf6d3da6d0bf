"""What ``import memweir`` costs over ``import numpy``, in fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median
from tempfile import TemporaryDirectory

from .harness import Table, duration

ROUNDS = 21
SCRIPT = """
from time import perf_counter
start = perf_counter()
import numpy
middle = perf_counter()
import memweir
print(middle - start, perf_counter() - middle)
"""


def main() -> None:
    numpys, ours = [], []
    with TemporaryDirectory() as folder:
        # Bytecode is written by the first import, as it is where packages are installed.
        environ = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        for number in range(ROUNDS + 1):
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT],
                capture_output=True,
                text=True,
                check=True,
                env=environ,
            )
            if number:  # the first finds cold files, and compiles them
                numpy, memweir = map(float, done.stdout.split())
                numpys.append(numpy)
                ours.append(memweir)
    table = Table("import in a fresh process", ("", "memweir", "numpy", "all rounds", "goal"))
    table.row(
        "import memweir, over import numpy",
        duration(median(ours)),
        duration(median(numpys)),
        f"{min(ours) * 1e3:.1f}–{max(ours) * 1e3:.1f} ms",
        "≤ 15 ms",
        holds=median(ours) <= 0.015,
    )


if __name__ == "__main__":
    main()
