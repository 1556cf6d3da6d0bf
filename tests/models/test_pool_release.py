"""Releases as users of a pool see them: one pass for a batch, proof, and errors that are told."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

import memweir as mw
from memweir.errors import LoadFailed


class Model:
    def __init__(self) -> None:
        self.weight = np.zeros(1000, np.uint8)
        self.itself = self  # as models have cycles


class Passes:
    """A pool whose passes are counted."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.pool = mw.ModelPool(collect=self.collect, trim=self.trim, idle=mw.Idle.never())

    def collect(self) -> None:
        self.done.append("gc")
        gc.collect()

    def trim(self) -> None:
        self.done.append("trim")

    def load(self, *keys: str, **options: Any) -> None:
        for key in keys:
            self.pool.add(key, Model, **options)
        self.pool.preload(*keys)


@pytest.fixture
def passes():
    passes = Passes()
    yield passes
    passes.pool.close()


def test_one_pass_for_many_keys_and_none_for_none(passes):
    passes.load("a", "b", "c")
    assert passes.pool.unload("a", "b", "c").keys == ("a", "b", "c")
    assert passes.done == ["gc", "trim"]
    assert not passes.pool.unload("a", "b", "c")
    assert not passes.pool.unload("unknown")
    assert not passes.pool.unload(prefix="")
    assert not passes.pool.close().unload
    assert passes.done == ["gc", "trim"]


def test_what_was_counted_at_the_load_is_what_is_promised(passes):
    passes.load("a", "b")
    report = passes.pool.unload(prefix="")
    assert report.promised == mw.Sizes(host=2000)
    assert [each.verdict for each in report.released] == ["dead", "dead"]


def test_who_keeps_a_model_past_its_lease_is_named(passes):
    passes.load("a")
    taken, end = threading.Event(), threading.Event()

    def careless():
        with passes.pool.lease("a") as model:
            pass
        taken.set()
        end.wait()
        assert model is not None

    thread = threading.Thread(target=careless, name="careless")
    thread.start()
    taken.wait()
    try:
        (each,) = passes.pool.unload("a").released
    finally:
        end.set()
        thread.join()
    assert each.verdict == "alive"
    assert any("'model' in" in told and "thread 'careless'" in told for told in each.referrers)
    # The pool is done with it, and the next lease makes another.
    with passes.pool.lease("a") as model:
        assert isinstance(model, Model)
        del model
    assert passes.pool.unload("a").released[0].verdict == "dead"


def test_a_finalizer_that_raises_is_in_the_report_and_the_model_is_gone(passes):
    def release(model):
        raise ValueError("no")

    passes.load("a", release=release)
    report = passes.pool.unload("a")
    assert report.errors == ("a: ValueError: no",)
    assert report.released[0].verdict == "dead"
    assert passes.pool.status().models["a"].state == "absent"
    assert passes.pool.status().ram.held == 0


def test_an_interrupted_release_is_whole_and_the_pool_goes_on(passes):
    stop = [KeyboardInterrupt]

    def release(model):
        if stop:
            raise stop.pop()

    passes.load("a", "b", release=release)
    with pytest.raises(KeyboardInterrupt):
        passes.pool.unload("a", "b")
    assert passes.done == ["gc", "trim"]
    assert {model.state for model in passes.pool.status().models.values()} == {"absent"}
    assert passes.pool.status().ram.held == 0
    passes.pool.preload("a", "b")
    assert passes.pool.unload("a", "b").keys == ("a", "b")


def meta() -> Any:
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        return torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("load", "why", "done"), [(lambda: None, "None", []), (meta, "meta device", ["gc", "trim"])]
)
def test_what_is_no_model_is_refused_and_nothing_is_left(passes, load, why, done):
    passes.pool.add("a", load)
    with pytest.raises(LoadFailed, match=why):
        passes.pool.preload("a")
    assert passes.done == done
    assert passes.pool.status().models["a"].state == "failed"
    assert passes.pool.status().ram.held == passes.pool.status().ram.reserved == 0


def test_an_object_that_a_pool_has_is_refused_by_every_pool(passes):
    shared, other = Model(), mw.ModelPool(collect=int, trim=int)
    passes.pool.add("a", lambda: shared)
    other.add("b", lambda: shared)
    passes.pool.preload("a")
    with pytest.raises(LoadFailed, match="managed already"):
        other.preload("b")
    with passes.pool.lease("a") as model:
        assert model is shared
    passes.pool.unload("a")
    other.add("c", lambda: shared)
    other.preload("c")
    assert other.close().unload.keys == ("c",)


def test_a_load_that_fails_leaves_nothing_though_its_error_is_kept(passes):
    made: list[weakref.ref[Model]] = []

    def half():
        model = Model()
        model.weight = np.ones(64 << 20, np.uint8)  # enough to be worth a pass
        made.append(weakref.ref(model))
        raise OSError("no")

    passes.pool.add("a", half)
    with pytest.raises(OSError, match="no") as caught:
        passes.pool.preload("a")
    assert made[0]() is None
    assert passes.done == ["gc", "trim"]
    assert caught.value is not None
