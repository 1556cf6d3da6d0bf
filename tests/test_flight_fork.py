"""Single flight across a fork: the child starts with an empty table, the parent notices nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from flight_kit import until
from memweir import _flight
from memweir._flight import Flights, current

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    # Python 3.12 warns that a child of a process with threads may deadlock: that is the test.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def end_child(check):
    """Ends a forked child: 0 if `check` passes."""
    code = 1
    try:
        check()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def fork():
    """`os.fork`, with a guard of its own in the child."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
    return pid


def passed(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def works(flights):
    assert flights._home == {}
    for key in ("key", "new"):
        assert flights.run(key, lambda: 1) == 1
    assert asyncio.run(flights.arun("key", lambda: 2)) == 2
    assert flights._home == {}


def test_a_child_of_a_load_has_an_empty_table(pool):
    flights, answers = Flights(), []

    def check():
        assert current().stale
        works(flights)

    def load():
        pid = fork()
        if pid == 0:
            end_child(check)
        answers.append(passed(pid))
        assert not current().stale
        return "parent"

    assert flights.run("key", load) == "parent"
    assert answers == [True]
    assert pool.submit(flights.run, "key", load).result() == "parent"
    assert asyncio.run(flights.arun("key", load)) == "parent"  # in a worker thread
    assert answers == [True, True, True]


def test_a_load_goes_on_in_the_child(pool):
    flights, gate, pids = Flights(), threading.Event(), []
    parent = os.getpid()

    def load():
        gate.wait()
        pids.append(fork())
        return os.getpid() == parent

    waiters = []

    def release():
        until(lambda: "key" in flights._home)
        waiters.append(pool.submit(flights.run, "key", load))
        until(lambda: flights.waiting("key") == 1)
        gate.set()

    helper = pool.submit(release)
    in_parent = flights.run("key", load)
    if not in_parent:  # the child's finish is its own
        end_child(lambda: works(flights))
    assert passed(pids[0])
    helper.result()
    assert waiters[0].result()


def test_a_fork_while_others_load_and_wait(pool):
    flights, verdict = Flights(), Future()
    leader = pool.submit(flights.run, "key", verdict.result)
    until(lambda: "key" in flights._home)
    waiters = [pool.submit(flights.run, "key", verdict.result) for _ in range(3)]
    until(lambda: flights.waiting("key") == 3)

    pid = fork()
    if pid == 0:
        end_child(lambda: works(flights))
    assert passed(pid)
    assert flights.waiting("key") == 3
    verdict.set_result("parent")
    assert [f.result() for f in [leader, *waiters]] == ["parent"] * 4


def test_a_waiter_that_forks_leads_in_the_child(pool, monkeypatch):
    monkeypatch.setattr(_flight, "_PATROL", 0.01)
    flights, verdict, parent, pids = Flights(), Future(), os.getpid(), []
    leader = pool.submit(flights.run, "key", verdict.result)
    until(lambda: "key" in flights._home)
    before = signal.signal(signal.SIGUSR1, lambda *_: pids.append(fork()))

    def interrupt():
        until(lambda: flights.waiting("key") == 1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        until(lambda: pids)
        os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOWAIT)
        verdict.set_result("parent")

    helper = pool.submit(interrupt)
    try:
        answer = flights.run("key", lambda: "child")
    finally:
        if os.getpid() != parent:
            end_child(lambda: answer == "child" or pytest.fail(answer))
        signal.signal(signal.SIGUSR1, before)
    helper.result()
    assert (answer, leader.result()) == ("parent", "parent")
    assert passed(pids[0])


def test_forks_in_the_middle_of_everything(pool):
    flights, stop = Flights(), threading.Event()

    def churn(name):
        while not stop.is_set():
            assert flights.run("key", lambda: name) in "abcd"

    threads = [pool.submit(churn, name) for name in "abcd"]
    try:
        for _ in range(20):
            pid = fork()
            if pid == 0:
                end_child(lambda: works(flights))
            assert passed(pid)
    finally:
        stop.set()
    for thread in threads:
        thread.result()
