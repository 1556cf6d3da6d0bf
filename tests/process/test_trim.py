"""A trim's steps, their order, and what it says of them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from trim_kit import LEVELS, MIB, Job, World, heap_step, names, skipped

import memweir as mw


def test_all_steps_run_once_in_their_order():
    world = World()
    report = world.trims.trim("auto")
    assert world.done == list(LEVELS) == names(report)
    assert report.finished
    assert report.supported
    assert report.joined == 0
    assert report.running is None
    assert report.note is None


@pytest.mark.parametrize("last", range(len(LEVELS)))
def test_a_level_names_the_last_step(last):
    world = World()
    report = world.trims.trim(LEVELS[last].partition(".")[0])
    assert world.done == list(LEVELS[: last + 1]) == names(report)
    assert report.finished


def test_26_the_result_is_a_record_with_support_backend_return_value_bytes_and_duration():
    def slow(release, sweep):
        world.now += 0.25
        return world.heap_job(release, sweep)

    world = World(heap_job=slow)
    world.brings = {"allocator": 300 * MIB, "arenas": 200 * MIB}
    report = world.trims.trim("auto")
    assert report.supported is True
    assert (report.allocator.kind, report.allocator.object) == ("fake", "libfake.so")
    assert (report.before.anon, report.after.anon) == (1000 * MIB, 500 * MIB)
    assert report.before.full
    assert report.released == 500 * MIB
    assert report.seconds == 0.5
    allocator = report.step("allocator")
    assert allocator.detail == {"malloc_trim": 1}
    assert allocator.released == 300 * MIB
    assert allocator.seconds == 0.25
    sweep = report.step("arenas")
    assert sweep.released == 200 * MIB
    assert sweep.detail == {
        "sweepers": 24,
        "arenas_seen": 9,
        "arenas_swept": 8,
        "trim_threshold": 64,
    }
    assert report.step("gc").detail == {"collected": 3}
    assert report.step("buffers").detail == {"freed": 7}


@pytest.mark.parametrize("sweeps", [True, False])
def test_advice_that_is_taken_back_is_part_of_the_arenas(sweeps):
    swept = heap_step("sweep", ok=sweeps, why=None if sweeps else "no thread")
    advice = heap_step("advice", unadvised_ranges=3, unadvised_bytes=7)
    # Joined, it is not mistaken for what the allocator does.
    report = World(
        heap_job=lambda release, sweep: Job([heap_step("malloc_trim"), swept, advice], joined=True)
    ).trims.trim("auto")
    assert report.step("allocator").detail == {}
    told = {"unadvised_ranges": 3, "unadvised_bytes": 7}
    assert report.step("arenas").detail == told | ({} if sweeps else {"sweep": "no thread"})


def test_advice_that_stays_has_its_reason():
    steps = [heap_step("sweep", sweepers=1), heap_step("advice", ok=False, why="to all")]
    report = World(heap_job=lambda release, sweep: Job(steps)).trims.trim("auto")
    assert report.step("arenas").detail == {"sweepers": 1, "advice": "to all"}


def test_bytes_are_the_kernels_whatever_the_allocator_returns():
    world = World(heap_job=lambda release, sweep: Job([heap_step("malloc_trim", returned=1 << 40)]))
    assert world.trims.trim("allocator").released == 0


def test_what_grew_meanwhile_is_said():
    world = World()
    world.brings = {"gc": -30 * MIB}
    report = world.trims.trim("gc")
    assert report.released == -30 * MIB
    assert report.step("gc").released == -30 * MIB
    assert "30.0 MiB taken" in str(report)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("malloc_trim", "musl has no malloc_trim"),
        ("malloc_trim", "symbol missing"),
        ("release", "nothing is known for this platform"),
    ],
)
def test_28_a_missing_symbol_or_platform_is_an_outcome(name, why):
    def heap_job(release, sweep):
        return Job([heap_step(name, ok=False, why=why)] if release else [])

    report = World(heap_job=heap_job).trims.trim("auto")
    assert report.supported is False
    assert report.finished
    assert why in skipped(report)["allocator"]
    assert skipped(report)["arenas"]
    assert report.step("allocator").failed is None
    assert "gives nothing back" in str(report)


def test_an_allocator_that_does_some_of_it_is_supported():
    steps = [heap_step("arena.purge"), heap_step("tcache", ok=False, why="EFAULT")]
    world = World(heap_job=lambda release, sweep: Job(steps if release else []))
    report = world.trims.trim("auto")
    assert report.supported
    assert report.step("allocator").skipped is None
    assert report.step("allocator").detail == {"tcache": "EFAULT"}


def test_no_sweep_leaves_the_allocator_supported():
    steps = [heap_step("mi_collect")]
    report = World(heap_job=lambda release, sweep: Job(steps if release else [])).trims.trim("auto")
    assert report.supported
    assert set(skipped(report)) == {"arenas"}


def test_somebody_elses_heap_job_is_waited_for_and_ours_follows():
    jobs = [Job([heap_step("sweep")], joined=True), Job([heap_step("malloc_trim", returned=0)])]
    asked = []

    def heap_job(release, sweep):
        asked.append((release, sweep))
        return jobs[len(asked) - 1]

    report = World(heap_job=heap_job).trims.trim("allocator")
    assert asked == [(True, False)] * 2
    assert report.step("allocator").detail == {"malloc_trim": 0}


def test_somebody_elses_heap_job_that_did_the_same_is_enough():
    asked = []

    def heap_job(release, sweep):
        asked.append(release)
        return Job([heap_step("malloc_trim", returned=1), heap_step("sweep")], joined=True)

    report = World(heap_job=heap_job).trims.trim("allocator")
    assert asked == [True]
    assert report.step("allocator").detail == {"malloc_trim": 1}


def test_a_heap_that_others_keep_busy_is_no_heap_without_support():
    asked = []

    def heap_job(release, sweep):
        asked.append(release)
        return Job([heap_step("sweep")], joined=True)

    report = World(heap_job=heap_job).trims.trim("allocator")
    assert len(asked) > 1
    assert report.supported
    assert "in the way" in skipped(report)["allocator"]


@pytest.mark.parametrize("at", LEVELS)
def test_one_that_is_broken_off_in_any_step_is_not_finished(at):
    class Ending(World):
        def act(self, name):
            super().act(name)
            self.trims.closing = name == at

    world = Ending()
    report = world.trims.trim("auto")
    assert not report.finished
    assert report.note == "broken off: the process is ending"
    assert world.done[-1] == at


def test_29_collect_and_trim_are_injectable_and_called_once():
    calls = []

    def heap_job(release, sweep):
        calls.append(("heap", release, sweep))
        return Job([heap_step("sweep" if sweep else "malloc_trim")])

    world = World(collect=lambda: calls.append("gc") or 0, heap_job=heap_job)
    world.trims.trim("auto")
    assert calls == ["gc", ("heap", True, False), ("heap", False, True)]


def test_gc_comes_before_the_allocator_is_asked():
    world = World()
    world.trims.trim("auto")
    assert world.done.index("gc") < world.done.index("allocator") < world.done.index("arenas")


def test_without_hooks_the_step_says_so():
    world = World()
    world.hooks.clear()
    assert "none is registered" in skipped(world.trims.trim("hooks"))["hooks"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"level": "everything"}, ValueError),
        ({"level": None}, ValueError),
        ({"min_interval": -1}, ValueError),
        ({"min_interval": float("nan")}, ValueError),
        ({"min_interval": "30"}, TypeError),
        ({"deadline": -0.1}, ValueError),
        ({"deadline": 10**400}, ValueError),
        ({"min_interval": 10**5000}, ValueError),
        ({"deadline": -(10**5000)}, ValueError),
        ({"deadline": True}, TypeError),
    ],
)
def test_bad_arguments_name_themselves(options, error):
    world = World()
    named = next(iter(options))
    with pytest.raises(error, match=named):
        world.trims.trim(options.pop("level", "auto"), **options)
    assert world.done == []


def test_the_report_prints_and_becomes_plain_data():
    world = World()
    world.brings = {"arenas": 64 * MIB}
    report = world.trims.trim("auto")
    text = str(report)
    assert text.splitlines()[0] == "trim: 64.0 MiB released in 0.000 s, fake"
    assert "  arenas: 64.0 MiB released in 0.000 s (sweepers=24" in text
    plain = report.as_dict()
    assert plain["released"] == 64 * MIB
    assert [step["name"] for step in plain["steps"]] == list(LEVELS)


def test_records_with_an_as_dict_of_their_own_become_plain_data_too():
    memory = SimpleNamespace(anon=1, as_dict=lambda: {"anon": 1})
    report = World(memory=lambda full: memory).trims.trim("buffers")
    assert report.as_dict()["before"] == {"anon": 1}


def test_memweirs_own_report_is_json():
    report = mw.trim("buffers")
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["allocator"]["kind"] == mw.heap().allocator.kind
    assert plain["before"]["anon"] == report.before.anon


def test_memweirs_own_trim_is_all_of_it():
    cache = mw.PixelCache("8 MiB")
    report = mw.trim("hooks")
    assert report.finished
    assert report.step("buffers").skipped is None
    assert mw.trim.__doc__
    del cache
