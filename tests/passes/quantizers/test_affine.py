"""Blocks with an offset: to nearest by the definition, the search against all that it might have found, units of rows."""

from __future__ import annotations

import pytest
import torch
from tiny_phi3 import normal

from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Affine4
from pocketphi.passes.quantizers import Feedback, Statistics, make_quantizer


def quantized(w: torch.Tensor, recipe: str = "rtn", feedback: Feedback | None = None, **parameters: int) -> Affine4:
    made = make_quantizer(recipe, "affine4", {"block": 32, **parameters}).quantize(w, feedback)
    assert isinstance(made, Affine4)
    return made


@pytest.mark.parametrize("shift", [0.0, 2.0, -300.0])
def test_both_ends_of_a_block_are_levels(shift: float) -> None:
    w = normal(20, 128) + shift
    made = quantized(w)
    values, blocks = made.values().view(20, 4, 32), w.view(20, 4, 32)
    if abs(shift) < 10:  # float16 has a step of a quarter at 300, which is half of theirs
        assert torch.equal(values.amin(-1), torch.zeros(20, 4, dtype=torch.uint8))
        assert torch.equal(values.amax(-1), torch.full((20, 4), 15, dtype=torch.uint8))
    step = (blocks.amax(-1) - blocks.amin(-1)) / 15
    # scale and offset are of float16: 2⁻¹¹ of eight steps, and of the offset
    slack = 2**-11 * (8 * step + made.offset.abs() + step)
    error = (made.dequantize() - w).view(20, 4, 32).abs()
    assert bool((error <= (step / 2 + slack)[..., None] * (1 + 1e-5)).all())
    for part in (made.scale, made.offset):
        assert torch.equal(part, part.half().float())


@pytest.mark.parametrize("recipe", ["rtn", "search", "two-sided"])
def test_blocks_of_one_value_are_that_value(recipe: str) -> None:
    w = torch.tensor([0.0, 0.5, -2.0, 1e-5]).repeat_interleave(32)[None].repeat(3, 1)
    made = quantized(w, recipe).dequantize()
    assert torch.equal(made, w.half().float())


def test_search_finds_the_grid_that_a_block_lies_on() -> None:
    """Of blocks that were rounded before, with a float minimum, search gives back the very values."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randint(0, 16, (40, 4, 32), generator=generator)
    q[..., 0], q[..., 1] = 0, 15
    scale, low = (torch.rand(40, 4, 1, generator=generator) + 0.5).half().float(), normal(40, 4)[..., None]
    low = (low * 64).round() / 64  # so that the middle level is a value of float16 too
    w = (q * scale + low).view(40, 128)
    made = quantized(w, "search").dequantize()
    assert float((made - w).abs().max()) <= 2**-10 * float(w.abs().max())


def test_search_beats_every_start_that_it_is_given() -> None:
    """By weighted error: better than the levels that span each block, or a part of it, before and after least squares."""
    w, cost = normal(64, 32), normal(32).exp()
    search = make_quantizer("search", "affine4", {"block": 32})
    scale, offset = search._search(w.T.contiguous(), cost)  # type: ignore[attr-defined]

    def error(scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        q = ((w - offset[:, None]) / scale[:, None]).round().clamp(-8, 7)
        return (w - q * scale[:, None] - offset[:, None]).square() @ cost

    found, low, high = error(scale, offset), w.amin(1), w.amax(1)
    for shrink in (1.05, 1.0, 0.9, 0.8, 0.7, 0.6):
        span = shrink * (high - low)
        step = span / 15
        assert bool((found <= error(step, (low + high - span) / 2 + 8 * step) * (1 + 1e-3)).all())
    assert float(found.mean()) < 0.8 * float(error((high - low) / 15, low + 8 * (high - low) / 15).mean())


def test_inputs_say_which_columns_count() -> None:
    inputs = normal(300, 128) @ normal(128, 128)
    w = normal(32, 128)
    feedback = Feedback.of(Statistics(inputs.T @ inputs / 300), 32)
    lost = {
        (form, recipe): float(((weight.dequantize() - w) @ inputs.T).square().mean())
        for form in ("int4", "affine4")
        for recipe in ("rtn", "search")
        if (weight := make_quantizer(recipe, form, {"block": 32}).quantize(w, feedback))
    }
    assert lost["affine4", "search"] < 0.85 * lost["int4", "search"]
    assert lost["affine4", "search"] < 0.6 * lost["affine4", "rtn"]


@pytest.mark.parametrize("recipe", ["rtn", "search"])
def test_offsets_in_units_of_their_row(recipe: str) -> None:
    w = normal(24, 128) * torch.logspace(-6, 3, 24)[:, None] + torch.logspace(-6, 2, 24)[:, None]
    w[3] = 0.0
    made = quantized(w, recipe, scale_bits=8)
    for values, unit in ((made.scale, made.row_scale), (made.offset, made.row_offset)):
        assert unit is not None
        codes = torch.where(unit > 0, values / unit, 0.0)
        assert torch.equal(codes, codes.round())
        assert codes.abs().max() <= 127
        assert torch.equal(values, values.half().float())
        assert not bool((values.view(torch.int32) == -(2**31)).any())  # a file of int8 has no zero with a sign
    assert not bool(made.dequantize()[3].any())


def test_what_float16_does_not_have_is_odd_in_its_scale() -> None:
    """That is where a quantizer's rows are looked at: an offset alone may be too large."""
    w = normal(4, 64)
    w[2] += 1e5
    for recipe in ("rtn", "search"):
        assert quantized(w, recipe).scale.isfinite().all(1).tolist() == [True, True, False, True]


@pytest.mark.parametrize("recipe", ["rtn", "search"])
@pytest.mark.parametrize("wider", [20, 300, 1000])
def test_blocks_much_narrower_than_another_of_their_row(recipe: str, wider: int) -> None:
    """What a byte has no scale for is no worse than a block of its centre, which is nearly zeros."""
    w = normal(64, 256)
    w[:, :32] *= wider
    made = quantized(w, recipe, scale_bits=8).dequantize()
    lost = float((made - w)[:, 32:].square().sum() / w[:, 32:].square().sum())
    assert lost < (0.01 if wider == 20 else 1.1)


def test_there_are_no_zero_points() -> None:
    with pytest.raises(InputError, match="rtn of affine4: symmetric is False, expected block, scale_bits only"):
        make_quantizer("rtn", "affine4", {"symmetric": False})
