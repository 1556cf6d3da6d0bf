"""What the kernel says of this process, by way of descriptors that stay open."""

from __future__ import annotations

import mmap
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import memweir as mw

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
pytestmark = linux

MIB = 1 << 20


def status() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name[:-1]: int(value) * 1024 for name, value, _ in fields}


def test_fast_fields_are_the_kernels() -> None:
    memory, known = mw.memory(), status()
    assert memory.rss == pytest.approx(known["VmRSS"], abs=MIB)
    assert memory.anon == pytest.approx(known["RssAnon"], abs=MIB)
    assert memory.limit == min(limit.bytes for limit in mw.limits())
    assert memory.limit_source in {limit.source for limit in mw.limits()}


def test_other_fields_are_the_kernels() -> None:
    memory, known = mw.memory(full=True), status()
    assert memory.file == pytest.approx(known["RssFile"], abs=MIB)
    assert memory.shmem == known["RssShmem"]
    assert memory.swap == known["VmSwap"]
    assert memory.peak is not None
    assert memory.peak == pytest.approx(known["VmHWM"], abs=MIB)
    assert memory.available is not None
    assert 0 < memory.available <= {limit.kind: limit.bytes for limit in mw.limits()}["host"]


def test_growth_is_seen_where_it_is() -> None:
    """Anonymous memory, then shared memory, then a file's pages."""
    script = """
import mmap, sys, tempfile
import memweir as mw
import numpy as np

MIB = 1 << 20
near = lambda size, mib: abs(size - mib * MIB) < 8 * MIB

def grown(before, after):
    return [getattr(after, f) - getattr(before, f) for f in ("rss", "anon", "shmem", "file")]

with tempfile.TemporaryFile() as file:
    file.write(bytes(64 * MIB))
    file.flush()
    first = mw.memory(full=True)
    array = np.ones(256 * MIB, np.uint8)
    second = mw.memory(full=True)
    rss, anon, shmem, of_files = grown(first, second)
    assert near(rss, 256) and near(anon, 256) and near(shmem, 0) and near(of_files, 0)
    shared = mmap.mmap(-1, 64 * MIB)
    shared.write(b"x" * (64 * MIB))
    third = mw.memory(full=True)
    rss, anon, shmem, of_files = grown(second, third)
    assert near(rss, 64) and near(anon, 0) and near(shmem, 64) and near(of_files, 0)
    mapped = mmap.mmap(file.fileno(), 64 * MIB, access=mmap.ACCESS_READ)
    sum(mapped[:: 4096])
    fourth = mw.memory(full=True)
    rss, anon, shmem, of_files = grown(third, fourth)
    assert near(rss, 64) and near(anon, 0) and near(shmem, 0) and near(of_files, 64)
    del array
    fifth = mw.memory()
    assert near(fourth.anon - fifth.anon, 256)
    assert mw.memory().peak >= fourth.rss - 8 * MIB
    assert first.rss + 240 * MIB < second.rss, "a record does not change"
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def run(script: str, *args: str, timeout: float = 120) -> None:
    subprocess.run([sys.executable, "-c", script, *args], check=True, timeout=timeout)


def test_a_forked_child_reads_of_itself() -> None:
    run("""
import os
import memweir as mw
import numpy as np

MIB = 1 << 20
kept = np.ones(64 * MIB, np.uint8)
before = mw.memory(full=True)  # opened by the parent
unread = mw.memory()

def child(generation):
    more = np.ones(generation * 40 * MIB, np.uint8)
    now = mw.memory(full=True)
    assert now.anon - before.anon > generation * 38 * MIB, (now, before)
    assert abs(now.rss - now.anon - now.file - now.shmem) < 4 * MIB
    assert now.peak >= now.rss - 4 * MIB
    # What the parent has not read is not the child's to read.
    assert unread.file is None and unread.peak is None and unread.working_set is None
    assert before.file is not None
    if generation < 3:
        fork(generation + 1)

def fork(generation):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(generation)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0

fork(1)
after = mw.memory()
assert abs(after.rss - before.rss) < 8 * MIB
assert unread.file is not None
""")


def test_a_child_with_its_parents_number_reads_of_itself() -> None:
    """Each is the first process of a namespace of its own."""
    first = ["unshare", "--pid", "--fork", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*first, "true"], check=False).returncode:
        pytest.skip("this process can have no namespace of its own")
    script = """
import ctypes, os
import memweir as mw
import numpy as np

MIB, NEWPID = 1 << 20, 0x20000000
assert os.getpid() == 1
kept = np.ones(128 * MIB, np.uint8)
before = mw.memory(full=True)
unread = mw.memory()
assert ctypes.CDLL(None).unshare(NEWPID) == 0
pid = os.fork()
if pid == 0:
    code = 1
    try:
        del kept
        assert os.getpid() == 1
        now = mw.memory(full=True)
        assert before.anon - now.anon > 120 * MIB, (before, now)
        assert abs(now.rss - now.anon - now.file - now.shmem) < 4 * MIB
        assert unread.file is None
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
"""
    subprocess.run([*first, sys.executable, "-c", script], check=True, timeout=120)


def test_numbers_that_were_closed_and_used_again_are_left_alone() -> None:
    """As in a process that becomes a daemon: all is closed, then other files are opened."""
    run("""
import os, tempfile
import memweir as mw

def ours():
    names = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            names[int(number)] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            pass  # the folder that was listed
    return {n for n, name in names.items() if "/proc/" in name or "/cgroup/" in name}

def sane(memory):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    assert abs(memory.rss - int(status["VmRSS"].split()[0]) * 1024) < 4 << 20, memory
    assert memory.file and memory.peak and memory.available and memory.charge != 12345

mw.memory(full=True)
numbers = ours()
assert len(numbers) >= 4 and min(numbers) > 2, numbers
for round in range(3):
    os.closerange(3, 1000)
    # The text that was not read would be believable.
    theirs = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in sorted(numbers):
            path = f"{folder}/{number}"
            with open(path, "w") as file:
                file.write("12345 12345 5 0 0 0 0\\n")
                file.writelines(f"Rss{kind}: 1 kB\\n" for kind in ("Anon", "File", "Shmem"))
            fd = os.open(path, os.O_RDWR)
            theirs[number] = os.fstat(fd)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
        for _ in range(3):
            sane(mw.memory(full=True))
        for number, was in theirs.items():
            now = os.fstat(number)
            assert (now.st_dev, now.st_ino, now.st_size) == (was.st_dev, was.st_ino, was.st_size)
            assert os.lseek(number, 0, os.SEEK_CUR) == 0
    numbers = ours()
    # Those that were lost were opened once each, and not at every look.
    for _ in range(50):
        mw.memory(full=True)
    assert ours() == numbers
""")


def test_closed_standard_streams_are_not_taken() -> None:
    run("""
import os, sys
import memweir as mw
os.close(0)
os.close(1)
mw.memory(full=True)
for number in (0, 1):
    try:
        os.fstat(number)
    except OSError:
        continue
    sys.exit(f"descriptor {number} was taken")
""")


def test_no_descriptor_is_inherited_by_other_programs() -> None:
    run("""
import subprocess, sys
import memweir as mw
mw.memory(full=True)
listing = "ls -l /proc/self/fd"
seen = subprocess.run(listing.split(), close_fds=False, capture_output=True, text=True, check=True)
assert "->" in seen.stdout
assert "statm" not in seen.stdout and "meminfo" not in seen.stdout, seen.stdout
""")


def test_without_free_descriptors() -> None:
    """What is open goes on; what would have to be opened is unknown; nothing raises."""
    run("""
import os, resource
import memweir as mw
known, first = mw.limits(), mw.memory()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
assert mw.limits() == known
now = mw.memory()
assert now.rss and now.anon
assert (now.limit, now.limit_source) == (first.limit, first.limit_source)
assert (now.charge is None) == (first.charge is None)
assert now.file is None and now.peak is None and now.pressure is None and now.working_set is None
assert mw.memory(full=True, detail=True).pss is None
for fd in taken:
    os.close(fd)
assert mw.memory().file and mw.memory(detail=True).pss
""")


def test_threads_look_while_others_fork() -> None:
    run("""
import os, threading
import memweir as mw

stop = threading.Event()
looks = [0] * 4

def look(index):
    while not stop.is_set():
        memory = mw.memory(full=looks[index] % 8 == 0)
        assert memory.rss and memory.limit
        if looks[index] % 16 == 0:
            mw.limits()
        looks[index] += 1

threads = [threading.Thread(target=look, args=(i,)) for i in range(4)]
for thread in threads:
    thread.start()
for _ in range(60):
    pid = os.fork()
    if pid == 0:
        memory = mw.memory(full=True)
        mine = mw.limits()
        os._exit(0 if memory.rss and memory.file and mine else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
assert min(looks) > 0
""")


def test_detail_says_what_it_cost() -> None:
    quick, detail = mw.memory(), mw.memory(detail=True)
    assert quick.pss is None
    assert quick.detail_seconds is None
    assert detail.pss is not None
    assert detail.uss is not None
    assert detail.rss is not None
    assert 0 < detail.uss <= detail.pss + MIB <= detail.rss + 2 * MIB
    assert detail.huge is not None
    assert detail.detail_seconds is not None
    assert detail.detail_seconds > 0
    assert {"pss", "uss", "huge", "detail_seconds"} == detail.as_dict().keys() - quick.as_dict()


def test_huge_pages_are_seen_in_the_detail() -> None:
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("this machine has no transparent huge pages")
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        pytest.skip("this Python cannot ask for them")
    before = mw.memory(detail=True)
    area = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE)
    area.write(b"x" * (64 * MIB))
    after = mw.memory(detail=True)
    assert before.huge is not None
    assert after.huge is not None
    assert after.huge - before.huge >= 32 * MIB
    area.close()


def test_a_record_as_plain_data() -> None:
    memory = mw.memory()
    plain = memory.as_dict()
    for name, value in plain.items():
        found: Any = getattr(memory, name)
        assert (found.as_dict() if name == "pressure" and found else found) == value
    assert str(memory.rss) in repr(memory)
    assert str(memory.limit_source) in repr(memory)
    with pytest.raises(AttributeError):
        memory.rss = 0  # type: ignore[misc]
    limits = mw.limits()
    assert limits == mw.limits()
    assert len(set(limits)) == len(limits)
    assert str(limits[-1].bytes) in repr(limits[-1])


def test_pressure_is_the_kernels() -> None:
    path = Path("/proc/pressure/memory")
    try:
        path.read_text()
    except OSError:
        assert mw.memory().pressure is None
        return
    pressure = mw.memory().pressure
    assert pressure is not None
    total = [
        int(line.rpartition("=")[2]) for line in Path(pressure.source).read_text().splitlines()
    ]
    assert 0 <= pressure.some_total <= total[0]
    assert 0 <= pressure.full_total <= total[1]
    assert 0 <= pressure.full_avg10 <= 100


def test_many_threads_share_one_record() -> None:
    memory = mw.memory()
    seen: list[dict[str, Any]] = []
    start = threading.Barrier(8)

    def look() -> None:
        start.wait()
        seen.append(memory.as_dict())

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one == seen[0] for one in seen)


def test_nothing_is_opened_by_importing() -> None:
    run("""
import os
before = set(os.listdir("/proc/self/fd"))
import memweir
assert set(os.listdir("/proc/self/fd")) == before
memweir.memory()
assert len(os.listdir("/proc/self/fd")) > len(before)
""")
