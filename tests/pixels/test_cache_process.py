"""The cache and the process around it: forks, exits, and the kernel's own figures."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import memweir as mw

RAW = np.arange(60_000, dtype=np.float32)
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def python(code: str, *, timeout: int = 100) -> str:
    """Runs code in a fresh interpreter that turns every warning into an error."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


FORK = """
    import os, signal, threading, warnings
    import numpy as np
    import memweir as mw

    warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point here

    def child(check):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            try:
                check()
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
"""


@linux
def test_a_fork_in_the_middle_of_everything() -> None:
    python(
        FORK
        + """
    cache = mw.PixelCache("16 MiB")
    stop = threading.Event()
    row = np.arange(100_000, dtype=np.uint8)

    def work(seed):
        i = seed
        while not stop.is_set():
            i += 7
            n = i % 90_000
            pixels = cache.get_or_load(str(i % 400), lambda: row[:n], nbytes=n)
            assert np.array_equal(pixels["array"], row[:pixels["array"].size])
            if i % 50 == 0:
                cache.clear()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    view = cache.get_or_load("kept", lambda: row)["array"]

    def check():
        assert threading.active_count() == 1
        assert np.array_equal(view, row)
        for n in range(300):
            assert np.array_equal(cache.get_or_load(f"child {n}", lambda: row)["array"], row)
        assert cache.stats().bytes <= cache.budget
        cache.clear()

    for _ in range(20):
        child(check)
    stop.set()
    for thread in threads:
        thread.join()
    assert cache.stats().peak_bytes <= cache.budget
    cache.clear()
    """
    )


@linux
def test_a_loader_that_forks() -> None:
    python(
        FORK
        + """
    cache = mw.PixelCache("4 MiB")
    row = np.ones(500_000, np.uint8)
    cache.put("before", row)

    def check():
        assert np.array_equal(cache.get("before")["array"], row)
        assert cache.get_or_load("k", lambda: row + 1)["array"][0] == 2

    def load():
        child(check)
        return row

    assert cache.get_or_load("k", load, nbytes=row.nbytes)["array"][0] == 1
    assert "k" in cache

    # The load itself goes on in both processes.
    pid = None
    def split():
        global pid
        pid = os.fork()
        return row + 5
    pixels = cache.get_or_load("split", split, nbytes=row.nbytes)
    assert pixels["array"][0] == 6
    assert cache.stats().bytes <= cache.budget
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    """
    )


@linux
def test_a_fork_leaves_no_lock_to_code_that_runs_around_it() -> None:
    python(
        """
        import gc, logging, os, signal, threading
        import numpy as np

        # Runs in the parent after the fork, among other people's hooks.
        os.register_at_fork(after_in_parent=lambda: (sum(range(100_000)), gc.collect()))
        import memweir as mw

        cache = mw.PixelCache("64 MiB")
        cache.put("k", np.zeros(100_000, np.uint8))
        local, ready, stop = threading.local(), threading.Event(), threading.Event()

        def keep():
            local.handle = cache.get("k")  # goes when a child clears the states of its dead threads
            ready.set()
            while not stop.is_set():
                cache.get("k")

        thread = threading.Thread(target=keep)
        thread.start()
        ready.wait()
        for _ in range(20):
            cycle = [cache.get("k")]
            cycle.append(cycle)
            del cycle
            pid = os.fork()
            if pid == 0:
                signal.alarm(30)
                assert cache.get("k") is not None
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        thread.join()
        """
    )


def test_exit_with_live_views_and_threads() -> None:
    out = python(
        """
        import threading
        import numpy as np
        import memweir as mw

        cache = mw.PixelCache("8 MiB")
        cache.put("k", np.arange(100_000))
        view = cache.get("k")["array"]
        handle = cache.get("k")
        mw.hidden = [view, handle, cache]
        cycle = [view]
        cycle.append(cycle)

        def spin():
            while True:
                cache.get_or_load("other", lambda: view[::2])
                cache.clear()

        threading.Thread(target=spin, daemon=True).start()
        print("done")
        """
    )
    assert out == "done\n"


@linux
def test_memory_really_comes_back_every_time() -> None:
    python(
        """
        import numpy as np
        import memweir as mw

        def anon():
            with open("/proc/self/status") as status:
                return next(int(l.split()[1]) << 10 for l in status if l.startswith("RssAnon"))

        source = np.random.default_rng(0).integers(256, size=4 << 20, dtype=np.uint8)
        cache = mw.PixelCache("64 MiB")
        cache.put("warm", source)
        cache.clear()
        base = anon()
        rng = np.random.default_rng(0)
        for size in (100 << 10, 3 << 20):
            for life in range(3):
                cache.resize("64 MiB")
                for n in rng.integers(0, 2000, 1500).tolist():
                    length = int(rng.integers(size // 2, size))
                    cache.put(str(n), source[:length])
                    if n % 20 == 0:
                        assert anon() - base <= (64 << 20) * 1.03 + (8 << 20)
                for shrink in (
                    lambda b: cache.evict(to=b // 2),
                    lambda b: cache.resize(b // 2),
                    lambda b: cache.clear(),
                ):
                    owned, resident = cache.stats().bytes, anon()
                    shrink(owned)
                    promised = owned - cache.stats().bytes
                    assert promised >= owned * 0.45
                    assert resident - anon() >= 0.97 * promised
        assert anon() - base < 4 << 20
        """
    )


@linux
def test_many_entries_need_few_maps() -> None:
    cache = mw.PixelCache("512 MiB")
    small = np.ones(20 << 10, np.uint8)

    def maps() -> int:
        with open("/proc/self/maps") as lines:  # noqa: PTH123
            return sum(1 for _ in lines)

    before = maps()
    for n in range(20_000):
        assert cache.put(n.to_bytes(4, "little"), small)
    assert maps() - before < 50
    assert len(cache) == 20_000
    large = np.ones(1_300_000, np.uint8)
    for n in range(500):
        assert cache.put(str(n), large)
    assert maps() - before < 2000


def test_eight_threads_hold_the_budget() -> None:
    cache = mw.PixelCache("8 MiB")
    rows = np.random.default_rng(0).integers(0, 255, 1 << 20, np.uint8)
    wrong: list[str] = []
    start = threading.Barrier(9)
    done = threading.Event()

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        start.wait(60)
        held = []
        for _ in range(400):
            n = int(rng.integers(0, 100))
            # The content follows from the key, so that any thread can check it.
            row = rows[: 1000 + n * 9000]
            match rng.integers(0, 8):
                case 0:
                    cache.put(str(n), row)
                case 1:
                    held.clear()
                case 2 if n < 5:
                    cache.clear()
                case _:
                    pixels = cache.get_or_load(str(n), lambda row=row: row, nbytes=row.nbytes)
                    if not np.array_equal(pixels["array"], row):
                        wrong.append(f"key {n}")
                    if len(held) < 3:
                        held.append(pixels["array"])

    def watch() -> None:
        start.wait(60)
        while not done.is_set():
            stats = cache.stats()
            if stats.bytes > stats.budget:
                wrong.append(f"{stats.bytes} bytes")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    watcher = threading.Thread(target=watch)
    for thread in (*threads, watcher):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    assert wrong == []
    assert cache.stats().peak_bytes <= cache.budget


def test_shrinking_while_others_look_evicts_no_more_than_it_must() -> None:
    cache = mw.PixelCache("64 MiB")
    row = np.ones(100_000, np.uint8)
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            cache.get("0")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(10):
            cache.resize("64 MiB")
            for n in range(600):
                cache.put(str(n), row)
            half = cache.stats().bytes // 2
            cache.resize(half)
            assert cache.stats().bytes > half * 0.95
    finally:
        stop.set()
        thread.join()


def test_bulk_work_releases_the_gil() -> None:
    cache = mw.PixelCache("80 MiB")
    source = np.ones(32 << 20, np.uint8)
    out = np.empty_like(source)
    for work in (
        lambda: cache.put("k", source),
        lambda: cache.put_array(source),
        lambda: cache.get("k").copy_into("array", out),  # type: ignore[union-attr]
        lambda: cache.get("k").digest("array"),  # type: ignore[union-attr]
    ):
        go, ran = threading.Event(), []
        thread = threading.Thread(target=lambda go=go, ran=ran: (go.wait(60), ran.append(1)))
        thread.start()
        switch = sys.getswitchinterval()
        sys.setswitchinterval(100)  # nobody takes the GIL away: it has to be given
        try:
            go.set()
            for _ in range(200):
                work()
                if ran:
                    break
            assert ran
        finally:
            sys.setswitchinterval(switch)
            thread.join()


def test_import_is_light() -> None:
    out = python(
        """
        import sys, threading
        import numpy
        before = set(sys.modules)
        import memweir
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        third = sorted(n for n in new - {"memweir"} if n not in sys.stdlib_module_names)
        heavy = sorted(n for n in ("asyncio", "importlib.metadata", "inspect", "dataclasses",
                                   "logging", "torch", "PIL") if n in set(sys.modules) - before)
        print(third, heavy, threading.active_count())
        """
    )
    assert out == "[] [] 1\n"


@linux
def test_a_dropped_cache_gives_up_what_nobody_uses() -> None:
    python(
        """
        import numpy as np
        import memweir as mw

        def anon():
            with open("/proc/self/status") as status:
                return next(int(l.split()[1]) << 10 for l in status if l.startswith("RssAnon"))

        noise = np.random.default_rng(0).integers(256, size=1 << 20, dtype=np.uint8)
        for life in range(3):
            cache = mw.PixelCache("64 MiB")
            for n in range(50):
                cache.put(str(n), noise)
            held = cache.get("7")["array"]
            full = anon()
            del cache
            assert full - anon() >= 48 << 20
            assert held.tobytes() == noise.tobytes()
        """
    )


@linux
def test_a_child_of_a_fork_in_the_middle_of_an_eviction_can_evict() -> None:
    python(
        FORK
        + """
    noise = np.random.default_rng(0).integers(256, size=3 << 20, dtype=np.uint8)
    for attempt in range(3):
        cache = mw.PixelCache("300 MiB")
        for n in range(90):
            cache.put(str(n), noise)
        started = threading.Event()

        def evict():
            started.set()
            cache.evict(to="100 MiB")

        thread = threading.Thread(target=evict)
        thread.start()
        started.wait()

        def check():
            # What the other thread was giving back stays on this account; nothing else does.
            left = cache.resize("20 MiB")
            stats = cache.stats()
            assert stats.entries == 0 or stats.bytes <= 20 << 20, stats

        child(check)
        thread.join()
    """
    )
