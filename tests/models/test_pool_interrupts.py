"""An interrupt between any two steps of a lease leaves nothing that nobody would end."""

from __future__ import annotations

import dis
import itertools
import sys
from types import CodeType, FrameType
from typing import Any

import pytest

from pool_kit import World, until

# After these the interpreter looks for signals, here as elsewhere.
_LOOKS = {"CALL", "CALL_FUNCTION_EX", "CALL_KW", "RESUME", "JUMP_BACKWARD"}
_before: dict[CodeType, dict[int, str]] = {}


class Interrupt:
    """Raises at one of the places of the pool's own code where a signal may be handled."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.passed = 0
        self.hit = ""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if "memweir/models" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode" and self._looks(frame):
            self.passed += 1
            if self.passed == self.at:
                self.hit = frame.f_code.co_name
                raise KeyboardInterrupt
        return self._step

    def _looks(self, frame: FrameType) -> bool:
        code = frame.f_code
        if code not in _before:
            steps = list(dis.get_instructions(code))
            pairs = itertools.pairwise(steps)
            _before[code] = {then.offset: step.opname for step, then in pairs}
        return _before[code].get(frame.f_lasti) in _LOOKS


def interrupted(world: World, at: int, work: Any) -> Interrupt:
    interrupt = Interrupt(at)
    tracing = sys.gettrace()
    sys.settrace(interrupt)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(tracing)
    return interrupt


@pytest.mark.parametrize("how", ["cold", "warm", "timeout", "unload"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_anywhere(how: str) -> None:
    at, left = 0, set()
    while True:
        at += 1
        world = World(ram=100)
        world.add("a", 10)
        if how in ("warm", "unload"):
            world.use("a")

        def work(world: World = world) -> None:
            if how == "unload":
                world.pool.unload("a")
                return
            with world.pool.lease("a", timeout=30 if how == "timeout" else None) as model:
                model.use()

        interrupt = interrupted(world, at, work)
        if not interrupt.hit:
            break
        desk = world.pool._desk
        entry = desk.entries["a"]
        if how == "timeout":
            until(lambda desk=desk, entry=entry: not desk.active and entry.turn is None)
        world.pool.release_abandoned()  # in the first step of the end, which is told of
        seen = desk.claims.look(entry.slot)
        if seen.holders or seen.turn or entry.turn or entry.bells or desk.active:
            left.add(interrupt.hit)
            continue
        assert world.use("a") == "cpu"
        world.pool.unload("a")
        assert (world.state("a"), world.pool.status().ram.held) == ("absent", 0)
    assert at > 20
    assert left == set()
