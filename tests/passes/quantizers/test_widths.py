"""Round to nearest in each width: within half a step; search: closer where inputs say what counts."""

from __future__ import annotations

import pytest
import torch
from tiny_phi3 import normal

from pocketphi.graph.formats import FORMATS, Affine, Blocks, Levels
from pocketphi.passes.quantizers import Feedback, RoundToNearest, Statistics, make_quantizer

SLACK = 256 * float(torch.finfo(torch.float32).eps)
FORMS = [form for form in FORMATS.values() if issubclass(form, Blocks)]
EVEN = [form for form in FORMS if not issubclass(form, Levels | Affine)]


@pytest.mark.parametrize("block", [0, 16, 64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("form", EVEN, ids=lambda form: form.name)
def test_the_error_is_half_a_step(form: type[Blocks], block: int, sign: float) -> None:
    w = normal(20, 128) * sign
    w[3], w[4, 5] = 0.0, 100.0 * sign
    made = RoundToNearest.to(form)(block).quantize(w)
    middle = form.middle()
    steps = made.scale.abs().repeat_interleave(block or 128, 1)
    # the opposite of the largest value has no level: there a step is lost, and `middle` times the rounding of the scale
    error = (made.dequantize() - w).abs()
    inside = w.abs() < (middle - 1) * steps
    assert bool((error[inside] <= (0.5 + SLACK) * steps[inside]).all())
    assert bool((error <= (1 + middle * 2**-11) * steps + 1e-9).all())
    assert torch.equal(made.scale, made.scale.half().float())
    assert made.scale.shape == (20, 128 // (block or 128))
    assert not bool(made.dequantize()[3].any())


@pytest.mark.parametrize("form", [form for form in FORMS if issubclass(form, Levels)], ids=lambda form: form.name)
def test_every_value_takes_the_nearest_level(form: type[Levels]) -> None:
    w = normal(20, 128)
    w[3], w[4, 5] = 0.0, 100.0
    made = make_quantizer("rtn", form.name, {"block": 32}).quantize(w)
    assert isinstance(made, form)
    levels = torch.tensor(form.levels) * made.scale[..., None]  # [20, 4, levels]
    apart = (levels.repeat_interleave(32, 1) - w[..., None]).abs().amin(-1)
    error = (made.dequantize() - w).abs()
    assert bool((error <= apart + SLACK * made.scale.abs().repeat_interleave(32, 1) * form.reach()).all())
    assert not bool(made.dequantize()[3].any())
    extreme = w.view(20, 4, 32).gather(2, w.view(20, 4, 32).abs().argmax(2, keepdim=True))[..., 0]
    # the scale is float16: within 2⁻¹¹ of the one that puts the extreme on the lowest level
    assert bool(((made.scale * -form.reach() - extreme).abs() <= extreme.abs() * 2**-11 + 1e-9).all())


@pytest.mark.parametrize("recipe", ["rtn", "search"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_scales_of_eight_bits(recipe: str, form: type[Blocks]) -> None:
    """Whole numbers times their row's, for rows of any size, and no further off than half of one lets a scale be."""
    w = normal(24, 128) * torch.logspace(-6, 3, 24)[:, None]
    w[3], w[4, 5] = 0.0, 100.0
    plain, made = (make_quantizer(recipe, form.name, {"block": 32, "scale_bits": bits}).quantize(w) for bits in (16, 8))
    assert isinstance(made, form)
    row = made.tensors()["row_scale"]
    assert row.shape == (24, 1)
    codes = torch.where(row > 0, made.scale / row, 0.0)
    assert torch.equal(codes, codes.round())
    assert codes.abs().max() <= 127
    assert torch.equal(made.scale, made.scale.half().float())
    assert torch.equal(row, row.half().float())
    lost, more = (float(((one.dequantize() - w) / (row + 1e-30)).square().sum(1).median()) for one in (plain, made))
    assert more < 1.25 * lost
    assert not bool(made.dequantize()[3].any())


@pytest.mark.parametrize("form", FORMATS)
def test_search_is_closer_than_nearest(form: str) -> None:
    inputs = normal(300, 64) @ normal(64, 64)
    w = normal(32, 64)
    feedback = Feedback.of(Statistics(inputs.T @ inputs / 300), 0 if form.startswith("palette") else 32)
    parameters = {"group": 8} if form.startswith("palette") else {"block": 32}
    lost = [
        float(((made.dequantize() - w) @ inputs.T).square().mean())
        for made in (
            make_quantizer("rtn", form, parameters).quantize(w),
            make_quantizer("search", form, parameters).quantize(w, feedback),
        )
    ]
    assert lost[1] < lost[0]
