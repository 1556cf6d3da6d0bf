"""A trim among hooks, threads, readers, loggers and finalizers that do their worst."""

from __future__ import annotations

import gc
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from trim_kit import LEVELS, MIB, Gate, World, names, skipped

from flight_kit import Loop, until
from memweir.process._aside import spawn
from memweir.process.hooks import TrimHook


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def hooked(*hooks, **changes):
    world = World(**changes)
    world.hooks = [TrimHook(f"h{i}", hook) for i, hook in enumerate(hooks)]
    return world


@pytest.mark.parametrize("error", [ValueError("no room"), KeyboardInterrupt(), SystemExit(3)])
def test_a_hook_that_raises_is_told_and_the_trim_goes_on(error):
    def bad():
        raise error

    world = hooked(bad, lambda: world.done.append("good"))
    report = world.trims.trim("auto")
    assert type(error).__name__ in report.step("hooks.h0").failed
    assert world.done == ["buffers", "good", *LEVELS[2:]]
    assert report.finished


def test_what_a_hook_raised_is_told_without_secrets_and_keeps_nothing_alive():
    class Heavy:
        pass

    alive = []

    def bad():
        import weakref

        heavy = Heavy()
        alive.append(weakref.ref(heavy))
        raise ValueError("https://user:hunter2secret@host/ refused")

    report = hooked(bad).trims.trim("hooks")
    assert "hunter2secret" not in report.step("hooks.h0").failed
    assert "refused" in report.step("hooks.h0").failed
    gc.collect()
    assert alive[0]() is None


def test_an_error_that_cannot_be_told_is_named():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    def bad():
        raise Mute

    assert hooked(bad).trims.trim("hooks").step("hooks.h0").failed.endswith("Mute")


def test_a_hook_that_hangs_is_left_behind_and_left_out_until_it_returns(pool):
    gate = Gate()
    world = hooked(gate, lambda: world.done.append("other"))
    first = pool.submit(world.trims.trim, "auto")
    until(lambda: gate.entered)
    assert not first.done()
    world.now += 10
    report = first.result()
    assert "left behind, still running after 10 s" in report.step("hooks.h0").failed
    assert report.finished
    assert world.done == ["buffers", "other", *LEVELS[2:]]

    second = world.trims.trim("hooks")
    assert "still runs since an earlier trim" in skipped(second)["hooks.h0"]
    assert world.done[-1] == "other"
    assert gate.entered == 1

    gate.open(2)
    until(lambda: not world.trims.aside._strays)
    third = world.trims.trim("hooks")
    assert third.step("hooks.h0").failed is None
    assert gate.entered == 2


def test_one_that_takes_the_place_of_a_hanging_hook_is_called(pool):
    gate = Gate()
    world = hooked(gate)
    first = pool.submit(world.trims.trim, "hooks")
    until(lambda: gate.entered)
    world.now += 10
    assert first.result().step("hooks.h0").failed
    world.hooks = [TrimHook("h0", lambda: world.done.append("better"))]
    assert skipped(world.trims.trim("hooks")) == {}
    assert world.done[-1] == "better"
    gate.open()


def test_a_collection_that_hangs_in_a_finalizer_is_left_behind(pool):
    """A finalizer may want a lock that a caller of trim holds."""
    lock = threading.RLock()

    def collect():
        with lock:
            return 0

    world = World(collect=collect)

    def holder():
        with lock:
            return world.trims.trim("auto")

    first = pool.submit(holder)
    until(lambda: world.trims._last()._running == "gc")
    world.now += 10
    report = first.result()
    assert "left behind" in report.step("gc").failed
    assert world.done == ["buffers", "hooks.one", "allocator", "arenas"]
    until(lambda: not world.trims.aside._strays)


@pytest.mark.parametrize("where", ["hooks.one", "gc", "buffers", "arenas"])
def test_a_trim_from_inside_a_trim_returns_at_once_and_says_so(where):
    inner = []

    class Nested(World):
        def act(self, name):
            super().act(name)
            if name == where:
                inner.append(self.trims.trim("auto"))

    world = Nested()
    outer = world.trims.trim("auto")
    assert outer.finished
    assert world.done == list(LEVELS)
    (report,) = inner
    assert report.nested
    assert not report.finished
    assert report.steps == ()
    assert "inside a trim" in report.note


def test_a_hook_that_was_left_behind_may_trim_like_anybody(pool):
    gate, later = Gate(), []

    def hook():
        gate()
        later.append(world.trims.trim("auto"))

    world = hooked(hook)
    first = pool.submit(world.trims.trim, "auto")
    until(lambda: gate.entered)
    world.now += 10
    assert first.result().finished
    world.idle()
    gate.open()
    until(lambda: later)
    assert later[0].finished
    assert "still runs" in skipped(later[0])["hooks.h0"]


def test_a_task_that_trims_from_inside_a_trim_returns_at_once(pool):
    import asyncio

    inner = []
    world = hooked(lambda: inner.append(asyncio.run(world.trims.atrim("auto"))))
    assert world.trims.trim("hooks").finished
    assert inner[0].nested


def test_a_finalizer_that_trims_neither_hangs_nor_nests():
    """It runs wherever a collection finds it: in the trim, in a caller, in a bystander."""
    reports = []
    world = World(collect=gc.collect, clock=time.monotonic, patience=0.1)

    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            reports.append(world.trims.trim("auto"))

    before = gc.get_threshold()
    try:
        for threshold in (0, 1, 2, 3, 5, 7, 11, 20, 50):
            gc.disable()
            for _ in range(5):
                Cycle()
            gc.set_threshold(threshold)
            gc.enable()
            assert world.trims.trim("auto").finished
    finally:
        gc.set_threshold(*before)
        gc.enable()
    # A collection does nothing while another thread's runs.
    until(lambda: gc.collect() >= 0 and len(reports) == 45)
    assert all(report.nested for report in reports[:5])  # no collection but the trim's own


def test_a_hook_whose_thread_trims_is_told_of_as_hanging(pool):
    """Its thread waits for the trim, which waits for the hook: patience ends that."""

    def hook():
        thread = threading.Thread(target=world.trims.trim, args=("auto",))
        thread.start()
        thread.join()

    world = hooked(hook)
    first = pool.submit(world.trims.trim, "hooks")
    until(lambda: world.trims.waiting == 2)
    world.now += 10
    assert "left behind" in first.result().step("hooks.h0").failed
    until(lambda: not world.trims.aside._strays)


def test_a_thread_that_never_comes_to_its_work_is_replaced_by_a_caller(pool):
    """Such as one that runs a finalizer, which trims, before its first line."""
    late = []
    world = World(start=lambda work, name: late.append(work) if not late else spawn(work, name))
    first = pool.submit(world.trims.trim, "auto")
    until(lambda: late)
    world.now += 9.9
    assert not first.done()
    world.now += 0.1
    assert first.result().finished
    assert world.done == list(LEVELS)
    late[0]()
    assert world.done == list(LEVELS)


def no_thread(work, name):
    raise RuntimeError("can't start new thread")


def test_without_a_thread_the_caller_does_the_work_and_the_report_says_so():
    world = World(start=no_thread)
    report = world.trims.trim("auto")
    assert report.finished
    assert "no thread" in report.note
    assert world.done == ["buffers", "allocator", "arenas"]
    assert "no thread" in skipped(report)["hooks.one"]
    assert "no thread" in skipped(report)["gc"]


def test_without_a_thread_a_task_does_the_work():
    import asyncio

    world = World(start=no_thread)
    assert asyncio.run(world.trims.atrim("auto")).finished
    assert "arenas" in world.done


@pytest.mark.parametrize("refused", range(3))
def test_a_thread_that_cannot_be_started_in_the_middle_costs_one_step(refused):
    started = []

    def start(work, name):
        started.append(name)
        if len(started) - 1 == refused:
            raise RuntimeError("can't start new thread")
        spawn(work, name)

    world = World(start=start)
    report = world.trims.trim("auto")
    assert report.finished
    assert world.done[-1] == "arenas"
    assert len(skipped(report)) == (refused > 0)
    assert skipped(world.trims.trim("auto")) == {}


def test_a_caller_broken_off_while_it_starts_the_thread_leaves_no_trim_behind(pool):
    """Those who joined in that moment begin one themselves."""
    first = []

    def start(work, name):
        if not first:
            first.append(name)
            until(lambda: world.trims.waiting == 2)
            raise KeyboardInterrupt
        spawn(work, name)

    world = World(start=start)
    broken = pool.submit(world.trims.trim, "auto")
    until(lambda: first)
    other = pool.submit(world.trims.trim, "auto")
    assert isinstance(broken.exception(), KeyboardInterrupt)
    assert other.result().finished
    assert world.done == list(LEVELS)


class Interrupted(BaseException):
    """What a signal handler raises."""


def test_what_interrupts_a_caller_at_work_reaches_it_and_the_next_trim_is_whole():
    def interrupted(release, sweep):
        raise Interrupted

    jobs = [interrupted]
    world = World(
        start=no_thread,
        heap_job=lambda *args: jobs.pop()(*args) if jobs else World.heap_job(world, *args),
    )
    with pytest.raises(Interrupted):
        world.trims.trim("auto")
    assert "broken off by Interrupted" in world.trims._head.report.note
    world.idle()
    assert world.trims.trim("auto").finished


def test_an_interrupt_at_the_very_end_leaves_nobody_waiting(pool):
    """The caller that makes the report is hit, and another waits for that report."""
    gate, full = Gate(), []

    def memory(all_of_it):
        full.extend([1] * all_of_it)
        if all_of_it and len(full) == 2:
            gate()
            raise Interrupted

    world = World(start=no_thread, memory=memory)
    first = pool.submit(world.trims.trim, "auto")
    until(lambda: gate.entered)
    second = pool.submit(world.trims.trim, "auto")
    until(lambda: world.trims.waiting == 2)
    gate.open()
    assert isinstance(first.exception(10), Interrupted)
    assert not second.result(10).finished
    assert world.trims.trim("auto").finished


def test_a_report_that_cannot_be_made_leaves_nobody_waiting():
    """Such as one there is no memory for."""

    def told(*args, **named):
        raise MemoryError

    world = World()
    world.trims._head._told = told
    assert not world.trims.trim("auto").finished
    assert world.trims.trim("auto").finished


def test_a_reader_that_fails_leaves_bytes_unknown_and_the_trim_whole():
    def memory(full):
        raise OSError("no /proc here")

    world = World(memory=memory)
    report = world.trims.trim("auto")
    assert world.done == list(LEVELS)
    assert report.released is None
    assert report.before is None
    assert {step.released for step in report.steps} == {None}
    assert "unknown bytes" in str(report)


def test_a_platform_that_tells_no_bytes_leaves_them_unknown():
    from types import SimpleNamespace

    world = World(memory=lambda full: SimpleNamespace(anon=None))
    assert world.trims.trim("auto").released is None


@pytest.mark.parametrize("part", ["buffers", "heap_job", "allocator", "hooks"])
def test_a_part_that_fails_is_told_and_the_rest_goes_on(part):
    def fail(*args):
        raise OSError("gone")

    world = World(**{part: fail})
    report = world.trims.trim("auto")
    assert report.finished
    assert "gc" in world.done
    failed = {step.name for step in report.steps if step.failed is not None}
    told = {"buffers": {"buffers"}, "heap_job": {"allocator", "arenas"}}
    assert failed == told.get(part, set())
    assert (report.allocator is None) == (part == "allocator")


class Broken(logging.Handler):
    def emit(self, record):
        raise RuntimeError("the disk is full")


@pytest.fixture
def logger():
    logger = logging.getLogger("memweir.trim")
    level = logger.level
    yield logger
    logger.setLevel(level)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)


def test_logging_that_raises_changes_nothing(logger):
    logger.addHandler(Broken())
    logger.setLevel("DEBUG")
    world = World()
    world.brings = {"arenas": 64 * MIB}
    assert world.trims.trim("auto").finished
    world.idle()
    assert world.trims.trim("auto").finished


def test_logging_that_hangs_keeps_nobody_waiting(logger, pool):
    gate = Gate()

    class Slow(logging.Handler):
        def emit(self, record):
            gate()

    logger.addHandler(Slow())
    logger.setLevel("INFO")
    world = World()
    world.brings = {"arenas": 64 * MIB}
    assert world.trims.trim("auto").finished
    until(lambda: gate.entered)
    gate.open()
    world.idle()


def test_logging_that_trims_returns_at_once(logger):
    inner = []

    class Trimming(logging.Handler):
        def emit(self, record):
            inner.append(world.trims.trim("auto"))

    logger.addHandler(Trimming())
    logger.setLevel("INFO")
    world = World()
    world.brings = {"arenas": 64 * MIB}
    world.trims.trim("auto")
    world.idle()
    assert [report.nested for report in inner] == [True]


def test_only_a_real_win_is_an_info_line(caplog):
    caplog.set_level("INFO", "memweir")
    world = World()
    world.brings = {"arenas": 16 * MIB - 1}
    world.trims.trim("auto")
    world.idle()
    assert caplog.records == []
    world.brings = {"arenas": 16 * MIB}
    world.trims.trim("auto")
    world.idle()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("memweir.trim", "INFO")
    assert record.getMessage() == "16.0 MiB released in 0.00 s: arenas 16.0 MiB released"


def test_a_defect_of_ours_ends_the_trim_and_not_the_next(pool):
    world = World()
    loop = Loop()
    try:
        world.trims.pace.did = None
        report = world.trims.trim("auto")
        assert not report.finished
        assert "broken off by TypeError" in report.note
        del world.trims.pace.did
        assert loop.start(world.trims.atrim("auto")).result().finished
    finally:
        loop.close()


def test_the_same_hook_object_keeps_its_place_among_steps():
    world = hooked(lambda: None, lambda: None)
    assert names(world.trims.trim("hooks")) == ["buffers", "hooks.h0", "hooks.h1"]
