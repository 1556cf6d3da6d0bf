"""A model for one use: loaded, used, let go, whatever happens in between."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any, ClassVar

import numpy as np
import pytest

import memweir as mw
from memweir.errors import LoadFailed, Released
from memweir.models.release import Release


class Model:
    made: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.weight = np.zeros(1000, np.uint8)
        Model.made.add(self)


@pytest.fixture
def passes():
    done: list[str] = []
    release = Release(
        collect=lambda: (done.append("gc"), gc.collect()),
        caches=lambda: done.append("caches"),
        trim=lambda: done.append("trim"),
    )
    return release, done


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    gc.collect()
    assert not Model.made


def test_a_use_returns_what_it_returns_and_leaves_nothing(passes):
    release, done = passes
    seen = []
    loan = mw.loaded(Model, release=lambda model: seen.append("release"), let_go=release)
    assert loan.report is None
    assert loan.run(lambda model, a, *, b: (len(model.weight), a, b), 1, b=2) == (1000, 1, 2)
    assert loan.report.released[0].verdict == "dead"
    assert loan.report.promised.host == 1000
    assert seen == ["release"]
    assert done == ["gc", "caches", "trim"]


def test_making_one_loads_nothing():
    mw.loaded(lambda: pytest.fail("loaded"))


def test_a_with_block_that_deletes_its_variable_leaves_nothing():
    loan = mw.loaded(Model)
    with loan as model:
        assert len(model.weight) == 1000
        del model
    assert loan.report.released[0].verdict == "dead"


def test_a_variable_that_outlives_the_block_is_named():
    loan = mw.loaded(Model)
    with loan as model:
        pass
    (each,) = loan.report.released
    assert each.verdict == "alive"
    assert any(told.startswith("'model' in test_a_variable") for told in each.referrers)
    del model


def fails(model):
    beside = [model]
    beside[0].weight[5000]


def misspells(model):
    return model.wieght


@pytest.mark.parametrize(("use", "error"), [(fails, IndexError), (misspells, AttributeError)])
def test_a_use_that_raises_leaves_nothing_though_its_error_is_kept(use, error):
    loan = mw.loaded(Model)
    with pytest.raises(error) as caught:
        loan.run(use)
    assert loan.report.released[0].verdict == "dead"
    assert caught.value.__traceback__ is not None


def test_an_interrupted_use_is_let_go(passes):
    release, done = passes

    def use(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mw.loaded(Model, let_go=release).run(use)
    assert done == ["gc", "caches", "trim"]


def half_made():
    half = Model()
    raise OSError(f"{len(half.weight)}")


@pytest.mark.parametrize(
    ("load", "error"),
    [(half_made, OSError), (lambda: None, LoadFailed), (lambda: 1 / 0, ZeroDivisionError)],
)
def test_a_load_that_fails_leaves_nothing_though_its_error_is_kept(passes, load, error):
    release, done = passes
    loan = mw.loaded(load, let_go=release)
    with pytest.raises(error) as caught:
        loan.run(lambda model: None)
    gc.collect()
    assert not Model.made
    assert done == ["gc", "caches", "trim"]
    assert not loan.report
    assert caught.value is not None


def test_a_model_that_is_managed_is_not_lent_twice():
    shared = Model()
    with mw.loaded(lambda: shared), pytest.raises(LoadFailed, match="managed already"):
        mw.loaded(lambda: shared).run(lambda model: None)
    mw.loaded(lambda: shared).run(lambda model: None)


def test_a_release_that_raises_is_in_the_report():
    def release(model):
        raise ValueError("no")

    loan = mw.loaded(Model, release=release, name="ocr")
    loan.run(lambda model: None)
    assert loan.report.errors == ("ocr: ValueError: no",)


def test_it_is_for_one_use():
    loan = mw.loaded(Model)
    loan.run(lambda model: None)
    report = loan.report
    with pytest.raises(Released, match="one use"):
        loan.run(lambda model: None)
    loan.__exit__(None, None, None)
    assert loan.report is report


def test_a_task_that_is_cancelled_leaves_the_use_to_its_thread_which_lets_go():
    begun, end, gone = (threading.Event() for _ in range(3))

    def use(model):
        begun.set()
        end.wait(60)

    async def main():
        task = asyncio.create_task(mw.loaded(Model, release=lambda model: gone.set()).arun(use))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not gone.is_set()
        end.set()
        assert await mw.loaded(Model).arun(lambda model: len(model.weight)) == 1000

    asyncio.run(main())
    assert gone.is_set()


async def asynchronous():
    return Model()


@pytest.mark.parametrize("load", [None, 5, asynchronous])
def test_a_load_that_cannot_be_called_is_refused_at_once(load):
    with pytest.raises(TypeError, match="load is called"):
        mw.loaded(load)
    with pytest.raises(ValueError, match="its own release"):
        mw.loaded(Model, adapter=mw.models.adapters.opaque.Opaque(), release=print)
