"""Round to nearest: the scale comes from each block's extreme values alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pocketphi.graph.formats import Int4, Layout
from pocketphi.graph.formats.int4 import SYMMETRIC_ZERO
from pocketphi.graph.packing import half_precision
from pocketphi.passes.quantizers.base import Feedback, Quantizer

if TYPE_CHECKING:
    import torch

_MAGIC = 1.5 * 2**23  # float32 has no fractions here: adding it rounds, and the integer is in the lowest bits
_TINY = 1e-30  # below this a block counts as zero: its reciprocal would overflow


class RoundToNearest(Quantizer):
    """Symmetric: the value of largest magnitude maps to -8, so scale = value / -8, of either sign (as ONNX Runtime's own
    quantizer and ggml's Q4_0 do): one more level than scale = max|w| / 7 gives. The opposite extreme clips by at most one
    step. Asymmetric: 0 … 15 spans min … max with zero included."""

    recipe = "rtn"
    format = Int4
    does = "rounds to nearest"
    version = 2

    def layout(self, shape: tuple[int, ...], stored: str | None = None) -> Layout:
        return Int4.layout(shape, self.block, self.symmetric)

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Int4:
        import torch

        blocks = w.view(w.shape[0], -1, self.block or w.shape[1])
        low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)  # aminmax takes four times as long
        if self.symmetric:
            scale = half_precision(torch.where(high > -low, high, low) / -8)
            q = _round(blocks.mul(reciprocal(scale)), SYMMETRIC_ZERO)
            return Int4.pack(q.view(w.shape), scale[..., 0])
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = half_precision((high - low) / 15)
        inverse = reciprocal(scale)
        zero = (-low * inverse).round_().clamp_(0, 15)
        q = _round(blocks.mul(inverse), zero)
        return Int4.pack(q.view(w.shape), scale[..., 0], zero[..., 0])


def _round(x: torch.Tensor, zero: torch.Tensor | int) -> torch.Tensor:
    """x + zero, rounded to nearest and clamped to 0 … 15: float32 (overwritten), |x| < 2²² → int32 whose lowest byte counts."""
    import torch

    return x.add_(zero + _MAGIC).clamp_(_MAGIC, _MAGIC + 15).view(torch.int32)


def reciprocal(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale, and 0 for a block of zeros."""
    import torch

    return torch.where(scale.abs() > _TINY, scale.reciprocal(), 0.0)
