"""Scale search with error feedback: rounding that knows what the inputs of a layer look like.

For a layer y = W x, what matters is the error of the outputs, Σ over rows of e H eᵀ with e the row's rounding error and
H = E[x xᵀ] measured on a calibration text. W is first shifted towards what makes up for the errors of the layers before
(`Feedback`). Blocks are rounded one after the other, those with the largest inputs first:

1. of many scales for a block, the one with the least Σ h_k (w_k - q_k·s)² is taken. For fixed q the best s has a closed form,
   Σ h w q / Σ h q², so that each candidate is refined once;
2. the values of the block are rounded one after the other, and the error of each is made up for, as far as H says it can
   be, by those still to come (`in_turn`).

Without statistics (an embedding) only the first step is left, with h = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.formats import Blocks, Int4, Levels
from pocketphi.passes.quantizers.base import BlockQuantizer, Feedback, reciprocal, stored_scale
from pocketphi.passes.quantizers.in_turn import round_in_turn

if TYPE_CHECKING:
    import torch

    from pocketphi.passes.quantizers.in_turn import Nearest

_SHRINK = [1.05 - 0.05 * i for i in range(12)]
"""Candidate scales as fractions of the round-to-nearest one: smaller ones clip the extremes and serve the rest better.
Twice as many lower the error by another 0.4 %."""
_ROWS = 3072
"""Rows whose scales are searched together: a block of them stays near a core, and calls are few. A quarter less time than with
a third of it, and no more with three times as many."""


class ScaleSearch(BlockQuantizer):
    """See the module."""

    recipe = "search"
    format: ClassVar[type[Blocks]] = Int4
    shrink: ClassVar[list[float]] = _SHRINK
    does = "searches scales for the inputs that calibration measures"
    calibrates = True
    version = 6

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Blocks:
        import torch

        rows, columns = w.shape
        block = self.block or columns
        scales, shifts = torch.empty(2, rows, columns // block)
        order = torch.arange(columns) if feedback is None else feedback.order
        if (order.view(-1, block) // block).diff(dim=1).any():
            raise CompilerBug(f"feedback rounds columns in another order than blocks of {block}")
        blocks = iter(order.view(-1, block))
        whole = w.view(rows, -1, block)
        units = self.units(whole.amin(-1), whole.amax(-1))
        by_part = [
            {name: unit[start : start + _ROWS].flatten() for name, unit in units.items()}
            for start in range(0, rows, _ROWS)
        ]

        def levels(met: torch.Tensor) -> Nearest:
            these = next(blocks)
            i = int(these[0]) // block
            cost = torch.ones(block) if feedback is None else feedback.cost[these]
            parts = [self._search(part, cost, **of) for part, of in zip(met.split(_ROWS, 1), by_part, strict=True)]
            scales[:, i], shifts[:, i] = (torch.cat(of) for of in zip(*parts, strict=True))
            return self._to_levels(scales[:, i].clone(), shifts[:, i].clone())

        if feedback is None:
            met = w.T.contiguous()
            values = torch.cat([levels(part)(part)[0].to(torch.uint8) for part in met.split(block)]).T
        else:
            values = round_in_turn(w, feedback, block, levels)
        return self._packed(values, scales, shifts, units)

    def _packed(
        self, values: torch.Tensor, scales: torch.Tensor, shifts: torch.Tensor, units: dict[str, torch.Tensor]
    ) -> Blocks:
        """A weight of what was found. shifts: of `_search`, float32 [N, K/block]."""
        return self.format.pack(values, scales, None if self.symmetric else shifts, **units)

    def _search(
        self, columns: torch.Tensor, cost: torch.Tensor, row_scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best scale for each block alone, and its zero point: columns float32 [block, N], cost [block], row_scale [N] or
        None → [N] each."""
        import torch

        start, zero = self.levels(columns.amin(0), columns.amax(0), row_scale)
        if zero is None:
            zero = torch.full_like(start, self.middle)
        best = _Best(columns, cost, start * 0, row_scale)  # NaN where no scale is finite: refused later
        for shrink in self.shrink:
            scale = start * shrink
            inverse = reciprocal(scale)
            steps = columns * inverse
            for sign, rounded in self._roundings(steps, zero):
                best.offer(scale, inverse, steps, rounded, sign)
        return best.scale, zero

    def _roundings(self, steps: torch.Tensor, zero: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Columns in units of a scale, rounded to levels; and, with -1, to those that a scale of the other sign has, where the
        level without an opposite is on the other side."""
        nearest, lowest, highest = steps.round(), -zero, self.most - zero
        yield 1, nearest.clamp(lowest, highest)
        if self.symmetric:
            yield -1, nearest.clamp_(-highest, -lowest)

    def _to_levels(self, scale: torch.Tensor, zero: torch.Tensor) -> Nearest:
        """Round to the levels of one block: scale and zero float32 [N]."""
        inverse = reciprocal(scale)

        def nearest(column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            q, level = self._nearest(column * inverse, zero)
            return q, level.mul_(scale)

        return nearest

    def _nearest(self, steps: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The integers for values in units of their scale, overwritten, and the levels that these stand for: [N] each."""
        q = steps.round_().add_(zero).clamp_(0, self.most)
        return q, q - zero


class LevelSearch(ScaleSearch):
    """The same to levels that a format says, which take longer to find: fewer scales are tried, at 0.3 % of the error."""

    format: ClassVar[type[Levels]]
    shrink: ClassVar[list[float]] = [1.1 - 0.07 * i for i in range(8)]
    version = 2

    def _roundings(self, steps: torch.Tensor, zero: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        for sign in (1, -1):
            yield sign, self.format.at(self.format.nearest(steps * sign)).mul_(sign)

    def _nearest(self, steps: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q = self.format.nearest(steps)
        return q, self.format.at(q)


class _Best:
    """The best scale found so far for each of N blocks. Shapes: columns [block, N], cost [block], the others [N]."""

    def __init__(
        self, columns: torch.Tensor, cost: torch.Tensor, scale: torch.Tensor, row_scale: torch.Tensor | None
    ) -> None:
        self.cost, self.scale, self.row_scale = cost, scale, row_scale
        self.error = cost @ columns.square()

    def offer(
        self, scale: torch.Tensor, inverse: torch.Tensor, steps: torch.Tensor, rounded: torch.Tensor, sign: int = 1
    ) -> None:
        """Refine `scale` by least squares for a rounding, and keep it where it beats the best so far.

        steps: the columns in units of scale; rounded: the same as whole numbers; sign: that of the scale to keep
        """
        import torch

        lost = steps - rounded
        norm, slope = self.cost @ rounded.square(), self.cost @ (lost * rounded)
        fitted = torch.where(norm > 0, scale + scale * slope / norm.clamp(min=1e-30), scale)
        fitted = stored_scale(fitted, self.row_scale)
        more = fitted * inverse - 1
        error = scale.square() * (self.cost @ lost.square_() - 2 * more * slope + more.square() * norm)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.scale = torch.where(better, sign * fitted, self.scale)
