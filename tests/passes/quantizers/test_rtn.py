"""RoundToNearest, and what all quantizers share: bounds that follow from the step, and odd blocks."""

from __future__ import annotations

import pytest
import torch
from tiny_phi3 import TINY, normal

from pocketphi.graph.checkpoint import TensorInfo
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Int4
from pocketphi.graph.kept import Kept
from pocketphi.graph.lazy_weights import FloatWeight
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.passes.quantizers import Keep, RoundToNearest, ScaleSearch, make_quantizer, recipes

BLOCKS = [16, 32, 64, 128, 256]
SLACK = 16 * float(torch.finfo(torch.float32).eps)  # of a step: 15 steps at most, and the roundings of w · (1 / scale)
HALF = 2.0**-11  # relative rounding of a scale to float16


def errors(w: torch.Tensor, made: Int4) -> tuple[torch.Tensor, torch.Tensor]:
    """|w - dequantized| in steps, and whether the value lies beyond the last level; both [N, K]."""
    step = made.scale.abs().repeat_interleave(made.block, 1)
    error = (w - made.dequantize()).abs() / step
    zeros = made.zeros()
    zero = torch.full_like(made.scale, 8.0) if zeros is None else zeros.float()
    signed = w / made.scale.repeat_interleave(made.block, 1) + zero.repeat_interleave(made.block, 1)
    return error, (signed < 0) | (signed > 15)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", ["normal", "positive", "negative", "outlier", "tiny", "huge"])
def test_symmetric_error(block: int, shape: str) -> None:
    w = normal(40, 512)
    if shape in ("positive", "negative"):
        w = w.abs() * (1 if shape == "positive" else -1)
    if shape == "outlier":
        w[:, 5] = 1000 * w[:, 5].sign()
    w *= {"tiny": 1e-3, "huge": 1e4}.get(shape, 1)
    made = RoundToNearest(block).quantize(w)
    error, beyond = errors(w, made)
    assert made.block == block
    assert float(error[~beyond].max()) <= 0.5 + SLACK
    assert float(error.max()) <= 1 + 8 * HALF + SLACK  # +8 steps has no level, +7 has
    # the value of largest magnitude is met but for the rounding of the scale to float16
    blocks, back = w.view(40, -1, block), made.dequantize().view(40, -1, block)
    at = blocks.abs().argmax(-1, keepdim=True)
    largest = blocks.gather(-1, at)
    assert bool(((largest - back.gather(-1, at)).abs() <= largest.abs() * (HALF + SLACK)).all())
    assert torch.equal(made.scale, made.scale.half().float())


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shift", [0.0, 3.0, 100.0, -100.0])
def test_asymmetric_error(block: int, shift: float) -> None:
    """Half a step for the value and half for the zero point at the ends of the range, where levels run out, and 15 steps'
    worth of the scale's rounding."""
    w = normal(40, 512) + shift
    made = RoundToNearest(block, symmetric=False).quantize(w)
    error, beyond = errors(w, made)
    assert float(error[~beyond].max()) <= 0.5 + SLACK
    assert float(error.max()) <= 1 + 15 * HALF + SLACK
    low, high = torch.aminmax(w.view(40, -1, block), dim=-1)
    assert torch.equal(made.scale, ((high.clamp(min=0) - low.clamp(max=0)) / 15).half().float())
    zeros = made.zeros()
    assert zeros is not None
    ends = {100.0: [0], -100.0: [15]}  # all values on one side of zero
    assert zeros.unique().tolist() == ends.get(shift, zeros.unique().tolist())


def test_by_hand() -> None:
    w = torch.tensor([[-4.0, 3.5, 0.3, 0.2] + [0.0] * 12, [4.0, -1.0, 0.24, 0.26] + [0.0] * 12])
    made = RoundToNearest(16).quantize(w)
    assert made.scale.tolist() == [[0.5], [-0.5]]
    assert made.values()[:, :4].tolist() == [[0, 15, 9, 8], [0, 10, 8, 7]]
    made = RoundToNearest(16, symmetric=False).quantize(torch.tensor([[-1.0, 14.0, 3.4, 3.6] + [0.0] * 12]))
    assert (made.scale.tolist(), made.values()[0, :5].tolist()) == ([[1.0]], [0, 15, 4, 5, 1])


MADE = [(recipe, symmetric) for recipe in recipes() for symmetric in (True, False)]


@pytest.mark.parametrize(("recipe", "symmetric"), MADE)
def test_zeros_stay_zeros(recipe: str, symmetric: bool) -> None:
    w = normal(3, 64)
    w[0] = 0
    w[1, 32:] = 0
    w[2, ::2] = 0
    back = make_quantizer(recipe, "int4", {"block": 32, "symmetric": symmetric}).quantize(w).dequantize()
    assert [float(back[w == 0].abs().max()), bool(torch.isfinite(back).all())] == [0.0, True]


@pytest.mark.parametrize("symmetric", [True, False])
def test_values_below_the_smallest_reciprocal(symmetric: bool) -> None:
    back = RoundToNearest(16, symmetric).quantize(torch.full((1, 16), 1e-40)).dequantize()
    assert float(back.abs().max()) <= 1e-40


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_are_independent(symmetric: bool) -> None:
    w = normal(9, 96)
    whole = RoundToNearest(32, symmetric).quantize(w)
    part = RoundToNearest(32, symmetric).quantize(w[4:7])
    assert torch.equal(part.q, whole.q[4:7])
    assert torch.equal(part.scale, whole.scale[4:7])
    assert symmetric or torch.equal(part.zero, whole.zero[4:7])


class Odd(RandomWeights):
    """lm_head.weight with one odd value."""

    def __init__(self, value: float, row: int) -> None:
        super().__init__("random:tiny")
        self.value, self.row = value, row

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        rows = super().read(name, start, stop)
        if start <= self.row < stop:
            rows[self.row - start, 9] = self.value
        return rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("recipe", "symmetric"), MADE)
def test_refuses_what_is_not_finite(value: float, recipe: str, symmetric: bool) -> None:
    source = FloatWeight(Odd(value, 77), "lm_head.weight")
    quantizer = make_quantizer(recipe, "int4", {"block": 32, "symmetric": symmetric})
    message = r"^lm_head.weight: row 77 holds a value that is not finite \(NaN or infinity\)$"
    with pytest.raises(InputError, match=message):
        quantizer.quantize_rows(source, 50, 100, None)
    assert quantizer.quantize_rows(source, 78, 100, None).q.shape == (22, 32)


@pytest.mark.parametrize("recipe", ["rtn", "search"])
@pytest.mark.parametrize(
    ("form", "more", "kept"),
    [
        ("int4", {}, "a scale"),
        ("int4", {"symmetric": False}, "a scale"),
        ("affine4", {}, "scales and offsets"),
    ],
)
def test_refuses_a_scale_that_float16_does_not_hold(recipe: str, form: str, more: dict[str, bool], kept: str) -> None:
    source = FloatWeight(Large(1), "lm_head.weight")
    with pytest.raises(InputError, match=f"^lm_head.weight: row 5 holds values too large for {kept} in float16$"):
        make_quantizer(recipe, form, {"block": 32, **more}).quantize_rows(source, 5, 9, None)


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_near_the_smallest_of_float16(symmetric: bool) -> None:
    """Below 6e-5 the spacing of float16 is 2⁻²⁴: half of that for the scale, 15 times, and a step for the value."""
    w = normal(8, 64) * torch.logspace(-9, -3, 8)[:, None]
    made = RoundToNearest(32, symmetric).quantize(w)
    assert torch.equal(made.scale, made.scale.half().float())
    step = made.scale.abs().repeat_interleave(32, 1)
    allowed = step * (1 + 15 * HALF + SLACK) + 15 * 2.0**-25
    assert bool(((w - made.dequantize()).abs() <= allowed).all())
    searched = ScaleSearch(32, symmetric).quantize(w)
    assert torch.equal(searched.scale, searched.scale.half().float())
    error = (w - searched.dequantize()).view(8, 2, 32).square().sum(-1)
    assert bool((error <= w.view(8, 2, 32).square().sum(-1)).all())  # a block of zeros is what the search starts from


class Large(RandomWeights):
    """3e38 everywhere, times a sign in every other column."""

    def __init__(self, sign: int) -> None:
        super().__init__("random:tiny")
        self.sign = sign

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        rows = torch.full((stop - start, self.tensors[name].columns), 3e38)
        rows[:, ::2] *= self.sign
        return rows


def test_keep_takes_over_blocks_of_the_file() -> None:
    kept = Int4.pack(torch.arange(64).view(2, 32) % 16, torch.tensor([[0.5], [2.0]]))

    class Stored(RandomWeights):
        def kept(self, name: str) -> Kept | None:
            return Kept(Int4, 32) if name == "lm_head.weight" else None

        def read_kept(self, name: str, start: int, stop: int) -> Int4:
            return kept

    source = Stored("random:tiny")
    assert Keep(32).quantize_rows(FloatWeight(source, "lm_head.weight"), 0, 2, None) is kept
    other = FloatWeight(source, "model.embed_tokens.weight")
    assert Keep(32).remark(FloatWeight(source, "lm_head.weight")) is None
    assert "embed_tokens.weight: stored as bf16, which cannot be kept: rounded to nearest" in str(
        Keep(32).remark(other)
    )
    want = RoundToNearest(32).quantize_rows(other, 3, 9, None)
    assert torch.equal(Keep(32).quantize_rows(other, 3, 9, None).q, want.q)


def test_by_name() -> None:
    assert type(make_quantizer("search", "int4", {"block": 32})) is ScaleSearch
    assert make_quantizer("rtn", "int4", {"block": 64, "symmetric": False}).describe() == "int4 rtn block 64 asymmetric"
    with pytest.raises(InputError, match=r"--recipe gptq: expected one of search, two-sided, rtn, keep"):
        make_quantizer("gptq", "int4", {})
    assert TensorInfo(TINY.tensors()["lm_head.weight"], "bf16").columns == 64
