"""What a failed load leaves behind: an error for everyone, and nobody's locals."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from flight_kit import Loader, crew, until
from memweir import _flight
from memweir._flight import Flights
from memweir.errors import LoadFailed


@pytest.fixture
def pool():
    with ThreadPoolExecutor(32) as pool:
        yield pool


def test_a_failure_is_never_a_value(pool):
    flights, loader, error = Flights(), Loader(), ValueError("bad image")
    leader, waiters = crew(pool, flights, loader, 4)
    loader.airborne().set_exception(error)
    assert leader.exception() is error
    failures = [f.exception() for f in waiters]
    assert [type(f) for f in failures] == [LoadFailed] * 3
    assert len({id(e) for f in failures for e in (f, f.__cause__)}) == 6
    for failure in failures:
        assert isinstance(failure.__cause__, ValueError)
        assert failure.__cause__.args == ("bad image",)
        assert failure.__cause__.__traceback__ is None
    assert flights.run("key", lambda: "again") == "again"


class Weights:
    pass


@pytest.mark.parametrize("waiters", [0, 2])
def test_a_failed_flight_pins_no_locals(pool, waiters):
    flights, gate, refs = Flights(), threading.Event(), []

    def load():
        weights = Weights()
        refs.append(weakref.ref(weights))
        gate.wait()
        raise ValueError("no")

    def caller():
        mine = Weights()
        refs.append(weakref.ref(mine))
        return flights.run("key", load)

    def lead():
        try:
            caller()
        except ValueError:
            return
        pytest.fail("the leader must see its own error")

    gc.disable()  # what only a collection frees was pinned
    try:
        leader = pool.submit(lead)
        until(lambda: len(refs) == 2)
        others = [pool.submit(flights.run, "key", load) for _ in range(waiters)]
        until(lambda: flights.waiting("key") == waiters)
        gate.set()
        leader.result()
        failures = [f.exception() for f in others]
        assert [type(f) for f in failures] == [LoadFailed] * waiters
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


class NeedsKeywordsError(Exception):
    def __init__(self, message, *, code):
        super().__init__(f"{code}: {message}")
        self.code = code


class UncopyableError(Exception):
    def __new__(cls, *args):
        if args:
            raise TypeError("made once")
        return super().__new__(cls)

    def __init__(self):
        self.args = ("made",)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file", "a.png"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        ImportError("gone", name="pkg", path="/p"),
        KeyError("k"),
        SyntaxError("bad", ("f.py", 1, 2, "x", 1, 3)),
        NeedsKeywordsError("no", code=7),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_copied_error_says_the_same(error):
    error.add_note("while loading")
    copy = _flight.without_frames(error)
    assert copy is not error
    assert type(copy) is type(error)
    assert (str(copy), copy.args, vars(copy)) == (str(error), error.args, vars(error))
    for name in ("errno", "filename", "reason", "name", "path", "lineno"):
        assert getattr(copy, name, None) == getattr(error, name, None)


def raised(error, cause=None):
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def frames(error, seen=()):
    links = [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    found = [error.__traceback__] if error.__traceback__ else []
    return found + [
        f for e in links if e is not None and e not in seen for f in frames(e, (*seen, e))
    ]


def test_a_copied_error_brings_its_chain_without_frames():
    error = raised(ValueError("outer"), raised(OSError(5, "disk"), raised(KeyError("deep"))))
    group = raised(ExceptionGroup("both", [error, raised(TypeError("t"))]))
    assert len(frames(group)) == 5
    copy = _flight.without_frames(group)
    assert frames(copy) == []
    outer, other = copy.exceptions
    assert isinstance(outer.__cause__, OSError)
    assert isinstance(outer.__cause__.__cause__, KeyError)
    assert isinstance(other, TypeError)

    implicit = ValueError("x")
    implicit.__context__ = KeyError("y")
    assert isinstance(_flight.without_frames(implicit).__context__, KeyError)
    implicit.__suppress_context__ = True
    assert _flight.without_frames(implicit).__context__ is None


def test_an_error_that_cannot_be_copied_is_named():
    copy = _flight.without_frames(UncopyableError())
    assert isinstance(copy, LoadFailed)
    assert "UncopyableError" in str(copy)
    circle = ValueError("round")
    circle.__cause__ = circle
    assert isinstance(_flight.without_frames(circle), ValueError)
