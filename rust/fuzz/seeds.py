"""Seeds in the repository: one input a line, in hexadecimal, a few for all that was reached.

`unpack TARGET DIR` writes each to a file, as the fuzzer wants them. `pack TARGET` chooses from
what fuzzing has found in `build/fuzz/TARGET/corpus`: `rust/fuzz/run` has to have built the target.
"""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
MOST = 6 << 10  # bytes of a file of seeds


def unpack(target: str, to: Path) -> None:
    for line in (HERE / "seeds" / f"{target}.txt").read_text().splitlines():
        data = bytes.fromhex(line)
        (to / hashlib.sha1(data).hexdigest()).write_bytes(data)


def pack(target: str) -> None:
    (binary,) = Path("target/fuzz").glob(f"*/release/{target}")
    found = Path("build/fuzz") / target / "corpus"
    with tempfile.TemporaryDirectory() as scratch:
        # Edges alone, and the shortest inputs for them.
        command = [binary, "-merge=1", "-use_counters=0", "-detect_leaks=0", scratch, found]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        chosen = sorted((path.read_bytes() for path in Path(scratch).iterdir()), key=len)
    lines, room = [], MOST
    for data in chosen:
        room -= 2 * len(data) + 1
        if room < 0:
            break
        lines.append(data.hex() + "\n")
    (HERE / "seeds" / f"{target}.txt").write_text("".join(lines))
    print(f"{target}: {len(lines)} of {len(chosen)} inputs, {MOST - room} bytes")


if __name__ == "__main__":
    if sys.argv[1] == "unpack":
        unpack(sys.argv[2], Path(sys.argv[3]))
    else:
        pack(sys.argv[2])
