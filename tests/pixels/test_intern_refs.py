"""Sources moved into a cache: references that travel anywhere, and the verified way back."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from intern_kit import SIZE, blob, python, sources, turn, uri

import memweir as mw
from memweir.pixels.source_refs import PREFIX, key_of

KINDS = ["openai", "hf", "base64", "audio", "blob"]


@pytest.fixture
def store() -> mw.PixelCache:
    return mw.PixelCache("8 MiB")


def refer(source: Any, store: mw.PixelCache) -> mw.SourceRef:
    ref = mw.intern_sources(source, store=store).data
    assert isinstance(ref, mw.SourceRef)
    return ref


def references(data: Any) -> list[str]:
    if isinstance(data, dict | list | tuple):
        inner = data.values() if isinstance(data, dict) else data
        return [ref for value in inner for ref in references(value)]
    return [data] if isinstance(data, str) and data.startswith(PREFIX) else []


@pytest.mark.parametrize("kind", KINDS)
def test_sources_are_stored_once_and_come_back(kind: str, store: mw.PixelCache) -> None:
    messages = [turn(1, 2, kind=kind), turn(1, kind=kind), turn(2, 1, 3, kind=kind)]
    before = copy.deepcopy(messages)
    s = mw.intern_sources(messages, store=store)
    assert messages == before
    assert sources(s.data) == []
    assert len(references(s.data)) == 6
    assert len(set(references(s.data))) == len(s.refs) == len(store) == 3
    assert (s.found, s.distinct, s.inline) == (6, 3, 0)
    assert s.saved == sum(map(len, sources(messages)))
    assert s.nbytes == sum(ref.nbytes for ref in s.refs)
    back = mw.restore_sources(s.data)
    assert back == before
    assert len({id(source) for source in sources(back)}) == 3
    assert [type(x) for x in sources(back)] == [type(x) for x in sources(before)]


def test_an_object_in_two_places_is_counted_once(store: mw.PixelCache) -> None:
    source = uri(1)
    s = mw.intern_sources({"url": source, "image": source, "text": "look"}, store=store)
    assert (s.found, s.distinct, s.saved) == (1, 1, len(source))


@pytest.mark.parametrize("kind", ["openai", "blob"])
def test_references_are_their_own_json_and_pickle(kind: str, store: mw.PixelCache) -> None:
    before = [turn(1, 2, kind=kind)]
    s = mw.intern_sources(before, store=store)
    for travelled in (
        json.loads(json.dumps(s.data)),
        pickle.loads(pickle.dumps(s.data)),
        copy.deepcopy(s.data),
    ):
        assert travelled == s.data
        assert mw.restore_sources(travelled) == before
    assert len(json.dumps(s.data)) < 600


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_copies_that_travelled_keep_nothing(store: mw.PixelCache, protocol: int) -> None:
    ref = refer(uri(1), store)
    again = pickle.loads(pickle.dumps(ref, protocol))
    assert type(again) is mw.SourceRef
    assert (again, hash(again), repr(again)) == (ref, hash(ref), repr(ref))
    assert (again.digest, again.nbytes, again.text) == (ref.digest, ref.nbytes, True)
    assert ref.pinned is not None
    assert again.pinned is None
    assert copy.copy(ref) is ref
    assert mw.SourceRef.from_json(ref.to_json()) == ref
    assert type(ref.to_json()) is str


def test_a_reference_says_what_it_names_and_shows_nothing_of_it(store: mw.PixelCache) -> None:
    source = uri(1)
    ref = refer(source, store)
    assert ref.digest == mw.source_id(source) == mw.hash_bytes(source)
    assert (ref.nbytes, ref.text) == (len(source), True)
    assert not refer(blob(1), store).text
    assert repr(ref) == f"SourceRef(str of 8.8 KiB, {ref.digest.hex()[:12]}…)"
    assert len(ref) < 80
    assert bool(ref)
    for name in ("digest", "nbytes", "text", "extra"):
        with pytest.raises(AttributeError):
            setattr(ref, name, None)


class Item(pydantic.BaseModel):
    url: str
    blob: bytes = b""


@dataclass(frozen=True)
class Frozen:
    url: Any


def test_models_and_dataclasses_carry_references(store: mw.PixelCache) -> None:
    """A field of type ``str`` takes a reference, serializes it and validates it again."""
    value = [Item(url=uri(1)), Frozen(uri(1)), (uri(1), {"x": uri(2)})]
    data = mw.intern_sources(value, store=store).data
    model = data[0]
    assert isinstance(model.url, mw.SourceRef)
    again = Item.model_validate_json(model.model_dump_json())
    assert mw.restore_sources(again) == value[0]
    assert mw.restore_sources([again, *data[1:]]) == value
    assert value[0].url == uri(1)  # type: ignore[union-attr]


@pytest.mark.parametrize("inplace", [False, True])
def test_in_place_there_and_back(inplace: bool, store: mw.PixelCache) -> None:
    messages = [turn(1, 2), turn(2, kind="blob")]
    before, first = copy.deepcopy(messages), messages[0]
    s = mw.intern_sources(messages, store=store, inplace=inplace)
    assert (s.data is messages) == (messages[0] is first and s.data[0] is first) == inplace
    back = mw.restore_sources(s.data, inplace=inplace)
    assert (back is messages) == inplace
    assert back == before


def test_what_models_read_stays(store: mw.PixelCache) -> None:
    message = {"role": "tool", "content": uri(1), "parts": [{"text": uri(1)}, {"url": uri(1)}]}
    s = mw.intern_sources([message, {"content": [blob(1)]}], store=store)
    assert s.data[0]["content"] is s.data[0]["parts"][0]["text"]
    assert type(s.data[0]["content"]) is str
    assert s.data[0]["content"] == uri(1)
    assert isinstance(s.data[0]["parts"][1]["url"], mw.SourceRef)
    assert isinstance(s.data[1]["content"][0], mw.SourceRef)  # no model reads bytes
    assert (s.distinct, len(s.refs), s.inline) == (2, 2, 0)


def test_the_next_turn_leaves_references_as_they_are(store: mw.PixelCache) -> None:
    tricky = {"text": PREFIX + "not one"}
    s = mw.intern_sources([turn(1), tricky], store=store)
    ref = s.refs[0]
    later = mw.intern_sources([*s.data, turn(1, 2)], store=store)
    assert later.data[:2] == s.data
    assert later.refs[0] is ref
    assert len(later.refs) == 2
    assert references(later.data)[2] == ref
    assert mw.restore_sources(later.data) == [turn(1), tricky, turn(1, 2)]


texts = st.one_of(
    st.integers(0, 3).map(uri),
    st.integers(0, 3).map(blob),
    st.text(max_size=5),
    st.sampled_from(["", "=", "==", "x", "\ud800"]).map(PREFIX.__add__),
    st.just(str(mw.SourceRef.of(str, 5, mw.hash_bytes("never"), None))),  # type: ignore[arg-type]
    st.none() | st.integers(),
)
nested = st.recursive(
    texts,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["text", "url", "content", PREFIX]), inner, max_size=4),
        st.tuples(inner, inner),
        st.builds(Frozen, inner),
    ),
    max_leaves=12,
)
STORES = {"roomy": mw.PixelCache("4 MiB"), "tight": mw.PixelCache("48 KiB")}


@settings(max_examples=300, deadline=None)
@given(nested, st.sampled_from(sorted(STORES)), st.booleans(), st.integers(1, 3))
def test_every_structure_comes_back(data: Any, name: str, inplace: bool, times: int) -> None:
    """However often it is stored: what begins like a reference is text like any other."""
    before = pickle.loads(pickle.dumps(data))
    for _ in range(times):
        s = mw.intern_sources(data, store=STORES[name], inplace=inplace)
        data = s.data
        assert STORES[name].stats().bytes <= STORES[name].budget
    travelled = pickle.loads(pickle.dumps(data))
    assert mw.restore_sources(data) == before
    assert mw.restore_sources(travelled, inplace=inplace) == before


def test_what_does_not_fit_stays_inline_and_is_counted() -> None:
    store = mw.PixelCache("64 KiB")
    messages = [turn(n) for n in range(8)] + [turn(n) for n in range(8)]
    s = mw.intern_sources(messages, store=store)
    kept = len(s.refs)
    assert 1 <= kept < 8
    assert (s.distinct, s.inline) == (8, 8 - kept)
    assert len(sources(s.data)) == 2 * s.inline
    assert len({id(source) for source in sources(s.data)}) == s.inline
    assert store.stats().peak_bytes <= store.budget
    assert mw.restore_sources(s.data) == messages
    nothing = mw.intern_sources(messages, store=mw.PixelCache(0))
    assert (nothing.inline, nothing.refs, nothing.data) == (8, (), messages)


class Bounded(RuleBasedStateMachine):
    """Rollouts that come and go over a small store, against the sources they should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.store = mw.PixelCache("100 KiB")
        self.rollouts: list[tuple[Any, Any]] = []
        self.travellers: list[tuple[str, Any]] = []

    @rule(seeds=st.lists(st.integers(0, 15), min_size=1, max_size=5), kind=st.sampled_from(KINDS))
    def begin(self, seeds: list[int], kind: str) -> None:
        messages = [turn(*seeds, kind=kind)]
        s = mw.intern_sources(messages, store=self.store)
        assert s.distinct == len(set(seeds))
        assert len(s.refs) + s.inline == s.distinct
        self.rollouts.append((s.data, messages))

    @precondition(lambda self: self.rollouts)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.rollouts.pop(data.draw(st.integers(0, len(self.rollouts) - 1)))

    @precondition(lambda self: self.rollouts)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        stripped, messages = data.draw(st.sampled_from(self.rollouts))
        if not sources(stripped) and not isinstance(sources(messages)[0], bytes):
            self.travellers.append((json.dumps(stripped), messages))

    @rule()
    def arrive(self) -> None:
        """Nothing holds what travels: it may be gone, and that is said."""
        if not self.travellers:
            return  # no precondition: what fits into the store depends on who is collected when
        text, messages = self.travellers.pop()
        try:
            back, gone = mw.restore_sources(json.loads(text)), None
        except mw.MissingPixels as missing:
            back, gone = messages, missing.digest
        assert back == messages
        names = [mw.SourceRef(ref).digest.hex() for ref in references(json.loads(text))]
        assert gone is None or gone in names
        there = {mw.hash_bytes(source): source for source in sources(messages)}
        resolved = mw.restore_sources(json.loads(text), lambda ref: there[ref.digest])
        assert resolved == messages

    @invariant()
    def nothing_in_use_is_gone(self) -> None:
        for stripped, messages in self.rollouts:
            assert mw.restore_sources(stripped) == messages

    @invariant()
    def the_budget_holds(self) -> None:
        stats = self.store.stats()
        assert stats.bytes <= stats.peak_bytes <= stats.budget


TestBounded = Bounded.TestCase
TestBounded.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_missing_sources_say_so_and_resolvers_bring_them(store: mw.PixelCache) -> None:
    source = uri(4321)  # in no other cache
    ref = mw.SourceRef(refer(source, store).to_json())
    store.clear()
    with pytest.raises(mw.MissingPixels, match="no live cache") as missing:
        mw.restore_sources({"url": ref})
    assert missing.value.digest == ref.digest.hex()
    assert "base64" not in str(missing.value)
    asked: list[mw.SourceRef] = []

    def resolver(ref: mw.SourceRef) -> str:
        asked.append(ref)
        return source

    assert mw.restore_sources([{"url": str(ref)}, ref], lambda _: None, resolver) == [
        {"url": source},
        source,
    ]
    assert asked == [ref]
    assert mw.restore_sources(ref, lambda _: source.encode()) == source
    for wrong in (uri(2), source[:-1], source + "=", b"", "", "ä" * 99, "\ud800"):
        with pytest.raises(mw.PixelMismatch, match="another source") as mismatch:
            mw.restore_sources(ref, lambda _, wrong=wrong: wrong)
        assert mismatch.value.expected == ref.digest.hex()
    assert mw.restore_sources(ref, lambda _: "wrong", resolver) == source
    with pytest.raises(TypeError, match="str or bytes"):
        mw.restore_sources(ref, lambda _: bytearray(source.encode()))  # type: ignore[arg-type,return-value]
    with pytest.raises(ZeroDivisionError):
        mw.restore_sources(ref, lambda _: 1 / 0)  # type: ignore[arg-type,return-value]


GOOD = str(mw.SourceRef.of(str, SIZE, mw.hash_bytes("x"), None))  # type: ignore[arg-type]


def forged(version: int = 1, kind: int = 1, nbytes: int = 5, check: bytes | None = None) -> str:
    body = bytes([version, kind]) + nbytes.to_bytes(8, "little") + bytes(mw.hash_bytes("x"))
    check = bytes(mw.hash_bytes(body))[:4] if check is None else check
    return PREFIX + base64.urlsafe_b64encode(body + check).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        "",
        PREFIX,
        PREFIX + "A" * 62,
        PREFIX + "é" * 62,
        PREFIX + "\ud800" * 62,
        GOOD[:-1],
        GOOD + "=",
        GOOD + "A",
        GOOD.upper(),
        GOOD.replace("memweir", "memweis"),
        " " + GOOD[:-1],
        forged(version=0),
        forged(version=2),
        forged(kind=2),
        forged(check=b"abcd"),
        PREFIX + "A" * 50_000_000,
    ],
    ids=map(str, range(16)),
)
def test_forged_and_truncated_references_are_one_clear_error(text: str) -> None:
    with pytest.raises(ValueError, match="malformed source reference") as caught:
        mw.SourceRef(text)
    assert len(str(caught.value)) < 200
    if text.startswith(PREFIX):
        with pytest.raises(ValueError, match=r"malformed source reference: .*, at data\['url'\]"):
            mw.restore_sources({"url": text})


@pytest.mark.parametrize("text", [None, b"x", 5])
def test_references_are_read_from_text(text: Any) -> None:
    with pytest.raises(TypeError):
        mw.SourceRef(text)


def test_every_changed_character_is_refused() -> None:
    for at in range(len(GOOD)):
        for new in "0z-_~ ":
            if new != GOOD[at]:
                with pytest.raises(ValueError, match="malformed"):
                    mw.SourceRef(GOOD[:at] + new + GOOD[at + 1 :])


def test_corrupt_pickles_are_refused(store: mw.PixelCache) -> None:
    ref = refer(uri(1), store)
    data = pickle.dumps(ref)
    text = str(ref).encode()
    at = data.index(text) + 40
    for wrong in (data.replace(text, text[:-1] + b"~"), data[:at] + b"!" + data[at + 1 :]):
        with pytest.raises(ValueError, match="malformed source reference"):
            pickle.loads(wrong)
    for cut in range(1, len(data)):
        with pytest.raises((ValueError, pickle.UnpicklingError, EOFError, IndexError, KeyError)):
            pickle.loads(data[:cut])


def test_nothing_is_as_long_as_a_reference_says(store: mw.PixelCache) -> None:
    """Neither reading nor looking allocates by what is written in it."""
    source = uri(1)
    real = refer(source, store)
    for nbytes in (0, 1, len(source) + 1, 1 << 40, (1 << 64) - 1):
        body = bytes([1, 1]) + nbytes.to_bytes(8, "little") + bytes(real.digest)
        text = base64.urlsafe_b64encode(body + bytes(mw.hash_bytes(body))[:4]).decode()
        ref = pickle.loads(pickle.dumps(mw.SourceRef(PREFIX + text.rstrip("="))))
        assert ref.nbytes == nbytes
        assert repr(ref).startswith("SourceRef(str of ")
        with pytest.raises(mw.PixelMismatch):
            ref.load()
        with pytest.raises(mw.PixelMismatch):
            ref.load(lambda _: source)


def test_text_that_is_none_is_refused(store: mw.PixelCache) -> None:
    content = blob(6543)
    ref = mw.SourceRef.of(str, len(content), mw.hash_bytes(content), None)  # type: ignore[arg-type]
    with pytest.raises(mw.PixelMismatch, match="names text"):
        ref.load(lambda _: content)
    assert refer(content, store).load() == content
    with pytest.raises(mw.MissingPixels):  # bytes and text are two sources
        ref.load()


def test_another_array_under_the_key_is_noticed(store: mw.PixelCache) -> None:
    source = uri(5432)
    digest = mw.hash_bytes(source)
    ref = mw.SourceRef.of(str, len(source), digest, None)  # type: ignore[arg-type]
    store.put(key_of(str, digest), np.frombuffer(uri(2).encode(), np.uint8))
    with pytest.raises(mw.PixelMismatch):
        ref.load()
    assert mw.find_source(digest) is None


def test_a_store_is_a_cache() -> None:
    with pytest.raises(TypeError, match="a store is a PixelCache, not str"):
        mw.intern_sources([], store="1 GiB")  # type: ignore[arg-type]


@pytest.mark.parametrize("inplace", [False, True])
def test_threads_share_messages_and_a_store(inplace: bool) -> None:
    store = mw.PixelCache("150 KiB")
    messages = [turn(n % 13, n % 5) for n in range(40)]
    before = copy.deepcopy(messages)
    start, errors = threading.Barrier(8), []

    def work(number: int) -> None:
        start.wait(60)
        try:
            for _ in range(15):
                s = mw.intern_sources(messages, store=store, inplace=inplace)
                if not inplace:
                    assert mw.restore_sources(s.data) == before
                elif number == 0:
                    mw.restore_sources(messages, inplace=True)
                assert store.stats().bytes <= store.budget
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert mw.restore_sources(messages, inplace=True) == before
    assert store.stats().peak_bytes <= store.budget


def test_a_reference_goes_through_another_process(store: mw.PixelCache) -> None:
    """There it is missing until its source arrives, and then everything comes back."""
    messages = [turn(1, 2), turn(2, kind="blob")]
    s = mw.intern_sources(messages, store=store)
    luggage = [ref.load() for ref in s.refs]
    out = python(
        """
        import base64, pickle, sys
        import memweir as mw

        data, luggage, messages = pickle.loads(base64.b64decode(sys.stdin.read()))
        try:
            mw.restore_sources(data)
        except mw.MissingPixels:
            print("missing")
        store = mw.PixelCache("1 MiB")
        kept = mw.intern_sources(luggage, store=store)
        assert mw.restore_sources(data) == messages
        again = mw.intern_sources(messages, store=store)
        assert again.data == data
        print(len(store), len(again.refs))
        """,
        stdin=base64.b64encode(pickle.dumps((s.data, luggage, messages))).decode(),
    )
    assert out == "missing\n3 3\n"
