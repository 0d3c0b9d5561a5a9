"""Runs of one graph on several inputs, from one node to the next."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import fx

from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.program import Program, Weights, evaluate, side_by_side, stepwise
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.trace import trace

LINEAR = torch.ops.aten.linear.default
TEXTS = [torch.arange(5)[None], torch.arange(9, 14)[None], torch.arange(40, 47)[None]]


@pytest.fixture(scope="module")
def program() -> Program:
    return trace(HashedCheckpoint(RandomWeights("random:tiny")))


def runs(program: Program) -> list[Any]:
    weights = Weights(program.weights, keep=True)
    return [stepwise([program.outputs["logits"]], program.prefill_inputs(text), weights) for text in TEXTS]


def alone(program: Program, text: torch.Tensor) -> torch.Tensor:
    node = program.outputs["logits"]
    value: torch.Tensor = evaluate([node], program.prefill_inputs(text), Weights(program.weights, keep=True))[node]
    return value


def test_each_gives_what_it_gives_alone(program: Program) -> None:
    met: list[tuple[str, list[int]]] = []

    def observe(node: fx.Node, each: list[tuple[Any, ...]]) -> None:
        met.append((node.name, [args[0].shape[1] for args in each]))

    found = side_by_side(runs(program), lambda node: node.target is LINEAR, observe)
    for text, one in zip(TEXTS, found, strict=True):
        assert torch.equal(one[program.outputs["logits"]], alone(program, text))
    linear = [node.name for node in program.graph.nodes if node.target is LINEAR]
    assert met == [(name, [5, 5, 7]) for name in linear]


def test_what_is_computed_instead_goes_on(program: Program) -> None:
    def observe(node: fx.Node, each: list[tuple[Any, ...]]) -> Any:
        return lambda x, w: torch.zeros(*x.shape[:-1], len(w))

    for one in side_by_side(runs(program), lambda node: node.target is LINEAR, observe):
        assert not one[program.outputs["logits"]].any()


def test_values_between_are_of_one_run_at_a_time(program: Program) -> None:
    """What a projection makes is gone, but for what the next one is given, before another run makes its own."""
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def compute(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        nonlocal most
        made = torch.nn.functional.linear(x, w)
        most = max(most, sum(one() is not None for one in alive))
        alive.append(weakref.ref(made))
        return made

    def observe(node: fx.Node, each: list[tuple[Any, ...]]) -> Any:
        return compute if "gate_up" in str(node.args[1]) else None

    side_by_side(runs(program), lambda node: node.target is LINEAR, observe)
    assert len(alive) == len(TEXTS) * program.config.layers
    assert most == 0
