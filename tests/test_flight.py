"""Single flight among threads: one load, one answer, hand-over, circles, interruptions."""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from flight_kit import Loader, crew, until
from memweir import _flight
from memweir._flight import Flights, Load, current
from memweir.errors import Busy, LoadFailed


@pytest.fixture
def pool():
    with ThreadPoolExecutor(32) as pool:
        yield pool


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(_flight, "_PATROL", 0.01)


def test_one_load_and_one_answer(pool):
    flights, loader, answer = Flights(), Loader(), object()
    leader, waiters = crew(pool, flights, loader, 8)
    loader.airborne().set_result(answer)
    assert all(f.result() is answer for f in [leader, *waiters])
    assert (len(loader.loads), flights.joins, flights.waiting("key")) == (1, 7, 0)


def test_the_next_call_after_a_flight_loads_again():
    flights, answers = Flights(), iter("ab")
    assert [flights.run("key", lambda: next(answers)) for _ in range(2)] == ["a", "b"]


def test_none_is_an_answer(pool):
    flights, loader = Flights(), Loader()
    leader, waiters = crew(pool, flights, loader, 3)
    loader.airborne().set_result(None)
    assert [f.result() for f in [leader, *waiters]] == [None] * 3
    assert len(loader.loads) == 1


def test_different_keys_do_not_wait_for_each_other(pool):
    flights, loader = Flights(), Loader()
    leader, _ = crew(pool, flights, loader, 1, key="slow")
    assert flights.run("fast", lambda: 1) == 1
    assert not leader.done()
    loader.airborne().set_result(2)
    assert leader.result() == 2


def test_check_sees_what_was_stored_before_the_flight():
    flights = Flights()
    assert flights.run("key", pytest.fail, check=lambda: "stored") == "stored"
    assert flights.run("key", lambda: "loaded", check=lambda: None) == "loaded"


def test_a_load_nests_others(pool):
    flights, seen = Flights(), []

    def inner():
        seen.append(current().key)
        return 1

    def outer():
        value = flights.run("inner", inner) + 1
        seen.append(current().key)
        return value

    assert flights.run("outer", outer) == 2
    assert seen == ["inner", "outer"]
    assert current() is None


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_leader_that_leaves_hands_over(pool, leaving):
    flights, loader, answer = Flights(), Loader(), object()
    leader, waiters = crew(pool, flights, loader, 5)
    loader.airborne().set_exception(leaving())
    assert isinstance(leader.exception(), leaving)
    until(lambda: len(loader.loads) == 2)
    assert flights.waiting("key") == 3
    assert loader.loads[0].stale
    assert not loader.loads[1].stale
    loader.airborne(2).set_result(answer)
    assert all(f.result() is answer for f in waiters)
    assert len(loader.loads) == 2


def test_a_leader_that_leaves_alone_leaves_nothing_behind():
    flights = Flights()

    def leave():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flights.run("key", leave)
    assert not flights._home
    assert flights.run("key", lambda: 1) == 1


def vanish(flights):
    """Leads "key" and goes without unwinding, as a thread does that ends in foreign code."""
    me = Load(flights, "key")
    flight = flights._board(me, False)
    flight.bells[int] = None
    assert flight.begin(me)


@pytest.mark.usefixtures("impatient")
def test_a_dead_leader_is_replaced(pool):
    flights, loader = Flights(), Loader()
    boarded = threading.Event()
    die = threading.Event()

    def lead():
        vanish(flights)
        boarded.set()
        die.wait()

    ghost = threading.Thread(target=lead)
    ghost.start()
    boarded.wait()
    waiters = [pool.submit(flights.run, "key", loader.sync) for _ in range(3)]
    until(lambda: flights.waiting("key") == 3)
    die.set()
    ghost.join()
    loader.airborne().set_result(1)
    assert [f.result() for f in waiters] == [1, 1, 1]
    assert len(loader.loads) == 1


def test_a_newcomer_replaces_a_dead_leader():
    flights = Flights()
    ghost = threading.Thread(target=vanish, args=[flights])
    ghost.start()
    ghost.join()
    assert flights.run("key", lambda: 1, timeout=0) == 1


def test_a_load_cannot_ask_for_its_own_key():
    flights, other = Flights(), Flights()

    def load():
        return flights.run("key", load)

    with pytest.raises(RuntimeError, match="re-entered"):
        flights.run("key", load)
    deep = lambda: flights.run("inner", lambda: flights.run("key", load))  # noqa: E731
    with pytest.raises(RuntimeError, match="re-entered"):
        flights.run("key", deep)
    # Another table is another matter.
    assert flights.run("key", lambda: other.run("key", lambda: 1)) == 1


def test_loads_that_wait_for_each_other_are_served(pool):
    flights, both = Flights(), threading.Barrier(2)
    stale = {}

    def load(mine, others):
        def inner():
            stale[others] = current().stale
            return f"{others} within {mine}"

        def outer():
            both.wait()  # both fly before either asks
            return flights.run(others, inner)

        return flights.run(mine, outer)

    a, b = pool.submit(load, "a", "b"), pool.submit(load, "b", "a")
    results = {a.result(), b.result()}
    # The one that closes the circle loads for itself; the other may then share what it flew.
    assert results & {"b within a", "a within b"}
    assert all(stale.values())
    assert not flights._home


def test_loads_that_need_each_other_fail(pool):
    flights, both = Flights(), threading.Barrier(2)

    def load(mine, others):
        def outer():
            both.wait()
            return flights.run(others, lambda: flights.run(mine, int))

        return flights.run(mine, outer)

    errors = [f.exception() for f in (pool.submit(load, "a", "b"), pool.submit(load, "b", "a"))]
    assert RuntimeError in map(type, errors)
    assert {type(e) for e in errors} <= {RuntimeError, LoadFailed}
    assert flights.run("a", lambda: 1) == 1


def test_a_ring_of_three(pool):
    flights, all_up = Flights(), threading.Barrier(3)

    def load(mine, others):
        def outer():
            all_up.wait()
            return flights.run(others, lambda: others * 2)

        return flights.run(mine, outer)

    ring = [pool.submit(load, *keys) for keys in ("ab", "bc", "ca")]
    assert {f.result() for f in ring} <= {"aa", "bb", "cc"}


def test_a_wait_that_is_over_closes_no_circle(pool):
    flights, loader = Flights(), Loader()
    landed, gate = threading.Event(), threading.Event()

    def load():
        value = flights.run("b", pytest.fail)
        landed.set()
        gate.wait()
        return value

    def lead_b_then_ask_for_a():
        assert flights.run("b", loader.sync) == 1
        landed.wait()
        return flights.run("a", pytest.fail)

    b = pool.submit(lead_b_then_ask_for_a)
    verdict = loader.airborne()
    a = pool.submit(flights.run, "a", load)
    until(lambda: flights.waiting("b") == 1)
    verdict.set_result(1)
    until(lambda: flights.waiting("a") == 1)
    gate.set()
    assert [a.result(), b.result()] == [1, 1]


def test_bump_fences_flights_off(pool):
    flights, loader = Flights(), Loader()
    leader, waiters = crew(pool, flights, loader, 3)
    old = loader.airborne()
    assert not loader.loads[0].stale
    flights.bump()
    assert loader.loads[0].stale
    newer, late = crew(pool, flights, loader, 2)
    assert not loader.loads[1].stale
    old.set_result("old")
    assert [f.result() for f in (leader, *waiters)] == ["old"] * 3
    # The old flight's end leaves the new one in the table.
    joins = pool.submit(flights.run, "key", pytest.fail)
    until(lambda: flights.waiting("key") == 2)
    loader.airborne(2).set_result("new")
    assert [f.result() for f in (newer, *late, joins)] == ["new"] * 3
    assert len(loader.loads) == 2


def test_a_timeout_is_the_waiters_own(pool):
    flights, loader = Flights(), Loader()
    leader, waiters = crew(pool, flights, loader, 2)
    for timeout in (0, 0.001):
        with pytest.raises(Busy):
            flights.run("key", loader.sync, timeout=timeout)
    assert flights.waiting("key") == 1
    loader.airborne().set_result(1)
    assert [f.result() for f in (leader, *waiters)] == [1, 1]
    assert flights.run("key", lambda: 2, timeout=0) == 2  # a leader does not wait


def test_an_interrupt_wakes_a_waiting_main_thread(pool):
    flights, loader = Flights(), Loader()
    leader, _ = crew(pool, flights, loader, 1)

    def interrupt():
        until(lambda: flights.waiting("key") == 1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    # A shell that starts the tests in the background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupter = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            flights.run("key", loader.sync)
    finally:
        signal.signal(signal.SIGINT, before)
    interrupter.result()
    assert flights.waiting("key") == 0
    loader.airborne().set_result(1)
    assert leader.result() == 1


def test_finalizers_may_use_the_table():
    flights, finalized = Flights(), []

    class Garbage:
        def __init__(self):
            self.me = self

        def __del__(self):
            finalized.append(flights.run("key", lambda: 1, check=lambda: 1))

    def work():
        for i in range(200):
            Garbage()
            flights.run(i % 3, Garbage)

    before = gc.get_threshold()
    gc.set_threshold(3)  # a collection at every turn
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert len(finalized) > 500
    assert not flights._home


def test_signal_handlers_may_use_the_table():
    flights, handled, stop = Flights(), [], threading.Event()

    def handle(number, frame):
        assert flights.run("handler", lambda: 1) == 1
        # The call that was interrupted may lead this key, and goes on only after this returns.
        with suppress(RuntimeError):
            assert flights.run("key", lambda: 2) == 2
        handled.append(1)
        if not stop.is_set():
            signal.setitimer(signal.ITIMER_REAL, 0.0002)

    def churn():
        while not stop.is_set():
            flights.run("key", lambda: 2)

    before = signal.signal(signal.SIGALRM, handle)
    helper = threading.Thread(target=churn)
    helper.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002)
        while len(handled) < 300:
            assert flights.run("key", lambda: 2) == 2
    finally:
        stop.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        helper.join()


def test_loads_of_one_key_never_overlap(pool):
    flights, interval = Flights(), sys.getswitchinterval()
    airborne = dict.fromkeys(range(3), 0)
    overlaps, loads = [], []

    def work(seed):
        dice = random.Random(seed)
        for _ in range(300):
            key = dice.randrange(3)
            answer = (key, object())

            def load(key=key, answer=answer):
                airborne[key] += 1
                overlaps.append(airborne[key])
                loads.append(answer)
                if dice.random() < 0.1:
                    airborne[key] -= 1
                    raise ValueError(key)
                airborne[key] -= 1
                return answer

            try:
                assert flights.run(key, load)[0] == key
            except (ValueError, LoadFailed):
                pass

    sys.setswitchinterval(1e-6)
    try:
        for future in [pool.submit(work, seed) for seed in range(8)]:
            future.result()
    finally:
        sys.setswitchinterval(interval)
    assert set(overlaps) == {1}
    assert not flights._home


class Weights:
    pass


def test_a_landed_flight_left_in_the_table_is_passed_over():
    """As by an interrupt between a flight's end and its removal."""
    flights = Flights()
    kept = []
    flights.run("key", lambda: kept.append(flights._home["key"]))
    flights._home["key"] = kept[0]
    assert kept[0].fate is not None
    assert flights.run("key", lambda: 1) == 1
    assert flights._home == {}


def test_a_flight_that_is_unlisted_twice_leaves_the_next_one_listed():
    class Table(dict):
        def get(self, key, default=None):
            found = super().get(key, default)
            if found is old:  # in this moment another unlists it, and a third opens the next
                self[key] = new
            return found

    home = Table()
    old, new = _flight._Flight("key", home), _flight._Flight("key", home)
    home["key"] = old
    old.unlist()
    assert dict(home) == {"key": new}
    old.unlist()
    assert dict(home) == {"key": new}


def test_a_load_outlives_its_flight_without_the_answer(pool):
    flights, loads = Flights(), []

    def load():
        loads.append(current())
        return Weights()

    ref = weakref.ref(flights.run("key", load))
    assert isinstance(loads[0], Load)
    assert loads[0].over
    assert ref() is None


def test_threads_alone_need_no_asyncio():
    code = (
        "import sys\n"
        "from memweir._flight import Flights\n"
        "assert Flights().run(1, lambda: 2) == 2\n"
        "assert 'asyncio' not in sys.modules, 'asyncio'\n"
        "import threading; assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-c", code], check=True)
