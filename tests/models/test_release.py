"""Models let go in one pass: what is done in which order, what is proved, and what goes wrong."""

from __future__ import annotations

import gc
import json
import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memweir.models.adapters.protocol import Sizes
from memweir.models.ladder import Rung
from memweir.models.release import Doomed, Release
from memweir.models.report import Resident, UnloadReport

MIB = 1 << 20


class Model:
    """Something that can be referred to weakly."""


@dataclass
class World:
    """What a release works with, and a log of what it did."""

    done: list[str] = field(default_factory=list)
    anon: int = 100 * MIB
    file: int = 10 * MIB
    device: int | None = None
    gives: dict[str, int] = field(default_factory=dict)
    raises: dict[str, BaseException] = field(default_factory=dict)
    now: float = 0.0

    def step(self, name: str) -> Callable[[], Any]:
        def work() -> str:
            self.done.append(name)
            self.now += 0.5
            self.anon -= self.gives.get(name, 0)
            if name in self.raises:
                raise self.raises[name]
            if name == "gc":
                gc.collect()
            return name

        return work

    def release(self, **changes: Any) -> Release:
        means: dict[str, Any] = {
            "collect": self.step("gc"),
            "caches": self.step("caches"),
            "trim": self.step("trim"),
            "read": lambda: SimpleNamespace(anon=self.anon, file=self.file),
            "device": lambda: self.device,
            "clock": lambda: self.now,
        }
        return Release(**{**means, **changes})


@pytest.fixture
def world() -> World:
    return World()


def doomed(key: str = "a", model: Any = None, **more: Any) -> Doomed:
    return Doomed(key, Model() if model is None else model, **more)


def test_the_order_is_drop_finalizer_collection_caches_trim_and_each_once_for_a_batch(world):
    done = world.done
    batch = [
        doomed(key, finalizer=lambda model, key=key: done.append(f"finalizer {key}"))
        for key in "abc"
    ]
    for each in batch:
        weakref.finalize(each.model, done.append, f"dropped {each.key}")
    report = world.release()(batch)
    assert done == [
        *("finalizer a", "dropped a", "finalizer b", "dropped b", "finalizer c", "dropped c"),
        *("gc", "caches", "trim"),
    ]
    assert [step.name for step in report.steps] == ["drop", "gc", "caches", "trim"]
    assert report.keys == ("a", "b", "c")
    assert report.trim == "trim"


def test_nothing_to_release_is_no_pass(world, caplog):
    caplog.set_level(logging.DEBUG)
    report = world.release(read=None, clock=None)([])
    assert world.done == []
    assert not report
    assert report == UnloadReport()
    assert str(report) == "nothing released"
    assert not caplog.records


def test_the_pools_references_are_gone_before_the_finalizer_runs(world):
    seen = []
    each = doomed()
    each.finalizer = lambda model: seen.append((each.model, each.finalizer))
    world.release()([each])
    assert seen == [(None, None)]


def test_a_pass_after_a_failed_load_has_no_model_and_no_line_at_info(world, caplog):
    caplog.set_level(logging.INFO, "memweir")
    report = world.release().tidy()
    assert world.done == ["gc", "caches", "trim"]
    assert not report
    assert report.before is not None
    assert not caplog.records


def test_what_a_model_was_promised_stands_beside_what_came_back_step_by_step(world):
    world.gives = {"gc": 5 * MIB, "trim": 60 * MIB}
    world.device = 50
    batch = [doomed("a", promised=Sizes(40 * MIB, 0, 5)), doomed("b", promised=Sizes(30 * MIB, 9))]
    report = world.release()(batch)
    assert report.promised == Sizes(70 * MIB, 9, 5)
    assert report.returned == Resident(65 * MIB, 0, 0)
    assert report.before == Resident(100 * MIB, 10 * MIB, 50)
    assert {step.name: step.returned.anon for step in report.steps} == {
        "drop": 0,
        "gc": 5 * MIB,
        "caches": 0,
        "trim": 60 * MIB,
    }
    assert report.seconds == 1.5
    assert report.step("gc").seconds == 0.5
    assert report.step("sweep") is None
    assert "65.0 MiB of 70.0 MiB" in str(report)
    assert "\n" not in str(report)


@pytest.mark.parametrize("name", ["gc", "caches", "trim"])
def test_a_step_that_raises_is_in_the_report_and_the_next_one_comes(world, name):
    world.raises = {name: RuntimeError("hf_" + "S" * 30)}
    report = world.release()([doomed()])
    assert world.done == ["gc", "caches", "trim"]
    assert report.step(name).failed == f"{name}: RuntimeError: [redacted]"
    assert report.errors == (report.step(name).failed,)
    assert report.released[0].verdict == "dead"


class Odd(BaseException):
    """Neither an error nor an interrupt."""


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), Odd("odd"), GeneratorExit()])
def test_a_finalizer_that_raises_is_told_and_stops_nobody(world, error):
    def finalizer(model):
        raise error

    dead = []
    batch = [doomed("a", finalizer=finalizer), doomed("b", finalizer=lambda model: dead.append(1))]
    report = world.release()(batch)
    assert dead == [1]
    assert world.done == ["gc", "caches", "trim"]
    assert len(report.errors) == 1
    assert report.errors[0].startswith(f"a: {type(error).__qualname__}")
    assert [each.key for each in report.released] == ["a", "b"]


def test_what_a_finalizer_raised_does_not_keep_the_model(world):
    def finalizer(model):
        raise ValueError("no")

    report = world.release()([doomed(finalizer=finalizer)])
    assert report.released[0].verdict == "dead"


@pytest.mark.parametrize("where", ["finalizer", "gc", "caches", "trim"])
def test_an_interrupt_passes_when_the_pass_is_whole(world, where):
    def finalizer(model):
        if where == "finalizer":
            raise KeyboardInterrupt

    if where != "finalizer":
        world.raises = {where: KeyboardInterrupt()}
    later = doomed("later")
    gone = weakref.ref(later.model)
    with pytest.raises(KeyboardInterrupt):
        world.release()([doomed(finalizer=finalizer), later])
    assert world.done == ["gc", "caches", "trim"]
    assert gone() is None


def test_a_cycle_dies_in_the_collection(world):
    model = Model()
    model.itself = model
    batch = [doomed(model=model)]
    del model
    gc.disable()
    try:
        assert world.release(collect=int)(batch[:]).released[0].verdict == "alive"
        model = Model()
        model.itself = model
        batch = [doomed(model=model)]
        del model
        assert world.release()(batch).released[0].verdict == "dead"
    finally:
        gc.enable()


def test_memory_that_nobody_tells_is_unknown_and_not_nothing(world):
    def unreadable():
        raise OSError

    report = world.release(read=unreadable, device=unreadable)([doomed(promised=Sizes(5))])
    assert report.returned == Resident()
    assert "unknown of 5 B" in str(report)
    assert world.release(device=None)([doomed()]).returned.device is None


# What is proved.


@pytest.mark.parametrize("model", [{"a": 1}, [Rung], (1, 2), "text", 5], ids=repr)
def test_of_a_type_without_weak_references_death_is_not_provable(world, model):
    (each,) = world.release()([Doomed("a", model)]).released
    assert each.verdict == "not provable"
    assert "not provable" in str(each)


def test_of_a_container_the_arrays_in_it_are_the_proof(world):
    array = np.zeros(10)
    model = {"weights": [array, (np.zeros(3),)], "size": 5}
    (each,) = world.release()([Doomed("a", model)]).released
    assert each.verdict == "alive"  # this function has the model and the array
    del model, array
    (each,) = world.release()([Doomed("a", {"weights": np.zeros(5)})]).released
    assert each.verdict == "dead"


def test_of_a_tuple_the_modules_in_it_are_the_proof(world):
    nn = pytest.importorskip("torch").nn
    (each,) = world.release()([Doomed("a", (nn.Linear(2, 2), "a tokenizer"))]).released
    assert each.verdict == "dead"
    kept = nn.Linear(2, 2)
    (each,) = world.release()([Doomed("a", (kept, "a tokenizer"))]).released
    assert each.verdict == "alive"


def alive(world: World, batch: list[Doomed]) -> tuple[str, ...]:
    (each,) = world.release()(batch).released
    assert each.verdict == "alive"
    return each.referrers


class Service:
    """Keeps a model where services keep them."""

    def __init__(self, model: Any) -> None:
        self.encoder = model


LEFT: Any = None


def closing_over(model: Any) -> Callable[[], Any]:
    return lambda: model


def test_a_variable_of_the_caller_is_named_with_its_line(world):
    kept = Model()
    (told,) = alive(world, [doomed(model=kept)])
    assert told.startswith("'kept' in test_a_variable_of_the_caller_is_named_with_its_line (")
    assert __file__ in told
    assert told.endswith(f"thread {threading.current_thread().name!r}")


def test_a_thread_that_keeps_the_model_is_named(world):
    begun, end = threading.Event(), threading.Event()

    def serve(model):
        begun.set()
        end.wait()

    batch = [doomed()]
    thread = threading.Thread(target=serve, args=(batch[0].model,), name="request 7")
    thread.start()
    begun.wait()
    try:
        told = alive(world, batch)
    finally:
        end.set()
        thread.join()
    assert any("'model' in" in each and "serve" in each and "'request 7'" in each for each in told)


def test_looking_into_a_running_function_keeps_nothing_that_it_lets_go(world):
    begun, on, dropped, end = (threading.Event() for _ in range(4))
    held = []

    def serve(model, other):
        begun.set()
        on.wait()
        del model, other
        dropped.set()
        end.wait()

    def start(batch):
        other = Model()
        held.append(weakref.ref(other))
        arguments = [batch[0].model, other]
        thread = threading.Thread(target=lambda: serve(arguments.pop(0), arguments.pop()))
        thread.start()
        return thread

    batch = [doomed()]
    thread = start(batch)
    begun.wait()
    try:
        assert alive(world, batch)
        on.set()
        dropped.wait()
        gc.collect()
        assert held[0]() is None
    finally:
        on.set()
        end.set()
        thread.join()


def test_the_variables_of_a_function_are_what_they_were_after_a_look(world):
    kept, beside = Model(), {"a": 1}
    mine = locals()
    assert alive(world, [doomed(model=kept)])
    assert mine["beside"] is beside
    assert kept is not None


def test_an_attribute_a_global_a_container_and_a_closure_are_named(world):
    global LEFT  # noqa: PLW0603
    batch = [doomed()]
    service = Service(batch[0].model)
    told = alive(world, batch)
    assert any(each == f"attribute 'encoder' of a {__name__}.Service" for each in told), told
    batch[0].model = service.encoder
    del service
    LEFT = batch[0].model
    told = alive(world, batch)
    assert f"global 'LEFT' of module {__name__}" in told
    batch[0].model, LEFT = LEFT, None
    kept: Any = {"encoders": [batch[0].model]}
    assert "a list of 1" in alive(world, batch)
    batch[0].model = kept.pop("encoders").pop()
    kept = closing_over(batch[0].model)
    assert "a variable that a function closes over" in alive(world, batch)


def test_a_suspended_coroutine_is_named(world):
    async def answer(model):
        await SimpleNamespace(__await__=None)

    batch = [doomed()]
    suspended = answer(batch[0].model)
    told = alive(world, batch)
    suspended.close()
    assert any(each.startswith("suspended ") and "answer" in each for each in told), told


def test_what_cannot_be_found_out_is_not_raised(world, monkeypatch):
    def broken(ref):
        raise RuntimeError("no")

    monkeypatch.setattr("memweir.models.release.describe_referrers", broken)
    kept = Model()
    assert alive(world, [doomed(model=kept)]) == ("not to be found out: RuntimeError: no",)


class Hostile(list):
    """A container that cannot be looked into."""

    __slots__ = ()

    def __iter__(self):
        raise RuntimeError("no")


def test_a_container_that_cannot_be_looked_into_is_not_provable(world):
    seen = []
    finalizer = lambda model: seen.append(type(model))  # noqa: E731
    (each,) = world.release()([Doomed("a", Hostile([1]), finalizer)]).released
    assert each.verdict == "not provable"
    assert seen == [Hostile]


# What is told.


def test_one_line_at_info_says_what_was_released(world, caplog):
    caplog.set_level(logging.DEBUG, "memweir")
    world.release()([doomed("siglip", promised=Sizes(5 * MIB), reason="idle"), doomed("ocr")])
    (line,) = caplog.records
    assert (line.name, line.levelname) == ("memweir.models", "INFO")
    assert "siglip (idle, 5.0 MiB)" in line.getMessage()
    assert "ocr" in line.getMessage()


def test_what_stays_alive_is_a_warning_that_names_who_holds_it(world, caplog):
    kept = Model()
    world.release()([doomed("siglip", kept)])
    (line,) = caplog.records
    assert line.levelname == "WARNING"
    assert "still alive: siglip, held by 'kept' in " in line.getMessage()


def test_logging_that_fails_fails_nothing(world, monkeypatch):
    class Broken(logging.Handler):
        def handle(self, record):
            raise RuntimeError

    handler = Broken()
    logger = logging.getLogger("memweir.models")
    logger.addHandler(handler)
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    try:
        assert world.release()([doomed()])
    finally:
        logger.removeHandler(handler)


def test_a_report_is_plain_data(world):
    kept = Model()
    report = world.release()([doomed("a", kept, promised=Sizes(1, 2, 3), rung=Rung.HOST)])
    told = json.loads(json.dumps(report.as_dict()))
    assert told["released"][0]["key"] == "a"
    assert told["released"][0]["rung"] == "host"
    assert told["released"][0]["promised"] == {"host": 1, "device": 2, "file": 3}
    assert told["steps"][0]["returned"] == {"anon": 0, "file": 0, "device": None}
    assert told["returned"]["anon"] == 0
    assert str(report) == str(report).splitlines()[0]
