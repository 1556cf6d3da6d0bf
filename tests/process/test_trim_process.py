"""Trims and the life of the process: forks, exits, and real memory that comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from trim_kit import LEVELS, MIB, World

import memweir as mw
from flight_kit import until
from memweir.process.hooks import TrimHook

forks = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    # Python 3.12 warns that a child of a process with threads may deadlock: that is the test.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


def in_child(check):
    """Forks, and in the parent says whether `check` passed in the child."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        code = 1
        try:
            check()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class TestFork:
    pytestmark = forks

    def test_a_child_born_in_the_middle_trims_at_once(self):
        world = World()
        gate = world.gate("gc")
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(world.trims.trim, "auto")
            world.at("gc")

            def child():
                world.gates.clear()
                world.done.clear()
                assert world.trims.waiting == 0
                assert world.trims.trim("auto").finished
                assert world.done == list(LEVELS)

            assert in_child(child)
            gate.open()
            assert first.result().finished
            assert world.done == list(LEVELS)

    def test_a_child_does_not_wait_for_the_parents_hanging_hook(self):
        world = World()
        gate = world.gate("hooks.one")
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(world.trims.trim, "auto")
            world.at("hooks.one")
            world.now += 10
            assert first.result().step("hooks.one").failed

            def child():
                world.gates.clear()
                assert world.trims.trim("hooks").step("hooks.one").skipped is None

            assert in_child(child)
            gate.open()

    def test_a_child_is_not_slowed_by_what_its_parent_did(self):
        world = World()
        world.trims.trim("auto", min_interval=30)

        def child():
            report = world.trims.trim("auto", min_interval=30)
            assert [step.name for step in report.steps if step.skipped] == ["gc"]

        assert in_child(child)

    def test_a_hook_that_forks_leaves_a_child_that_can_trim(self):
        passed = []

        def child():
            world.hooks.clear()
            assert world.trims.trim("auto").finished

        world = World()
        world.hooks = [TrimHook("forks", lambda: passed.append(in_child(child)))]
        assert world.trims.trim("auto").finished
        assert passed == [True]

    def test_a_waiter_that_forks_in_a_signal_handler_leaves_with_what_there_is(self):
        world = World()
        gate = world.gate("gc")
        pids = []

        def handler(number, frame):
            pids.append(os.fork())
            if pids[-1] == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(30)

        before = signal.signal(signal.SIGUSR1, handler)
        parent = os.getpid()
        try:

            def interrupt():
                world.at("gc")
                os.kill(parent, signal.SIGUSR1)
                until(lambda: pids)
                gate.open()

            thread = threading.Thread(target=interrupt)
            thread.start()
            report = world.trims.trim("auto")
            if os.getpid() != parent:
                os._exit(0 if not report.finished and "forked" in report.note else 1)
            thread.join()
            assert report.finished
            assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
        finally:
            if os.getpid() == parent:
                signal.signal(signal.SIGUSR1, before)

    def test_memweirs_own_trim_works_in_a_child_of_a_process_that_trims(self):
        stop = threading.Event()

        def trims():
            while not stop.is_set():
                mw.trim()

        thread = threading.Thread(target=trims)
        thread.start()
        try:
            for _ in range(10):
                assert in_child(mw.trim)
        finally:
            stop.set()
            thread.join()


def python(code, timeout=60):
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


EXITS = {
    "a hook": "mw.on_trim('slow', lambda: (gate.set(), time.sleep(600)))",
    "a finalizer": (
        "class C:\n"
        "    def __init__(self): self.me = self\n"
        "    def __del__(self): gate.set(); time.sleep(600)\n"
        "gc.disable(); C()"
    ),
    "the heap": (
        "import numpy as np, random\n"
        "kept = [np.ones(random.randrange(1000, 20000), np.uint8) for _ in range(50_000)]\n"
        "del kept[::2]; gate.set()"
    ),
}


@pytest.mark.parametrize("where", EXITS)
@pytest.mark.parametrize("waits", [False, True])
def test_the_process_ends_in_the_middle_of_a_trim(where, waits):
    """Exit code 0, nothing on stderr; a daemon thread may wait for the trim meanwhile."""
    code = (
        "import gc, threading, time\nimport memweir as mw\n"
        f"gate = threading.Event()\n{EXITS[where]}\n"
        "mw.trim(deadline=0)\n"
        f"if {waits}: threading.Thread(target=mw.trim, daemon=True).start()\n"
        "gate.wait()\n"
    )
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_trim_at_the_very_end_returns():
    code = (
        "import atexit, memweir as mw\n"
        "class Late:\n"
        "    def __del__(self): print(mw.trim().note)\n"
        "mw.trim()\n"
        "atexit.register(lambda: print('at exit', mw.trim().finished))\n"
        "mw.late = Late()\n"
    )
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "at exit True"
    assert "the process is ending" in done.stdout.splitlines()[1]


CHURN = """
import gc, random, sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import memweir as mw

MIB = 1 << 20
live = sys.argv[1] == "live"
pool = ThreadPoolExecutor(8) if live else None
survivors = []

def decode(seed):
    picks = random.Random(seed)
    kept = []
    for _ in range(60):
        side = picks.randrange(200, 1500)
        pixels = np.full((side, side, 3), 7, np.uint8)
        kept.append(pixels.astype(np.float32))
        if len(kept) > 3:
            kept.pop(picks.randrange(3))
        survivors.append(np.full(picks.randrange(100, 400), 1, np.uint8))

def life(number):
    if live:
        list(pool.map(decode, range(number, number + 8)))
    else:
        threads = [threading.Thread(target=decode, args=(number + i,)) for i in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    del survivors[: 9 * len(survivors) // 10]

if live:
    list(pool.map(lambda _: threading.Event().wait(0.05), range(8)))
mw.trim()
base = mw.memory().anon
for number in range(3):
    life(1000 * number)
    before = mw.memory().anon
    report = mw.trim()
    print(before - base, mw.memory().anon - base, report.step("arenas").skipped)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures RssAnon")
@pytest.mark.parametrize("threads", ["ended", "live"])
def test_memory_of_threads_comes_back_in_each_of_three_lives(threads):
    if mw.heap().allocator.kind != "glibc":
        pytest.skip("the figure is glibc's")
    done = subprocess.run(
        [sys.executable, "-c", CHURN, threads],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lives = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert len(lives) == 3
    assert [skipped for *_, skipped in lives] == ["None"] * 3
    assert max(int(left) for _, left, _ in lives) <= 10 * MIB, done.stdout
    # Without something to give back this would prove nothing.
    assert min(int(before) for before, *_ in lives) > 30 * MIB, done.stdout


def test_45_what_a_trim_reports_is_what_the_kernel_counts():
    """Resident, anonymous and file pages and the heap's own view are told apart."""
    code = (
        "import numpy as np, memweir as mw\n"
        "mw.trim()\n"
        "kept = [np.ones(20_000, np.uint8) for _ in range(10_000)]\n"
        "pins = kept[::100]; del kept\n"
        "status = lambda: next(int(l.split()[1]) * 1024 for l in open('/proc/self/status')"
        " if l.startswith('RssAnon'))\n"
        "before = status(); report = mw.trim(); after = status()\n"
        "print(before - after, report.released, report.before.anon - report.after.anon)\n"
        "print(report.before.file is not None, report.before.rss >= report.before.anon)\n"
    )
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    done = python(code)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    kernel, told, records = map(int, first.split())
    assert told == records
    assert abs(kernel - told) < 4 * MIB
    assert told > 100 * MIB
    assert second == "True True"
