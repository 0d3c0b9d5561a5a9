"""Factors of channels lie elsewhere afterwards: the same model, to the bit, whose norms give off values that are more alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from loud import Loud

from pocketphi.graph.channel_scales import LARGEST, ChannelScales, not_cancelled, scaled_alike
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.lazy_weights import FloatWeight, LazyWeight
from pocketphi.graph.program import Program, Weights, evaluate
from pocketphi.graph.random_weights import PUBLISHED
from pocketphi.graph.trace import trace
from pocketphi.passes.smooth import smoothing

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
