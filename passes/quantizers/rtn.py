"""Round to nearest: the scale comes from each block's extreme values alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pocketphi.graph.formats import Blocks, Int4, Levels
from pocketphi.passes.quantizers.base import BlockQuantizer, Feedback, reciprocal

if TYPE_CHECKING:
    import torch

_MAGIC = 1.5 * 2**23  # float32 has no fractions here: adding it rounds, and the integer is in the lowest bits


class RoundToNearest(BlockQuantizer):
    """Symmetric: the value of largest magnitude maps to the lowest level (-8 of 4 bits), so scale = value / -8, of either sign
    (as ONNX Runtime's own quantizer and ggml's Q4_0 do): one more level than scale = max|w| / 7 gives. The opposite extreme
    clips by at most one step. Asymmetric: all levels span min … max with zero included."""

    recipe = "rtn"
    format: ClassVar[type[Blocks]] = Int4
    does = "rounds to nearest"
    version = 2

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Blocks:
        blocks = w.view(w.shape[0], -1, self.block or w.shape[1])
        low, high = blocks.amin(-1), blocks.amax(-1)  # aminmax takes four times as long
        units = self.units(low, high)
        scale, zero = self.levels(low, high, **units)
        q = self._nearest(blocks.mul(reciprocal(scale)[..., None]), zero)
        return self.format.pack(q.view(w.shape), scale, zero, **units)

    def _nearest(self, steps: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        """The integers for values in units of their scale [N, K/block, block], overwritten. zero: [N, K/block]."""
        return _round(steps, self.middle if zero is None else zero[..., None], self.most)


class LevelNearest(RoundToNearest):
    """The same to levels that a format says."""

    format: ClassVar[type[Levels]]
    version = 1

    def _nearest(self, steps: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        return self.format.nearest(steps)


def _round(x: torch.Tensor, zero: torch.Tensor | int, most: int) -> torch.Tensor:
    """x + zero, rounded to nearest and clamped to 0 … most: float32 (overwritten), |x| < 2²² → int32, of which the lowest
    byte counts."""
    import torch

    return x.add_(zero + _MAGIC).clamp_(_MAGIC, _MAGIC + most).view(torch.int32)
