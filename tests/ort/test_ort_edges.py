"""Folders and files of others, changes at the wrong moment, and what is asked for and not got."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from ort_kit import ROOT, FakeRuntime, node_model

import memweir as mw
from memweir.cli.demo.encoder import TINY, inputs, save
from memweir.ort import _lock, build, prepacked

FEED = inputs(40, shape=TINY)
IDENTITY = node_model("Identity")


def test_folders_of_others_are_not_cleaned_away(tiny, tmp_path):
    theirs = ("removed-photos", "building-plans", "prepacked-lunch")
    for name in theirs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("")
        os.utime(tmp_path / name, (0, 0))
    made = mw.ort.prepack(tiny, tmp_path)
    # One of theirs that looks as if it could be listed.
    shutil.copytree(made.folder, tmp_path / "prepacked-copy")
    assert [one.key for one in mw.ort.cached(tmp_path)] == [made.key]
    mw.ort.clean(tmp_path)
    for name in theirs:
        assert (tmp_path / name / "precious").exists(), name
    assert (tmp_path / "prepacked-copy").exists()
    assert not made.folder.exists()


def test_a_model_that_is_replaced_while_it_is_built_is_not_kept_for_the_old_one(
    tmp_path, monkeypatch
):
    path = tmp_path / "model.onnx"
    save(path, TINY, seed=1)
    old = path.read_bytes()
    real = build._child

    def replaced(job):
        save(tmp_path / "next.onnx", TINY, seed=2)
        (tmp_path / "next.onnx").replace(path)
        return real(job)

    monkeypatch.setattr(build, "_child", replaced)
    with pytest.raises(mw.NotPrepacked, match="changed while it was built"):
        mw.ort.prepack(path)
    monkeypatch.undo()
    path.write_bytes(old)
    plain = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with mw.ort.session(path, "lean") as session:
        assert np.array_equal(session.run(None, FEED)[0], plain.run(None, FEED)[0])


def test_one_that_is_cleaned_away_before_it_is_opened_is_done_without(tiny, monkeypatch):
    real = build.prepack_of

    def cleaned(*arguments, **more):
        found = real(*arguments, **more)
        assert mw.ort.clean().removed
        return found

    monkeypatch.setattr(build, "prepack_of", cleaned)
    with mw.ort.session(tiny, "lean") as session:
        assert "could not be opened" in session.settings.as_dict()["left_out"]["prepacked"]
        assert "prepacked" not in session.settings
        assert session.size.mapped == 0
        session.run(None, FEED)


def test_entries_of_the_configuration_are_part_of_what_is_built(tiny):
    plain = mw.ort.session(tiny, "lean")
    key = "optimization.enable_gelu_approximation"
    with plain, mw.ort.session(tiny, "lean", config={key: "1"}) as other:
        assert other.settings[key] == "1"
        assert plain.settings["prepacked"] != other.settings["prepacked"]
        ours = other.run(None, FEED)[0]
    with mw.ort.session(tiny, config={key: "1"}) as wanted:
        assert np.array_equal(wanted.run(None, FEED)[0], ours)
    with mw.ort.session(tiny) as exact:
        assert not np.array_equal(exact.run(None, FEED)[0], ours)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_have_the_lock(tmp_path):
    # Else its parent could be killed, and the lock stay with a child that knows nothing of it.
    with _lock.held(tmp_path / "a.lock"):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                names = [
                    str(Path(f"/proc/self/fd/{number}").readlink()) for number in _descriptors()
                ]
                code = int(any(name.endswith("a.lock") for name in names))
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with _lock.held(tmp_path / "a.lock", wait=False) as again:
            assert not again


def _descriptors():
    for number in range(1024):
        try:
            os.fstat(number)
        except OSError:
            continue
        yield number


def test_a_lock_ends_with_its_holder_whoever_else_has_the_descriptor(tmp_path):
    copies = []
    try:
        with _lock.held(tmp_path / "a.lock"):
            copies += [os.dup(number) for number in _descriptors() if _is(number, tmp_path)]
            assert copies
        with _lock.held(tmp_path / "a.lock", wait=False) as mine:
            assert mine
    finally:
        for number in copies:
            os.close(number)


def _is(number, folder):
    return os.path.samestat(os.fstat(number), (folder / "a.lock").stat())


def test_the_bound_holds_when_two_are_built_at_a_time(tiny, models, monkeypatch):
    # Each is still locked by its builder when the other looks for room within its own lock.
    first = mw.ort.prepack(tiny)
    locked = []
    real = prepacked.make_room

    def looked(folder, keep, limit):
        with _lock.held(Path(f"{prepacked.entry(folder, keep)}.lock"), wait=False) as free:
            locked.append(not free)
        real(folder, keep, limit)

    monkeypatch.setattr(build, "make_room", looked)
    mw.ort.prepack(models / "apart.onnx", limit=first.nbytes * 3 // 2)
    assert locked == [False]
    assert len(mw.ort.cached()) == 1


def test_one_that_cannot_be_removed_is_left(tiny, monkeypatch):
    made = mw.ort.prepack(tiny)

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(prepacked, "discard", refused)
    assert mw.ort.clean().busy == 1
    assert made.folder.exists()


def test_a_user_without_a_home_runs_without(tiny, monkeypatch):
    def homeless(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", homeless)
    with mw.ort.session(tiny, "lean") as session:
        assert "home" in session.settings.as_dict()["left_out"]["prepacked"]
        session.run(None, FEED)


def test_a_relative_cache_home_is_ignored_as_its_standard_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert mw.ort.cache_folder() == tmp_path / ".cache/memweir/ort"


def test_modules_in_the_working_folder_are_not_the_builders(tiny, tmp_path):
    for name in ("json", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not mine')")
    code = """
import os, sys
import memweir as mw, onnxruntime
assert "" not in sys.path[1:]
sys.path[:] = [one for one in sys.path if one]
os.chdir(sys.argv[2])
assert mw.ort.prepack(sys.argv[1], sys.argv[2]).built
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tiny), str(tmp_path)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        timeout=120,
    )


@pytest.mark.parametrize("profile", ["balanced", "lean"])
def test_a_missing_library_of_operators_is_the_same_error_in_every_profile(profile):
    with pytest.raises(mw.BadModel) as caught:
        mw.ort.session(IDENTITY, profile, custom_ops=["/no/such/lib.so"])
    assert caught.value.kind == "custom-ops"


@pytest.mark.parametrize("name", ["/dev/zero", "pipe", "folder", "nul\0"])
def test_weights_that_are_no_file_are_refused_before_they_are_read(tmp_path, name):
    from onnx import TensorProto, helper

    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    weight = TensorProto(name="w", dims=[3], data_type=TensorProto.FLOAT)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", "0")):
        weight.external_data.add(key=key, value=value)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "one",
        [value("x", TensorProto.FLOAT, [3])],
        [value("y", TensorProto.FLOAT, [3])],
        initializer=[weight],
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(mw.BadModel) as caught:
        mw.ort.session(path)
    assert caught.value.kind == "external-data"


def test_35_providers_that_can_be_read_only_once_are_checked_too():
    fake = FakeRuntime()
    fake.available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.raises(mw.BadModel, match="CUDAExecutionProvider was asked for"):
        mw.ort.session(IDENTITY, runtime=fake, providers=iter(fake.available))
    with pytest.raises(TypeError, match="providers is a list"):
        mw.ort.session(IDENTITY, runtime=fake, providers="CUDAExecutionProvider")


def test_35_providers_that_are_asked_for_later_are_never_the_cpu_instead(tiny):
    with mw.ort.session(tiny) as session:
        with pytest.raises(mw.BadModel, match="CUDAExecutionProvider") as caught:
            session.set_providers(["CUDAExecutionProvider", "CPUExecutionProvider"])
        assert caught.value.kind == "providers"
        session.run(None, FEED)


def test_run_options_serve_sessions_with_and_without_an_arena(tiny):
    options = ort.RunOptions()
    key = "memory.enable_memory_arena_shrinkage"
    with mw.ort.session(tiny) as arena, mw.ort.session(tiny, "arena_off") as none:
        for _ in range(2):
            arena.run(None, FEED, options)
            assert options.get_run_config_entry(key) == "cpu:0"
            none.run(None, FEED, options)


@pytest.mark.parametrize(
    "method", ["get_inputs", "get_outputs", "get_overridable_initializers", "get_modelmeta"]
)
def test_what_a_session_told_of_itself_does_not_keep_it_alive(tiny, method):
    plain = getattr(ort.InferenceSession(str(tiny), providers=["CPUExecutionProvider"]), method)()
    session = mw.ort.session(tiny, trim=False)
    told = getattr(session, method)()
    assert session.close().held is None
    if isinstance(plain, list):
        assert [(one.name, one.type, one.shape) for one in told] == [
            (one.name, one.type, one.shape) for one in plain
        ]
    else:
        names = [name for name in dir(plain) if not name.startswith("_")]
        assert "custom_metadata_map" in names
        assert all(getattr(told, name) == getattr(plain, name) for name in names)
