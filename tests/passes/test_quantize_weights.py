"""QuantizeWeights: the graph, the weights, and what is left in float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_phi3 import TINY, VARIANTS, checkpoint, differing, fused, normal, runs, small, twice

from pocketphi.graph.errors import InputError
from pocketphi.graph.lazy_weights import Constant, FloatWeight, materialize
from pocketphi.graph.program import op_name
from pocketphi.passes.choices import BLOCKS
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantize_weights import QuantizedWeight, QuantizeWeights
from pocketphi.passes.quantizers import RoundToNearest, check_block

aten = torch.ops.aten
HEAD = "lm_head.weight"
SOURCE = checkpoint("tiny")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_on_a_model(variant: str, symmetric: bool) -> None:
    """Equal to the float program with each weight replaced by what its int4 stands for."""
    program = fused(variant)
    report = twice(QuantizeWeights(Policy.of(RoundToNearest(32, symmetric))), program)
    assert (dict(report.applied), report.refused) == ({"matmul_nbits": 13, "embedding_nbits": 1}, [])
    assert {"linear", "embedding"} & set(program.operators()) == set()
    weights = {name: weight for name, weight in program.weights.items() if isinstance(weight, QuantizedWeight)}
    assert len(weights) == (13 if variant == "tied" else 14)
    rounded = fused(variant)
    values = {name: weight.quantize(0, weight.parts["q"].shape[0]).dequantize() for name, weight in weights.items()}
    rounded.weights |= {name: Constant(value, "int4") for name, value in values.items()}
    assert differing(runs(program), runs(rounded)) == []


def test_a_tied_weight_stays_one() -> None:
    program = fused("tied")
    QuantizeWeights(Policy.of(RoundToNearest(32)))(program)
    reads = [node.target for node in program.graph.nodes if "embed_tokens" in str(node.target)]
    assert sorted(reads) == [f"model.embed_tokens.weight:{part}" for part in ("q", "q", "scale", "scale")]


def test_nothing_is_read() -> None:
    class Unreadable(type(SOURCE)):  # type: ignore[misc]
        def read(self, name: str, start: int, stop: int) -> torch.Tensor:
            raise AssertionError(name)

    program = fused()
    program.weights |= {n: FloatWeight(Unreadable("random:tiny"), n) for n in TINY.tensors()}
    assert QuantizeWeights(Policy.of(RoundToNearest(32)))(program).changed


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_recipe(block: int, symmetric: bool) -> None:
    weight = QuantizedWeight(FloatWeight(SOURCE, HEAD), RoundToNearest(block, symmetric))
    made = materialize(weight)
    assert {n: (tuple(t.shape), t.dtype) for n, t in made.items()} == {
        n: (s.shape, s.dtype) for n, s in weight.parts.items()
    }
    assert ("zero" in made) == (not symmetric)
    part = weight.read(37, 90)
    assert [n for n in made if not torch.equal(part[n], made[n][37:90])] == []
    kind = "symmetric" if symmetric else "asymmetric"
    assert weight.describe() == f"lm_head.weight [bf16] → float32 → int4 rtn block {block} {kind}"


def test_weights_that_calibration_has_stored_are_taken() -> None:
    program = fused()
    stored = QuantizedWeight(FloatWeight(SOURCE, HEAD), RoundToNearest(32))
    QuantizeWeights(Policy.of(RoundToNearest(32)), {HEAD: stored})(program)
    assert program.weights[HEAD] is stored
    assert sum(isinstance(weight, QuantizedWeight) for weight in program.weights.values()) == 14


X = {"x": normal(2, 3, 64), "ids": torch.tensor([[1, 2]])}
Body = Callable[..., Any]
REFUSED: dict[str, tuple[Body, dict[str, Any], str]] = {
    "constant": (
        lambda call, x, ids, w: {"y": call(aten.linear.default, x, w)},
        {"w": normal(5, 64)},
        "w is not a weight of the checkpoint",
    ),
    "computed": (
        lambda call, x, ids, w: {"y": call(aten.linear.default, x, call(aten.neg.default, w))},
        {"w": FloatWeight(SOURCE, HEAD)},
        "aten.neg.default is not a weight of the checkpoint",
    ),
    "another reader": (
        lambda call, x, ids, w: {"y": call(aten.linear.default, x, w), "z": call(aten.neg.default, w)},
        {"w": FloatWeight(SOURCE, HEAD)},
        "another operator reads w too",
    ),
    "an output": (
        lambda call, x, ids, w: {"y": call(aten.embedding.default, w, ids), "z": w},
        {"w": FloatWeight(SOURCE, HEAD)},
        "another operator reads w too",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    body, weights, reason = REFUSED[name]
    program = small(body, X, weights)
    text = program.dump()
    report = twice(QuantizeWeights(Policy.of(RoundToNearest(32))), program)
    assert [why for _, why in report.refused] == [reason]
    assert (report.changed, program.dump()) == (False, text)


def test_a_tied_head_keeps_its_bias() -> None:
    def body(call, x, ids, w, b):
        return {"e": call(aten.embedding.default, w, ids), "y": call(aten.linear.default, x, w, b)}

    program = small(body, X, {"w": FloatWeight(SOURCE, HEAD), "b": normal(256)})
    report = twice(QuantizeWeights(Policy.of(RoundToNearest(32))), program)
    assert (report.refused, report.applied) == ([], {"matmul_nbits": 1, "embedding_nbits": 1})
    total = next(n for n in program.outputs.values() if op_name(n) == "add")
    assert [op_name(arg) for arg in total.args if arg.op != "get_attr"] == ["edge.matmul_nbits"]
    assert [arg.target for arg in total.args if arg.op == "get_attr"] == ["b"]


def test_two_readers_share_one_int4_weight() -> None:
    def body(call, x, ids, w):
        return {"e": call(aten.embedding.default, w, ids), "y": call(aten.linear.default, x, w)}

    program = small(body, X, {"w": FloatWeight(SOURCE, HEAD)})
    assert twice(QuantizeWeights(Policy.of(RoundToNearest(32))), program).applied == {
        "matmul_nbits": 1,
        "embedding_nbits": 1,
    }
    assert list(program.weights) == ["w"]
    assert "weight" not in {op_name(n) for n in program.outputs.values()}


@pytest.mark.parametrize(
    ("columns", "block", "choice"),
    [
        (96, 64, "choose --block 16 or 32"),
        (3072, 320, "choose --block 16 or 32 or 64 or 128 or 256"),
        (100, 32, "no block size fits"),
    ],
)
def test_refuses_a_block_that_does_not_divide(columns: int, block: int, choice: str) -> None:
    with pytest.raises(InputError, match=rf"^w: K={columns} is not a multiple of block {block}; {choice}$"):
        check_block("w", columns, block)


def test_a_model_names_the_weight_that_does_not_fit() -> None:
    message = r"model.embed_tokens.weight: K=64 is not a multiple of block 128; choose --block 16 or 32 or 64"
    with pytest.raises(InputError, match=message):
        QuantizeWeights(Policy.of(RoundToNearest(128)))(fused())


def test_blocks_that_divide_are_accepted() -> None:
    assert [check_block("w", 256, block) for block in BLOCKS] == [None] * 5
