"""lint: each slow path is reported, and clean graphs report nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_phi3 import VARIANTS, fused, quantized

onnx = pytest.importorskip("onnx")

from pocketphi.graph.lazy_weights import PartSpec  # noqa: E402 - only where onnx is installed
from pocketphi.targets.ort_mobile.lint import lint  # noqa: E402
from pocketphi.targets.ort_mobile.lower import Lowered, Placed, lower  # noqa: E402

FAST = {"bits": 4, "block_size": 32, "accuracy_level": 4}


def graph(kind: str, inputs: list[str], count: int = 1, **attributes: Any) -> Lowered:
    nodes = [onnx.helper.make_node(kind, inputs, [f"y{i}"], name=f"n{i}", **attributes) for i in range(count)]
    placed = [
        Placed("w.zero", "w:zero", (4, 1), PartSpec((4, 1), torch.uint8)),
        Placed("w.float", "w:float", (4, 2), PartSpec((4, 2), torch.float32)),
    ]
    return Lowered(nodes=nodes, weights=placed)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compiled_models_are_clean(variant: str, block: int, symmetric: bool) -> None:
    assert lint(lower(quantized(variant, block, symmetric))) == []


SLOW: dict[str, tuple[Lowered, str]] = {
    "float zero points": (
        graph("MatMulNBits", ["x", "q", "s", "w.float"], **FAST),
        "MatMulNBits with float zero points dequantizes the matrix at each call",
    ),
    "group index": (
        graph("MatMulNBits", ["x", "q", "s", "w.zero", "g"], **FAST),
        "MatMulNBits with a group index dequantizes the matrix at each call",
    ),
    "bits": (
        graph("MatMulNBits", ["x", "q", "s"], **{**FAST, "bits": 3}),
        "MatMulNBits has no kernel for 3 bits in blocks of 32",
    ),
    "2 bits": (
        graph("MatMulNBits", ["x", "q", "s"], **{**FAST, "bits": 2, "block_size": 16}),
        "MatMulNBits has no kernel for 2 bits in blocks of 16",
    ),
    "2 bits, float32": (
        graph("MatMulNBits", ["x", "q", "s"], **{**FAST, "bits": 2, "accuracy_level": 0}),
        "MatMulNBits of 2 bits has kernels for level 4 alone; others dequantize at each call",
    ),
    "block": (
        graph("MatMulNBits", ["x", "q", "s"], **{**FAST, "block_size": 512}),
        "MatMulNBits has no kernel for 4 bits in blocks of 512",
    ),
    "block 16": (
        graph("MatMulNBits", ["x", "q", "s"], **{**FAST, "block_size": 16}),
        "MatMulNBits has no int8 kernel for blocks of 16; blocks of 32 run 3 to 4 times faster",
    ),
    "float32": (
        graph("MatMulNBits", ["x", "q", "s"], **{**FAST, "accuracy_level": 0}),
        "MatMulNBits at this accuracy level computes in float32; level 4 is about 3 times faster",
    ),
    "float16": (
        graph("Cast", ["x"], to=onnx.TensorProto.FLOAT16),
        "a cast to a 16-bit float: the CPU kernels compute in float32 and cast back",
    ),
    "bfloat16": (
        graph("Cast", ["x"], to=onnx.TensorProto.BFLOAT16),
        "a cast to a 16-bit float: the CPU kernels compute in float32 and cast back",
    ),
    "float weights": (graph("MatMul", ["x", "w"]), "a float MatMul: its weight was not quantized"),
}


@pytest.mark.parametrize("name", SLOW)
def test_reports(name: str) -> None:
    lowered, reason = SLOW[name]
    assert lint(lowered) == [f"slow path: {reason} (1 operators, first n0)"]


@pytest.mark.parametrize(
    "lowered",
    [
        graph("MatMulNBits", ["x", "q", "s"], **FAST),
        graph("MatMulNBits", ["x", "q", "s", "w.zero"], **FAST),
        graph("MatMulNBits", ["x", "q", "s", "w.zero"], **{**FAST, "bits": 2}),
        graph("MatMulNBits", ["x", "q", "s", "", ""], **{**FAST, "bits": 8, "block_size": 256}),
        graph("Cast", ["x"], to=onnx.TensorProto.FLOAT),
        graph("Add", ["x", "w.float"]),
    ],
)
def test_says_nothing(lowered: Lowered) -> None:
    assert lint(lowered) == []


def test_counts_operators_of_a_kind() -> None:
    assert lint(graph("MatMul", ["x", "w"], count=3)) == [
        "slow path: a float MatMul: its weight was not quantized (3 operators, first n0)"
    ]
    lines = lint(lower(quantized(block=16), 0))
    assert [line.split("(")[-1].split(",")[0] for line in lines] == ["13 operators"]
    assert [line.split(" (")[1] for line in lint(lower(fused()))] == ["13 operators, first linear)"]
