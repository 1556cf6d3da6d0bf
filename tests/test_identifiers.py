"""Names from outside: what is taken, what is refused, and that nothing is echoed."""

from __future__ import annotations

import pickle
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memweir as mw
from memweir import identifiers

KINDS = ["repo", "revision", "variant", "path", "label", "arg"]
NAMES = [kind for kind in KINDS if kind != "arg"]
TOKEN = "hf_" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7"


def refusal(value, kind="repo", **options):
    with pytest.raises(mw.IdentifierError) as caught:
        mw.check_identifier(value, kind=kind, **options)
    return caught.value


GOOD = {
    "repo": ["gpt2", "Qwen/Qwen2-VL-7B-Instruct", "a/b", "org_1/x.y_z-1", "A" * 96 + "/" + "b" * 96,
             "_private/_model_", "hf_internal/x", "org/x_hf_short"],
    "revision": ["main", "v1.0", "refs/pr/12", "0" * 40, "feature/a+b", "release@2", "a{b}"],
    "variant": ["Q4_K_M", "fp16", "UD-Q4_K_XL", "model-00001.gguf", "a=b", "x@2"],
    "path": ["model.gguf", "/abs/olute/x", "a/b c/ü.bin", "..hidden", "x..y", "e\u0301.txt", "~",
             "C:\\models\\x", "%2e%2e/x"],
    "label": ["Chat with Ω", "家族", "👨\u200d👩\u200d👧", "می\u200cخواهم", "❤\ufe0f", "a  b"],
    "arg": ["", "-", "--flag=x y", "--", "ünïcode", "a..b/../c", "*"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), [(k, v) for k, each in GOOD.items() for v in each])
def test_ordinary_names_are_returned_as_they_are(kind, value):
    assert mw.check_identifier(value, kind=kind) is value


BAD = [
    *((kind, "a\x00b", "control") for kind in KINDS),
    *((kind, f"a{c}b", "control") for kind in KINDS for c in "\n\r\t\x1b\x7f\x80\x85\x9b"),
    *((kind, "a\ud800b", "surrogate") for kind in KINDS),
    *((kind, f"a{c}b", "separator") for kind in KINDS for c in "\u2028\u2029"),
    *((kind, f"a{c}b", "invisible") for kind in KINDS
      for c in "\u200b\u200e\u202a\u202e\u2066\u2069\ufeff\u00ad\u061c\U000e0041\u3164\u034f"
      "\u2065\u2800\ufff0\ufff8\U000e0000\U000e0080\U000e01f0\U000e0fff"),
    *((kind, "a\u200db", "invisible") for kind in KINDS if kind != "label"),
    *((kind, "x" * 200_000, "too-long") for kind in KINDS),
    *((kind, "", "empty") for kind in NAMES),
    *((kind, "-rf", "dash") for kind in ("revision", "variant", "path", "label", "repo")),
    *((kind, f"x{TOKEN}y", "secret") for kind in ("variant", "path", "label", "arg", "repo")),
    *((kind, "a" + "\u0300" * 31, "combining") for kind in ("path", "label", "arg")),
    ("label", "e\u0301", "not-nfc"),
    ("label", " a", "space"), ("label", "a ", "space"), ("label", "\u3000a", "space"),
    ("path", "..", "dots"), ("path", "a/../b", "dots"), ("path", "..\\b", "dots"),
    ("path", "a/..", "dots"),
    ("repo", "..", "dots"), ("repo", "a/..", "dots"), ("repo", "a..b/c", "dots"),
    ("repo", "a/b/c", "form"), ("repo", "/a", "form"), ("repo", "a/", "form"),
    ("repo", "a//b", "form"), ("repo", ".a/b", "form"), ("repo", "a/b.", "form"),
    ("repo", "a--b/c", "form"), ("repo", "a/b.git", "form"), ("repo", "a" * 97, "form"),
    ("repo", "a b", "character"), ("repo", "a\\b", "character"), ("repo", "http://a", "character"),
    ("revision", "a b", "character"), ("revision", "a~1", "character"),
    ("revision", "a^", "character"), ("revision", "a:b", "character"),
    ("revision", "a..b", "dots"), ("revision", "a.lock", "form"), ("revision", "/a", "form"),
    ("revision", "a/", "form"), ("revision", "a//b", "form"), ("revision", "a@{1}", "form"),
    ("revision", "a/.b", "form"), ("revision", "a.", "form"),
    ("variant", "a/b", "character"), ("variant", ".a", "form"),
    # What looks like a letter and is another one.
    *(("repo", name, "character") for name in
      ("\u0430pple/b", "g\u0440t2", "\uff41/b", "a\u2215b", "a\u2044b", "\u01c3", "ｇpt2", "a․b",
       "𝐚/b")),
    ("repo", "a\u0307", "not-nfc"),
    *((kind, "ma\u0456n", "character") for kind in ("revision", "variant")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "code"), BAD)
def test_what_is_not_clean_is_refused_by_its_code(kind, value, code):
    error = refusal(value, kind)
    assert (error.code, error.kind) == (code, kind)


def test_the_offset_is_where_it_is():
    assert refusal("abc\x00d", "label").offset == 3
    assert refusal("äb\u202ed", "label").offset == 2
    assert refusal("org/a b").offset == 5
    assert refusal("a/../b", "path").offset == 1
    assert refusal(f"ab{TOKEN}", "label").offset == 2


def test_an_error_is_a_value_error_with_a_status():
    error = refusal("\x00")
    assert isinstance(error, ValueError)
    assert isinstance(error, mw.MemweirError)
    assert (error.http_status, error.retry_after) == (400, None)


@settings(deadline=None)
@given(st.text(max_size=60), st.sampled_from(KINDS))
def test_a_name_is_returned_or_refused_without_being_told(text, kind):
    value = f"needle{text}needle"
    try:
        assert mw.check_identifier(value, kind=kind) is value
    except mw.IdentifierError as error:
        told = f"{error} {error!r} {error.args} {vars(error)} {error.__context__}"
        if "needle" in told:
            pytest.fail(told)
    else:
        assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in value)
        bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
        assert not any(unicodedata.bidirectional(c) in bidi for c in value)
        assert kind == "arg" or not value.startswith("-")


@pytest.mark.parametrize("kind", ["repo", "revision", "variant"])
@settings(deadline=None)
@given(text=st.text(max_size=20))
def test_names_that_are_compared_are_ascii(kind, text):
    try:
        assert mw.check_identifier(text, kind=kind).isascii()
    except mw.IdentifierError:
        pass


@settings(deadline=None)
@given(st.text(alphabet="ab.-_/git", max_size=24))
def test_repositories_are_those_that_the_hub_takes(name):
    validators = pytest.importorskip("huggingface_hub.utils._validators")
    try:
        validators.validate_repo_id(name)
        hub = True
    except validators.HFValidationError:
        hub = False
    try:
        mw.check_identifier(name)
        ours = True
    except mw.IdentifierError:
        ours = False
    assert not ours or hub
    if hub and not ours:  # what a command line or a path would take for something else
        assert (
            name.startswith(("-", "."))
            or "/-" in name
            or "/." in name
            or "-/" in name
            or "./" in name
        )


@pytest.mark.parametrize("length", [29, 30, 34, 60])
def test_a_token_within_a_name_is_refused_from_thirty_characters_on(length):
    name = "x_hf_" + "a1" * (length // 2) + "b" * (length % 2)
    if length < 30:
        assert mw.check_identifier(name, kind="label") == name
    else:
        assert refusal(name, "label").code == "secret"


@pytest.mark.parametrize(
    "error",
    [
        refusal("a\x00"),
        mw.UnknownVerdict("not known", kind="denied", retry_after=2.0),
        mw.ProbeFailed("transient", error="HTTPError", status=503, retry_after=7.0),
        mw.errors.InUse("in use", holders=["chat"], retry_after=1.0),
        mw.errors.MissingPixels("gone", digest="ab"),
        mw.errors.LoadFailed("another's"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_back_from_another_process_as_it_was(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    assert (again.http_status, again.retry_after) == (error.http_status, error.retry_after)


def test_a_limit_of_ones_own():
    assert refusal("abcdef", "label", max_len=5).code == "too-long"
    assert mw.check_identifier("x" * 1000, kind="label", max_len=1000)


@pytest.mark.parametrize("value", [None, 7, b"a", ["a"], object()])
def test_only_strings_are_names(value):
    with pytest.raises(TypeError, match=r"is a str, not \w+$"):
        mw.check_identifier(value)
    with pytest.raises(TypeError):
        mw.fingerprint(value if value is not None else 1)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind is one of repo"):
        mw.check_identifier("a", kind="nonsense\n")


def test_an_argv_is_checked_entry_by_entry():
    assert mw.check_argv(("--x", "", "-y", "ü")) == ["--x", "", "-y", "ü"]
    with pytest.raises(mw.IdentifierError, match="argument 1 has a control") as caught:
        mw.check_argv(["ok", "needle\x00"])
    assert (caught.value.index, caught.value.offset) == (1, 6)
    assert "needle" not in repr(caught.value) + repr(caught.value.__cause__)
    with pytest.raises(mw.IdentifierError) as caught:
        mw.check_argv([f"--token={TOKEN}"])
    assert caught.value.code == "secret"


def test_an_argv_has_limits():
    assert len(mw.check_argv(["a"] * 1024)) == 1024
    for argv, options in (
        (["a"] * 1025, {}),
        (["a", "b"], {"max_tokens": 1}),
        (["ü" * 3, "a"], {"max_bytes": 8}),
        (["x" * 70_000] * 2, {}),
    ):
        with pytest.raises(mw.IdentifierError) as caught:
            mw.check_argv(argv, **options)
        assert caught.value.code in ("too-many", "too-long")
    assert mw.check_argv(["ü" * 3, ""], max_bytes=8) == ["üüü", ""]
    for wrong in ("a string", b"bytes"):
        with pytest.raises(TypeError):
            mw.check_argv(wrong)
    with pytest.raises(TypeError):
        mw.check_argv(["a", 1])


def test_an_endless_argv_ends():
    def forever():
        while True:
            yield "a"

    with pytest.raises(mw.IdentifierError):
        mw.check_argv(forever())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("a\nb\x1b[31mc\x00", r"a\nb\x1b[31mc\x00"),
        ("a\\nb", r"a\\nb"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\ud800", r"\ud800"),
        ("Ω家", "Ω家"),
        (f"x{TOKEN}y", "x[redacted]"),
        (None, "<NoneType>"),
        (b"bytes", "<bytes>"),
    ],
)
def test_what_was_refused_can_be_shown(value, shown):
    assert mw.loggable(value) == shown


def test_long_text_is_cut_and_counted():
    assert mw.loggable("a" * 200) == "a" * 120 + "… (+80)"
    assert mw.loggable("abc", 2) == "ab… (+1)"
    assert TOKEN[:12] not in mw.loggable("x" * 100 + TOKEN)  # not cut into what is no token


@settings(deadline=None)
@given(st.text())
def test_what_is_shown_is_one_printable_line(text):
    shown = mw.loggable(text)
    assert shown.isprintable()
    assert len(shown) < 120 * 10 + 20


def operations(code, text):
    """Lines of Python run, which do not depend on the machine's mood."""
    count = 0

    def tracer(frame, event, argument):
        nonlocal count
        count += 1
        return tracer

    sys.settrace(tracer)
    try:
        code(text)
    except mw.IdentifierError:
        pass
    finally:
        sys.settrace(None)
    return count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["ü", "a", "\u0301", "é", "-", "../", "hf_"])
def test_work_grows_with_length_and_ends_with_the_limit(kind, unit):
    def check(text):
        mw.check_identifier(text, kind=kind, max_len=10**9)

    small, large = (operations(check, unit * n) for n in (500, 5000))
    assert large <= 10 * small + 50
    limited = operations(lambda text: mw.check_identifier(text, kind=kind), unit * 10**6)
    assert limited < 50


def test_a_fingerprint_is_of_the_whole_secret():
    assert identifiers.digest("a" * 1000) != identifiers.digest("a" * 999 + "b")
    assert len(identifiers.digest("x")) == 32
    assert identifiers.digest("\ud800") != identifiers.digest("\ud801")
    assert mw.fingerprint("a") != "a"
