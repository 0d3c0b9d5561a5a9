"""F against its definition, in transformers' own model: every token that could be drawn, by its probability, in two windows of
different text."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pocketphi.graph.random_weights import PUBLISHED, RandomWeights
from pocketphi.graph.trace import trace
from pocketphi.graph.write_checkpoint import write_checkpoint
from pocketphi.passes.fisher import Fisher, Measured

CONFIG = dataclasses.replace(PUBLISHED["tiny"], layers=2, vocab_size=24)
TOKENS = torch.tensor([[3, 7, 3], [5, 7, 1]])
DRAWN = 120
"""The square of a normal value spreads by √2 of its mean: over so many draws by 0.13, of which 0.5 is four times. The
sum over a weight has two windows and many values: half of that."""


ROUNDED = 2.0**-8
"""Gradients, and p (1 - p), are kept in bfloat16: each is off by half of that at most, and their squares by all of it."""


def whole(one: Measured) -> torch.Tensor:
    return one.fisher(torch.arange(len(one.sums)))


@pytest.mark.parametrize("tied", [False, True])
def test_every_weight(tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = RandomWeights("random:x", dataclasses.replace(CONFIG, tied_embeddings=tied))
    write_checkpoint(source, tmp_path, "fp32", lambda done: None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    weights = {name: held for name, held in model.named_parameters() if held.dim() == 2}
    rows = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    met: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: met.append(given[0]))
    log_p = model(inputs_embeds=rows).logits.log_softmax(-1)
    inner = [name for name in weights if "layers" in name]
    exact = {name: torch.zeros_like(weights[name]) for name in inner}
    read, numbers = torch.zeros(len(TOKENS.unique()), CONFIG.hidden_size), TOKENS.unique(return_inverse=True)[1]
    for window, position, token in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(24)).tolist():
        given = log_p[window, position, token]
        found = torch.autograd.grad(given, [rows, *(weights[name] for name in inner)], retain_graph=True)
        weight = float(given.exp()) / TOKENS.numel()
        # F of a window: what its positions give is squared after its sum, and products of other positions vanish
        for name, gradient in zip(inner, found[1:]):
            exact[name] += weight * gradient.square()
        read += weight * torch.zeros_like(read).index_add_(0, numbers[window], found[0][window]).square()
    p, h = log_p.exp().detach().flatten(0, 1), met[0].detach().flatten(0, 1)
    head = (p * (1 - p)).T @ h.square() / TOKENS.numel()

    made = list(Fisher(trace(source), TOKENS, samples=DRAWN).measure())
    assert len(made) == len(inner) + 2
    by_place = {one.name: one for one in made if one.rows is None}
    of_head = by_place.pop("model.embed_tokens.weight" if tied else "lm_head.weight")
    torch.testing.assert_close(of_head.sums, head.sum(1))
    torch.testing.assert_close(whole(of_head), head, rtol=ROUNDED, atol=0)
    assert by_place.keys() == exact.keys()
    for name, one in by_place.items():
        assert float(one.sums.sum()) == pytest.approx(float(exact[name].sum()), rel=0.25)
        assert torch.corrcoef(torch.stack([whole(one).flatten(), exact[name].flatten()]))[0, 1] > 0.97
        torch.testing.assert_close(whole(one).sum(1), one.sums, rtol=2 * ROUNDED, atol=0)
        torch.testing.assert_close(one.fisher(torch.tensor([5, 2, 5])), whole(one)[[5, 2, 5]])
    (embedding,) = (one for one in made if one.rows is not None)
    assert torch.equal(embedding.rows, TOKENS.unique())  # type: ignore[arg-type]
    torch.testing.assert_close(whole(embedding).sum(1), embedding.sums)
    torch.testing.assert_close(embedding.sums, read.sum(1), rtol=0.5, atol=0)
    assert float(embedding.sums.sum()) == pytest.approx(float(read.sum()), rel=0.25)
