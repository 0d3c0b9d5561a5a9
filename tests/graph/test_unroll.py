"""repeat_layer: what makes it refuse. That it repeats rightly is in test_trace.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_phi3 import TINY, copied, hf_run, inputs, rounding
from torch import fx
from toy_alternating import alternating
from transformers import MinistralForCausalLM

from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.program import Program, op_name
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.trace import hf_config, trace
from pocketphi.graph.unroll import repeat_layer

aten = torch.ops.aten

pytestmark = pytest.mark.usefixtures("the_tracer_itself")


@pytest.fixture(scope="module")
def two_layers() -> Program:
    return trace(RandomWeights("random:two", replace(TINY, layers=2)))


def of_layer(program: Program, layer: int, name: str) -> fx.Node:
    """The first operator of a layer with this name."""
    paths = {n: [p for p, _ in (n.meta.get("nn_module_stack") or {}).values()] for n in program.graph.nodes}
    found = [n for n, stack in paths.items() if op_name(n) == name and any(f".layers.{layer}" in p for p in stack)]
    return found[0]


def test_repeats(two_layers: Program) -> None:
    program = copied(two_layers)
    count = program.operators()
    repeat_layer(program, last=1, depth=5)
    assert program.operators()["scaled_dot_product_attention"] == 5
    linears = [str(n.args[1].target) for n in program.graph.nodes if op_name(n) == "linear"]
    assert linears[4:8] == [name.replace(".0.", ".1.") for name in linears[:4]]
    assert linears[16:20] == [name.replace(".0.", ".4.") for name in linears[:4]]
    assert list(program.outputs)[-2:] == ["present.4.key", "present.4.value"]
    assert count["linear"] == 9
    program.graph.lint()


def test_nothing_to_do(two_layers: Program) -> None:
    program = copied(two_layers)
    text = program.dump()
    repeat_layer(program, last=1, depth=2)
    assert program.dump() == text


def test_refuses_another_constant(two_layers: Program) -> None:
    program = copied(two_layers)
    power = of_layer(program, 1, "pow")
    power.args = (power.args[0], 4)
    with pytest.raises(CompilerBug, match=r"decoder layers differ at pow \(\w+\) and pow \(\w+\)"):
        repeat_layer(program, last=1, depth=3)


def test_refuses_other_wiring(two_layers: Program) -> None:
    program = copied(two_layers)
    product = of_layer(program, 1, "silu").args[0]
    of_layer(program, 1, "silu").args = (product.args[0],)
    with pytest.raises(CompilerBug, match=r"decoder layers differ at silu"):
        repeat_layer(program, last=1, depth=3)


def test_refuses_another_count(two_layers: Program) -> None:
    program = copied(two_layers)
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    last = [n for n in calls if "layers.1" in str(n.meta.get("nn_module_stack"))][-1]
    with program.graph.inserting_after(last):
        program.graph.node_copy(last, lambda n: n)
    with pytest.raises(CompilerBug, match=r"decoder layers have \d+ and \d+ operators"):
        repeat_layer(program, last=1, depth=3)


def test_refuses_a_second_value_of_the_layer_before(two_layers: Program) -> None:
    program = copied(two_layers)
    embedding = next(n for n in program.graph.nodes if op_name(n) == "embedding")
    for layer, outside in ((0, embedding), (1, of_layer(program, 0, "rsqrt"))):  # alike, seen from inside the layers
        silu = of_layer(program, layer, "silu")
        with program.graph.inserting_after(silu):
            made = program.graph.call_function(aten.add.Tensor, (silu, outside))
        made.meta = dict(silu.meta)
    with pytest.raises(CompilerBug, match=r"layer 1 reads \['add_\d+', 'rsqrt'\] of the layer before, expected one"):
        repeat_layer(program, last=1, depth=3)


def test_refuses_a_second_value_that_leaves_the_layer(two_layers: Program) -> None:
    program = copied(two_layers)
    head = program.outputs["logits"]
    with program.graph.inserting_before(head):
        extra = program.graph.call_function(aten.add.Tensor, (head.args[0], of_layer(program, 1, "silu")))
    extra.meta["val"] = head.meta["val"]
    head.args = (extra, head.args[1])
    with pytest.raises(CompilerBug, match=r"\['silu_1', 'add_\d+'\] leave the layer, expected one value"):
        repeat_layer(program, last=1, depth=3)


@pytest.mark.parametrize("depth", [7])
def test_a_period_of_two(depth: int) -> None:
    """Four of the layers are traced; those with a window and those without take turns, as in transformers' own model."""
    source = RandomWeights("random:turns", alternating(depth))
    program = trace(source)
    model = MinistralForCausalLM(hf_config(source.config)).eval()
    model.load_state_dict({name: source.read(name, 0, info.rows).float() for name, info in source.tensors.items()})
    for case in [(60, 0, 1), (3, 60, 2), (1, 70, 1)]:
        feeds = inputs(source.config, *case)
        came, expected = program.run(feeds), hf_run(model, feeds)
        bound = rounding(source.config, max(float(value.abs().max()) for value in expected.values()), case[0] + case[1])
        assert [n for n, want in expected.items() if not float((came[n] - want).abs().max()) <= bound] == []
    masks = [n.args[3] for n in program.graph.nodes if op_name(n) == "scaled_dot_product_attention"]
    assert [mask is masks[i % 2] for i, mask in enumerate(masks)] == [True] * depth
    assert masks[0] is not masks[1]


def test_layers_that_take_turns_are_not_all_alike() -> None:
    source = RandomWeights("random:turns", alternating(4))
    program = trace(source)
    with pytest.raises(
        CompilerBug, match=r"decoder layers differ at scaled_dot_product_attention .*: one reads \w+, the"
    ):
        repeat_layer(program, last=3, depth=5)
    with pytest.raises(
        CompilerBug, match=r"at least 6 layers, twice their period, must be traced before the last can be"
    ):
        repeat_layer(program, last=3, depth=5, period=3)


def test_refuses_the_weight_of_another_layer(two_layers: Program) -> None:
    program = copied(two_layers)
    linear = of_layer(program, 1, "linear")
    name = str(linear.args[1].target).replace(".1.", ".0.")
    other = next(n for n in program.graph.nodes if n.op == "get_attr" and n.target == name)
    linear.args = (linear.args[0], other)
    with pytest.raises(CompilerBug, match=r"decoder layers differ at linear \(\w+\): one reads .*, the other"):
        repeat_layer(program, last=1, depth=3)


def test_refuses_another_stream(two_layers: Program) -> None:
    """Layer 0 reads the embedding at two places; here one of them is something else."""
    program = copied(two_layers)
    embedding = next(n for n in program.graph.nodes if op_name(n) == "embedding")
    with program.graph.inserting_after(embedding):
        doubled = program.graph.call_function(aten.add.Tensor, (embedding, embedding))
    next(n for n in embedding.users if op_name(n) == "to").replace_input_with(embedding, doubled)
    with pytest.raises(CompilerBug, match=r"layer 0 reads \['add\w*', 'embedding'\] as its stream, expected one value"):
        repeat_layer(program, last=1, depth=3)
