"""Factors of channels lie elsewhere afterwards: the same model, to the bit, whose norms give off values that are more alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loud import Loud

from pocketphi.graph.channel_scales import LARGEST, ChannelScales, not_cancelled, scaled_alike
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.lazy_weights import FloatWeight, LazyWeight
from pocketphi.graph.program import Program, Weights, evaluate
from pocketphi.graph.random_weights import PUBLISHED
from pocketphi.graph.trace import trace
from pocketphi.graph.write_checkpoint import write_checkpoint
from pocketphi.passes.smooth import _exponents, smoothing

TOKENS = torch.randint(0, PUBLISHED["tiny"].vocab_size, (2, 32), generator=torch.Generator().manual_seed(0))


def reading(program: Program, source: Checkpoint) -> Program:
    made = program.copy()
    for name, weight in program.weights.items():
        if isinstance(weight, FloatWeight):
            made.weights[name] = replace(weight, checkpoint=source)
    return made


def run(program: Program) -> torch.Tensor:
    logits = program.outputs["logits"]
    return evaluate([logits], program.prefill_inputs(TOKENS), Weights(program.weights, keep=False))[logits]


@pytest.mark.parametrize("tied", [False, True])
def test_the_same_model_to_the_bit(tied: bool) -> None:
    source = Loud(tied)
    program = trace(source)
    exponents = smoothing(program, TOKENS)
    norms = {name for name in source.tensors if name.endswith("norm.weight")}
    assert set(exponents) == norms - ({"model.norm.weight"} if tied else set())
    assert all(bool(found.any()) and int(found.abs().max()) <= LARGEST for found in exponents.values())
    scaled = ChannelScales(source, exponents)
    assert not torch.equal(scaled.read("model.norm.weight", 0, 64), source.read("model.norm.weight", 0, 64)) or tied
    assert torch.equal(run(program), run(reading(program, scaled)))
    assert not not_cancelled(source, scaled)


def test_exponents_by_hand() -> None:
    """Half of log2, against the median of channels that say anything, to the nearest whole number, at most 8."""
    largest = torch.tensor([1.0, 4.0, 16.0, 2.0**5.2, 2.0**40, 2.0**-40, 0.0, 0.0, 0.0])
    assert _exponents(largest).tolist() == [-1, 0, 1, 2, 8, -8, 0, 0, 0]  # of 0, 1, 2, 2.6, 20 and -20 the median is 1
    assert _exponents(torch.tensor([0.0, 0.25, 0.25])).tolist() == [0, 0, 0]
    assert _exponents(torch.tensor([2.0**-30, 2.0**-34, 2.0**-38])).tolist() == [2, 0, -2]
    assert _exponents(torch.zeros(3)).tolist() == [0, 0, 0]


def test_the_largest_values_are_those_that_transformers_runs_into(tmp_path: Path) -> None:
    """Of either sign, over all windows and positions."""
    from transformers import AutoModelForCausalLM

    source, met = Loud(), {}
    write_checkpoint(source, tmp_path, "fp32", lambda done: None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, x, name=name: met.setdefault(name, x[0].detach()))
    with torch.no_grad():
        model(TOKENS)
    behind = {"self_attn.qkv_proj": "input_layernorm", "mlp.gate_up_proj": "post_attention_layernorm"}
    want = {"model.norm.weight": met["lm_head"]} | {
        f"model.layers.{layer}.{norm}.weight": met[f"model.layers.{layer}.{name}"]
        for layer in range(source.config.layers)
        for name, norm in behind.items()
    }
    found = smoothing(trace(source), TOKENS)
    assert found.keys() == want.keys()
    for norm, x in want.items():
        largest = x.reshape(-1, x.shape[-1]).abs().amax(0).double()
        assert bool((x.amax((0, 1)) < x.abs().amax((0, 1))).any())  # a channel's largest value is below zero
        half = 0.5 * largest.log2()
        exact = (half - half.median()).clamp(-8, 8)
        clear = ((exact - exact.floor()) - 0.5).abs() > 1e-3  # rounding decides between two kernels' last bits
        assert int(clear.sum()) > 60
        assert torch.equal(found[norm][clear], exact.round().int()[clear])


def test_loud_channels_are_quiet_afterwards() -> None:
    source = Loud()
    program = trace(source)
    exponents = smoothing(program, TOKENS)
    first = exponents["model.layers.0.input_layernorm.weight"]
    assert first[3] >= 1
    assert first[17] >= 1
    assert first[30] <= -1
    assert int((first != 0).sum()) < len(first) // 2
    after = smoothing(reading(program, ChannelScales(source, exponents)), TOKENS)
    assert int(after["model.layers.0.input_layernorm.weight"].abs().max()) < int(first.abs().max())


@pytest.mark.parametrize("broken", ["the norm", "the columns"])
def test_half_a_move_is_seen(broken: str) -> None:
    source = Loud()
    exponents = smoothing(trace(source), TOKENS)

    class Half(ChannelScales):
        def read(self, name: str, start: int, stop: int) -> torch.Tensor:
            is_norm = name.endswith("norm.weight")
            return (
                source.read(name, start, stop) if is_norm == (broken == "the norm") else super().read(name, start, stop)
            )

    assert len(not_cancelled(source, Half(source, exponents))) == len(exponents)


def test_saved_norms_tell_the_scales() -> None:
    source = Loud()
    program = trace(source)
    exponents = smoothing(program, TOKENS)
    saved: dict[str, LazyWeight] = dict(reading(program, ChannelScales(source, exponents)).weights)
    found = scaled_alike(source, saved)
    for name, info in source.tensors.items():
        assert torch.equal(
            found.read(name, 0, info.rows), ChannelScales(source, exponents).read(name, 0, info.rows).float()
        )


def test_other_norms_are_not_taken_for_moved_ones() -> None:
    source = Loud()
    program = trace(source)

    class Other(Checkpoint):
        def __init__(self) -> None:
            self.wrap(source, "tensors")

        def read(self, name: str, start: int, stop: int) -> torch.Tensor:
            rows = source.read(name, start, stop)
            return rows * 1.3 if name.endswith("norm.weight") else rows

    found = scaled_alike(source, dict(reading(program, Other()).weights))
    norm = "model.norm.weight"
    assert torch.equal(found.read(norm, 0, 64), source.read(norm, 0, 64))
