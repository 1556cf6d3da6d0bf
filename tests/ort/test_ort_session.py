"""What a session is: its profiles, what it was set to, and what it runs."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from ort_kit import FakeOptions, FakeRuntime, OldOptions, node_model

import memweir as mw
from memweir.cli.demo.encoder import TINY, inputs
from memweir.ort import _runtime, opening
from memweir.ort.profiles import PROFILES, plan
from memweir.process import cpus

FEED = inputs(40, shape=TINY)
IDENTITY = node_model("Identity")
CPU = ["CPUExecutionProvider"]


def test_30_one_factory_makes_the_options_of_every_profile():
    fake = FakeRuntime()
    for profile in PROFILES:
        mw.ort.session(IDENTITY, profile, runtime=fake, threads=3, prepacked=False).close()
    made = dict(zip(PROFILES, (options for _, options, _, _ in fake.asked), strict=True))
    ours = {f"session.{kind}_op.allow_spinning": "0" for kind in ("intra", "inter")}
    ours["session.use_device_allocator_for_initializers"] = "1"
    assert all(options.intra_op_num_threads == 3 for options in made.values())
    assert made["balanced"].entries == made["lean"].entries == ours
    assert not made["arena_off"].enable_cpu_mem_arena
    assert not made["arena_off"].enable_mem_pattern
    untouched = FakeOptions()
    untouched.intra_op_num_threads = 3
    assert vars(made["default"]) == vars(untouched)


def test_30_overrides_are_explicit_and_unknown_ones_are_refused():
    fake = FakeRuntime()
    session = mw.ort.session(
        IDENTITY, runtime=fake, spinning=True, config={"a.b": "1"}, optimization="basic"
    )
    options = fake.asked[0][1]
    assert options.entries["session.intra_op.allow_spinning"] == "1"
    assert options.entries["a.b"] == "1"
    assert options.graph_optimization_level == "basic"
    assert session.settings["optimization"] == "basic"
    assert session.settings["a.b"] == "1"
    for wrong, error in (
        ({"arenas": True}, TypeError),
        ({"arena": 1}, TypeError),
        ({"optimization": "most"}, ValueError),
        ({"threads": 0}, ValueError),
        ({"threads": True}, TypeError),
        ({"config": {"a": 1}}, TypeError),
        ({"custom_ops": "lib.so"}, TypeError),
        ({"log_severity": 9}, ValueError),
    ):
        with pytest.raises(error):
            mw.ort.session(IDENTITY, runtime=fake, **wrong)
    with pytest.raises(ValueError, match="no profile 'fast'; there are balanced"):
        mw.ort.session(IDENTITY, "fast", runtime=fake)


def test_28_what_a_runtime_lacks_is_an_outcome():
    session = mw.ort.session(IDENTITY, "lean", runtime=FakeRuntime(OldOptions), prepacked=False)
    told = session.settings.as_dict()
    assert told["left_out"]["arena"] == "this runtime does not know it"
    assert "no such key" in told["left_out"]["device_initializers"]
    assert "arena" not in session.settings
    assert session.settings.get("arena") is None
    assert "arena = True not set (this runtime does not know it)" in str(session.settings)
    (scores,) = session.run(None, {})
    assert scores.shape == (3,)


def test_31_threads_come_from_the_cpuset_and_the_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(cpus, "usable", lambda: 16)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    inner = tmp_path / "sys/fs/cgroup/a/b"
    inner.mkdir(parents=True)
    assert cpus.processors(tmp_path) == 16
    (inner / "cpu.max").write_text("max 100000\n")
    assert cpus.processors(tmp_path) == 16
    (inner / "cpu.max").write_text("250000 100000\n")
    assert cpus.processors(tmp_path) == 3
    # Of a group around it.
    (inner.parent / "cpu.max").write_text("50000 100000\n")
    assert cpus.processors(tmp_path) == 1
    monkeypatch.setattr(cpus, "quota", lambda root: 5.0)
    assert plan("balanced", None, {}).threads == 5
    assert plan("lean", 2, {}).threads == 2
    assert plan("default", None, {}).threads is None


def test_31_version_1_of_cgroups_grants_in_two_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cpus, "usable", lambda: 16)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("7:memory:/m\n3:cpu,cpuacct:/c\n")
    group = tmp_path / "sys/fs/cgroup/cpu,cpuacct/c"
    group.mkdir(parents=True)
    (group / "cpu.cfs_period_us").write_text("100000\n")
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpus.processors(tmp_path) == 16
    (group / "cpu.cfs_quota_us").write_text("400000\n")
    assert cpus.processors(tmp_path) == 4


def test_33_onnxruntime_is_found_when_it_is_needed_and_a_fake_can_take_its_place():
    code = """
import sys
import memweir as mw
assert "onnxruntime" not in sys.modules
sys.path.insert(0, "tests/ort")
from ort_kit import FakeRuntime, node_model
with mw.ort.session(node_model("Identity"), runtime=FakeRuntime()) as session:
    session.run(None, {})
assert "onnxruntime" not in sys.modules
sys.modules["onnxruntime"] = None
try:
    mw.ort.session(node_model("Identity"))
except ModuleNotFoundError as error:
    assert "pip install 'memweir[onnx]'" in str(error)
else:
    raise AssertionError("it was found")
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)


def test_34_no_module_takes_the_name_of_another_package():
    assert mw.ort.__name__ == "memweir.ort"
    assert not hasattr(sys.modules.get("ort"), "session")
    assert Path(ort.__file__).parent.name == "onnxruntime"
    folder = Path(mw.ort.__file__).parent
    assert not {"onnx.py", "onnxruntime.py", "numpy.py"} & {one.name for one in folder.iterdir()}


def test_27_no_foreign_function_is_declared_in_python():
    for file in Path(mw.ort.__file__).parent.glob("*.py"):
        assert "ctypes" not in file.read_text(), file


class TestProviders:
    def gpu(self) -> FakeRuntime:
        fake = FakeRuntime()
        fake.available = ["CUDAExecutionProvider", *CPU]
        return fake

    def test_35_without_a_word_it_is_what_the_runtime_chooses_and_it_is_shown(self):
        fake = self.gpu()
        fake.uses = fake.available
        session = mw.ort.session(IDENTITY, runtime=fake)
        assert fake.asked[0][2] is None
        assert session.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
        assert session.settings["providers"] == fake.available

    def test_35_a_gpu_that_was_asked_for_is_never_the_cpu_instead(self):
        with pytest.raises(mw.BadModel, match="CUDAExecutionProvider was asked for") as caught:
            mw.ort.session(
                IDENTITY, runtime=self.gpu(), providers=[("CUDAExecutionProvider", {}), *CPU]
            )
        assert caught.value.kind == "providers"

    def test_35_a_gpu_that_is_there_and_fails_is_told_of(self):
        with pytest.warns(RuntimeWarning, match="CUDAExecutionProvider could not be used"):
            session = mw.ort.session(IDENTITY, runtime=self.gpu())
        assert "the session runs on CPUExecutionProvider" in session.settings.notes[0]

    def test_35_the_runtimes_own_fallback_is_off(self):
        fake = self.gpu()
        with pytest.warns(RuntimeWarning):
            mw.ort.session(IDENTITY, runtime=fake)
        assert fake.asked[0][3] == 0

    def test_35_versions_that_want_names_get_all_in_the_runtimes_order(self):
        fake = self.gpu()
        fake.uses = fake.available
        fake.fails = [ValueError("required to explicitly set the providers parameter")]
        assert mw.ort.session(IDENTITY, runtime=fake).providers[0] == "CUDAExecutionProvider"
        assert fake.asked[1][2] == fake.available

    def test_weights_are_not_packed_for_a_gpu(self):
        fake = self.gpu()
        fake.uses = fake.available
        session = mw.ort.session(IDENTITY, "lean", runtime=fake)
        left = session.settings.as_dict()["left_out"]
        assert "CUDAExecutionProvider has its own" in left["prepacked"]


def test_51_idle_threads_do_not_spin(tiny):
    with mw.ort.session(tiny, threads=2) as session:
        options = session.get_session_options()
        for kind in ("intra", "inter"):
            key = f"session.{kind}_op.allow_spinning"
            assert options.get_session_config_entry(key) == "0"
            assert session.settings[f"{kind}_op_spinning"] is False


@pytest.mark.parametrize("name", ["tiny.onnx", "apart.onnx"])
def test_outputs_are_the_same_bits_in_every_profile(models, name):
    plain = ort.InferenceSession(str(models / name), providers=CPU)
    feeds = [inputs(tokens, shape=TINY) for tokens in (1, 2, 77, 512)]
    wanted = [plain.run(None, feed)[0] for feed in feeds]
    for profile in PROFILES:
        with mw.ort.session(models / name, profile) as session:
            for feed, scores in zip(feeds, wanted, strict=True):
                assert session.run(None, feed)[0].tobytes() == scores.tobytes()


def test_code_for_an_inference_session_takes_it(tiny):
    with mw.ort.session(tiny, "lean", threads=2) as session:
        (wanted,) = session.run(["scores"], FEED)
        assert [one.name for one in session.get_inputs()] == ["input_ids", "attention_mask"]
        assert session.get_outputs()[0].name == "scores"
        assert session.get_providers() == CPU
        assert session.get_modelmeta().graph_name == "encoder"
        binding = session.io_binding()
        for name, value in FEED.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("scores")
        session.run_with_iobinding(binding)
        assert np.array_equal(binding.copy_outputs_to_cpu()[0], wanted)
        values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in FEED.items()}
        (found,) = session.run_with_ort_values(["scores"], values)
        assert np.array_equal(found.numpy(), wanted)
        came, rang = [], threading.Event()

        def callback(results, data, error):
            came.append((results, data, error))
            rang.set()

        session.run_async(["scores"], FEED, callback, "mine")
        assert rang.wait(30)
        ((results, data, error),) = came
        assert data == "mine"
        assert error == ""
        assert np.array_equal(results[0], wanted)
        with pytest.raises(AttributeError):
            _ = session.no_such_thing
    # A session outlives nothing of what it gave.
    assert np.array_equal(found.numpy(), wanted)


def test_the_callers_run_options_hold_and_keep_the_profiles_beside_them():
    fake = FakeRuntime()
    key = "memory.enable_memory_arena_shrinkage"
    session = mw.ort.session(IDENTITY, "lean", runtime=fake, prepacked=False)
    session.run(None, {})
    mine = FakeOptions()
    session.run(None, {}, mine)
    theirs = FakeOptions()
    theirs.add_run_config_entry(key, "cpu:0;gpu:0")
    session.run(None, {}, theirs)
    assert [options.entries for options in fake.ran] == [
        {key: "cpu:0"},
        {key: "cpu:0"},
        {key: "cpu:0;gpu:0"},
    ]


def test_real_run_options_take_the_profiles_entries(tiny):
    key = "memory.enable_memory_arena_shrinkage"
    with mw.ort.session(tiny) as session:
        options = ort.RunOptions()
        session.run(None, FEED, options)
        assert options.get_run_config_entry(key) == "cpu:0"


def test_an_arena_that_is_off_is_not_shrunk(tiny):
    with mw.ort.session(tiny, arena=False) as session:
        assert session.settings.as_dict()["left_out"]["shrink"] == "there is no arena to shrink"
        session.run(None, FEED)


def test_the_profile_comes_from_the_settings():
    fake = FakeRuntime()
    try:
        mw.configure(session_profile="arena_off")
        assert mw.ort.session(IDENTITY, runtime=fake).settings.profile == "arena_off"
        assert mw.ort.session(IDENTITY, "default", runtime=fake).settings.profile == "default"
    finally:
        mw.settings.use(None)


def test_arena_off_is_refused_on_windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match="refused on Windows"):
        plan("arena_off", 1, {})
    assert plan("arena_off", 1, {"arena": True}).arena is True


def test_lean_says_what_an_untuned_heap_costs(monkeypatch):
    from memweir.ort import advice

    monkeypatch.setattr(advice._core, "heap_allocator", lambda: ("glibc", "2.36", None))
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr(advice, "tuned", lambda: None)
    session = mw.ort.session(IDENTITY, "lean", runtime=FakeRuntime(), prepacked=False)
    assert not session.settings.notes  # nothing is pre-packed
    (note,) = advice.untuned()
    assert 'mw.tune("models") was not called' in note
    assert "MiB" in note
    report = mw.tune("models")
    monkeypatch.setattr(advice, "tuned", lambda: report)
    late = mw.TuneReport(report.allocator, "models", (), "64 MiB were there")
    monkeypatch.setattr(advice, "tuned", lambda: late)
    assert "came too late" in advice.untuned()[0]
    monkeypatch.setattr(advice._core, "heap_allocator", lambda: ("jemalloc", "5", None))
    assert advice.untuned() == []


def test_bytes_are_not_kept_with_the_session(tiny):
    data = tiny.read_bytes()
    with mw.ort.session(data) as session:
        assert session._inner()._model_bytes is None
        session.run(None, FEED)
        with pytest.raises(ValueError, match="bytes, which are not kept"):
            session.set_providers(CPU)
    with mw.ort.session(tiny) as session:
        session.set_providers(CPU)
        session.run(None, FEED)


def test_the_version_is_read_whatever_it_looks_like():
    assert _runtime.version(FakeRuntime(version="1.21.0")) == (1, 21)
    assert _runtime.version(FakeRuntime(version="2.0.dev3")) == (2, 0)
    assert _runtime.version(FakeRuntime(version="unknown")) == (0, 0)
    assert opening.session is mw.ort.session
