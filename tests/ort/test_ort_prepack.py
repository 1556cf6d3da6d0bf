"""Pre-packed models: made once, proved, found again, and refused where they do not fit."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from ort_kit import ROOT, FakeRuntime, child, node_model

import memweir as mw
from memweir.cli.demo.encoder import TINY, inputs
from memweir.ort import _builder, build, keys, prepacked

FEED = inputs(40, shape=TINY)


def test_43_it_is_built_once_and_found_again(tiny, cache):
    first = mw.ort.prepack(tiny)
    assert first.built
    assert first.folder.parent == cache
    assert first.name == "tiny.onnx"
    assert first.runtime == ort.__version__
    assert first.nbytes == sum(path.stat().st_size for path in (first.model, first.weights))
    again = mw.ort.prepack(tiny)
    assert not again.built
    assert again.folder == first.folder
    assert [one.key for one in mw.ort.cached()] == [first.key]
    with mw.ort.session(tiny, "lean") as session:
        assert session.settings["prepacked"] == str(first.folder)
        assert session.size.mapped == first.mapped
        plain = ort.InferenceSession(str(tiny), providers=["CPUExecutionProvider"])
        assert session.run(None, FEED)[0].tobytes() == plain.run(None, FEED)[0].tobytes()


def test_43_bytes_and_external_data_are_pre_packed_too(models, cache):
    data = (models / "tiny.onnx").read_bytes()
    with mw.ort.session(data, "lean") as session:
        assert "built now" in str(session.settings)
        (one,) = session.run(None, FEED)
    with mw.ort.session(models / "apart.onnx", "lean") as session:
        assert np.array_equal(session.run(None, FEED)[0], one)
    assert len(mw.ort.cached()) == 2
    assert not list(cache.glob("building-*"))


def test_the_key_has_the_model_its_data_the_version_and_the_processor(
    models, tmp_path, monkeypatch
):
    from memweir.ort.opening import checked

    for name in ("apart.onnx", "apart.data"):
        shutil.copy(models / name, tmp_path / name)
    path = tmp_path / "apart.onnx"

    def key(optimization="all", runtime=ort):
        return keys.key_of(keys.parts_of(path, checked(path), runtime, optimization, ()))

    found = [key(), key("basic"), key(runtime=FakeRuntime(version="1.30.0"))]
    monkeypatch.setattr(keys, "features", lambda: "another processor")
    found.append(key())
    monkeypatch.undo()
    data = bytearray((tmp_path / "apart.data").read_bytes())
    data[100] ^= 1
    (tmp_path / "apart.data").write_bytes(data)
    found.append(key())
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("harm", ["weights", "model", "shorter", "manifest", "version", "cpu"])
def test_what_is_damaged_or_of_another_machine_is_built_anew(tiny, harm):
    made = mw.ort.prepack(tiny)
    manifest = made.folder / "manifest.json"
    told = json.loads(manifest.read_text())
    if harm in ("weights", "model"):
        path = made.weights if harm == "weights" else made.model
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif harm == "shorter":
        os.truncate(made.weights, made.weights.stat().st_size - 1)
    elif harm == "manifest":
        manifest.write_text("{")
    else:
        told["parts"]["runtime" if harm == "version" else "cpu"] = "another"
        manifest.write_text(json.dumps(told))
    again = mw.ort.prepack(tiny)
    assert again.built
    assert again.folder == made.folder
    with mw.ort.session(tiny, "lean") as session:
        session.run(None, FEED)


def test_threads_build_once(tiny, monkeypatch):
    built = []
    real = build._child
    monkeypatch.setattr(build, "_child", lambda job: built.append(job) or real(job))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: mw.ort.prepack(tiny), range(6)))
    assert len(built) == 1
    assert len({one.folder for one in found}) == 1


def test_processes_build_once(tiny, cache):
    code = """
import json, sys, memweir as mw
print(json.dumps(mw.ort.prepack(sys.argv[1]).built))
"""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tiny)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        )
        for _ in range(3)
    ]
    said = [json.loads(one.communicate(timeout=120)[0]) for one in running]
    assert sorted(said) == [False, False, True]


def test_other_outputs_are_never_kept(tiny, monkeypatch):
    real = _builder.same
    compared = []

    def same(one, other):
        if not isinstance(one, list):
            return real(one, other)
        # The first comparison is of the model with itself.
        compared.append(one)
        return len(compared) < 2

    monkeypatch.setattr(_builder, "same", same)
    monkeypatch.setattr(build, "_child", lambda job: _builder.work(job, ort))
    with pytest.raises(mw.NotPrepacked, match="other outputs") as caught:
        mw.ort.prepack(tiny)
    assert caught.value.kind == "mismatch"
    assert mw.ort.cached() == []
    compared.clear()
    with mw.ort.session(tiny, "lean") as session:
        assert "other outputs" in session.settings.as_dict()["left_out"]["prepacked"]
        session.run(None, FEED)


def test_the_proof_compares_bits():
    nan = np.array([np.nan, 0.0], np.float32)
    assert _builder.same([nan], [nan.copy()])
    assert not _builder.same([nan], [np.array([np.nan, -0.0], np.float32)])
    assert not _builder.same([nan], [nan.astype(np.float64)])
    assert not _builder.same([nan], [nan, nan])
    assert _builder.same({"a": nan}, {"a": nan.copy()})
    assert not _builder.same({"a": nan}, {"b": nan})


def test_random_operators_are_not_pre_packed(cache):
    model = node_model("RandomNormalLike")
    with pytest.raises(mw.NotPrepacked, match="RandomNormalLike") as caught:
        mw.ort.prepack(model)
    assert caught.value.kind == "random"
    with mw.ort.session(model, "lean") as session:
        assert "prepacked" not in session.settings
        assert session.run(None, {"x": np.ones(3, np.float32)})


def test_a_probe_of_the_callers_is_what_it_is_proved_on(tiny):
    wrong = {"input_ids": np.zeros((1, 4), np.int64)}
    with pytest.raises(mw.NotPrepacked, match="does not run on the probe") as caught:
        mw.ort.prepack(tiny, probe=wrong)
    assert caught.value.kind == "probe"
    assert mw.ort.prepack(tiny, probe=FEED).built


def test_a_runtime_that_ignores_the_key_is_told(cache):
    fake = FakeRuntime(version="1.20.1")
    session = mw.ort.session(node_model("Add", inputs=2), "lean", runtime=fake)
    left = session.settings.as_dict()["left_out"]["prepacked"]
    assert "1.20.1 ignores the key" in left
    assert "1.21 or newer" in left


def test_ort_format_is_not_pre_packed(tiny, tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(str(tiny), options, providers=["CPUExecutionProvider"])
    with mw.ort.session(tmp_path / "model.ort", "lean") as session:
        assert "ORT format" in session.settings.as_dict()["left_out"]["prepacked"]
        session.run(None, FEED)


def test_53_a_builder_that_dies_takes_nothing_with_it(tiny, monkeypatch, tmp_path):
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -SEGV $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(build.sys, "executable", str(dying))
    with pytest.raises(mw.NotPrepacked, match="ended with -11") as caught:
        mw.ort.prepack(tiny)
    assert caught.value.kind == "build"
    monkeypatch.setattr(build.sys, "executable", str(tmp_path / "none"))
    with mw.ort.session(tiny, "lean") as session:
        assert "no process could be started" in str(session.settings)


class TestDisk:
    def test_a_folder_that_cannot_be_made_is_a_reason(self, tiny, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(mw.NotPrepacked, match="cannot be used") as caught:
            mw.ort.prepack(tiny, tmp_path / "file" / "cache")
        assert caught.value.kind == "disk"
        with mw.ort.session(tiny, "lean", cache_dir="/proc/none") as session:
            assert "cannot be used" in session.settings.as_dict()["left_out"]["prepacked"]
            session.run(None, FEED)

    def test_a_full_disk_is_a_reason_before_it_is_filled(self, tiny, monkeypatch):
        usage = shutil.disk_usage("/")._replace(free=1000)
        monkeypatch.setattr(build.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(mw.NotPrepacked, match="left") as caught:
            mw.ort.prepack(tiny)
        assert caught.value.kind == "disk"

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a disk")
    def test_a_disk_that_fills_up_while_it_is_written_leaves_nothing(
        self, tiny, tmp_path, monkeypatch
    ):
        small = tmp_path / "small"
        small.mkdir()
        options = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
        if subprocess.run(options, capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
        try:
            roomy = shutil.disk_usage("/")._replace(free=1 << 40)
            monkeypatch.setattr(build.shutil, "disk_usage", lambda path: roomy)
            with pytest.raises(mw.NotPrepacked):
                mw.ort.prepack(tiny, small)
            assert mw.ort.cached(small) == []
            assert not list(small.glob("building-*"))
            with mw.ort.session(tiny, "lean", cache_dir=small) as session:
                session.run(None, FEED)
        finally:
            subprocess.run(["umount", str(small)], check=True)

    def test_a_folder_that_is_read_only_still_serves_what_is_in_it(self, tiny, cache):
        made = mw.ort.prepack(tiny)
        for path in (made.folder, cache):
            path.chmod(0o500)
        try:
            assert not mw.ort.prepack(tiny).built
        finally:
            for path in (made.folder, cache):
                path.chmod(0o700)


def test_the_folder_keeps_to_its_limit_and_the_least_used_goes_first(tmp_path):
    made = []
    for scale in (1.0, 2.0, 3.0):
        from onnx import TensorProto, helper

        weights = helper.make_tensor("w", TensorProto.FLOAT, [64, 64], [scale] * 4096)
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "one",
            [value("x", TensorProto.FLOAT, [None, 64])],
            [value("y", TensorProto.FLOAT, [None, 64])],
            initializer=[weights],
        )
        opset = helper.make_opsetid("", 20)
        data = helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()
        limit = None if not made else made[0].nbytes * 2 + 2000
        made.append(mw.ort.prepack(bytes(data), tmp_path, limit=limit))
        stamp = time.time() - 100 + len(made)
        os.utime(made[-1].folder / "manifest.json", (stamp, stamp))
    assert [one.key for one in mw.ort.cached(tmp_path)] == [one.key for one in made[1:]]
    with pytest.raises(mw.NotPrepacked, match="the limit is"):
        mw.ort.prepack(bytes(data) + b"", tmp_path / "other", limit=10)


def test_cleaning_removes_what_was_said_and_sessions_go_on(tiny, models, cache):
    made = mw.ort.prepack(tiny)
    other = mw.ort.prepack(models / "apart.onnx")
    with mw.ort.session(tiny, "lean") as session:
        (before,) = session.run(None, FEED)
        assert mw.ort.clean(unused=3600).removed == ()
        assert mw.ort.clean(stale=True).removed == ()
        # The session has used the other one last.
        cleaned = mw.ort.clean(limit=made.nbytes)
        assert [one.key for one in cleaned.removed] == [other.key]
        assert mw.ort.clean().kept == 0
        assert np.array_equal(session.run(None, FEED)[0], before)
    assert mw.ort.cached() == []
    assert not list(cache.glob("prepacked-*"))


def test_what_a_dead_builder_left_is_swept(tiny, cache):
    cache.mkdir(parents=True)
    key = "0" * 32
    fresh = f"building-{key}-2-b"
    for name, age in (
        (f"building-{key}-1-a", 7200),
        (fresh, 0),
        (f"removed-prepacked-{key}-3-c", 0),
    ):
        (cache / name).mkdir()
        os.utime(cache / name, (time.time() - age,) * 2)
    mw.ort.clean()
    assert {path.name for path in cache.iterdir()} == {fresh}


def test_what_somebody_opens_is_not_removed(tiny):
    from memweir.ort._lock import held

    made = mw.ort.prepack(tiny)
    with held(Path(f"{made.folder}.lock")) as mine:
        assert mine
        assert mw.ort.clean().busy == 1
    assert mw.ort.clean().kept == 0
    assert not Path(f"{made.folder}.lock").exists()


def test_55_workers_share_the_pages_of_weights_and_write_to_none(tiny):
    with mw.ort.session(tiny, "lean") as session:
        session.run(None, FEED)
        found = child(
            """
import json, sys, memweir as mw
from memweir.cli.demo.encoder import TINY, inputs
session = mw.ort.session(sys.argv[1], "lean")
session.run(None, inputs(40, shape=TINY))
sizes, inside = {}, False
for line in open("/proc/self/smaps"):
    name, _, rest = line.partition(":")
    if " " in name:
        inside = "weights.bin" in line
    elif inside and rest.strip().endswith("kB"):
        sizes[name] = sizes.get(name, 0) + int(rest.split()[0])
print(json.dumps(sizes))
""",
            tiny,
        )
    assert found["Rss"] > 0
    assert found["Pss"] < found["Rss"]
    assert found["Private_Dirty"] == found["Anonymous"] == 0


def test_57_an_offload_drops_resident_weights_and_the_session_goes_on(tiny):
    with mw.ort.session(tiny, "lean") as session:
        (before,) = session.run(None, FEED)
        report = session.offload()
        assert report.why is None
        assert report.released > 0
        assert report.dirty == 0
        assert session.offload().released == 0
        assert np.array_equal(session.run(None, FEED)[0], before)
    with mw.ort.session(tiny) as session:
        assert "not pre-packed" in session.offload().why


# An overlay has devices and inodes of its own, which a map of one of its files does not have.
OVERLAY = """
set -e
cd "$1"
mkdir -p below above merged
mount -t tmpfs none above
mkdir above/upper above/work
mount -t overlay none -o lowerdir=below,upperdir=above/upper,workdir=above/work merged
exec "$2" -c "$3" merged/weights
"""
DROP = """
import mmap, sys
from memweir import _core
with open(sys.argv[1], "rb") as file:
    weights = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
assert sum(weights[:: mmap.PAGESIZE]) == 16
print(*_core.drop_file_pages(sys.argv[1]))
"""


def test_57_pages_are_dropped_in_a_containers_overlay(tmp_path):
    (tmp_path / "below").mkdir()
    with (tmp_path / "below/weights").open("wb") as file:
        file.write(b"\1" * 16 * mmap.PAGESIZE)
        os.fsync(file.fileno())  # pages that are not on disk yet count as written to
    command = ["unshare", "-m", "sh", "-c", OVERLAY, "sh", str(tmp_path), sys.executable, DROP]
    env = {**os.environ, "PYTHONPATH": str(Path(mw.__file__).parents[1])}
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=60, env=env
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"nothing may be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(16 * mmap.PAGESIZE), "1", "0"]


def test_57_nothing_is_dropped_while_a_session_is_opened_or_closed(tiny):
    from memweir.ort.offload import changing

    with mw.ort.session(tiny, "lean") as session:
        session.run(None, FEED)
        with changing():
            assert "opened or closed" in session.offload().why
        assert session.offload().released > 0


def test_27_a_platform_that_cannot_drop_pages_says_so(tiny, monkeypatch):
    from memweir.ort import offload

    def refused(path):
        raise OSError(95, "Operation not supported")

    with mw.ort.session(tiny, "lean") as session:
        monkeypatch.setattr(offload._core, "drop_file_pages", refused)
        assert session.offload().why == "Operation not supported"


def test_the_default_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepacked.cache_folder() == tmp_path / ".cache/memweir/ort"
    assert prepacked.cache_folder("x") == Path("x").absolute()
    assert mw.ort.cached() == []
