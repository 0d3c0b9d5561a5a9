"""ProgramRunner: token by token gives what all at once gives."""

from __future__ import annotations

import pytest
import torch
from tiny_phi3 import VARIANTS, fused, inputs, rounding

from pocketphi.graph.decoder import ProgramRunner


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("keep", [True, False])
def test_steps(variant: str, keep: bool) -> None:
    program = fused(variant)
    tokens = inputs(program.config, 60, 0, 2)["input_ids"]
    runner = ProgramRunner(program, keep)
    whole = runner.step(tokens)
    runner.reset()
    parts = torch.cat([runner.step(part) for part in tokens.split([50, 1, 1, 8], dim=1)], dim=1)
    # the same sums, with masked terms more or less
    assert float((whole - parts).abs().max()) <= rounding(program.config, float(whole.abs().max()))


def test_reset_forgets() -> None:
    program = fused()
    tokens = inputs(program.config, 9)["input_ids"]
    runner = ProgramRunner(program)
    first = runner.step(tokens)
    second = runner.step(tokens)
    runner.reset()
    assert not torch.equal(first, second)
    assert torch.equal(runner.step(tokens), first)
