"""The table of entries, interrupted between any two lines."""

from __future__ import annotations

import sys
from functools import partial

import pytest

from memweir.probes.slots import Slots


def interleaved(name, act, line, other):
    """Runs `act`, and `other` in the middle of its `name`, before the n-th line."""
    left = [line]

    def tracer(frame, event, argument):
        if frame.f_code.co_name != name:
            return None
        left[0] -= event == "line"
        if left[0] == 0:
            sys.settrace(None)
            frame.f_trace = None
            other()
            return None
        return tracer

    sys.settrace(tracer)
    try:
        act()
    finally:
        sys.settrace(None)
    return left[0] <= 0


STEPS = {
    "clear": lambda slots: slots.clear(),
    "find": lambda slots: slots.find(("new",)),
    "drop": lambda slots: slots.drop(lambda key: key[0] in ("0", "new")),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("other", STEPS)
def test_whatever_interrupts_a_step_every_entry_can_still_be_evicted(step, other):
    for line in range(1, 40):
        slots = Slots(4)
        for n in range(4):
            slots.find((str(n),))
        act, interrupt = partial(STEPS[step], slots), partial(STEPS[other], slots)
        interrupted = interleaved(step, act, line, interrupt)
        held = {(key, id(slot)) for key, slot in slots._ring}
        assert {(key, id(slot)) for key, slot in slots.table.items()} <= held, line
        for n in range(50):
            slots.find((f"later {n}",))
        assert len(slots.table) <= 5
        if not interrupted:
            break
    assert line > 2
