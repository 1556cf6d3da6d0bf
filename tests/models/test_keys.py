"""Keys of models: one for what is one model, however it is spelled, and two for two."""

from __future__ import annotations

import enum
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import memweir as mw
from memweir.errors import IdentifierError, UnsupportedType
from memweir.models import keys

TOKEN = "hf_" + "S3cretS3cretS3cretS3cretS3cretS3cr"


class Mode(enum.Enum):
    FAST = 1
    EXACT = 2


class Whole(enum.IntEnum):
    ONE = 1


def outer():
    def inner():
        """Not to be found by its name."""

    return inner


def test_a_key_begins_with_its_name_and_says_what_the_loader_is_given(tmp_path):
    assert mw.model_key("org/siglip") == "org/siglip"
    key = mw.model_key(
        "siglip", path=tmp_path, device="cuda:1", dtype="bf16", size=(384, 384), tta=None
    )
    path = str(Path(tmp_path).resolve())
    assert key == (f'siglip:device="cuda:1",dtype="bfloat16",path="{path}",size=[384,384],tta=null')


def test_a_path_is_one_however_it_is_spelled(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "latest").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    spelled = ["models", "./models/", "latest", folder, tmp_path / "x" / ".." / "latest", b"models"]
    assert len({mw.model_key("a", path=each) for each in spelled}) == 1
    monkeypatch.chdir(folder)
    assert mw.model_key("a", path=".") == mw.model_key("a", path=folder)
    assert mw.model_key("a", adapter=Path()) == mw.model_key("a", adapter=folder)
    assert mw.model_key("a", adapter="models") != mw.model_key("a", adapter=Path("models"))


def test_a_path_that_is_no_text_has_a_key(tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff\n"
    assert mw.model_key("a", path=odd).isascii()
    assert mw.model_key("a", path=odd).isprintable()


DEVICES = [
    ("cpu", "cpu"),
    ("cpu:0", "cpu"),
    ("CUDA:1", "cuda:1"),
    ("cuda:01", "cuda:1"),
    (1, "cuda:1"),
    (" mps:0", "mps"),
    ("npu:2", "npu:2"),
    ("auto", "auto"),
]


@pytest.mark.parametrize(("device", "told"), DEVICES)
def test_a_device_is_one_however_it_is_spelled(device, told):
    assert mw.model_key("a", device=device) == f'a:device="{told}"'


def test_bare_cuda_is_the_current_device(monkeypatch):
    cuda = SimpleNamespace(is_initialized=lambda: False, current_device=lambda: 3)
    monkeypatch.setitem(keys.sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert mw.model_key("a", device="cuda") == mw.model_key("a", device="cuda:0")
    cuda.is_initialized = lambda: True
    assert mw.model_key("a", device="cuda") == mw.model_key("a", device="cuda:3")


def test_torch_and_numpy_and_text_name_one_dtype_and_device():
    torch = pytest.importorskip("torch")
    halves = ["fp16", "half", "float16", "torch.float16", np.float16, np.dtype("f2"), torch.half]
    assert {mw.model_key("a", dtype=each) for each in halves} == {'a:dtype="float16"'}
    assert mw.model_key("a", compute=torch.bfloat16) == "a:compute=dtype(bfloat16)"
    assert mw.model_key("a", device=torch.device("cuda", 1)) == 'a:device="cuda:1"'
    assert mw.model_key("a", main=torch.device("cpu")) == "a:main=device(cpu)"
    assert mw.model_key("a", cls=torch.nn.Linear) == "a:cls=<torch.nn.modules.linear.Linear>"


@pytest.mark.parametrize("bad", [True, 1.5, object()])
def test_what_is_no_device_or_dtype_is_a_type_error(bad):
    with pytest.raises(TypeError, match="a device is"):
        mw.model_key("a", device=bad)
    with pytest.raises(TypeError, match="a dtype is"):
        mw.model_key("a", dtype=bad)


@pytest.mark.parametrize("bad", ["", "gpu 0", "cuda:-1", "cuda:", "cuda:1:2"])
def test_text_that_is_no_device_is_a_value_error(bad):
    with pytest.raises(ValueError, match="not a device"):
        mw.model_key("a", device=bad)


DIFFERENT = [
    *(
        1,
        1.0,
        True,
        "1",
        b"1",
        "true",
        None,
        "null",
        2**70,
        1e300,
        math.nan,
        math.inf,
        1j,
        -0.0,
        0.0,
    ),
    *([1], [1, []], [[1]], {1}, {1: 1}, {"1": 1}, {"a": [1]}, [{"a": 1}], "", [], {}, set()),
    *(Mode.FAST, Mode.EXACT, Whole.ONE, Path("a"), "a", "a,b=1", '"', "\\", "a:b", "é", "\ud800"),
    *(print, len, str, np.float32, "[1]", "set(1)", "path(a)", "<builtins.print>"),
]


def test_values_that_differ_have_different_keys():
    told = [mw.model_key("a", x=each) for each in DIFFERENT]
    assert len(set(told)) == len(DIFFERENT)
    assert all(each.isascii() for each in told)


def test_the_same_value_is_one_however_it_comes():
    assert mw.model_key("a", x=(1, 2), y=1) == mw.model_key("a", y=1, x=[1, 2])
    assert mw.model_key("a", x={"b": 1, "a": 2}) == mw.model_key("a", x={"a": 2, "b": 1})
    assert mw.model_key("a", x={"b", "a", "c"}) == mw.model_key("a", x=frozenset("cab"))
    assert mw.model_key("a", x=np.int64(3)) == mw.model_key("a", x=3)
    assert mw.model_key("a", path=None, device=None, dtype=None) == "a"


SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SIMPLE, lambda each: st.lists(each) | st.dictionaries(st.text(), each), max_leaves=8
)
NAMES = st.from_regex(r"\A[a-z][a-z0-9:/._-]{0,10}\Z").filter(lambda name: name != "token")
OPTIONS = st.dictionaries(st.from_regex(r"\A[a-z]{1,3}\Z"), VALUES, max_size=3)


@given(NAMES, OPTIONS, NAMES, OPTIONS)
def test_two_keys_are_equal_only_where_everything_is(name, options, other, others):
    def seen(value):
        if isinstance(value, list):
            return ("list", tuple(map(seen, value)))
        if isinstance(value, dict):
            return ("dict", frozenset((key, seen(each)) for key, each in value.items()))
        return type(value).__name__, repr(value)

    same = name == other and seen(options) == seen(others)
    assert (mw.model_key(name, **options) == mw.model_key(other, **others)) is same


@pytest.mark.parametrize("name", ["", " a", "a\n", "a=b", f"org/{TOKEN}"])
def test_a_name_that_is_not_clean_is_refused(name):
    with pytest.raises(IdentifierError) as caught:
        mw.model_key(name)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"token": "short"},
        {"hf_token": 5},
        {"api_key": "a"},
        {"use_auth_token": "x"},
        {"repo": TOKEN},
        {"deep": [{"a": ("x", TOKEN)}]},
        {"url": "https://user:pass" + "word@host/model"},
        {"path": f"/models/{TOKEN}"},
        {"x": {TOKEN: 1}},
    ],
    ids=str,
)
def test_a_secret_is_refused_and_not_told(options):
    with pytest.raises(IdentifierError) as caught:
        mw.model_key("a", **options)
    assert caught.value.code == "secret"
    assert TOKEN not in str(caught.value)


def test_what_only_sounds_like_a_secret_is_a_parameter():
    key = mw.model_key("a", token=None, use_auth_token=True, pad_token="<pad>", author="x")
    assert key == 'a:author="x",pad_token="<pad>",token=null,use_auth_token=true'


@pytest.mark.parametrize("value", [object(), outer(), lambda: 1, np.zeros(3), iter(())], ids=repr)
def test_what_has_no_text_of_its_own_is_refused_by_name(value):
    with pytest.raises(UnsupportedType, match=r"^weights: "):
        mw.model_key("a", weights=value)


def test_a_circle_is_refused():
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="nested"):
        mw.model_key("a", x=circle)
