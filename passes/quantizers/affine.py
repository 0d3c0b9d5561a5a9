"""Blocks with an offset: to nearest, or with the scale and the offset of least weighted error.

Of a block whose values w are rounded to levels q, the best scale s and offset m have a closed form: the least squares of
Σ h (w - s·q - m)². Rounding to the nearest levels of these again lowers the error further, so that each of many scales to start
from is refined some times. See `search` for h, and for how the values of a block are rounded then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pocketphi.graph.formats import Affine, Affine4, Blocks
from pocketphi.passes.quantizers.base import (
    BLOCK,
    SCALE_BITS,
    BlockQuantizer,
    Feedback,
    Parameter,
    reciprocal,
    stored_scale,
)
from pocketphi.passes.quantizers.rtn import RoundToNearest
from pocketphi.passes.quantizers.search import ScaleSearch

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from pocketphi.passes.quantizers.in_turn import Nearest

_REFINED = 3
"""Times that a scale and an offset are refined. With one the sample's error is a tenth larger, with two a fiftieth."""
_ALIKE = 1e-6
"""Part of Σ h · Σ h q² below which the levels of a block are one and the same, and say nothing of a scale."""


class AffineBlocks(BlockQuantizer):
    """What all of these have in common. scale_bits: of offsets too."""

    format: ClassVar[type[Affine]]
    parameters: ClassVar[Mapping[str, Parameter]] = {"block": BLOCK, "scale_bits": SCALE_BITS}

    def ends(
        self,
        low: torch.Tensor,
        high: torch.Tensor,
        row_scale: torch.Tensor | None = None,
        row_offset: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The scale and the offset with which the lowest level is at `low` and the highest at `high`: float32, all of one
        shape, to which the units of rows broadcast. Where no such scale is stored, each end is missed by as much."""
        scale = stored_scale(self._span(low, high), row_scale)
        return scale, stored_scale((low + high + scale) / 2, row_offset)

    def _reached(self, low: torch.Tensor, high: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = self._span(low, high)
        return {"row_scale": scale, "row_offset": (low + high + scale) / 2}

    def _span(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        return (high - low) / self.most

    def _packed(
        self, values: torch.Tensor, scales: torch.Tensor, shifts: torch.Tensor, units: dict[str, torch.Tensor]
    ) -> Blocks:
        """As of `ScaleSearch`. A scale is no number where its offset is none: that is what is looked at."""
        import torch

        odd = torch.where(shifts.isfinite(), scales, torch.nan)
        return self.format.pack(values, odd, offset=shifts, **units)


class AffineNearest(AffineBlocks):
    """To nearest: the levels span min … max."""

    recipe = RoundToNearest.recipe
    format: ClassVar[type[Affine]] = Affine4
    does = RoundToNearest.does

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Blocks:
        blocks = w.view(w.shape[0], -1, self.block or w.shape[1])
        low, high = blocks.amin(-1), blocks.amax(-1)
        units = self.units(low, high)
        scale, offset = self.ends(low, high, **units)
        steps = (blocks - offset[..., None]).mul_(reciprocal(scale)[..., None])
        q = steps.add_(self.middle).round_().clamp_(0, self.most).nan_to_num_(0)
        return self._packed(q.byte().view(w.shape), scale, offset, units)


class AffineSearch(AffineBlocks, ScaleSearch):
    """See the module."""

    format: ClassVar[type[Affine]] = Affine4
    version = 1

    def _search(
        self,
        columns: torch.Tensor,
        cost: torch.Tensor,
        row_scale: torch.Tensor | None = None,
        row_offset: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best scale for each block alone, and its offset: as of `ScaleSearch`."""
        import torch

        low, high = columns.amin(0), columns.amax(0)
        centre, span = (low + high) / 2, high - low
        best_scale, best_offset = torch.full((2, *span.shape), torch.nan)  # where none is finite: refused later
        least = torch.full_like(span, torch.inf)
        near = columns - centre
        weight, mean = cost.sum(), cost @ near / cost.sum()
        for shrink in self.shrink:
            half = shrink * span / 2
            scale, offset = self.ends(centre - half, centre + half, row_scale, row_offset)
            for _ in range(_REFINED):
                level = self._level(columns, scale, offset)
                average, square = cost @ level / weight, cost @ level.square() / weight
                spread = square - average.square()
                slope = (cost @ level.mul_(near) / weight - average * mean) / spread.clamp(min=1e-30)
                better = (spread > _ALIKE * square) & (slope > 0)
                scale = stored_scale(torch.where(better, slope, scale), row_scale)
                offset = stored_scale(centre + mean - scale * average, row_offset)
            error = cost @ self._level(columns, scale, offset).mul_(scale).add_(offset).sub_(columns).square_()
            less = error < least
            least = torch.where(less, error, least)
            best_scale, best_offset = (
                torch.where(less, *pair) for pair in ((scale, best_scale), (offset, best_offset))
            )
        return best_scale, best_offset

    def _level(self, values: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """The nearest levels, from -middle up, as whole numbers in float32."""
        steps = (values - offset).mul_(reciprocal(scale))
        return steps.round_().clamp_(-self.middle, self.most - self.middle)

    def _to_levels(self, scale: torch.Tensor, shift: torch.Tensor) -> Nearest:
        def nearest(column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            level = self._level(column, scale, shift)
            return level + self.middle, level.mul_(scale).add_(shift)

        return nearest
