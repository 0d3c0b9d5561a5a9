"""Round to nearest in 8 bits: for the embedding and the head, where a byte a value is worth it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pocketphi.graph.formats import Int8, Layout
from pocketphi.graph.formats.int8 import ZERO
from pocketphi.graph.packing import half_precision
from pocketphi.passes.quantizers.base import BLOCK, Feedback, Parameter, Quantizer
from pocketphi.passes.quantizers.rtn import reciprocal

if TYPE_CHECKING:
    import torch


class EightBits(Quantizer):
    """Symmetric, as `rtn` in 4 bits: the value of largest magnitude maps to -128, the scale takes its sign."""

    recipe = "rtn"
    format = Int8
    does = "rounds to nearest"
    parameters: ClassVar[Mapping[str, Parameter]] = {"block": BLOCK}

    def layout(self, shape: tuple[int, ...], stored: str | None = None) -> Layout:
        return Int8.layout(shape, self.block)

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Int8:
        import torch

        blocks = w.view(w.shape[0], -1, self.block or w.shape[1])
        low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
        scale = half_precision(torch.where(high > -low, high, low) / -ZERO)
        q = blocks.mul(reciprocal(scale)).round_().add_(ZERO).clamp_(0, 255)
        return Int8(q.to(torch.uint8).view(w.shape), scale[..., 0])
