"""Bytes of models, counted once wherever they lie, and by nobody's import."""

from __future__ import annotations

import functools
import logging
import mmap
import subprocess
import sys
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memweir.models.adapters import weights
from memweir.models.adapters.protocol import Sizes
from memweir.models.adapters.weights import find_weights


class Service:
    """A user's object that has a model."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)

    def encode(self) -> None:
        """What a loader may return, too."""


class Slotted:
    __slots__ = ("__weakref__", "empty", "weight")

    def __init__(self, weight: Any) -> None:
        self.weight = weight


@dataclass
class Record:
    weight: Any


def host(model: Any) -> int:
    found = find_weights(model)
    assert found.complete
    assert found.sizes.device == found.sizes.file == 0
    return found.sizes.host


ARRAY = np.ones(1000, np.float32)


@pytest.mark.parametrize(
    "model",
    [
        ARRAY,
        [ARRAY, ARRAY],
        (ARRAY[:10], ARRAY[10:], ARRAY[::2]),
        {"a": {"b": [ARRAY]}, "n": 5},
        OrderedDict(a=ARRAY),
        deque([ARRAY]),
        Service(model=ARRAY, name="text", log=logging.getLogger(), lock=threading.Lock()),
        Service(model=Service(model=ARRAY)),
        Service(model=ARRAY).encode,
        functools.partial(print, ARRAY, end=ARRAY),
        lambda: ARRAY.nbytes or ARRAY,
        Slotted(ARRAY),
        Record(ARRAY),
        SimpleNamespace(weight=ARRAY),
        bytearray(4000),
        b"x" * 4000,
        memoryview(bytearray(4000)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_the_bytes_of_an_array_count_once_wherever_it_is(model):
    if callable(model) and getattr(model, "__name__", "") == "<lambda>":
        closed = ARRAY
        model = lambda: closed  # noqa: E731  a closure is what is meant
    assert host(model) == 4000


def test_views_of_one_buffer_count_as_what_they_cover():
    whole = bytearray(4000)
    left, right = np.frombuffer(whole, np.uint8)[:3000], np.frombuffer(whole, np.uint8)[2000:]
    assert host([left, right]) == 4000


def test_a_circle_is_walked_once():
    model = Service(weight=ARRAY)
    model.itself = [model, {"again": model}]
    assert host(model) == 4000


def test_what_has_no_bytes_is_not_counted_as_none():
    assert find_weights(object()).count == 0
    assert find_weights(Service(name="a", size=5)).count == 0


def test_no_property_is_asked_and_no_class_is_walked():
    class Trap:
        shared = ARRAY

        @property
        def weight(self):
            raise AssertionError("asked")

        def __getattr__(self, name):
            raise AttributeError(name)

    assert find_weights(Trap()).count == 0


def test_what_is_too_large_to_walk_is_not_complete(monkeypatch):
    monkeypatch.setattr(weights, "MOST", 10)
    assert not find_weights([[number] for number in range(20)]).complete
    assert find_weights(list(range(1000))).complete


def test_pages_of_a_mapped_file_are_told_apart(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(8192))
    if sys.platform != "linux":
        pytest.skip("only Linux tells what is mapped")
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        array = np.frombuffer(mapped, np.uint8)
        assert find_weights([array, ARRAY]).sizes == Sizes(4000, 0, 8192)
        del array
    kept = np.memmap(path, np.uint8)
    assert find_weights(kept).sizes == Sizes(0, 0, 8192)
    assert find_weights(mmap.mmap(-1, 4096)).sizes.file == 0


def test_a_closed_map_has_no_bytes():
    mapped = mmap.mmap(-1, 4096)
    mapped.close()
    assert find_weights(mapped).sizes == Sizes()


# Tensors.


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def test_tied_weights_and_views_are_one_storage(torch):
    nn = torch.nn
    model = nn.Module()
    model.embedding = nn.Embedding(100, 16)
    model.head = nn.Linear(16, 100, bias=False)
    model.head.weight = model.embedding.weight
    model.first = model.embedding.weight.data[:1]
    assert host(model) == 100 * 16 * 4


def test_buffers_and_plain_attributes_count_as_parameters_do(torch):
    model = torch.nn.Linear(10, 10)
    model.register_buffer("cache", torch.zeros(25), persistent=False)
    model.rotary = [torch.zeros(50, dtype=torch.float16)]
    assert host(model) == (110 * 4) + 100 + 100


def test_a_slice_counts_as_the_storage_that_it_keeps(torch):
    assert host(torch.zeros(1000)[:1]) == 4000


def test_a_tensor_over_an_array_is_its_memory(torch):
    array = np.zeros(1000, np.float32)
    assert host([array, torch.from_numpy(array)]) == 4000


def test_gradients_count(torch):
    model = torch.nn.Linear(10, 10)
    model(torch.ones(1, 10)).sum().backward()
    assert host(model) == 2 * 110 * 4


@pytest.mark.filterwarnings("ignore")
def test_sparse_and_scripted_and_subclassed_tensors_are_looked_into(torch):
    eye = torch.eye(5)
    assert host(eye.to_sparse()) == 5 * 4 + 2 * 5 * 8
    assert host(eye.to_sparse_csr()) >= 5 * 4
    assert host(torch.jit.script(torch.nn.Linear(10, 10))) == 440
    model = torch.nn.Linear(4, 4)
    model.weight.quant_state = SimpleNamespace(absmax=torch.zeros(100))
    assert host(model) == 16 * 4 + 4 * 4 + 400


def test_a_tensor_that_is_made_of_tensors_is_its_parts(torch):
    class Pair(torch.Tensor):
        @staticmethod
        def __new__(cls, a, b):
            return torch.Tensor._make_wrapper_subclass(cls, a.shape, dtype=a.dtype)

        def __init__(self, a, b):
            self.a, self.b = a, b

        def __tensor_flatten__(self):
            return ["a", "b"], None

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise NotImplementedError

    assert host([Pair(torch.zeros(10), torch.zeros(10))]) == 80


def test_tensors_without_data_are_named_by_their_way(torch):
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    found = find_weights(Service(encoder=model))
    assert found.meta == ["encoder.0.weight", "encoder.0.bias"]
    assert find_weights(model[0].weight).meta == ["the model itself"]


CHILD = """
import sys
import numpy as np
import memweir as mw
from memweir.models.adapters.opaque import Opaque
from memweir.models.release import Doomed, Release

class Model:
    def __init__(self):
        self.weight = np.zeros(1 << 20)

assert not {"torch", "asyncio", "traceback", "logging"} & set(sys.modules), "memweir alone"
model, adapter, release = Model(), Opaque(release=lambda model: None), Release()
adapter.adopt(model, None)
assert adapter.nbytes(model).host == 8 << 20
doomed = Doomed("a", model, adapter.dispose)
del model
mw.trim()  # what a trim imports, a trim imported
before = set(sys.modules)
report = release([doomed])
assert report.released[0].verdict == "dead", report
new = {name.partition(".")[0] for name in set(sys.modules) - before} - {"memweir"}
assert not new, new
assert "torch" not in sys.modules
"""


def test_a_release_without_torch_imports_nothing_new():
    subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", CHILD], check=True, timeout=120
    )
