"""Experts' matrices: their formats, and calibration on the tokens that each expert saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import _traced as traced
from tiny_phi3 import inputs
from torch import fx

from pocketphi.compiler.pipeline import fusions, run_passes
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import weight_of
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.lazy_weights import Dequantized, materialize
from pocketphi.graph.program import Program
from pocketphi.graph.published import PUBLISHED
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.passes.calibrate import _expert_inputs, quantize_calibrated, recalled
from pocketphi.passes.last_logits import LastLogits
from pocketphi.passes.policy import Policy, Rule
from pocketphi.passes.quantize_weights import QuantizeWeights
from pocketphi.passes.quantizers import Feedback, KMeans, RoundToNearest, ScaleSearch, Statistics
from pocketphi.passes.weight_cache import WeightCache

TINY = PUBLISHED["tiny-moe"]
GATE_UP, DOWN = (f"model.layers.1.mlp.experts.{name}.weight" for name in ("gate_up_proj", "down_proj"))


def fused() -> Program:
    program = traced(TINY).copy()
    run_passes(program, fusions(None))
    return program


def test_all_matrices_but_the_routers_are_quantized() -> None:
    """What is computed is the float program's of the rounded values; the last token's alone."""
    program = fused()
    rounded = program.copy()
    (report,) = run_passes(rounded, [QuantizeWeights(Policy.of(RoundToNearest(32)))])
    assert report.refused == []
    assert dict(report.applied) == {"matmul_nbits": 7, "experts_nbits": 6, "embedding_nbits": 1}
    assert {
        name for name, weight in rounded.weights.items() if "" in weight.parts and weight.parts[""].shape[0] == 6
    } == {f"model.layers.{layer}.mlp.router.weight" for layer in range(3)}
    again = rounded.copy()
    assert run_passes(again, [QuantizeWeights(Policy.of(RoundToNearest(32)))])[0].applied == {}
    for name, weight in rounded.weights.items():
        if "q" in weight.parts:
            program.weights[name] = Dequantized(weight)
    (last,) = run_passes(rounded, [LastLogits()])
    assert last.applied["last_token"] == 2
    assert rounded.operators()["edge.route"] == 3
    feeds = inputs(TINY, 30)
    want, came = program.run(feeds)["logits"][:, -1], rounded.run(feeds)["logits"][:, 0]
    assert torch.allclose(want, came, atol=1e-4)


def test_tables_must_end_with_an_expert() -> None:
    made = KMeans(32)
    made.group = 48
    policy = Policy((Rule(GATE_UP, made), Rule("*", RoundToNearest(32))))
    program = fused()
    with pytest.raises(InputError, match="an expert has 64 rows, which are no multiple of the 48 that share a table"):
        run_passes(program, [QuantizeWeights(policy)])


@pytest.mark.parametrize("runs", [1, 2])
def test_inputs_of_an_expert_are_of_the_tokens_that_it_saw(runs: int) -> None:
    """Token by token, where the halves go through other experts, in one run or after each other."""
    x, apart = torch.randn(2, 6, 4), torch.randn(2, 6, 2, 4)
    chosen = torch.tensor(
        [[[0, 1], [1, 0], [2, 0], [0, 2], [1, 2], [0, 1]], [[0, 1], [0, 1], [1, 0], [2, 1], [1, 2], [2, 0]]]
    )
    own, inner = (
        _expert_inputs([(part, by, None, 4) for part, by in zip(given.chunk(runs, 1), chosen.chunk(runs, 1))])
        for given in (x, apart)
    )
    for number in range(4):
        tokens = [t for t in range(6) if number in chosen[1, t]]
        assert torch.equal(own.met[number], x[1, tokens])
        assert torch.equal(own.exact[number], x[0, tokens])
        both = [t for t in tokens if number in chosen[0, t]]
        for half, found in enumerate((inner.exact, inner.met)):
            slots = [chosen[half, t].tolist().index(number) for t in both]
            assert torch.equal(found[number], apart[half, both, slots])
    assert own.statistics(0) is None  # of too few


@pytest.mark.parametrize("name", [GATE_UP, DOWN])
def test_search_measures_each_expert(name: str, tmp_path: Path) -> None:
    """An expert's rows are those that the recipe makes of it alone, out of the tokens that it saw; and they are kept."""
    program, source = fused(), HashedCheckpoint(RandomWeights("random:tiny-moe", TINY))
    tokens = torch.randint(256, (4, 200), generator=torch.Generator().manual_seed(1))
    policy = Policy((Rule(name, ScaleSearch(32)),))
    cache = WeightCache(tmp_path, source)
    stored = quantize_calibrated(program, tokens, policy, cache)
    assert set(stored) == {name}
    again = WeightCache(tmp_path, source)
    assert recalled(program, tokens, policy, again) == stored
    assert (cache.computed, again.computed) == (1, 0)
    observed: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def observe(node: fx.Node, args: tuple[Any, ...]) -> None:
        if node.target is torch.ops.edge.experts.default:
            observed[str(node.args[2].target)] = args[0], args[1]  # type: ignore[union-attr]

    program.run(program.prefill_inputs(tokens.repeat(2, 1)), observe=observe)
    x, chosen = (one[4:].flatten(0, 1) for one in observed[name])
    values = materialize(program.weights[name])[""].chunk(6)
    made = weight_of(materialize(stored[name])).dequantize().chunk(6)
    for number in range(6):
        at = [(t, chosen[t].tolist().index(number)) for t in range(len(chosen)) if number in chosen[t]]
        own = torch.stack([x[t] if name == GATE_UP else x[t, slot] for t, slot in at])
        feedback = Feedback.of(Statistics.of([own], [own]), 32)
        assert torch.equal(made[number], ScaleSearch(32).quantize(values[number], feedback).dequantize())
        nearest = RoundToNearest(32).quantize(values[number]).dequantize()
        search, rtn = (float(((values[number] - one) @ own.T).square().mean()) for one in (made[number], nearest))
        assert search < 0.9 * rtn
