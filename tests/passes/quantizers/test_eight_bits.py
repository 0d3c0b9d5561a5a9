"""Round to nearest in 8 bits: within half a step."""

from __future__ import annotations

import pytest
import torch
from tiny_phi3 import normal

from pocketphi.passes.quantizers import EightBits

SLACK = 256 * float(torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("block", [0, 16, 64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_error_is_half_a_step(block: int, sign: float) -> None:
    w = normal(20, 128) * sign
    w[3], w[4, 5] = 0.0, 100.0 * sign
    made = EightBits(block).quantize(w)
    steps = made.scale.abs().repeat_interleave(block or 128, 1)
    # the opposite of the largest value has no level: there a step is lost, and 128 times the rounding of the scale
    error = (made.dequantize() - w).abs()
    inside = w.abs() < 127 * steps
    assert bool((error[inside] <= (0.5 + SLACK) * steps[inside]).all())
    assert bool((error <= (1 + 128 * 2**-11) * steps + 1e-9).all())
    assert torch.equal(made.scale, made.scale.half().float())
    assert made.scale.shape == (20, 128 // (block or 128))
    assert not bool(made.dequantize()[3].any())
