"""The adapter of anything: what it takes in, what it refuses, and how it lets go."""

from __future__ import annotations

import gc
import os
import weakref

import numpy as np
import pytest

from memweir.errors import LoadFailed, UnsupportedType
from memweir.models.adapters.opaque import Opaque
from memweir.models.adapters.protocol import Adapter, Sizes
from memweir.models.ladder import Rung


class Model:
    def __init__(self, size: int = 1000) -> None:
        self.weight = np.zeros(size, np.uint8)


def adopted(model: object, device: str | None = None) -> Opaque:
    adapter = Opaque()
    adapter.adopt(model, device)
    return adapter


def test_it_is_an_adapter():
    adapter: Adapter = Opaque()
    assert adapter.name == "opaque"
    with pytest.raises(UnsupportedType, match="stays where"):
        adapter.move(Model(), Rung.HOST, None)


def test_none_is_no_model():
    with pytest.raises(LoadFailed, match="returned None"):
        Opaque().adopt(None, None)


def test_a_coroutine_is_no_model_and_is_not_left_waiting():
    async def load():
        return Model()

    with pytest.raises(UnsupportedType, match="asynchronous"):
        Opaque().adopt(load(), None)


def test_weights_without_data_are_refused_by_name():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].bias = torch.nn.Parameter(torch.zeros(2, device="meta"))
    with pytest.raises(LoadFailed, match=r"meta device.*: 0\.bias$"):
        Opaque().adopt(model, None)


def test_what_can_be_counted_is_and_what_cannot_is_not_guessed():
    assert Opaque().nbytes(Model(1000)) == Sizes(host=1000)
    assert Opaque().nbytes(object()) is None
    assert Opaque().nbytes({"tokenizer": "text"}) is None


@pytest.mark.parametrize(
    ("device", "rung"),
    [
        (None, Rung.HOST),
        ("cpu", Rung.HOST),
        ("cpu:0", Rung.HOST),
        ("cuda:1", Rung.DEVICE),
        ("mps", Rung.DEVICE),
    ],
)
def test_its_one_rung_is_where_it_was_loaded(device, rung):
    assert adopted(Model(), device).rungs == (rung,)


def test_an_object_that_is_managed_is_refused_until_it_was_let_go():
    model, first, second = Model(), Opaque(), Opaque()
    first.adopt(model, None)
    with pytest.raises(LoadFailed, match="managed already"):
        second.adopt(model, None)
    first.dispose(model)
    second.adopt(model, None)
    with pytest.raises(LoadFailed, match="managed already"):
        first.adopt(model, None)


def test_what_was_refused_may_come_again():
    adapter = Opaque()
    with pytest.raises(LoadFailed):
        adapter.adopt(None, None)
    model = Model()
    adapter.adopt(model, None)
    adapter.adopt(model, None)  # its own
    adapter.adopt(Model(), None)
    Opaque().adopt(model, None)


def test_an_adapter_that_is_gone_manages_nothing():
    model = Model()
    adapter = adopted(model)
    gone = weakref.ref(adapter)
    del adapter
    gc.collect()
    assert gone() is None
    adopted(model)


def test_a_value_that_many_return_is_nobodys():
    one, other = Opaque(), Opaque()
    one.adopt("text", None)
    other.adopt("text", None)
    one.dispose("text")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_manages_nothing():
    model, adapter = Model(), Opaque()
    adapter.adopt(model, None)
    if (pid := os.fork()) == 0:
        try:
            Opaque().adopt(model, None)
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_release_gets_the_model_and_the_adapter_keeps_none():
    seen: list[int] = []
    adapter = Opaque(release=lambda model: seen.append(model.weight.nbytes))
    model = Model()
    gone = weakref.ref(model)
    adapter.adopt(model, None)
    adapter.dispose(model)
    assert seen == [1000]
    del model
    assert gone() is None


async def asynchronous(model):
    pass


@pytest.mark.parametrize("release", [3, "text", asynchronous])
def test_a_release_that_cannot_be_called_is_refused_at_once(release):
    with pytest.raises(TypeError, match="release"):
        Opaque(release=release)
