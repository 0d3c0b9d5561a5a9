"""Programs that are kept are the ones that were traced: node by node, and run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_phi3 import VARIANTS, checkpoint, differing, fused, quantized, runs, traced
from torch import fx

from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.lazy_weights import Constant, FloatWeight
from pocketphi.graph.program import Program
from pocketphi.graph.stored_program import pack, same_program, unpack

aten = torch.ops.aten


def again(program: Program, variant: str) -> Program:
    """By way of text and bytes."""
    content, constants = pack(program)
    return unpack(json.loads(json.dumps(content)), memoryview(b"".join(constants)), checkpoint(variant))


def described(program: Program) -> list[tuple[Any, ...]]:
    """Every node with all that it holds; other nodes by their place."""
    place = {node: i for i, node in enumerate(program.graph.nodes)}

    def show(value: Any) -> Any:
        """With the types, which `==` does not tell apart: True and 1 and 1.0, a list and a tuple."""
        if isinstance(value, fx.Node):
            return "node", place[value]
        if isinstance(value, list | tuple):
            return isinstance(value, list), [show(one) for one in value]
        if isinstance(value, dict):
            return [(key, show(one)) for key, one in value.items()]
        return type(value), value

    return [
        (node.op, node.name, node.target, show(node.args), show(node.kwargs), show(node.meta.get("val")))
        for node in program.graph.nodes
    ]


@pytest.mark.parametrize("made", [traced, fused])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_kept_is_what_was_made(variant: str, made: Callable[[str], Program]) -> None:
    program = made(variant)
    recalled = again(program, variant)
    assert described(recalled) == described(program)
    assert recalled.dump() == program.dump()
    assert list(recalled.weights) == list(program.weights)
    for name, recipe in program.weights.items():
        came = recalled.weights[name]
        assert type(came) is type(recipe)
        if isinstance(recipe, Constant):
            assert isinstance(came, Constant)
            assert came.origin == recipe.origin
            assert came.value.dtype is recipe.value.dtype
            assert torch.equal(came.value, recipe.value)
    assert differing(runs(recalled), runs(program)) == []
    assert same_program(recalled, program)


def other_overload(program: Program) -> None:
    node = next(n for n in program.graph.nodes if n.target is aten.pow.Tensor_Scalar)
    node.target = aten.pow.Tensor_Tensor


def other_bits(program: Program) -> None:
    name = "model.rotary_emb.inv_freq"
    recipe = program.weights[name]
    assert isinstance(recipe, Constant)
    program.weights[name] = Constant(torch.nextafter(recipe.value, torch.tensor(2.0)), recipe.origin)


def other_argument(program: Program) -> None:
    node = next(n for n in program.graph.nodes if n.target is aten.pow.Tensor_Scalar)
    node.args = (node.args[0], 2.0)


def other_type(program: Program) -> None:
    node = next(n for n in program.graph.nodes if n.target is aten.embedding.default)
    node.meta["val"] = node.args[0].meta["val"]


@pytest.mark.parametrize("change", [other_overload, other_bits, other_argument, other_type])
def test_programs_that_differ_are_told_apart(change: Callable[[Program], None]) -> None:
    program = traced()
    assert same_program(program, traced())
    change(program)
    assert not same_program(program, traced())


def test_what_cannot_be_kept() -> None:
    with pytest.raises(CompilerBug, match=r"model\.embed_tokens\.weight: .* cannot be kept in a stored graph"):
        pack(quantized())
    program = traced()
    node = next(n for n in program.graph.nodes if n.target is aten.embedding.default)
    node.target = print
    with pytest.raises(CompilerBug, match="<built-in function print> is no operator that a stored graph may have"):
        pack(program)


def replaced(content: Any, constants: bytes, **parts: Any) -> tuple[Any, bytes]:
    return {**content, **parts}, constants


def node_of(content: Any, kind: str) -> int:
    return next(i for i, node in enumerate(content["nodes"]) if node[0] == kind)


def first_call(**parts: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        places = {"kind": 0, "target": 2, "arguments": 3, "keywords": 4, "type": 5}
        for name, value in parts.items():
            content["nodes"][node_of(content, "call_function")][places[name]] = value

    return change


def weight(**parts: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        kept = next(one for one in content["weights"] if parts.keys() & one.keys())
        kept.update(parts)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first_call(target="os.system"), r"a stored graph calls 'os\.system'"),
        (first_call(target="operator.call"), r"a stored graph calls 'operator\.call'"),
        (first_call(target="prims.add.default"), "a stored graph calls 'prims.add.default'"),
        (first_call(target="aten.add.nothing"), "a stored graph calls 'aten.add.nothing'"),
        (first_call(target="aten.name.__class__"), r"a stored graph calls 'aten\.name\.__class__'"),
        (first_call(kind="call_method"), "a stored graph has a node of kind 'call_method'"),
        (first_call(arguments=[{"node": 10**6}]), "list index out of range"),
        (first_call(arguments=[{"node": -1}]), "a stored graph has -1 where a whole number stands"),
        (first_call(arguments=[{"dtype": "nn"}]), "a stored graph has the dtype 'nn'"),
        (first_call(arguments=[{"code": "print()"}]), "'code'"),
        (first_call(type=10**6), "list index out of range"),
        (lambda content: content["types"].append({"size": {"x": 1, "": 0}}), "a stored graph has a size of x"),
        (weight(tensor="lm_head.bias"), "a stored graph reads 'lm_head.bias', which the checkpoint does not have"),
        (weight(shape=[9]), "bytes of constants, expected"),
        (weight(shape=[]), "bytes of constants, expected"),
        (weight(shape=[7]), "a stored graph has 64 bytes of constants, expected 60"),
        (lambda content: content.pop("nodes"), "'nodes'"),
        (lambda content: content["weights"].pop(), "has no recipe"),
    ],
)
def test_what_was_not_kept_is_refused(change: Callable[[Any], None], message: str) -> None:
    content, constants = pack(traced())
    change(content)
    with pytest.raises(InputError, match=message):
        unpack(content, memoryview(b"".join(constants)), checkpoint("tiny"))


def test_weights_come_from_the_checkpoint_at_hand() -> None:
    other = checkpoint("tiny")
    content, constants = pack(traced())
    program = unpack(content, memoryview(b"".join(constants)), other)
    recipe = program.weights["model.norm.weight"]
    assert isinstance(recipe, FloatWeight)
    assert recipe.checkpoint is other
