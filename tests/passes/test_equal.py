"""The comparison of a graph with its rewritten self sees every fault that a rewrite can make, in models of either size."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_phi3 import SWITCH, TINY, VARIANTS, checkpoint, fused, traced
from torch import fx

from pocketphi.graph.lazy_weights import Constant, Dequantized, materialize
from pocketphi.graph.program import Program
from pocketphi.passes import equal
from pocketphi.passes.equal import compare_graphs
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantize_weights import QuantizeWeights
from pocketphi.passes.quantizers import KMeans, Quantizer, RoundToNearest

aten, edge = torch.ops.aten, torch.ops.edge


def compare(after: Program, variant: str = "tiny", context: int | None = None) -> equal.Equality:
    before = traced(variant)
    return compare_graphs(before, after, before.weights, context or before.config.max_position)


@pytest.fixture(params=["every product", "some products"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As for a small model, and as for one of full size."""
    if request.param == "some products":
        monkeypatch.setattr(equal, "_ALL_BELOW", 0)
    return str(request.param)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_rewrites_change_no_bit(variant: str, size: str) -> None:
    found = compare(fused(variant), variant)
    assert found.differs == ""
    assert found.products == (13 if size == "every product" else 12)  # of three layers all are chosen: the head is not
    assert found.places > 40
    assert not found.left_out


def calls(program: Program, target: object) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.target is target]


def change_argument(target: object, which: int, place: int, change: Callable[[Any], Any]) -> Callable[[Program], None]:
    """Another argument of the which-th call of an operator."""

    def damage(program: Program) -> None:
        node = calls(program, target)[which]
        node.args = tuple(change(arg) if i == place else arg for i, arg in enumerate(node.args))

    return damage


def double_an_input(program: Program) -> None:
    """What enters the last layer's projection is twice as large."""
    node = calls(program, aten.linear.default)[8]
    twice = program.call(aten.mul.Tensor, (node.args[0], 2.0), before=node)
    node.args = (twice, *node.args[1:])


def swap_outputs(target: object, which: int, first: int, second: int) -> Callable[[Program], None]:
    def damage(program: Program) -> None:
        node = calls(program, target)[which]
        for user in list(node.users):
            if user.target is operator.getitem and user.args[1] in (first, second):
                user.args = (node, second if user.args[1] == first else first)

    return damage


def read_another(name: str, other: str) -> Callable[[Program], None]:
    """A weight of another layer."""

    def damage(program: Program) -> None:
        node = next(n for n in program.graph.nodes if n.op == "get_attr" and n.target == name)
        node.target = other

    return damage


def drop_a_residual(program: Program) -> None:
    node = calls(program, edge.add_rms_norm.default)[1]
    node.args = (node.args[1], *node.args[1:])


def move_the_tables(program: Program) -> None:
    for kind in ("cos", "sin"):
        value = materialize(program.weights[f"rope.{kind}"])[""].clone()
        value[SWITCH:] = value[SWITCH:].roll(1, 0)
        program.weights[f"rope.{kind}"] = Constant(value, "the test")


DAMAGE: dict[str, tuple[str, Callable[[Program], None]]] = {
    "doubled input": ("tiny", double_an_input),
    "no residual": ("tiny", drop_a_residual),
    "another eps": ("tiny", change_argument(edge.add_rms_norm.default, 3, 3, lambda eps: eps * 1.01)),
    "another norm": (
        "tiny",
        read_another("model.layers.1.input_layernorm.weight", "model.layers.2.input_layernorm.weight"),
    ),
    "norm and sum exchanged": ("tiny", swap_outputs(edge.add_rms_norm.default, 2, 0, 1)),
    "keys and values exchanged": ("tiny", swap_outputs(edge.attention.default, 1, 1, 2)),
    "a wider window": ("tiny", change_argument(edge.attention.default, 2, 9, lambda window: window + 1)),
    "a narrower window": ("tiny", change_argument(edge.attention.default, 0, 9, lambda window: window - 1)),
    "no window": ("tiny", change_argument(edge.attention.default, 1, 9, lambda window: 0)),
    "another scale": ("full", change_argument(edge.attention.default, 1, 8, lambda scale: scale * 1.0001)),
    "an early switch": ("longrope", change_argument(edge.attention.default, 1, 10, lambda at: at - 1)),
    "a late switch": ("longrope", change_argument(edge.attention.default, 2, 10, lambda at: at + 1)),
    "moved tables": ("longrope", move_the_tables),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_a_wrong_rewrite_is_seen(kind: str, size: str) -> None:
    variant, damage = DAMAGE[kind]
    program = fused(variant)
    damage(program)
    found = compare(program, variant)
    assert found.differs, kind


def test_the_message_names_the_place() -> None:
    program = fused()
    double_an_input(program)
    differs = compare(program).differs
    assert differs.startswith("after 46 tokens, the input of model.layers.2.self_attn.qkv_proj.weight differs in ")
    program = fused("full")
    weight: Any = calls(program, aten.linear.default)[4].args[1]
    weight.target = "model.layers.0.self_attn.qkv_proj.weight"
    expected = (
        "linear.default of model.layers.0.self_attn.qkv_proj.weight stands where aten.linear.default of model.layers.1"
    )
    assert expected in compare(program, "full").differs


def test_an_output_that_goes_missing_is_seen() -> None:
    program = fused()
    outputs = program.outputs
    program.graph.output_node().args = ({**outputs, "present.1.key": outputs["present.1.value"]},)
    assert compare(program).differs.startswith("present.1.key differs in ")


@pytest.mark.parametrize("quantizer", [RoundToNearest(32, symmetric=False), KMeans(16)])
def test_saved_weights_are_compared_as_the_values_that_they_stand_for(quantizer: Quantizer) -> None:
    program = fused()
    QuantizeWeights(Policy.of(quantizer))(program)
    weights = {n: Dequantized(w) if "" not in w.parts else w for n, w in program.weights.items()}
    before = traced()
    found = compare_graphs(before, fused(), {**before.weights, **weights}, TINY.max_position)
    assert found.differs == ""
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
        rows = materialize(weights[name])[""]
        for start, stop in ((0, 3), (15, 18), (len(rows) - 1, len(rows))):  # within a group of a palette, and across
            assert torch.equal(weights[name].read(start, stop)[""], rows[start:stop])


def test_a_shorter_context_is_compared_within_it() -> None:
    from pocketphi.passes.canonicalize import Canonicalize
    from pocketphi.passes.fuse_attention import FuseAttention

    for context in (1, 2, 20, 50):
        program = traced()
        Canonicalize()(program)
        FuseAttention(context)(program)
        assert compare(program, context=context).differs == ""


def test_a_case_that_is_too_large_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equal, "_CACHE_LIMIT", 100)
    found = compare(fused())
    assert (found.differs, found.left_out) == ("", ["46 tokens in the cache", "48 tokens in the cache"])


def test_weights_are_read_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint("tiny")
    largest = 0

    def read(name: str, start: int, stop: int) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, stop - start)
        return type(source).read(source, name, start, stop)

    monkeypatch.setattr("pocketphi.graph.checkpoint.CHUNK_BYTES", 2048)
    before = traced()
    weights = {}
    for name, weight in before.weights.items():
        weights[name] = weight
        if hasattr(weight, "checkpoint"):
            monkeypatch.setattr(weight.checkpoint, "read", read, raising=False)
    assert compare_graphs(before, fused(), weights, TINY.max_position).differs == ""
    assert 0 < largest <= 64  # of 256 rows and more; vectors of 64 are read whole
