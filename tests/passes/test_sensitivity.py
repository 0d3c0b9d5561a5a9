"""What is expected of a rounded weight, against what the whole model then does: KL of its logits, run in torch.

The bounds: F is measured with 2 · 4 drawn texts, of which each gives Σ G²E² over thousands of values that are not independent;
over the weights of these models the ratio of expected to true KL spreads by 0.15 in the logarithm, and 0.5 is three times that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from pocketphi.compiler.measure import distance
from pocketphi.graph.lazy_weights import materialize
from pocketphi.graph.program import Program
from pocketphi.passes.backward import Reached
from pocketphi.passes.expected import Costs
from pocketphi.passes.fisher import Fisher
from pocketphi.passes.quantizers import make_quantizer
from pocketphi.passes.sensitivity import _picked, sensitivities
from tests.helpers.tiny_phi3 import traced

NEAREST = make_quantizer("rtn", "int6", {"block": 64})
SEARCHED = make_quantizer("search", "int6", {"block": 64})


class _Values:
    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        self._values = values

    def __call__(self, target: str) -> torch.Tensor:
        return self._values[target]


def _tokens(program: Program) -> torch.Tensor:
    return torch.randint(0, program.config.vocab_size, (8, 64), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", ["tiny", "tied", "longrope"])
def test_expected_against_true(variant: str) -> None:
    program = traced(variant)
    tokens = _tokens(program)
    names = [name for name, shape in program.config.tensors().items() if len(shape) == 2]
    costs = sensitivities(Fisher(program, tokens), program.weights, {name: [NEAREST, SEARCHED] for name in names})
    exact = {name: materialize(weight)[""] for name, weight in program.weights.items()}
    inputs = program.prefill_inputs(tokens)

    def logits(**changed: torch.Tensor) -> torch.Tensor:
        return program.run(inputs, _Values({**exact, **changed}))["logits"].flatten(0, 1)  # type: ignore[arg-type]

    before = logits()
    true = torch.tensor([distance(before, logits(**{n: NEAREST.quantize(exact[n]).dequantize()})).kl for n in names])
    expected = torch.tensor([costs[name][0] for name in names])
    apart = (expected / true).log()
    assert apart.abs().max() < 0.5
    assert abs(float(apart.mean())) < 0.2
    ranks = torch.stack([expected.argsort().argsort().double(), true.argsort().argsort().double()])
    assert torch.corrcoef(ranks)[0, 1] > 0.9
    # what `search` gains behind linear layers
    assert all(0 < costs[name][1] < costs[name][0] for name in names if "layers" in name)


def test_a_text_with_fewer_tokens_than_rows_share_a_table() -> None:
    """The text reads five rows of the embedding: what a table for 64 of them costs is of the size of what others do."""
    program, name = traced("tiny"), "model.embed_tokens.weight"
    tables = [make_quantizer("rtn", "palette", {"group": group}) for group in (1, 4, 16, 64)]
    tokens = torch.tensor([[3, 9, 4, 11, 200]]).repeat(2, 12)
    costs = sensitivities(Fisher(program, tokens), program.weights, {name: tables})[name]
    assert 0 < max(costs) < 5 * min(costs)


def test_the_same_twice() -> None:
    program = traced("tiny")
    name = "model.layers.1.mlp.down_proj.weight"
    first, second = (
        sensitivities(Fisher(program, _tokens(program)), program.weights, {name: [NEAREST]}) for _ in range(2)
    )
    assert first == second


def test_progress_is_called_as_often_as_it_says() -> None:
    program = traced("tiny")
    fisher, done = Fisher(program, _tokens(program)), 0

    def step() -> None:
        nonlocal done
        done += 1

    found = [one.name for one in fisher.measure(step)]
    assert done == fisher.steps
    assert sorted(found) == sorted(n for n, shape in program.config.tensors().items() if len(shape) == 2)


@pytest.mark.parametrize("unit", [1.0, 1e-9])
def test_rows_are_picked_by_their_part_whatever_the_unit(unit: float) -> None:
    """Groups of two, of which the second has three quarters: it is picked three times as often as the first."""
    fisher = unit * torch.tensor([[0.5, 0.5], [0.0, 1.0], [3.0, 0.0], [2.0, 1.0]])
    rows, mass = _picked(fisher.sum(1), 2, 8)
    assert rows.tolist() == [0, 1, *[2, 3] * 3]
    assert mass.tolist() == pytest.approx([2 * unit, *[6 * unit] * 3])
    assert _picked(torch.zeros(4), 2, 4)[0].tolist() == [0, 1, 2, 3]  # all alike where nothing depends on them


class _Killed(Exception):
    pass


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_stopped_measurement_goes_on_to_the_same_costs(parts: int) -> None:
    """After the head, after a layer, after the first layer: what was kept goes through bytes, and `progress` counts on."""
    program = traced("tiny")
    names = [name for name, shape in program.config.tensors().items() if len(shape) == 2]
    candidates = {name: [NEAREST, SEARCHED] for name in names}
    expected = sensitivities(Fisher(program, _tokens(program)), program.weights, candidates)
    kept: list[tuple[Any, bytes, Costs]] = []

    def stop(reached: Reached, costs: Costs) -> None:
        kept.append((reached.shapes(), b"".join(reached.buffers()), json.loads(json.dumps(costs))))
        if reached.parts == parts:
            raise _Killed

    with pytest.raises(_Killed):
        sensitivities(Fisher(program, _tokens(program)), program.weights, candidates, keep=stop)
    shapes, data, costs = kept[-1]
    fisher, steps = Fisher(program, _tokens(program)), [0]
    reached = Reached.restored(parts, shapes, memoryview(data))
    assert reached
    begun = reached, costs
    found = sensitivities(fisher, program.weights, candidates, lambda: steps.__setitem__(0, steps[0] + 1), begun=begun)
    assert found == expected
    assert steps[0] == fisher.steps
