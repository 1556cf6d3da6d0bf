"""Stripping: what is replaced, what is copied, what stays, and that the input does not change."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_processing_utils import BatchFeature
from transformers.modeling_outputs import BaseModelOutput

import memweir as mw

BIG = 40_000


@pytest.fixture
def cache() -> mw.PixelCache:
    return mw.PixelCache("32 MiB")


def big(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(BIG // 8)


class Grid(NamedTuple):
    pixels: Any
    size: int


@dataclass(frozen=True, slots=True)
class Frozen:
    pixels: Any
    name: str = "frozen"


@dataclass
class Mutable:
    pixels: Any
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.calls.append("made")


@dataclass(slots=True)
class Unset:
    pixels: Any
    later: Any = field(init=False)


class Items:
    """Like renderers' MultiModalData, but no dataclass."""

    def __init__(self, mm_items: dict[str, list[dict[str, Any]]]) -> None:
        self.mm_items = mm_items
        self.mm_hashes = {"image": ["abc"]}


class SlottedItems:
    __slots__ = ("mm_items",)

    def __init__(self, mm_items: Any) -> None:
        self.mm_items = mm_items


class Tagged(list[Any]):
    tag = ""


class Pair(tuple[Any, ...]):
    def __new__(cls, left: Any, right: Any) -> Pair:
        pair = super().__new__(cls, (left, right))
        pair.tag = "pair"
        return pair

    tag: str


class Wrapper(MutableMapping[str, Any]):
    """Shares its storage with its shallow copies: filling a copy would change the original."""

    def __init__(self, inner: dict[str, Any]) -> None:
        self.inner = inner

    def __getitem__(self, key: str) -> Any:
        return self.inner[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.inner[key] = value

    def __delitem__(self, key: str) -> None:
        del self.inner[key]

    def __iter__(self) -> Any:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


def counted(value: Any) -> defaultdict[str, Any]:
    made = defaultdict[str, Any](list)
    made["pixels"] = value
    return made


def tagged(value: Any) -> Tagged:
    made = Tagged([1, value])
    made.tag = "tag"
    return made


@pytest.mark.parametrize(
    ("wrap", "take"),
    [
        (lambda a: a, lambda d: d),
        (lambda a: {"x": a, 5: [1]}, lambda d: d["x"]),
        (lambda a: [0, [a]], lambda d: d[1][0]),
        (lambda a: (a, "y"), lambda d: d[0]),
        (lambda a: OrderedDict(b=1, a=a), lambda d: d["a"]),
        (counted, lambda d: d["pixels"]),
        (lambda a: UserDict(x=a), lambda d: d["x"]),
        (lambda a: BatchFeature({"x": a, "n": 3}), lambda d: d["x"]),
        (lambda a: BaseModelOutput(last_hidden_state=a), lambda d: d.last_hidden_state),
        (lambda a: MappingProxyType({"x": a}), lambda d: d["x"]),
        (lambda a: Grid(a, 3), lambda d: d.pixels),
        (Frozen, lambda d: d.pixels),
        (Mutable, lambda d: d.pixels),
        (Unset, lambda d: d.pixels),
        (lambda a: Items({"image": [{"x": a}]}), lambda d: d.mm_items["image"][0]["x"]),
        (lambda a: SlottedItems({"image": (a,)}), lambda d: d.mm_items["image"][0]),
        (tagged, lambda d: d[1]),
        (lambda a: Pair(a, 1), lambda d: d[0]),
    ],
    ids=range(18),
)
def test_every_container_comes_back_as_its_own_type(
    cache: mw.PixelCache, wrap: Any, take: Any
) -> None:
    array = big()
    data = wrap(array)
    s = mw.strip(data, cache)
    assert type(s.data) is type(data) or s.refs == (s.data,)
    assert take(data) is array
    assert isinstance(take(s.data), mw.PixelRef)
    assert (s.refs, s.bytes_removed, s.left) == ((take(s.data),), array.nbytes, ())
    back = mw.materialize(s.data)
    assert type(back) is type(data)
    assert take(back).tobytes() == array.tobytes()
    for name in ("tag", "name", "calls", "mm_hashes", "default_factory"):
        assert getattr(back, name, None) == getattr(data, name, None)


def test_struct_sequences_of_tensors(cache: mw.PixelCache) -> None:
    data = torch.max(torch.randn(6000, 2), dim=1)
    s = mw.strip(data, cache)
    assert len(s.refs) == 2
    back = mw.materialize(s.data)
    assert type(back) is type(data)
    assert torch.equal(back.values, data.values)


def test_what_holds_no_array_is_shared(cache: mw.PixelCache) -> None:
    messages = [{"role": "user"}, ("a", {"b": 1})]
    data = {"messages": messages, "x": [big(), messages]}
    s = mw.strip(data, cache)
    assert s.data["messages"] is messages
    assert s.data["x"][1] is messages
    assert s.data is not data
    assert mw.strip(messages, cache).data is messages


def test_what_is_there_twice_stays_one(cache: mw.PixelCache) -> None:
    array, small = big(), np.arange(3)
    item = {"pixel_values": array, "grid": small}
    data = {"a": [item, item], "b": (array, small), "c": item}
    s = mw.strip(data, cache)
    assert s.data["a"][0] is s.data["a"][1]
    assert s.data["a"][0] is s.data["c"]
    assert s.data["b"][0] is s.data["c"]["pixel_values"]
    assert s.data["b"][1] is s.data["c"]["grid"]
    assert (len(s.refs), s.bytes_removed) == (1, array.nbytes)
    back = mw.materialize(s.data)
    assert back["b"][0] is back["c"]["pixel_values"]


def test_a_wide_graph_is_walked_once(cache: mw.PixelCache) -> None:
    data: Any = [big()]
    for _ in range(200):
        data = [data, data]
    s = mw.strip(data, cache)
    assert len(s.refs) == 1


def test_cycles_are_an_error_that_says_where(cache: mw.PixelCache) -> None:
    data: dict[str, Any] = {"steps": [{}, big()]}
    data["steps"][0]["parent"] = data
    with pytest.raises(ValueError, match=r"data\['steps'\]\[0\]\['parent'\] is one of its own"):
        mw.strip(data, cache)


def test_small_arrays_let_go_of_big_buffers(cache: mw.PixelCache) -> None:
    buffer = np.zeros(BIG, np.int64)
    tensor = torch.zeros(BIG)
    gone = weakref.ref(buffer)
    storage = tensor.untyped_storage().data_ptr()
    s = mw.strip(
        {"grid": buffer[3:6], "fortran": np.ones((2, 3), order="F"), "t": tensor[:3]}, cache
    )
    del buffer
    gc.collect()
    assert gone() is None
    assert s.data["grid"].base is None
    assert s.data["fortran"].flags.f_contiguous
    assert s.data["t"].untyped_storage().data_ptr() != storage
    assert s.data["t"].untyped_storage().nbytes() == 12
    assert (s.refs, s.left) == ((), ())


def test_threshold(cache: mw.PixelCache) -> None:
    data = [np.zeros(1023, np.uint8), np.zeros(1024, np.uint8)]
    for threshold in (1024, "1 KiB"):
        s = mw.strip(data, cache, threshold=threshold)
        assert [isinstance(x, mw.PixelRef) for x in s.data] == [False, True]
    with pytest.raises(ValueError, match="size"):
        mw.strip(data, cache, threshold="lots")


def test_keys_choose_by_the_nearest_name(cache: mw.PixelCache) -> None:
    array, other = big(1), big(2)
    data = {"pixel_values": [array, (other,)], "labels": array, "deep": Frozen({"labels": [other]})}
    s = mw.strip(data, cache, keys=["pixel_values"])
    assert [ref.digest for ref in s.refs] == [mw.hash_array(array), mw.hash_array(other)]
    assert s.data["labels"] is array
    assert s.data["deep"] is data["deep"]
    assert s.left == ()
    assert mw.strip(data, cache, keys="pixel_values").refs == s.refs
    assert mw.strip(data, cache, keys=()).refs == ()
    assert len(mw.strip(Frozen(array), cache, keys={"pixels"}).refs) == 1


def test_shared_containers_are_chosen_for_each_name(cache: mw.PixelCache) -> None:
    shared = [big()]
    for order in (("labels", "pixel_values"), ("pixel_values", "labels")):
        s = mw.strip(dict.fromkeys(order, shared), cache, keys="pixel_values")
        assert s.data["labels"] is shared
        assert isinstance(s.data["pixel_values"][0], mw.PixelRef)


class Loud(np.ndarray[Any, Any]):
    pass


def test_unknown_things_stay_and_are_listed(cache: mw.PixelCache, tmp_path: Any) -> None:
    weight = torch.nn.Parameter(torch.zeros(BIG))
    grad = torch.zeros(BIG, requires_grad=True)
    stays = {
        "masked": np.ma.masked_array(big(), mask=False),
        "memmap": np.memmap(tmp_path / "m", np.uint8, "w+", shape=(BIG,)),
        "matrix": big().reshape(50, -1).view(np.matrix),
        "subclass": big().view(Loud),
        "objects": np.array([big(), None], dtype=object),
        "meta": torch.zeros(BIG, device="meta"),
        "sparse": torch.eye(99).to_sparse(),
        "parameter": weight,
        "grad": grad,
        "deque": deque([big()]),
        "set": {torch.zeros(BIG)},
        "wrapper": Wrapper({"x": big()}),
        "image": Image.new("RGB", (64, 64)),
        "namespace": SimpleNamespace(x=big()),
        "blob": bytearray(BIG),
        "mock": Mock(),
        "magic": MagicMock(),
    }
    s = mw.strip(stays, cache)
    assert s.data is stays
    assert s.refs == ()
    left = {entry.path: entry for entry in s.left}
    assert list(left) == [f"data[{name!r}]" for name in stays]
    assert left["data['memmap']"].nbytes == BIG
    assert left["data['meta']"] == ("data['meta']", "torch.Tensor", 4 * BIG, "on meta")
    assert left["data['grad']"].why == "requires a gradient"
    assert left["data['parameter']"].type == "torch.nn.parameter.Parameter"
    assert left["data['image']"].type == "PIL.Image.Image"
    assert left["data['namespace']"].nbytes is None


def test_plain_things_are_not_listed(cache: mw.PixelCache, tmp_path: Any) -> None:
    from datetime import UTC, datetime
    from decimal import Decimal

    data = [None, True, 1, 2.5, 1j, "s", b"b", tmp_path, datetime.now(UTC), Decimal(1)]
    data += [np.float32(3), np.dtype("f4"), {"a", "b"}, frozenset({1}), range(3), int, slice(1)]
    data += [mw.hash_bytes(b""), mw.strip(big(), cache).data]
    assert mw.strip(data, cache).left == ()


def test_left_paths_show_no_secret_keys(cache: mw.PixelCache) -> None:
    data = {"https://host/?sig=hunter2": [deque()], ("hunter2",): deque(), b"hunter2": deque()}
    s = mw.strip(data, cache)
    assert [entry.path for entry in s.left] == ["data[<str>][0]", "data[<tuple>]", "data[<bytes>]"]
    assert "hunter2" not in repr(s)


def test_references_stay_and_are_counted_once(cache: mw.PixelCache) -> None:
    first = mw.strip({"a": big(1)}, cache)
    s = mw.strip({"old": [first.data["a"], first.data["a"]], "new": big(2)}, cache)
    assert s.data["old"][0] is first.data["a"]
    assert s.refs == (first.data["a"], s.data["new"])
    assert s.bytes_removed == BIG


def test_what_does_not_fit_stays_in_place_and_is_listed() -> None:
    cache = mw.PixelCache("1 MiB", compact="off")
    arrays = [np.full(400_000, n, np.uint8) for n in range(4)]
    s = mw.strip(arrays, cache)
    kept = [entry.path for entry in s.left]
    assert 1 <= len(kept) < 4
    assert all(entry.why == "does not fit into the cache" for entry in s.left)
    assert len(s.refs) + len(kept) == 4
    assert s.bytes_removed == 400_000 * len(s.refs)
    for array, item in zip(arrays, s.data, strict=True):
        assert item is array or isinstance(item, mw.PixelRef)
    back = mw.materialize(s.data)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(arrays, back, strict=True))


def test_a_budget_of_zero_strips_nothing() -> None:
    array = big()
    s = mw.strip([array], mw.PixelCache(0))
    assert s.data[0] is array
    assert (len(s.refs), len(s.left)) == (0, 1)


def test_a_full_cache_still_finds_what_it_holds() -> None:
    cache = mw.PixelCache("1 MiB")
    first = mw.strip(np.zeros(700_000, np.uint8), cache)
    again = mw.strip(np.zeros(700_000, np.uint8), cache)
    assert again.data == first.data
    assert again.left == ()
    del first
    cache.clear()
    assert np.asarray(again.data).tobytes() == bytes(700_000)


def test_a_digest_may_be_the_key_of_something_else(cache: mw.PixelCache) -> None:
    array = big()
    for other in ({"result": big(1)}, big(1)):
        cache.put(mw.hash_array(array), other)
        s = mw.strip([array], cache)
        assert len(s.refs) == 1
        assert mw.materialize(s.data)[0].tobytes() == array.tobytes()


def test_references_pin_what_has_no_recipe() -> None:
    cache = mw.PixelCache("1 MiB")
    array = np.arange(100_000, dtype=np.uint32)
    ref = mw.strip(array, cache).data
    for seed in range(20):
        cache.put(f"other {seed}", np.full(300_000, seed, np.uint8))
    cache.clear()
    assert cache.stats().pinned_bytes >= array.nbytes
    assert np.asarray(ref).tobytes() == array.tobytes()
    del ref
    gc.collect()
    assert cache.stats().pinned_bytes == 0


def test_the_reference_holds_the_bytes_of_the_moment(cache: mw.PixelCache) -> None:
    array = big()
    before = array.tobytes()
    s = mw.strip({"x": array}, cache)
    array[:] = 0
    assert np.asarray(s.data["x"]).tobytes() == before
    assert mw.strip({"x": array}, cache).data["x"] != s.data["x"]


def test_threads_strip_and_restore_the_same_object(cache: mw.PixelCache) -> None:
    data = {"items": [{"pixel_values": big(n), "grid": np.arange(3)} for n in range(6)]}
    want = [item["pixel_values"].tobytes() for item in data["items"]]
    wrong: list[str] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(10):
            back = mw.materialize(mw.strip(data, cache).data)
            if [item["pixel_values"].tobytes() for item in back["items"]] != want:
                wrong.append("other bytes")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_hashing_and_copying_leave_the_gil_alone(cache: mw.PixelCache) -> None:
    big_one = np.zeros(24 << 20, np.uint8)
    stop, ticks = threading.Event(), 0

    def tick() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0)

    thread = threading.Thread(target=tick)
    thread.start()
    before = ticks
    mw.strip(big_one, cache)
    during = ticks - before
    stop.set()
    thread.join()
    assert during > 0


@pytest.mark.parametrize("sources", ["", "some", None, 1])
def test_unknown_source_policies_are_refused(cache: mw.PixelCache, sources: Any) -> None:
    with pytest.raises(ValueError, match="sources is"):
        mw.strip([], cache, sources=sources)


def test_an_array_whose_sample_misleads_is_stripped(cache: mw.PixelCache) -> None:
    """It looks as if it had a compact form, and turns out to have none while it is written."""
    import torch

    tensor = torch.arange(32768).reshape(2, -1).to(torch.bfloat16)
    stripped = mw.strip({"x": tensor}, cache, threshold=0)
    assert isinstance(stripped.data["x"], mw.PixelRef)
    assert stripped.data["x"].digest == mw.hash_array(tensor)
    assert torch.equal(mw.materialize(stripped.data)["x"], tensor)
