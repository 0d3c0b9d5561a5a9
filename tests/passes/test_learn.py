"""Learned scales: their gradient against transformers' own model, Adam against torch's, what a step gains, and a stop."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pocketphi.graph.formats import Blocks, format_of, weight_of
from pocketphi.graph.formats.blocks import scale_codes
from pocketphi.graph.lazy_weights import LazyWeight, materialize
from pocketphi.graph.program import Program
from pocketphi.graph.random_weights import PUBLISHED, RandomWeights
from pocketphi.graph.trace import trace
from pocketphi.graph.write_checkpoint import write_checkpoint
from pocketphi.passes.learn import Learner, Progress, Schedule, _adam, working_bytes
from pocketphi.passes.quantize_weights import QuantizedWeight
from pocketphi.passes.quantizers import Quantizer, make_quantizer
from tests.helpers.tiny_phi3 import traced

INT3 = make_quantizer("rtn", "int3", {"block": 32})
BY_ROW = make_quantizer("rtn", "nl4", {"block": 32, "scale_bits": 8})
TABLES = make_quantizer("rtn", "palette3", {"group": 16})
SHORT = Schedule(windows=2, rounds=2, rate=4e-3)


def rounded(program: Program, *quantizers: Quantizer) -> dict[str, LazyWeight]:
    """Every matrix, by the quantizers in turn."""
    names = [name for name, shape in program.config.tensors().items() if len(shape) == 2]
    return {
        name: QuantizedWeight(program.weights[name], quantizers[i % len(quantizers)])  # type: ignore[arg-type]
        for i, name in enumerate(names)
    }


def text(program: Program, windows: int = 4, length: int = 24) -> torch.Tensor:
    return torch.randint(0, program.config.vocab_size, (windows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [False, True])
def test_the_gradient_of_every_scale(tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = dataclasses.replace(PUBLISHED["tiny"], layers=2, vocab_size=40, tied_embeddings=tied)
    source = RandomWeights("random:x", config)
    write_checkpoint(source, tmp_path, "fp32", lambda done: None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    program = trace(source)
    weights, tokens = rounded(program, INT3), text(program, windows=2)
    deltas, values = {}, {}
    for name, weight in weights.items():
        form = weight_of(materialize(weight))
        assert isinstance(form, Blocks)
        deltas[name] = torch.zeros_like(form.scale, requires_grad=True)
        blocks = form.centred().view(*form.scale.shape, -1)
        values[name] = (blocks * (form.scale + form.scale.abs() * deltas[name])[..., None]).flatten(1)
    with torch.no_grad():
        p = model(tokens).logits.log_softmax(-1)
    q = torch.func.functional_call(model, values, (tokens,)).logits.log_softmax(-1)
    loss = (p.exp() * (p - q)).sum(-1).mean()
    expected = dict(zip(deltas, torch.autograd.grad(loss, list(deltas.values()))))

    learner = Learner(program, weights, tokens, Schedule(windows=2, rounds=1))
    first = learner.learn()
    assert (learner.steps, first.step) == (1, 1)
    assert first.loss == pytest.approx(loss.item(), rel=1e-4)
    for name, wanted in expected.items():
        came = first.state[name][1] / (1 - 0.9)  # the mean of gradients begins at 0
        # float32 sums of thousands of products in another order, and a softmax
        assert (came - wanted).norm() <= 1e-3 * wanted.norm(), name


def test_adam_is_torchs() -> None:
    generator = torch.Generator().manual_seed(2)
    value = torch.nn.Parameter(torch.zeros(5, 3))
    theirs = torch.optim.Adam([value], lr=0.01, betas=(0.9, 0.95), eps=1e-12)
    state = {"w": [torch.zeros(5, 3) for _ in range(3)]}
    for step in range(1, 9):
        value.grad = torch.randn(5, 3, generator=generator) * 1e-6
        theirs.step()
        state = dict(_adam(state, {"w": value.grad}, step, 0.01))  # type: ignore[arg-type]
    assert torch.allclose(state["w"][0], value.detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("quantizers", [(INT3,), (BY_ROW,), (TABLES, INT3)])
def test_predictions_come_closer(quantizers: tuple[Quantizer, ...]) -> None:
    """On the very text, of which each step's loss is known before it."""
    program = traced("tiny")
    learner = Learner(program, rounded(program, *quantizers), text(program), Schedule(windows=4, rounds=12, rate=4e-3))
    losses: list[float] = []
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    done = learner.learn(count, keep=lambda now: losses.append(now.loss))
    assert (len(losses), calls) == (learner.steps, learner.calls)
    assert losses[-1] < 0.9 * losses[0]
    for name, weight in rounded(program, *quantizers).items():
        form, came = weight_of(materialize(weight)), learner.scales(name, done.state)
        assert torch.equal(came, came.half().float())
        assert came.shape == form.half_values.shape
        assert not torch.equal(came, form.half_values)
        row = getattr(form, "row_scale", None)
        assert row is None or torch.equal(came, scale_codes(came, row) * row)


def test_learning_that_was_stopped_goes_on_to_the_same_bits() -> None:
    program = traced("tied")
    weights, tokens = rounded(program, INT3), text(program)
    kept: list[Progress] = []
    whole = Learner(program, weights, tokens, SHORT).learn(keep=kept.append)
    assert [one.step for one in kept] == [1, 2, 3, 4]
    data = b"".join(kept[1].buffers())
    again = Progress.restored(2, kept[1].shapes(), memoryview(data))
    assert again is not None
    assert Progress.restored(2, kept[1].shapes(), memoryview(data[:-4])) is None
    left = Learner(program, weights, tokens, SHORT).learn(reached=again)
    assert left.loss == whole.loss
    for name, one in whole.state.items():
        assert all(torch.equal(*pair) for pair in zip(one, left.state[name]))


def test_every_window_is_met_as_often() -> None:
    program = traced("tiny")
    learner = Learner(program, {}, text(program, windows=6), Schedule(windows=2, rounds=3))
    met = [learner._windows(step) for step in range(learner.steps)]
    assert sorted(window for one in met for window in one) == sorted([*range(6)] * 3)
    assert met[:3] != met[3:6]


def test_weights_of_eight_bits_keep_their_scales() -> None:
    program = traced("tiny")
    learner = Learner(program, rounded(program, make_quantizer("rtn", "int8", {"block": 32}), INT3), text(program))
    assert {format_of(learner._rounded[name].parts).bits for name in learner.shapes} == {3}  # type: ignore[union-attr]
    assert len(learner.shapes) < len(learner._rounded)


def test_what_learning_takes() -> None:
    """Far less than the weights in float32, which are 15 GB: a layer at a time."""
    config = PUBLISHED["phi-3-mini-4k"]
    assert 2e9 < working_bytes(config, 16384, 512, config.parameters // 64) < 7e9
