"""One id for all spellings of a source, another for every other source, and nothing decoded."""

from __future__ import annotations

import base64
import binascii
import io
import mmap
import random
import string
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memweir as mw
from memweir.pixels import source_id as module
from memweir.pixels import spelling
from memweir.pixels.spelling import data_uri_spelling

SECRET = "hunter2"
PAYLOAD = bytes(range(250, 256)) + b"\xfb\xff?>hello, world" * 3 + b"!"
TEXT = base64.b64encode(PAYLOAD).decode()
URI = f"data:image/png;base64,{TEXT}"
BIG = 100_000_000

assert "+" in TEXT
assert "/" in TEXT
assert TEXT.endswith("==")


def wrapped(text: str, width: int = 76, end: str = "\r\n") -> str:
    return end.join(text[at : at + width] for at in range(0, len(text), width))


def test_the_usual_spelling_is_its_own_name() -> None:
    assert mw.source_id(URI) == mw.hash_bytes(URI)
    assert mw.source_id(TEXT) == mw.hash_bytes(TEXT)
    assert mw.source_id(PAYLOAD) == mw.hash_bytes(PAYLOAD)


@pytest.mark.parametrize(
    "spelled",
    [
        f"DATA:image/png;base64,{TEXT}",
        f"dAtA:IMAGE/Png;base64,{TEXT}",
        f"data:image/png;BASE64,{TEXT}",
        f"data:image/png; base64,{TEXT}",
        f"data: image/png ;base64,{TEXT}",
        f"\n  {URI}\t\n",
        f"data:image/png;base64,{wrapped(TEXT)}",
        f"data:image/png;base64,{wrapped(TEXT, 4, ' ')}\n",
        f"data:image/png;base64,{TEXT.rstrip('=')}",
        f"data:image/png;base64,{TEXT.rstrip('=')}%3D%3d",
        f"data:image/png;base64,{TEXT.replace('+', '-').replace('/', '_')}",
        f"data:image/png;base64,{TEXT.replace('+', '%2B').replace('/', '%2f')}",
        "data:image/png;base64," + "".join(f"%{ord(c):02x}" for c in TEXT),
        "data:image/png," + "".join(f"%{byte:02X}" for byte in PAYLOAD),
        # The bits of the last digit that no byte uses.
        f"data:image/png;base64,{TEXT[:-3]}{chr(ord(TEXT[-3]) + 3)}==",
    ],
)
def test_spellings_of_a_payload_and_media_type_agree(spelled: str) -> None:
    assert mw.source_id(spelled) == mw.source_id(URI)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("data:image/svg+xml;charset=UTF-8,a", "data:image/svg+xml;charset=utf-8,a"),
        ("data:image/svg+xml;charset=utf-8,a", "data:image/svg+xml;CHARSET=%75tf-8;base64,YQ=="),
        ('data:a/b;x="1 2";y=3,a', "data:a/b;y=3;X=1%202,a"),
        ("data:a/b;utf8,a", "data:a/b;UTF8,a"),
        ("data:,a", "data:text/plain;charset=US-ASCII,a"),
        ("data:;base64,YQ", "data:,a"),
        ("data:;charset=utf-8,a", "data:text/plain;charset=utf-8,a"),
        ("data:a/b,<a w='100%'>", "data:a/b,%3Ca%20w='100%25'%3E"),
        ("data:a/b,é", "data:a/b,%C3%A9"),
        ("data:a/b,", "data:a/b;base64,"),
        (wrapped(TEXT), TEXT),
        (TEXT.rstrip("="), TEXT),
        (TEXT.replace("+", "-").replace("/", "_"), TEXT),
    ],
)
def test_ways_to_write_one_thing(one: str, other: str) -> None:
    assert mw.source_id(one) == mw.source_id(other)


def test_other_sources_have_other_ids() -> None:
    sources = [
        URI,
        TEXT,
        PAYLOAD,
        URI.replace("png", "jpeg"),
        f"data:image/png;charset=utf-8;base64,{TEXT}",
        f"data:image/png;name=A;base64,{TEXT}",
        f"data:image/png;name=a;base64,{TEXT}",
        f"data:image/png;base64,{TEXT[4:]}",
        f"data:image/png;base64,{TEXT.swapcase()}",
        "data:image/png;base64,",
        "data:image/png,a b",
        "data:image/png,ab",
        "data:image/png,a+b",
        b"",
    ]
    assert len({mw.source_id(source) for source in sources}) == len(sources)


MALFORMED = [
    "data:",
    "data:image/png;base64",
    f"data:{SECRET}",
    f"data:{SECRET},",
    f"data:image/png;base64;x={SECRET},YWJj",
    f"data:image/png;base64;x={SECRET};base64,YWJj",
    f"data:image/png;BASE64;base64,{SECRET}",
    f"data:ima\u00e9ge/png;base64,{SECRET}",
    f"data:image/png\n;base64,{SECRET}a",
    "data:image/png;base64,A",
    "data:image/png;base64,AAAAA",
    "data:image/png;base64,AA=",
    "data:image/png;base64,AAA==",
    "data:image/png;base64,AAAA=",
    "data:image/png;base64,AAAA====",
    "data:image/png;base64,====",
    "data:image/png;base64,A===",
    "data:image/png;base64,AA==AA==",
    "data:image/png;base64,=AAA",
    f"data:image/png;base64,{SECRET}!",
    f"data:image/png;base64,{SECRET}%",
    f"data:image/png;base64,{SECRET}%zz",
    f"data:image/png;base64,{SECRET}\u00e9",
    f"data:image/png;base64,{SECRET}\ud800",
    f"data:image/png;base64,{SECRET}\x00",
    "data:image/png;base64,AA+_",
    "data:image/png;base64,AAAA#view",
    f"data:image/svg+xml,<a fill='#{SECRET}'/>",
    "data:image/png;base64" + "A" * 9000 + ",AAAA",
    "",
    " ",
    "!",
    f"no such file {SECRET}.png",
    "AAAAA",
    f"{SECRET}\ud800",
    f"{SECRET}\x00",
]


@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_malformed_is_refused_without_showing_it(text: str) -> None:
    for _ in range(2):  # a refusal is not remembered as an id
        with pytest.raises(ValueError, match=r"malformed|no URI") as caught:
            mw.source_id(text)
        assert SECRET not in str(caught.value)
        assert caught.value.__context__ is None or SECRET not in str(caught.value.__context__)


@pytest.mark.parametrize(
    "source",
    [
        None,
        5,
        1.5,
        [URI],
        {"url": URI},
        io.BytesIO(PAYLOAD),
        np.zeros((2, 2, 3), np.uint8),
        PIL.Image.new("RGB", (2, 2)),
    ],
)
def test_other_types_are_refused(source: Any) -> None:
    with pytest.raises(mw.UnsupportedType, match="no encoded source"):
        mw.source_id(source)


def test_any_bytes_will_do() -> None:
    area = mmap.mmap(-1, len(PAYLOAD))
    area.write(PAYLOAD)
    twice = np.frombuffer(PAYLOAD, np.uint8).repeat(2)
    views = [bytearray(PAYLOAD), memoryview(PAYLOAD), area, memoryview(twice)[::2]]
    assert {mw.source_id(view) for view in views} == {mw.hash_bytes(PAYLOAD)}


def test_truncated_images_have_ids_of_their_own() -> None:
    ids = {mw.source_id(PAYLOAD[:n]) for n in range(len(PAYLOAD))}
    assert len(ids) == len(PAYLOAD)


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@host/a.png?sig={SECRET}",
        f"HTTP://host/{SECRET}",
        f" https://host/{SECRET}",
        f"s3://bucket/{SECRET}",
        f"hf:{SECRET}",
    ],
)
def test_urls_are_the_caller_s_to_fetch(url: str) -> None:
    with pytest.raises(ValueError, match="fetch it and pass its bytes, or give fetch=") as caught:
        mw.source_id(url)
    assert SECRET not in str(caught.value)
    asked = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return PAYLOAD

    assert mw.source_id(url, fetch=fetch) == mw.source_id(PAYLOAD)
    assert mw.source_id(url, fetch=fetch) == mw.source_id(PAYLOAD)
    assert asked == [url, url]  # what is behind a URL may change
    assert mw.source_id(url, fetch=lambda _: memoryview(PAYLOAD)) == mw.source_id(PAYLOAD)
    for wrong in (None, "text", 5, [PAYLOAD]):
        with pytest.raises(TypeError, match="returns the bytes"):
            mw.source_id(url, fetch=lambda _, wrong=wrong: wrong)
    with pytest.raises(KeyError, match="mine"):
        mw.source_id(url, fetch=raises)


def raises(url: str) -> bytes:
    raise KeyError("mine")


def test_fetch_is_not_asked_for_what_is_at_hand() -> None:
    for source in (URI, TEXT, PAYLOAD):
        assert mw.source_id(source, fetch=raises) == mw.source_id(source)


@st.composite
def spellings(draw: st.DrawFn) -> tuple[bytes, str, str]:
    """A payload, a media type, and one of the many ways to write the two down."""
    payload = draw(st.binary(max_size=40))
    kind = draw(st.sampled_from(["image/png", "image/svg+xml", "a/b;x=1;y=2"]))
    main, *parameters = kind.split(";")
    parts = [any_case(draw, main), *draw(st.permutations(parameters))]
    head = any_case(draw, "data:") + ";".join(parts)
    if draw(st.booleans()):
        body = "".join(escaped(draw, byte) for byte in payload)
        return payload, kind, f"{head},{body}"
    text = base64.b64encode(payload).decode()
    bare = text.rstrip("=")
    if bare and len(bare) % 4:
        digits = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
        spare = 1 << 2 * (-len(bare) % 4)
        bare = bare[:-1] + digits[digits.index(bare[-1]) + draw(st.integers(0, spare - 1))]
    if draw(st.booleans()):
        bare = bare.replace("+", "-").replace("/", "_")
    if draw(st.booleans()):
        bare += "=" * (-len(bare) % 4)
    spread = [
        (f"%{ord(c):02x}" if draw(st.booleans()) else c)
        + draw(st.sampled_from(["", "", "\n", " ", "%0A"]))
        for c in bare
    ]
    return payload, kind, f"{head};{any_case(draw, 'base64')},{''.join(spread)}"


def any_case(draw: st.DrawFn, text: str) -> str:
    return "".join(c.upper() if draw(st.booleans()) else c for c in text)


def escaped(draw: st.DrawFn, byte: int) -> str:
    plain = chr(byte) in string.ascii_letters + string.digits + "<>'()! \n"
    at_the_end = chr(byte) in " \n"
    if plain and not at_the_end and draw(st.booleans()):
        return chr(byte)
    return f"%{byte:02x}" if draw(st.booleans()) else f"%{byte:02X}"


@settings(max_examples=400, deadline=None)
@given(spellings(), st.integers(1, 9))
def test_every_spelling_ends_in_the_usual_one(made: tuple[bytes, str, str], chunk: int) -> None:
    payload, kind, text = made
    usual = f"data:{kind};base64,{base64.b64encode(payload).decode()}"
    before, spelling._CHUNK = spelling._CHUNK, chunk  # so that everything meets a boundary
    try:
        assert data_uri_spelling(text) == usual
        assert data_uri_spelling(usual) is usual
    finally:
        spelling._CHUNK = before
    assert mw.source_id(text) == mw.source_id(usual) == mw.hash_bytes(usual)


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="AQgwab01+/-_=\n !", max_size=12), st.integers(1, 5))
def test_base64_is_taken_as_its_decoder_would(text: str, chunk: int) -> None:
    """Against the decoder of the standard library in its strict mode, after the rules for text."""
    plain = "".join(text.split())
    mixed = set(plain) & set("+/") and set(plain) & set("-_")
    plain = plain.replace("-", "+").replace("_", "/")
    if "=" not in plain:
        plain += "=" * (-len(plain) % 4)
    try:
        payload = binascii.a2b_base64(plain, strict_mode=True)
        whole = len(plain) % 4 == 0 and payload  # it lets superfluous padding pass
        expected = base64.b64encode(payload).decode() if whole and not mixed else None
    except binascii.Error:
        expected = None
    before, spelling._CHUNK = spelling._CHUNK, chunk
    try:
        got = spelling.base64_spelling(text)
    except ValueError:
        got = None
    finally:
        spelling._CHUNK = before
    assert got == expected


def test_a_known_text_is_hashed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = f"DATA:image/png;base64,{wrapped(TEXT)}"
    ids = [mw.source_id(URI), mw.source_id(odd), mw.source_id(TEXT)]

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("looked into it")

    for name in ("b64decode", "decodebytes", "b64encode"):
        monkeypatch.setattr(base64, name, refuse)
    monkeypatch.setattr(binascii, "a2b_base64", refuse)
    monkeypatch.setattr(PIL.Image, "open", refuse)
    monkeypatch.setattr(module, "data_uri_spelling", refuse)
    monkeypatch.setattr(module, "base64_spelling", refuse)
    assert [mw.source_id(URI), mw.source_id(odd), mw.source_id(TEXT)] == ids


def test_new_text_is_not_decoded_either(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("decoded")

    for name in ("b64decode", "decodebytes", "urlsafe_b64decode"):
        monkeypatch.setattr(base64, name, refuse)
    monkeypatch.setattr(binascii, "a2b_base64", refuse)
    fresh = base64.b64encode(random.Random(5).randbytes(3000)).decode()
    mw.source_id(f"data:image/png;base64,{fresh}")
    mw.source_id(f"data:IMAGE/png;base64,{fresh}")


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    memo = module.Memo(10)
    monkeypatch.setattr(module, "_ids", memo)
    for n in range(100):
        mw.source_id(f"data:image/png;base64,{base64.b64encode(bytes([n] * 9)).decode()}")
    assert len(memo) == 10


HUGE: list[tuple[Any, bool]] = [
    (lambda: "data:image/png;base64," + "A" * BIG, True),
    (lambda: "data:image/png;base64," + "A" * BIG + "!", False),
    (lambda: "data:image/png;base64," + "AAA" + "\n" * BIG, True),
    (lambda: "data:image/png;base64," + "=" * BIG, False),
    (lambda: "data:image/png;base64," + "-_+/" * (BIG // 4), False),
    (lambda: "data:image/png;base64," + "%41" * (BIG // 3), False),  # one digit too long
    (lambda: "data:image/png," + "%" * BIG, True),
    (lambda: "data:" + ";" * BIG, False),
    (lambda: " " * BIG, False),
    (lambda: "A" * BIG, True),
    (lambda: "A" * BIG + ":", False),
    (lambda: "h" * BIG + "://", False),
    (lambda: "é" * BIG, False),
]


@pytest.mark.parametrize(("make", "good"), HUGE, ids=map(str, range(len(HUGE))))
def test_a_hundred_million_characters_take_time_in_proportion(make: Any, good: bool) -> None:
    """Anything quadratic would take days, and end as a test that hangs."""
    text = make()
    if good:
        assert isinstance(mw.source_id(text), mw.Digest)
        return
    with pytest.raises(ValueError, match="malformed") as caught:
        mw.source_id(text)
    assert len(str(caught.value)) < 300


def test_threads_agree() -> None:
    texts = [
        f"data:image/png;base64,{base64.b64encode(bytes([n] * 5000)).decode()}" for n in range(9)
    ]
    odd = [text.replace("data:image", "DATA:Image") for text in texts]
    expected = [mw.hash_bytes(text) for text in texts]
    start = threading.Barrier(8)

    def work(number: int) -> list[mw.Digest]:
        start.wait(60)
        for _ in range(50):
            found = [mw.source_id(text) for text in (odd if number % 2 else texts)]
        return found

    with ThreadPoolExecutor(8) as pool:
        assert all(found == expected for found in pool.map(work, range(8)))
