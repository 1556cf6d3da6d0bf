"""Any interleaving of callers, steps, wins and time, against a naive model of one trim at a time.

Every step of the trim waits at a gate, the callers are real threads and tasks, and hypothesis picks
who comes, which gate opens and how far the clock is turned.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trim_kit import LEVELS, MIB, World, names

from flight_kit import Loop

NAMES = [name.partition(".")[0] for name in LEVELS]
GC = NAMES.index("gc")
WIN = 16 * MIB


def soon(condition, told=str):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "the trim is not where the model is: " + told()
        time.sleep(0.0002)


class Call:
    def __init__(self, depth, interval, until):
        self.depth = depth
        self.interval = interval
        self.until = until
        self.left = False
        self.result = None

    def takes(self, depth):
        return depth <= self.depth and (depth != GC or self.interval is None)


class Trim:
    """The model: who is aboard, which step waits at its gate, and what was left out."""

    def __init__(self, calls):
        self.calls = calls
        self.at = 0
        self.asked = False
        self.did = []
        self.unwanted = set()
        self.paced = set()


class TrimMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.world = World(patience=1e9)  # hooks that hang have tests of their own
        for name in LEVELS:
            self.world.gate(name)
        self.loops = [Loop(), Loop()]
        self.pool = ThreadPoolExecutor(64)
        self.trim = None
        self.log = []
        self.last = {}

    def teardown(self):
        while self.trim is not None:
            self.open(False)
        for loop in self.loops:
            loop.stop()
            loop.loop.close()
        self.pool.shutdown()

    def too_soon(self, name, interval):
        if name not in self.last:
            return False
        done, little = self.last[name]
        return self.world.now - done < max(interval, min(interval * 2**little, 600))

    def go(self):
        """Moves the model on to the next step that is taken, or to the end."""
        trim = self.trim
        for depth in range(trim.at, len(LEVELS)):
            wants = [call for call in trim.calls if call.takes(depth)]
            if not wants:
                trim.unwanted.add(depth)
            elif all(call.interval is not None for call in wants) and self.too_soon(
                LEVELS[depth], min(call.interval for call in wants)
            ):
                trim.paced.add(depth)
            else:
                trim.at = depth
                trim.asked = any(call.interval is None for call in wants)
                self.log.append(LEVELS[depth])
                return
        self.end()

    def end(self):
        trim, self.trim = self.trim, None
        again, reports = [], set()
        for call in trim.calls:
            missed = {d for d in trim.unwanted if call.takes(d)}
            if call.interval is None:
                missed |= {d for d in trim.paced if call.takes(d)}
            if call.left:
                continue
            if missed:
                again.append(call)
                continue
            report = call.result.result(60)
            reports.add(id(report))
            assert report.finished
            assert report.joined == len(trim.calls) - 1
            assert [n for n in names(report) if report.step(n).skipped is None] == trim.did
        assert len(reports) <= 1
        if again:
            self.trim = Trim(again)
            self.go()
        # Who has the report has not left yet.
        left = 0 if self.trim is None else len(self.trim.calls)
        soon(lambda: self.world.trims.waiting == left)

    @rule(
        kind=st.integers(0, 2),
        depth=st.integers(0, len(LEVELS) - 1),
        interval=st.sampled_from([None, None, 20, 60]),
        patience=st.sampled_from([None, None, 15]),
        n=st.integers(1, 3),
    )
    def come(self, kind, depth, interval, patience, n):
        level = "auto" if interval is not None else NAMES[depth]
        depth = len(LEVELS) - 1 if interval is not None else depth
        for _ in range(n):
            until = None if patience is None else self.world.now + patience
            call = Call(depth, interval, until)
            options = {"min_interval": interval, "deadline": patience}
            if kind == 2:
                call.result = self.pool.submit(self.world.trims.trim, level, **options)
            else:
                call.result = self.loops[kind].start(self.world.trims.atrim(level, **options))
            if self.trim is None:
                self.trim = Trim([call])
                self.go()
            else:
                self.trim.calls.append(call)
                soon(lambda: self.world.trims.waiting == len(self.trim.calls))
            self.settle()

    @precondition(lambda self: self.trim is not None)
    @rule(win=st.booleans())
    def open(self, win):
        trim, world = self.trim, self.world
        name = LEVELS[trim.at]
        little = self.last.get(name, (0, 0))[1]
        self.last[name] = (world.now, 0 if win else little if trim.asked else little + 1)
        trim.did.append(name)
        trim.at += 1
        world.brings = {name: WIN if win else WIN - 1}
        world.gates[name].open()
        self.go()
        self.settle()

    @rule(seconds=st.sampled_from([1, 5, 9, 15, 20, 61, 700]))
    def turn(self, seconds):
        self.world.now += seconds
        for call in self.trim.calls if self.trim else ():
            if not call.left and call.until is not None and call.until <= self.world.now:
                report = call.result.result(60)
                assert not report.finished
                assert report.running == LEVELS[self.trim.at]
                assert [n for n in names(report) if report.step(n).skipped is None] == (
                    self.trim.did
                )
                call.left = True

    def settle(self):
        soon(
            lambda: self.world.done == self.log,
            lambda: f"{self.world.done[-6:]}, not {self.log[-6:]}",
        )

    @invariant()
    def is_as_the_model_says(self):
        assert self.world.done == self.log
        waiting = 0 if self.trim is None else len(self.trim.calls)
        assert self.world.trims.waiting == waiting
        for call in self.trim.calls if self.trim else ():
            assert call.left or not call.result.done()


TrimMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class TestTrimMachine(TrimMachine.TestCase):
    pass
