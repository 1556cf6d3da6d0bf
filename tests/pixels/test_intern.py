"""Equal sources become one object, wherever they are, and nothing else changes."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import sys
import threading
from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intern_kit import blob, sources, turn, uri

import memweir as mw
from memweir.pixels import unique

KINDS = ["openai", "hf", "base64", "audio", "blob"]


@pytest.fixture(params=["weak", "swept"])
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Texts interned by the interpreter, or as where its interned strings are immortal."""
    if request.param == "weak" and not unique.MORTAL:
        pytest.skip("interned strings are immortal here")
    monkeypatch.setattr(unique, "MORTAL", request.param == "weak")
    return str(request.param)


@dataclass
class Part:
    url: Any
    note: str = "note"
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.calls.append("made")


@dataclass(frozen=True, slots=True)
class Frozen:
    url: Any


class Pair(NamedTuple):
    left: Any
    right: Any


class Url(pydantic.BaseModel):
    url: str | bytes
    detail: str = "auto"


class Message(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    role: str
    parts: list[Url]
    _cached: str = pydantic.PrivateAttr(default="private")

    @pydantic.field_validator("parts")
    @classmethod
    def check(cls, parts: list[Url]) -> list[Url]:
        checked.append(1)
        return parts


checked: list[int] = []


@pytest.mark.parametrize("kind", KINDS)
def test_equal_sources_become_one_object(kind: str, table: str) -> None:
    messages = [turn(1, 2, kind=kind), turn(1, kind=kind), turn(2, 1, 3, kind=kind)]
    before = copy.deepcopy(messages)
    s = mw.intern_sources(messages)
    assert s.data == messages == before
    found = sources(s.data)
    assert len(found) == 6
    assert len({id(source) for source in found}) == 3
    assert (s.found, s.distinct) == (6, 3)
    assert s.nbytes == sum(map(len, set(found)))
    assert s.saved == len(found[0]) * 3
    assert (s.refs, s.inline) == ((), 0)


@pytest.mark.parametrize("kind", ["openai", "blob"])
def test_later_calls_find_the_object_of_earlier_ones(kind: str, table: str) -> None:
    first = mw.intern_sources([turn(1, kind=kind)])
    later = mw.intern_sources({"steps": (turn(1, kind=kind), turn(2, kind=kind))})
    assert sources(later.data)[0] is sources(first.data)[0]
    assert later.saved == len(sources(first.data)[0])
    again = mw.intern_sources(later.data)
    assert again.data is later.data
    assert (again.found, again.distinct, again.saved) == (2, 2, 0)


def containers(source: Any) -> dict[str, Any]:
    counted = defaultdict[str, Any](list)
    counted["x"] = source
    return {
        "dict": {"x": source},
        "list": [source],
        "tuple": (source, 1),
        "named tuple": Pair(source, None),
        "ordered": OrderedDict(x=source),
        "user dict": UserDict(x=source),
        "default dict": counted,
        "proxy": MappingProxyType({"x": source}),
        "dataclass": Part(source),
        "frozen": Frozen(source),
        "model": Message(role="user", parts=[Url(url=source)], extra=source),
        "keys": {1: source, None: 1, (2, "x"): source, b"k": 2, 1.5: 3},
    }


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", list(containers(b"")))
@pytest.mark.parametrize("make", [uri, blob])
def test_every_container_keeps_its_type_and_the_rest(name: str, make: Any, inplace: bool) -> None:
    one = make(1)
    kept = mw.intern_sources(one).data
    del checked[:]
    value = containers(make(1))[name]
    expected = containers(make(1))[name]
    runs = len(checked)
    inside = list(walk(value))
    data = mw.intern_sources(value, inplace=inplace).data
    assert type(data) is type(expected)
    if name == "proxy":
        assert dict(data) == dict(expected)
    else:
        assert data == expected
    assert all(source is kept for source in walk(data))
    still = inplace and name not in ("tuple", "named tuple", "proxy")
    assert (data is value) == still
    if not still:
        assert [id(source) for source in walk(value)] == [id(source) for source in inside]
    if isinstance(data, Part):
        assert data.calls == ["made"]
    if isinstance(data, Message):
        assert data.model_fields_set == expected.model_fields_set
        assert data.model_dump() == expected.model_dump()
        assert data._cached == "private"
        assert len(checked) == runs  # nothing was validated again
    if isinstance(data, defaultdict):
        assert data.default_factory is list


def walk(value: Any) -> Any:
    """Every source in what `containers` makes."""
    if isinstance(value, str | bytes):
        return [value] if len(value) > 4000 else []
    if isinstance(value, pydantic.BaseModel):
        value = {**value.__dict__, **(value.__pydantic_extra__ or {})}
    if isinstance(value, Part | Frozen):
        value = [value.url]
    if isinstance(value, dict | UserDict | MappingProxyType):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [source for item in value for source in walk(item)]
    return []


def test_in_place_everybody_who_holds_the_messages_gains() -> None:
    messages = [turn(1), turn(1)]
    inner = messages[1]["content"]
    s = mw.intern_sources(messages, inplace=True)
    assert s.data is messages
    assert messages[1]["content"] is inner
    assert inner[1]["image_url"]["url"] is messages[0]["content"][1]["image_url"]["url"]


def test_what_holds_no_duplicate_is_shared_with_the_input() -> None:
    mine = mw.intern_sources([turn(1)]).data
    messages = [mine[0], turn(1), {"role": "tool", "content": "text"}]
    data = mw.intern_sources(messages).data
    assert data[0] is messages[0]
    assert data[2] is messages[2]
    assert data[1] is not messages[1]
    assert data[1]["content"][0] is messages[1]["content"][0]


def test_what_is_no_source_is_left_alone() -> None:
    class Text(str):
        __slots__ = ()

    class Blob(bytes):
        pass

    prose = "It was a dark and stormy night. " * 400
    values = [
        *(prose, "ä" * 9000, "data:image/png;base64,AAAA", b"short", Text(uri(1))),
        *(Blob(blob(1)), bytearray(blob(1)), memoryview(blob(1)), np.zeros(9000), {uri(1)}),
    ]
    messages = [[value, copy.copy(value)] for value in values if type(value) is not memoryview]
    s = mw.intern_sources(messages)
    assert s.data is messages
    assert (s.found, s.saved) == (0, 0)


def test_keys_stay_as_they_are() -> None:
    key, other = uri(1), uri(1)
    data = mw.intern_sources([{key: 1}, {other: uri(1)}, other]).data
    assert next(iter(data[0])) is key
    assert next(iter(data[1])) is other
    assert data[1][other] is data[2]


@pytest.mark.parametrize(
    ("threshold", "found"), [(0, 2), (1, 2), (4, 2), (5, 0), ("4 B", 2), ("4 KiB", 0)]
)
def test_the_threshold_is_in_bytes(threshold: Any, found: int) -> None:
    assert mw.intern_sources(["", "AAAA", b"BBBB"], threshold=threshold).found == found


@pytest.mark.parametrize("threshold", [-1, "many", 1.5])
def test_bad_thresholds(threshold: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        mw.intern_sources([], threshold=threshold)


def test_the_report_shows_no_source() -> None:
    text = repr(mw.intern_sources([turn(1), turn(1)]))
    assert "base64" not in text
    assert "2 found, 1 distinct of 8.8 KiB, 8.8 KiB saved" in text


def test_depth_does_not_matter() -> None:
    deep: Any = uri(1)
    for n in range(100_000):
        deep = [deep] if n % 2 else {"x": deep}
    for inplace in (False, True):
        data = mw.intern_sources([uri(1), deep], inplace=inplace).data
        first, inner = data
        while not isinstance(inner, str):
            inner = inner[0] if isinstance(inner, list) else inner["x"]
        assert inner is first


def test_cycles_are_followed_in_place_and_refused_elsewhere() -> None:
    message = turn(1)
    message["self"] = message
    both = [message, turn(1)]
    message["all"] = both
    before = message["content"][1]["image_url"]["url"]
    with pytest.raises(ValueError, match=r"one of its own parents: a cycle"):
        mw.intern_sources(both)
    assert message["content"][1]["image_url"]["url"] is before
    s = mw.intern_sources(both, inplace=True)
    assert s.data is both
    assert s.found == 2
    assert message["content"][1]["image_url"]["url"] is both[1]["content"][1]["image_url"]["url"]
    knot: list[Any] = [uri(1)]
    knot.append((knot, uri(1)))
    mw.intern_sources(knot, inplace=True)
    assert knot[1][1] is knot[0]
    pair: list[Any] = []
    whole = (pair, uri(1))
    pair.append(whole)
    with pytest.raises(ValueError, match="a cycle"):
        mw.intern_sources(whole, inplace=True)


leaves = st.one_of(
    st.integers(0, 3).map(uri),
    st.integers(0, 3).map(blob),
    st.integers(0, 3).map(lambda n: uri(n)[22:]),
    st.none() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
)
nested = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4),
        st.tuples(inner, inner),
        st.builds(Pair, inner, inner),
        st.builds(Frozen, inner),
        st.builds(Part, inner),
        inner.map(lambda value: [value, {"again": value}]),
    ),
    max_leaves=15,
)


@settings(max_examples=200, deadline=None)
@given(nested, st.booleans(), st.booleans())
def test_the_result_equals_the_input_with_one_object_to_a_content(
    data: Any, inplace: bool, mortal: bool
) -> None:
    before = pickle.loads(pickle.dumps(data))
    was, unique.MORTAL = unique.MORTAL, mortal and unique.MORTAL  # type: ignore[misc]
    try:
        s = mw.intern_sources(data, inplace=inplace)
    finally:
        unique.MORTAL = was  # type: ignore[misc]
    same(s.data, before)
    if not inplace:
        same(data, before)
    found = walk(s.data)
    assert len({id(source) for source in found}) == len({(type(x), x) for x in found})
    assert s.distinct == len({(type(x), x) for x in found})
    assert s.nbytes == sum(len(x) for _, x in {(type(x), x) for x in found})


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one == other


def test_swept_tables_let_go_of_what_nobody_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unique, "MORTAL", False)
    gc.collect()
    unique.sweep()
    before = [len(table) for table in unique._tables.values()]

    def listed() -> list[int]:
        return [len(t) - n for t, n in zip(unique._tables.values(), before, strict=True)]

    data: Any = mw.intern_sources([uri(1), uri(2), blob(1)]).data
    held = data[0]
    assert listed() == [2, 1]
    del data
    mw.intern_sources([])
    assert listed() == [1, 0]
    assert mw.intern_sources(uri(1)).data is held
    del held
    gc.collect(0)
    assert listed() == [1, 0]  # that would be paid for with every few hundred objects
    gc.collect()
    assert listed() == [0, 0]


def test_a_collection_in_the_middle_of_a_call_takes_nothing_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unique, "MORTAL", False)
    once = unique.one

    def collecting(value: Any) -> Any:
        found = once(value)
        gc.collect()
        return found

    monkeypatch.setattr("memweir.pixels.intern.one", collecting)
    data = mw.intern_sources([turn(1, 2, kind="blob"), turn(2, 1), turn(1, 2, kind="blob")]).data
    assert len({id(source) for source in sources(data)}) == 4


@pytest.mark.parametrize("inplace", [False, True])
def test_threads_over_one_list_of_messages(inplace: bool, table: str) -> None:
    messages = [turn(n % 7, n % 5, kind=("openai", "blob")[n % 2]) for n in range(60)]
    before = copy.deepcopy(messages)
    held = mw.intern_sources([[uri(n), blob(n)] for n in range(7)]).data
    start, results, errors = threading.Barrier(8), [], []

    def work() -> None:
        start.wait(60)
        try:
            for _ in range(20):
                results.append(mw.intern_sources(messages, inplace=inplace).data)
        except Exception as error:
            errors.append(error)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert errors == []
    known = {id(source) for pair in held for source in pair}
    for data in results:
        assert data == before
        assert {id(source) for source in sources(data)} <= known
    assert messages == before


@pytest.mark.parametrize("kind", ["list", "dict", "dataclass", "model"])
def test_a_place_that_was_filled_anew_meanwhile_stays(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody changes the messages while they are interned in place."""
    kept = mw.intern_sources([uri(n) for n in range(3)]).data
    once = unique.one

    def disturbed(value: Any) -> Any:
        monkeypatch.undo()
        change()
        return once(value)

    monkeypatch.setattr("memweir.pixels.intern.one", disturbed)
    data: Any
    if kind == "list":
        data = [uri(0), uri(1), uri(2)]
        last = data[2]
        change = lambda: data.pop(0)  # noqa: E731
        assert mw.intern_sources(data, inplace=True).data is data
        assert data == [uri(1), uri(2)]
        assert data[1] is last  # not what was at its index when the walk began
    elif kind == "dict":
        data = {"a": uri(0), "b": uri(1)}
        change = lambda: data.update(a="new") or data.pop("b")  # noqa: E731
        mw.intern_sources(data, inplace=True)
        assert data == {"a": "new"}
    else:
        data = Part(uri(0)) if kind == "dataclass" else Url(url=uri(0))
        change = lambda: setattr(data, "url", "new")  # noqa: E731
        mw.intern_sources(data, inplace=True)
        assert data.url == "new"
    assert len(kept) == 3


def test_a_list_that_shrinks_in_another_thread_loses_nothing() -> None:
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            window = [uri(n % 10) for n in range(200)]
            expected, taken = list(window), []

            def shift(window: list[str] = window, taken: list[str] = taken) -> None:
                while len(window) > 3:
                    taken.append(window.pop(0))

            thread = threading.Thread(target=shift)
            thread.start()
            while thread.is_alive():
                mw.intern_sources(window, inplace=True)
            thread.join()
            assert taken + window == expected
    finally:
        sys.setswitchinterval(switch)


def test_parsed_json_is_interned_with_nothing_but_equality_in_common() -> None:
    text = json.dumps([turn(1), turn(2)])
    first, later = (mw.intern_sources(json.loads(text)).data for _ in range(2))
    assert [id(s) for s in sources(first)] == [id(s) for s in sources(later)]


@pytest.mark.parametrize("make", [lambda: "A" * 100_000_000, lambda: b"A" * 100_000_000])
def test_a_hundred_million_bytes(make: Any, table: str) -> None:
    kept = mw.intern_sources(make()).data
    assert mw.intern_sources([make()]).data[0] is kept
