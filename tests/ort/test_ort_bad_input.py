"""Models that cannot be opened: each says why, with a type."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ort_kit import FakeRuntime, node_model

import memweir as mw
from memweir.cli.demo.encoder import TINY, inputs, save
from memweir.ort import _wire

FEED = inputs(40, shape=TINY)
PROFILES = pytest.mark.parametrize("profile", ["balanced", "lean"])


def kind(model, profile="balanced", **more):
    with pytest.raises(mw.BadModel) as caught:
        mw.ort.session(model, profile, **more)
    return caught.value.kind


@PROFILES
def test_a_truncated_model_is_corrupt_wherever_it_ends(tiny, tmp_path, profile):
    data = tiny.read_bytes()
    for length in (0, 3, 10, 1000, len(data) // 2, len(data) - 1):
        path = tmp_path / "cut.onnx"
        path.write_bytes(data[:length])
        assert kind(path, profile) == "corrupt", length
        assert kind(data[:length], profile) == "corrupt", length


def test_a_damaged_model_is_an_error_with_a_type_or_runs(tmp_path):
    data = bytearray(node_model("Add", inputs=2))
    for place in range(len(data)):
        damaged = bytes(data[:place]) + bytes([data[place] ^ 0xFF]) + bytes(data[place + 1 :])
        # Whatever else were raised would end the test.
        with suppress(mw.BadModel):
            mw.ort.session(damaged, threads=1, trim=False, log_severity=4).close()


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_bytes_at_all_break_the_reader(data):
    for start in (b"", b"\x08\x09", b"\x08\x09\x3a"):
        with suppress(mw.BadModel):
            assert isinstance(_wire.read_bytes(start + data), _wire.Facts)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"GGUF\x03\x00\x00\x00rest", "GGUF"),
        (b"PK\x03\x04rest", "zip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "safetensors"),
        (b"<!doctype html>", "markup"),
        (b"hello, this is no model at all", "no ONNX model"),
    ],
)
def test_a_foreign_file_is_named(tmp_path, data, word):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(mw.BadModel, match=word) as caught:
        mw.ort.session(path)
    assert caught.value.kind == "foreign"
    assert kind(data) == "foreign"


def test_an_unreadable_model_is_the_systems_error(tmp_path, tiny):
    with pytest.raises(FileNotFoundError):
        mw.ort.session(tmp_path / "none.onnx")
    with pytest.raises(IsADirectoryError):
        mw.ort.session(tmp_path)
    with pytest.raises(TypeError, match="path or bytes"):
        mw.ort.session(17)
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        tiny = tmp_path / "shut.onnx"
        tiny.write_bytes(b"")
        tiny.chmod(0)
        with pytest.raises(PermissionError):
            mw.ort.session(tiny)


@PROFILES
def test_missing_and_short_external_data_are_named(models, tmp_path, profile):
    model = tmp_path / "apart.onnx"
    model.write_bytes((models / "apart.onnx").read_bytes())
    with pytest.raises(mw.BadModel, match=r"needs apart\.data beside it, which is missing"):
        mw.ort.session(model, profile)
    data = (models / "apart.data").read_bytes()
    (tmp_path / "apart.data").write_bytes(data[:-1])
    with pytest.raises(mw.BadModel, match="it is cut off"):
        mw.ort.session(model, profile)
    assert kind(model.read_bytes(), profile) == "external-data"
    (tmp_path / "apart.data").write_bytes(data)
    with mw.ort.session(model, profile) as session:
        session.run(None, FEED)


@PROFILES
def test_operators_that_nobody_registered_are_named(profile):
    model = node_model("Sparkle", "com.example")
    with pytest.raises(mw.BadModel, match=r"com\.example:Sparkle") as caught:
        mw.ort.session(model, profile)
    assert caught.value.kind == "custom-ops"
    assert kind(node_model("Identity"), custom_ops=["/no/such/lib.so"]) == "custom-ops"


def test_what_the_runtime_refuses_is_chained():
    fake = FakeRuntime()
    fake.fails = [RuntimeError("[ONNXRuntimeError] : 10 : INVALID_GRAPH : no")]
    with pytest.raises(mw.BadModel) as caught:
        mw.ort.session(node_model("Identity"), runtime=fake)
    assert caught.value.kind == "refused"
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_more_than_a_protobuf_message_may_have_is_told_before_it_is_read(tmp_path, tiny):
    path = tmp_path / "large.onnx"
    path.write_bytes(tiny.read_bytes())
    os.truncate(path, _wire.MOST + 1)
    with pytest.raises(mw.BadModel, match="external data"):
        mw.ort.session(path)
    assert kind(path) == "too-large"

    class Large(bytes):
        def __len__(self):
            return _wire.MOST + 1

    # Two gibibytes of zeros that nobody touches.
    code = """
import memweir as mw
try:
    mw.ort.session(bytes(1 << 31))
except mw.BadModel as error:
    assert error.kind in ("too-large", "foreign"), error
    print(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@PROFILES
def test_a_model_that_is_replaced_while_it_is_mapped_goes_on_and_the_next_is_the_new_one(
    tmp_path, profile
):
    path = tmp_path / "model.onnx"
    save(path, TINY, seed=1)
    with mw.ort.session(path, profile) as first:
        (before,) = first.run(None, FEED)
        save(tmp_path / "next.onnx", TINY, seed=2)
        (tmp_path / "next.onnx").replace(path)
        assert np.array_equal(first.run(None, FEED)[0], before)
        with mw.ort.session(path, profile) as second:
            assert not np.array_equal(second.run(None, FEED)[0], before)
        first.offload()
        assert np.array_equal(first.run(None, FEED)[0], before)


def test_the_reader_finds_what_it_looks_for(models):
    apart = _wire.read_file(Path(models / "apart.onnx"))
    assert apart.external == {"apart.data": (models / "apart.data").stat().st_size}
    assert ("", "LayerNormalization") in apart.ops
    assert apart.random_ops() == []
    noise = _wire.read_bytes(node_model("RandomNormalLike"))
    assert noise.random_ops() == ["RandomNormalLike"]
    assert _wire.read_bytes(node_model("A", "b.c")).foreign_ops() == ["b.c:A"]


def test_subgraphs_and_functions_are_read(tmp_path):
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    inner = helper.make_graph(
        [helper.make_node("RandomUniformLike", ["x"], ["z"])],
        "inner",
        [],
        [value("z", TensorProto.FLOAT, [3])],
    )
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [branch, helper.make_node("Mine", ["x"], ["w"], domain="own")],
        "outer",
        [value("x", TensorProto.FLOAT, [3]), value("c", TensorProto.BOOL, [])],
        [value("y", TensorProto.FLOAT, [3])],
    )
    own = helper.make_function(
        "own",
        "Mine",
        ["a"],
        ["b"],
        [helper.make_node("Bernoulli", ["a"], ["b"])],
        [helper.make_opsetid("", 20)],
    )
    model = helper.make_model(graph, functions=[own], opset_imports=[helper.make_opsetid("", 20)])
    facts = _wire.read_bytes(model.SerializeToString())
    assert facts.random_ops() == ["Bernoulli", "RandomUniformLike"]
    assert facts.foreign_ops() == []
