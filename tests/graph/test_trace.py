"""The traced program against transformers' own model, and tracing two layers against tracing all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_phi3 import CASES, TINY, VARIANTS, checkpoint, differing, hf_model, hf_run, inputs, rounding, runs, traced
from torch import fx

from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.lazy_weights import FloatWeight
from pocketphi.graph.program import Program
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.trace import trace

pytestmark = pytest.mark.usefixtures("the_tracer_itself")

FOUR = replace(TINY, layers=4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_transformers(variant: str) -> None:
    """Bit for bit, but for one token with a window: there transformers attends with a group's heads as query rows."""
    program = traced(variant)
    model = hf_model(checkpoint(variant))
    want = [hf_run(model, inputs(program.config, *case)) for case in CASES]
    got = runs(program)
    odd = [i for i, (length, past, _) in enumerate(CASES) if program.config.sliding_window and length == 1 and past]
    rest = [i for i in range(len(CASES)) if i not in odd]
    assert differing([got[i] for i in rest], [want[i] for i in rest]) == []
    assert len(odd) == (variant in ("tiny", "tied"))
    for i in odd:
        apart = max(float((got[i][name] - want[i][name]).abs().max()) for name in want[i])
        assert apart <= rounding(program.config, max(float(v.abs().max()) for v in want[i].values()))


@pytest.mark.parametrize("variant", ["tiny", "longrope"])
def test_the_window_and_the_switch_matter(variant: str) -> None:
    """What the cases above would not see if they never crossed the limit."""
    program = traced(variant)
    config = replace(program.config, sliding_window=None, long_rope=None)
    other = hf_model(RandomWeights(f"random:{variant}", config))
    crossing = inputs(program.config, 9, 58)
    assert not torch.equal(program.run(crossing)["logits"], hf_run(other, crossing)["logits"])


def test_interface() -> None:
    program = traced()
    caches = [f"{i}.{kind}" for i in range(3) for kind in ("key", "value")]
    names = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in caches)]
    assert [str(node.target) for node in program.inputs] == names
    assert list(program.outputs) == ["logits", *(f"present.{name}" for name in caches)]
    weights = {name for name, weight in program.weights.items() if isinstance(weight, FloatWeight)}
    assert weights == set(TINY.tensors())
    assert {type(program.weights[name]).__name__ for name in set(program.weights) - weights} <= {"Constant"}


def test_a_tied_head_reads_the_embedding() -> None:
    program = traced("tied")
    assert program.outputs["logits"].args[1].target == "model.embed_tokens.weight"
    assert "lm_head.weight" not in program.weights


@pytest.mark.parametrize("layers", [1, 2])
def test_shallow_models(layers: int) -> None:
    source = RandomWeights("random:shallow", replace(TINY, layers=layers))
    program = trace(source)
    feeds = inputs(source.config, 5, 3)
    assert differing([program.run(feeds)], [hf_run(hf_model(source), feeds)]) == []


def shape_of_graph(program: Program) -> list[tuple[Any, ...]]:
    """Every node as its operator, its arguments (calls by their number, others by name) and its inferred type."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    place = {node: i for i, node in enumerate(calls)}

    def show(node: fx.Node) -> str:
        return f"#{place[node]}" if node in place else str(node.target)

    rows = [(n.target, str(fx.map_arg((n.args, n.kwargs), show)), str(n.meta["val"])) for n in calls]
    return [*rows, *((name, show(node)) for name, node in program.outputs.items())]


def test_two_layers_repeated_are_all_layers_traced() -> None:
    source = RandomWeights("random:four", FOUR)
    short, whole = trace(source), trace(source, layers=4)
    strip = str.maketrans("", "", "0123456789")  # the tracer numbers its dynamic sizes anew each time
    ours, theirs = shape_of_graph(short), shape_of_graph(whole)
    assert len(ours) > 200
    assert [row[:2] for row in ours] == [row[:2] for row in theirs]
    assert [str(row[-1]).translate(strip) for row in ours] == [str(row[-1]).translate(strip) for row in theirs]
    assert set(short.weights) == set(whole.weights)
    assert [n.target for n in short.inputs] == [n.target for n in whole.inputs]
    assert differing(runs(short), runs(whole)) == []


def test_one_layer_cannot_be_repeated() -> None:
    with pytest.raises(CompilerBug, match=r"at least two layers must be traced before the last can be repeated"):
        trace(RandomWeights("random:tiny"), layers=1)
