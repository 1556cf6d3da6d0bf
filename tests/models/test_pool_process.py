"""A pool and the process around it: forks, the end of the interpreter, what is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


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
    assert done.stderr == "", done.stderr
    return done.stdout


FORK = """
    import asyncio, os, signal, threading, time, warnings
    import logging
    import memweir as mw

    logging.disable()  # thrashing, and models that these functions keep, are told of
    warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point here

    class Model:
        died = []
        def __del__(self):
            self.died.append(os.getpid())

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


@needs_fork
def test_a_child_finds_its_pools_empty_and_can_use_them() -> None:
    python(
        FORK
        + """
    released, grants = [], []

    class Arbiter:
        def claim(self, key):
            grants.append(key)

    pool = mw.ModelPool(
        ram="1 GiB", idle=mw.Idle(unload=1000), trim=int, collect=int, arbiter=Arbiter()
    )
    pool.add("a", Model, release=released.append, nbytes="600 MiB")
    pool.add("b", Model, nbytes="600 MiB")
    pool.add("card", Model, device="cuda:0")
    with pool.lease("card"):
        pass

    def check():
        status = pool.status()
        assert {m.state for m in status.models.values()} == {"absent"}, status
        assert (status.ram.held, status.ram.reserved) == (0, 0)
        assert threading.active_count() == 1
        assert not pool.unload("a")
        with pool.lease("b") as model:
            assert pool.status().models["b"].leases == 1
        del model
        with pool.lease("card") as model:
            pass
        del model
        assert asyncio.run(pool.run("b", lambda model: type(model).__name__)) == "Model"
        assert pool.unload("b").released[0].verdict == "dead"
        assert pool.close().finished
        # What was the parent's is neither released nor finalized here.
        assert released == [] and grants == ["card"]
        assert Model.died == [os.getpid()] * 2, Model.died

    with pool.lease("a") as model:
        child(check)
        assert pool.status().models["a"].leases == 1
    del model
    child(check)
    assert pool.unload("a").keys == ("a",)
    assert len(released) == 1
    """
    )


@needs_fork
def test_a_fork_in_the_middle_of_everything() -> None:
    python(
        FORK
        + """
    # So many that what this process takes meanwhile is nothing beside it.
    GIB = 1 << 30
    pool = mw.ModelPool(
        ram=100 * GIB, idle=mw.Idle(unload=0.001), trim=int, collect=int, residence=0
    )
    for n in range(4):
        pool.add(f"k{n}", Model, nbytes=40 * GIB)
    stop = threading.Event()

    def churn(n):
        while not stop.is_set():
            try:
                with pool.lease(f"k{n % 4}"):
                    pass
                pool.unload(f"k{(n + 1) % 4}")
            except (mw.BudgetExceeded, mw.LoadFailed):
                pass

    def check():
        for n in range(4):
            with pool.lease(f"k{n}", timeout=30):
                pass
        assert pool.status().ram.held <= 100 * GIB
        assert pool.close(deadline=30).finished

    threads = [threading.Thread(target=churn, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            child(check)
    finally:
        stop.set()
    for thread in threads:
        thread.join()
    assert pool.close(deadline=30).finished
    """
    )


@needs_fork
def test_a_load_that_forks_is_over_in_the_child() -> None:
    python(
        FORK
        + """
    pids = []

    def load():
        if not pids:
            pids.append(os.fork())
        return Model()

    pool = mw.ModelPool(trim=int, collect=int)
    pool.add("a", load)
    try:
        with pool.lease("a"):
            assert pids[0]
    except mw.Released:
        signal.alarm(60)
        try:
            assert pids == [0]
            with pool.lease("a") as model:
                pass
            assert pool.status().models["a"].state == "loaded"
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pids[0], 0)[1] == 0
    """
    )


def test_an_interpreter_may_end_with_models_lent_loading_and_idle() -> None:
    out = python(
        """
    import atexit, threading
    import memweir as mw

    pool = mw.ModelPool(idle=mw.Idle(unload=0.01), trim=int, collect=int)
    hang = threading.Event()
    pool.add("hangs", hang.wait)
    pool.add("lent", object)
    pool.add("idle", object, idle=mw.Idle(unload=1000))
    threading.Thread(target=lambda: pool.preload("hangs"), daemon=True).start()
    lease = pool.lease("lent")
    lease.__enter__()
    pool.preload("idle")

    @atexit.register
    def end():
        report = pool.close(deadline=0.05)
        print(sorted(kept.key for kept in report.in_use), report.unload.keys)
        print(pool.close(deadline=0).unload.keys)
    """
    )
    assert out.splitlines() == ["['hangs', 'lent'] ('idle',)", "()"]


def test_05_nothing_is_imported_to_let_go() -> None:
    out = python(
        """
    import sys
    import memweir as mw

    assert "memweir.models.pool" not in sys.modules
    pool = mw.ModelPool()
    pool.add("a", object)
    with pool.lease("a"):
        pass
    before = set(sys.modules)
    assert pool.unload("a")
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert new <= {"memweir", *sys.stdlib_module_names}, new
    assert pool.close().finished
    heavy = {"torch", "transformers", "onnxruntime", "asyncio", "logging"}
    print(sorted(heavy & set(sys.modules)))
    """
    )
    assert out.strip() == "[]"


def test_four_threads_on_four_models_do_not_serialise() -> None:
    """Each holds its own model while it waits for all the others to hold theirs."""
    python(
        """
    import threading
    import memweir as mw

    pool, all_there = mw.ModelPool(trim=int), threading.Barrier(4, timeout=60)

    def use(key):
        for _ in range(200):
            with pool.lease(key):
                all_there.wait()

    for n in range(4):
        pool.add(f"k{n}", object)
    threads = [threading.Thread(target=use, args=(f"k{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {m.loads for m in pool.status().models.values()} == {1}
    assert pool.close().finished
    """
    )
