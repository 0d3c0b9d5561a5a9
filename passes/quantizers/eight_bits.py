"""Round to nearest in 8 bits: for the embedding and the head, where a byte a value is worth it."""

from __future__ import annotations

import torch

from pocketphi.graph.int4 import half_precision
from pocketphi.graph.int8 import ZERO, Int8
from pocketphi.graph.recipe import FloatWeight, PartSpec, int8_parts
from pocketphi.passes.quantizers.base import Feedback, Quantizer
from pocketphi.passes.quantizers.rtn import reciprocal


class EightBits(Quantizer):
    """Symmetric, as `rtn` in 4 bits: the value of largest magnitude maps to -128, the scale takes its sign."""

    name = "rtn"

    def __init__(self, block: int) -> None:
        super().__init__(block)

    def parts(self, source: FloatWeight) -> dict[str, PartSpec]:
        shape = source.parts[""].shape
        return int8_parts(shape, self.block or shape[1])

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Int8:
        blocks = w.view(w.shape[0], -1, self.block or w.shape[1])
        low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
        scale = half_precision(torch.where(high > -low, high, low) / -ZERO)
        q = blocks.mul(reciprocal(scale)).round_().add_(ZERO).clamp_(0, 255)
        return Int8(q.to(torch.uint8).view(w.shape), scale[..., 0])

    def describe(self) -> str:
        return f"int8 {self.name} block {self.block or 'row'}"
