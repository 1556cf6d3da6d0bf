"""Limits and charges of real memory cgroups, which change while a process in them runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cgroup_kit import Group, own_group

MIB = 1 << 20

# Answers each line of Python with the JSON of its value.
SCRIPT = """
import json, os, resource, sys
import memweir as mw
import numpy as np
kept = []
taken = []
def take_descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        return error.strerror
def free_descriptors():
    while taken:
        os.close(taken.pop())
def touch(mib):
    kept.append(np.ones(mib << 20, np.uint8))
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
"""


class Child:
    """A process that tells what it reads."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, expression: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def limits(self) -> dict[str, int]:
        return dict(self.ask("[(l.source, l.bytes) for l in mw.limits()]"))


@contextmanager
def child_in(*groups: Group) -> Iterator[Child]:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for group in groups:
                group.adopt(process.pid)
            yield Child(process)
        finally:
            process.kill()
            process.wait()


def test_a_limit_that_is_resized_while_the_process_runs() -> None:
    with own_group("resized") as group, child_in(group) as child:
        unlimited = child.ask("mw.memory().limit")
        assert str(group.limit_file) not in child.limits()
        group.limit(300 * MIB)
        assert child.limits()[str(group.limit_file)] == 300 * MIB
        assert child.ask("mw.memory().limit") == 300 * MIB
        assert child.ask("mw.memory().limit_source") == str(group.limit_file)
        assert child.ask("__import__('memweir.sizes').sizes.memory_limit()") == 300 * MIB
        group.limit(200 * MIB)
        # Nobody asks for the limits: looks find out by themselves, before long.
        assert child.ask("next(m for m in iter(mw.memory, None) if m.limit == 200 << 20).limit")
        group.limit(None)
        assert str(group.limit_file) not in child.limits()
        assert child.ask("mw.memory().limit") == unlimited


def test_a_limit_holds_while_no_descriptor_is_free() -> None:
    with own_group("full") as group, child_in(group) as child:
        group.limit(300 * MIB)
        known = child.limits()
        assert known[str(group.limit_file)] == 300 * MIB
        assert child.ask("mw.memory(full=True).charge") > 0
        assert child.ask("take_descriptors()") == "Too many open files"
        assert child.limits() == known
        assert child.ask("mw.memory().limit") == 300 * MIB
        assert child.ask("mw.memory().limit_source") == str(group.limit_file)
        assert child.ask("mw.memory().charge") == pytest.approx(group.charge(), abs=8 * MIB)
        child.ask("free_descriptors()")
        group.limit(200 * MIB)
        assert child.limits()[str(group.limit_file)] == 200 * MIB


def test_the_least_limit_of_the_groups_around() -> None:
    with own_group("outer") as outer:
        inner = outer.child("inner")
        with child_in(inner) as child:
            outer.limit(250 * MIB)
            inner.limit(400 * MIB)
            limits = child.limits()
            assert limits[str(inner.limit_file)] == 400 * MIB
            assert limits[str(outer.limit_file)] == 250 * MIB
            assert child.ask("mw.memory().limit") == 250 * MIB
            assert child.ask("mw.memory().limit_source") == str(outer.limit_file)
            inner.limit(100 * MIB)
            child.limits()
            assert child.ask("mw.memory().limit") == 100 * MIB


def test_the_charge_is_the_groups() -> None:
    with own_group("charge") as group, child_in(group) as child:
        before = child.ask("mw.memory().charge")
        child.ask("touch(64)")
        after = child.ask("mw.memory(full=True).as_dict()")
        assert 60 * MIB < after["charge"] - before < 80 * MIB
        assert after["charge"] == pytest.approx(group.charge(), abs=8 * MIB)
        assert 60 * MIB < after["working_set"] <= after["charge"]


def test_a_process_that_is_moved_is_charged_elsewhere() -> None:
    with own_group("first") as first, own_group("second") as second, child_in(first) as child:
        first.limit(500 * MIB)
        second.limit(350 * MIB)
        child.ask("touch(64)")
        child.limits()
        assert child.ask("mw.memory().limit") == 500 * MIB
        assert child.ask("mw.memory().charge") > 60 * MIB
        second.adopt(child.process.pid)
        # What it had taken stays charged to where it was (v1 and v2).
        moved = "next(m for m in iter(mw.memory, None) if m.limit == 350 << 20)"
        assert child.ask(f"{moved}.charge") < 60 * MIB
        assert child.ask("mw.memory().charge") == pytest.approx(second.charge(), abs=8 * MIB)


def test_a_group_that_is_removed_limits_nothing() -> None:
    with own_group("removed") as group:
        inner, other = group.child("gone"), group.child("other")
        inner.limit(300 * MIB)
        with child_in(inner) as child:
            assert child.ask("mw.memory(full=True).limit") == 300 * MIB
            other.adopt(child.process.pid)
            inner.path.rmdir()
            # Within the two seconds in which the old group is still looked at, too.
            assert child.ask("mw.memory(full=True).rss") > 0
            assert child.ask("next(m.limit for m in iter(mw.memory, None) if m.limit != 300 << 20)")
            assert child.ask("mw.memory().charge") == pytest.approx(other.charge(), abs=8 * MIB)
