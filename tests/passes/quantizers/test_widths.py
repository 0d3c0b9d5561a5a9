"""Round to nearest in each width: within half a step; search: closer where inputs say what counts."""

from __future__ import annotations

import pytest
import torch
from tiny_phi3 import normal

from pocketphi.graph.formats import FORMATS, Blocks
from pocketphi.passes.quantizers import Feedback, RoundToNearest, Statistics, make_quantizer

SLACK = 256 * float(torch.finfo(torch.float32).eps)
FORMS = [form for form in FORMATS.values() if issubclass(form, Blocks)]


@pytest.mark.parametrize("block", [0, 16, 64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
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
