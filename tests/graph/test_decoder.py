"""ProgramRunner: token by token gives what all at once gives."""

from __future__ import annotations

import pytest
import torch
from tiny_phi3 import SWITCH, VARIANTS, fused, inputs, rounding, traced

from pocketphi.graph.decoder import ProgramRunner, pads
from pocketphi.graph.published import PUBLISHED


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_texts_of_several_lengths_side_by_side(variant: str) -> None:
    """A prompt longer than the window, and one that is two thirds of it; then two tokens one by one."""
    program = traced(variant)
    rows = [inputs(program.config, length)["input_ids"][0] for length in (57, 39)]
    together, alone = ProgramRunner(program), ProgramRunner(program)
    assert pads(program.config, 59)
    together.pad(torch.tensor([0, 18]))
    side_by_side = torch.stack([rows[0], torch.nn.functional.pad(rows[1], (18, 0))])
    came = torch.cat([together.step(side_by_side), *(together.step(torch.tensor([[3], [5]])) for _ in range(2))], 1)
    for row, text, token in zip(came, rows, (3, 5)):
        alone.reset()
        step = torch.tensor([[token]])
        expected = torch.cat([alone.step(text[None]), alone.step(step), alone.step(step)], 1)[0]
        apart = float((expected - row[-len(expected) :]).abs().max())
        assert apart <= rounding(program.config, float(expected.abs().max()), 59)


def test_where_padding_is_not_right() -> None:
    assert not pads(VARIANTS["longrope"], SWITCH + 1)
    assert not pads(PUBLISHED["tiny-moe"], 8)
    assert pads(VARIANTS["tiny"], 1 << 17)
