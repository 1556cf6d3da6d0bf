"""A BERT-shaped encoder with seeded weights: a real model's shape and size, and no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["FULL", "TINY", "Shape", "inputs", "save"]


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the encoder is."""

    layers: int = 6
    hidden: int = 768
    inner: int = 3072
    heads: int = 12
    words: int = 12_000
    positions: int = 512


FULL = Shape()
"""199 MiB of float32."""
TINY = Shape(layers=2, hidden=64, inner=256, heads=4, words=1000)


def save(path: Path, shape: Shape = FULL, *, external: bool = False, seed: int = 7) -> None:
    """Writes the encoder as ONNX; with ``external`` its weights beside it, as ``NAME.data``."""
    import onnx

    model = _Builder(shape, seed).model()
    if external:
        onnx.save(
            model,
            path,
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=f"{path.stem}.data",
            size_threshold=1024,
        )
    else:
        onnx.save(model, path)


def inputs(tokens: int, batch: int = 1, seed: int = 0, shape: Shape = FULL) -> dict[str, Any]:
    """Inputs of so many tokens."""
    words = np.random.default_rng([seed, tokens, batch]).integers(0, shape.words, (batch, tokens))
    return {"input_ids": words, "attention_mask": np.ones_like(words)}


class _Builder:
    """Nodes and weights as they come."""

    def __init__(self, shape: Shape, seed: int) -> None:
        from onnx import helper, numpy_helper

        self.helper: Any = helper
        self.tensor: Any = numpy_helper.from_array
        self.shape = shape
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        self.weights.append(self.tensor(np.asarray(value, dtype), name))
        return name

    def weight(self, name: str, *sizes: int) -> str:
        values = self.rng.standard_normal(sizes, dtype=np.float32) * np.float32(0.02)
        return self.constant(name, values, np.float32)

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        made = self.helper.make_node(op, list(inputs), [output], name=f"{output}/{op}")
        made.attribute.extend(
            self.helper.make_attribute(name, value) for name, value in attributes.items()
        )
        self.nodes.append(made)
        return output

    def linear(self, x: str, name: str, wide: int, out: int) -> str:
        product = self.node("MatMul", [x, self.weight(f"{name}.weight", wide, out)], f"{name}.mm")
        return self.node("Add", [product, self.weight(f"{name}.bias", out)], f"{name}.out")

    def norm(self, x: str, name: str) -> str:
        size = self.shape.hidden
        scale = self.constant(f"{name}.scale", np.ones(size), np.float32)
        bias = self.constant(f"{name}.shift", np.zeros(size), np.float32)
        return self.node("LayerNormalization", [x, scale, bias], f"{name}.out", axis=-1)

    def attention(self, x: str, name: str) -> str:
        size, parts = self.shape.hidden, {}
        for part, order in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
            made = self.linear(x, f"{name}.{part}", size, size)
            split = self.node("Reshape", [made, "to_heads"], f"{name}.{part}.split")
            parts[part] = self.node("Transpose", [split], f"{name}.{part}.heads", perm=order)
        scores = self.node("MatMul", [parts["q"], parts["k"]], f"{name}.scores")
        scores = self.node("Div", [scores, "root"], f"{name}.scaled")
        scores = self.node("Add", [scores, "bias"], f"{name}.masked")
        scores = self.node("Softmax", [scores], f"{name}.shares", axis=-1)
        mixed = self.node("MatMul", [scores, parts["v"]], f"{name}.mixed")
        mixed = self.node("Transpose", [mixed], f"{name}.turned", perm=(0, 2, 1, 3))
        mixed = self.node("Reshape", [mixed, "from_heads"], f"{name}.joined")
        return self.linear(mixed, f"{name}.o", size, size)

    def embedded(self) -> str:
        size = self.shape.hidden
        words = self.weight("words", self.shape.words, size)
        places = self.weight("places", self.shape.positions, size)
        found = self.node("Gather", [words, "input_ids"], "words.out")
        sizes = self.node("Shape", ["input_ids"], "sizes")
        length = self.node("Gather", [sizes, "one"], "length", axis=0)
        numbers = self.node("Range", ["zero", length, "one"], "numbers")
        placed = self.node("Gather", [places, numbers], "places.out")
        return self.norm(self.node("Add", [found, placed], "embedded"), "embedding")

    def model(self) -> Any:
        from onnx import TensorProto

        size, heads = self.shape.hidden, self.shape.heads
        self.constant("zero", 0)
        self.constant("one", 1)
        self.constant("middle", [1, 2])
        self.constant("last", [-1])
        self.constant("to_heads", [0, 0, heads, size // heads])
        self.constant("from_heads", [0, 0, size])
        self.constant("root", (size // heads) ** 0.5, np.float32)
        self.constant("unit", 1.0, np.float32)
        self.constant("far", -1e4, np.float32)
        mask = self.node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        mask = self.node("Unsqueeze", [mask, "middle"], "mask.wide")
        self.node("Mul", [self.node("Sub", ["unit", mask], "hidden"), "far"], "bias")
        x = self.embedded()
        for layer in range(self.shape.layers):
            name = f"layer{layer}"
            x = self.norm(
                self.node("Add", [x, self.attention(x, f"{name}.attention")], f"{name}.sum1"),
                f"{name}.norm1",
            )
            inner = self.linear(x, f"{name}.up", size, self.shape.inner)
            inner = self.node("Gelu", [inner], f"{name}.gelu")
            outer = self.linear(inner, f"{name}.down", self.shape.inner, size)
            x = self.norm(self.node("Add", [x, outer], f"{name}.sum2"), f"{name}.norm2")
        self.node("Squeeze", [self.linear(x, "head", size, 1), "last"], "scores")
        value = self.helper.make_tensor_value_info
        graph = self.helper.make_graph(
            self.nodes,
            "encoder",
            [
                value("input_ids", TensorProto.INT64, ["batch", "tokens"]),
                value("attention_mask", TensorProto.INT64, ["batch", "tokens"]),
            ],
            [value("scores", TensorProto.FLOAT, ["batch", "tokens"])],
            initializer=self.weights,
        )
        opset = self.helper.make_opsetid("", 20)
        return self.helper.make_model(graph, opset_imports=[opset], ir_version=9)
