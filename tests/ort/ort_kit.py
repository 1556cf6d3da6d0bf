"""Models to open, a runtime that does as it is told, and processes that look at themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]


def node_model(op: str, domain: str = "", inputs: int = 1, **attributes: Any) -> bytes:
    """A model of one operator between x and y of three floats."""
    from onnx import TensorProto, helper

    names = ["x", "w", "v"][:inputs]
    node = helper.make_node(op, names, ["y"], domain=domain, **attributes)
    value = helper.make_tensor_value_info
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]) for name in names[1:]
    ]
    graph = helper.make_graph(
        [node],
        "one",
        [value("x", TensorProto.FLOAT, [3])],
        [value("y", TensorProto.FLOAT, [3])],
        initializer=weights,
    )
    opsets = [helper.make_opsetid("", 20)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return bytes(made.SerializeToString())


def child(code: str, *arguments: object, **env: str) -> Any:
    """What a fresh process prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'python'}:{ROOT}:{ROOT / 'tests/ort'}", **env},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


class FakeOptions:
    """Session or run options of a version that knows everything."""

    def __init__(self) -> None:
        self.intra_op_num_threads = 0
        self.inter_op_num_threads = 0
        self.enable_cpu_mem_arena = True
        self.enable_mem_pattern = True
        self.log_severity_level = 2
        self.graph_optimization_level = "all"
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def get_run_config_entry(self, key: str) -> str:
        return self.entries[key]


class OldOptions:
    """Of a version without the arena's switch, whose entries it does not take."""

    __slots__ = ("inter_op_num_threads", "intra_op_num_threads")

    def __init__(self) -> None:
        self.intra_op_num_threads = self.inter_op_num_threads = 0

    def add_session_config_entry(self, key: str, value: str) -> None:
        raise RuntimeError(f"no such key: {key}")

    def add_run_config_entry(self, key: str, value: str) -> None: ...


class FakeSession:
    """A session that runs what its runtime says."""

    def __init__(self, fake: FakeRuntime, model: Any, options: Any, providers: Any) -> None:
        self.fake, self.options = fake, options
        self.chosen = list(fake.uses if providers is None else providers)
        self.chosen = [name for name in self.chosen if name in fake.uses]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x", type="tensor(float)", shape=[3])]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="y")]

    def get_providers(self) -> list[str]:
        return self.chosen

    def run(self, names: Any, feed: Any, options: Any = None) -> Any:
        self.fake.ran.append(options)
        return self.fake.runs(feed)


class FakeRuntime:
    """A module in the place of onnxruntime."""

    def __init__(self, options: type = FakeOptions, version: str = "1.99.0") -> None:
        self.__version__ = version
        self.SessionOptions = options
        self.RunOptions = FakeOptions
        self.GraphOptimizationLevel = SimpleNamespace(
            ORT_ENABLE_ALL="all", ORT_DISABLE_ALL="none", ORT_ENABLE_BASIC="basic"
        )
        self.available = ["CPUExecutionProvider"]
        self.uses = ["CPUExecutionProvider"]
        self.asked: list[Any] = []
        self.ran: list[Any] = []
        self.fails: list[Exception] = []
        self.runs = lambda feed: [np.zeros(3, np.float32)]

    def get_available_providers(self) -> list[str]:
        return self.available

    def InferenceSession(  # noqa: N802  the runtime's name
        self, model: Any, options: Any, providers: Any = None, enable_fallback: int = 1
    ) -> FakeSession:
        self.asked.append((model, options, providers, enable_fallback))
        if self.fails:
            raise self.fails.pop(0)
        return FakeSession(self, model, options, providers)
