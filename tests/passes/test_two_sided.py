"""Rounding that weighs outputs: what is measured of them against transformers' own gradients, what errors cost, and what
rounding makes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pocketphi.graph.config import layer_of
from pocketphi.graph.random_weights import PUBLISHED, RandomWeights
from pocketphi.graph.trace import trace
from pocketphi.graph.write_checkpoint import write_checkpoint
from pocketphi.passes.output_moments import OutputMoments
from pocketphi.passes.quantizers import Feedback, Statistics, make_quantizer
from pocketphi.passes.quantizers.outputs import Outputs, RowBlocks

CONFIG = dataclasses.replace(PUBLISHED["tiny"], layers=2, vocab_size=24)
TOKENS = torch.tensor([[3, 7, 3], [5, 7, 1]])
DRAWN = 200
"""The mean of n products g gᵀ of normal values with the moment H spreads by √((trace(H)² + |H|²) / n). Here H is a sum over
positions, drawn apart from each other, so that it spreads by less."""


def moments(outputs: Outputs, count: int) -> torch.Tensor:
    """What the blocks say: [N, N], with nothing between rows of two blocks."""
    whole = torch.zeros(count, count)
    for blocks in outputs.blocks:
        for rows, factor in zip(blocks.rows, blocks.factor.float()):
            whole[rows[:, None], rows] = factor @ factor.T
    return whole


def test_what_is_measured_are_the_gradients_of_what_could_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every token that could be drawn, by its probability, in transformers' model. A draw's own gradients reach several
    positions; what two positions have in common is no part of it."""
    from transformers import AutoModelForCausalLM

    source = RandomWeights("random:x", CONFIG)
    write_checkpoint(source, tmp_path, "fp32", lambda done: None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    made: dict[str, torch.Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and "layers" in name:
            layer.register_forward_hook(lambda _, given, out, name=name: made.__setitem__(f"{name}.weight", out))
    log_p = model(inputs_embeds=model.get_input_embeddings()(TOKENS).detach().requires_grad_()).logits.log_softmax(-1)
    exact = {name: torch.zeros(out.shape[-1], out.shape[-1]) for name, out in made.items()}
    for window, position, token in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(24)).tolist():
        given = log_p[window, position, token]
        found = torch.autograd.grad(given, list(made.values()), retain_graph=True)
        for name, gradient in zip(made, found):
            g = gradient.flatten(0, 1)
            exact[name] += float(given.exp()) * g.T @ g

    monkeypatch.setattr("pocketphi.passes.output_moments._SAMPLES", DRAWN)
    monkeypatch.setattr("pocketphi.passes.quantizers.outputs._MOST", 1e9)
    measured = {one.name: one.outputs for one in OutputMoments(trace(source), TOKENS).measure()}
    assert set(measured) == set(exact) == {name for name in CONFIG.matrices() if layer_of(name) is not None}
    for name, outputs in measured.items():
        came = moments(outputs, len(exact[name])) / DRAWN
        came.diagonal().sub_(came.diagonal().mean() / 2)  # as much as its mean was added
        spread = ((exact[name].trace().square() + exact[name].square().sum()) / DRAWN).sqrt()
        assert (came - exact[name]).norm() < spread < 0.6 * exact[name].norm(), name


@pytest.mark.parametrize("rows", [1, 24, 1024, 1025, 2500])
def test_each_row_is_in_one_block(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketphi.passes.quantizers.outputs._MOST", 1e9)
    gradients = torch.randn(8, rows, generator=torch.Generator().manual_seed(0)) * torch.arange(rows)
    outputs = Outputs.of(gradients.bfloat16())
    found = torch.cat([blocks.rows.flatten() for blocks in outputs.blocks])
    assert found.sort().values.tolist() == list(range(rows))
    assert max(blocks.rows.shape[1] for blocks in outputs.blocks) <= 1024
    energy = gradients.bfloat16().float().square().sum(0)
    for blocks in outputs.blocks:
        assert (energy[blocks.rows].diff(dim=1) <= 0).all()


def test_no_token_counts_for_more_than_half_of_the_mean() -> None:
    """Of four tokens, in rows of their own: |g|² of 1, 4, 16 and 43 with a mean of 16, so that two of them count for 8."""
    outputs = Outputs.of(torch.diag(torch.tensor([1.0, 4.0, 16.0, 43.0]).sqrt()).bfloat16())
    found = moments(outputs, 4).diagonal()
    assert found.tolist() == pytest.approx([one + 21 / 4 for one in (1, 4, 8, 8)], rel=0.02)


def test_errors_cost_what_their_parts_do() -> None:
    """trace(Eᵀ H E) is the sum over parts that `mixing` promises, where each part comes last to be made up for."""
    torch.manual_seed(0)
    gradients = torch.randn(64, 40)
    (blocks,) = Outputs.of(gradients.clone()).blocks
    factor, mixing = blocks.factor[0].double(), blocks.mixing(16)[0].double()
    errors = torch.randn(40, 3, dtype=torch.float64)
    cost = 0.0
    for start in range(0, 40, 16):
        part = slice(start, min(start + 16, 40))
        left = errors[part] + mixing[:start, part].T @ errors[:start]
        cost += float((factor[part, part].T @ left).square().sum())
    assert cost == pytest.approx(float((errors.T @ factor @ factor.T @ errors).trace()), rel=1e-5)


def measured(rows: int, columns: int) -> tuple[torch.Tensor, Statistics]:
    """A weight, whose inputs and gradients each have directions in common."""
    made = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made)

    x, g = normal(512, columns) @ normal(columns, columns), normal(512, 8) @ normal(8, rows) + 0.1 * normal(512, rows)
    return normal(rows, columns), Statistics(x.T @ x / 512, None, Outputs.of(g))


@pytest.mark.parametrize("form", ["int2", "nl3", "int4", "nl4", "int8"])
def test_rounding_leaves_less_of_what_is_minded(form: str) -> None:
    """Gradients of rank 8: errors of most rows can make up for each other. What is added to H lets them do so in part."""
    w, statistics = measured(640, 64)
    assert statistics.outputs
    outputs, inputs = moments(statistics.outputs, 640), statistics.moment
    cost = {}
    for recipe in ("search", "two-sided"):
        rounded = make_quantizer(recipe, form, {"block": 32}).quantize(w, Feedback.of(statistics, 32))
        error = w - rounded.dequantize()
        cost[recipe] = float(((outputs @ error) * (error @ inputs)).sum())
    assert cost["two-sided"] < 0.67 * cost["search"]


def test_outputs_that_have_nothing_in_common_are_rounded_as_by_search() -> None:
    w, statistics = measured(96, 64)
    alone = RowBlocks(torch.arange(96).flip(0)[None], torch.eye(96)[None].bfloat16())
    feedback = Feedback.of(dataclasses.replace(statistics, outputs=Outputs((alone,))), 32)
    made = {
        recipe: make_quantizer(recipe, "int4", {"block": 32}).quantize(w, feedback)
        for recipe in ("search", "two-sided")
    }
    for part, held in made["search"].tensors().items():
        assert torch.equal(held, made["two-sided"].tensors()[part]), part
    without = make_quantizer("two-sided", "int4", {"block": 32}).quantize(
        w, dataclasses.replace(feedback, outputs=None)
    )
    assert torch.equal(without.dequantize(), made["search"].dequantize())
