"""Scale search with error feedback: rounding that knows what the inputs of a layer look like.

For a layer y = W x, what matters is the error of the outputs, Σ over rows of e H eᵀ with e the row's rounding error and
H = E[x xᵀ] measured on a calibration text. Blocks are rounded from left to right:

1. of many scales for a block, the one with the least Σ h_k (w_k - q_k·s)² is taken. For fixed q the best s has a closed form,
   Σ h w q / Σ h q², so that each candidate is refined once;
2. the values of the block are rounded one after the other, and the error of each is made up for, as far as H says it can
   be, by those still to come (GPTQ, arXiv:2210.17323, eq. 2 and 3, by the Cholesky factor of H⁻¹).

Without statistics (an embedding) only the first step is left, with h = 1.
"""

from __future__ import annotations

import torch

from pocketphi.graph.int4 import SYMMETRIC_ZERO, Int4, half_precision
from pocketphi.passes.quantizers.base import Feedback, Quantizer
from pocketphi.passes.quantizers.rtn import RoundToNearest, reciprocal

_SHRINK = [1.05 - 0.05 * i for i in range(12)]
"""Candidate scales as fractions of the round-to-nearest one: smaller ones clip the extremes and serve the rest better.
Twice as many lower the error by another 0.4 %."""


class ScaleSearch(Quantizer):
    """See the module."""

    name = "search"
    weighted = True
    version = 3

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Int4:
        if feedback is None:
            return self._search(w.view(w.shape[0], -1, self.block), torch.ones(self.block))
        w = w.clone()
        made = []
        for start in range(0, w.shape[1], self.block):
            stop = start + self.block
            upper = feedback.upper[start:stop]
            inside, later = upper[:, start:stop], upper[:, stop:]
            # what a unit error of column k costs once the columns after it have made up for it: 1 / upper[k, k]²
            found = self._search(w[:, None, start:stop], inside.diagonal() ** -2)
            rounded, error = _round_in_turn(w[:, start:stop], found, inside)
            w[:, stop:] -= error @ later
            made.append(rounded)
        return Int4.pack(
            torch.cat([values for values, _, _ in made], dim=1),
            torch.cat([scale for _, scale, _ in made], dim=1),
            None if self.symmetric else torch.cat([zero for _, _, zero in made], dim=1),
        )

    def _search(self, blocks: torch.Tensor, h: torch.Tensor) -> Int4:
        """The best scale for each block alone: blocks float32 [N, B, block], h [block]."""
        flat = blocks.reshape(blocks.shape[0], -1)
        start = RoundToNearest(self.block, self.symmetric).quantize(flat)
        zeros = start.zeros()
        zero = torch.full_like(start.scale, SYMMETRIC_ZERO) if zeros is None else zeros.float()
        best = _Best(
            blocks, h, zero[..., None], start.scale[..., None] * 0
        )  # NaN where no scale is finite: refused later
        for sign in (1.0, -1.0) if self.symmetric else (1.0,):
            for shrink in _SHRINK:
                best.offer(start.scale[..., None] * (sign * shrink))
        return Int4.pack(best.q.view(flat.shape), best.scale[..., 0], None if self.symmetric else zero)


def _round_in_turn(
    w: torch.Tensor, found: Int4, upper: torch.Tensor
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Round one block column by column with the scale found for it.

    w: float32 [N, block]; upper: [block, block]. Returns ((values uint8 [N, block], scale [N, 1], zero [N, 1]), and the
    errors [N, block] in units of upper's diagonal, for the columns behind the block).
    """
    scale, zeros = found.scale, found.zeros()
    zero = torch.full_like(scale, SYMMETRIC_ZERO) if zeros is None else zeros.float()
    inverse = reciprocal(scale)
    w = w.clone()
    values, errors = torch.empty_like(w), torch.empty_like(w)
    for k in range(w.shape[1]):
        column = w[:, k : k + 1]
        q = (column * inverse).round_().add_(zero).clamp_(0, 15)
        error = (column - (q - zero) * scale) / upper[k, k]
        w[:, k + 1 :] -= error * upper[k, k + 1 :]
        values[:, k : k + 1], errors[:, k : k + 1] = q, error
    return (values.to(torch.uint8), scale, zero), errors


class _Best:
    """The best scale found so far for every block at once. Shapes: blocks and q [N, B, block], h [block], scale [N, B, 1]."""

    def __init__(self, blocks: torch.Tensor, h: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor) -> None:
        self.blocks, self.h, self.zero, self.scale = blocks, h, zero, scale
        self.q = zero.expand_as(blocks).clone()
        self.error = (h * blocks * blocks).sum(-1, keepdim=True)

    def offer(self, scale: torch.Tensor) -> None:
        """Round with `scale`, refine it by least squares for that rounding, and keep it where it beats the best so far."""
        q = (self.blocks * reciprocal(scale)).round_().add_(self.zero).clamp_(0, 15)
        centred = q - self.zero
        weighted = self.h * centred
        norm = (weighted * centred).sum(-1, keepdim=True)
        fitted = (weighted * self.blocks).sum(-1, keepdim=True) / norm.clamp(min=1e-30)
        scale = half_precision(torch.where(norm > 0, fitted, scale))
        error = (self.h * (self.blocks - centred * scale).square_()).sum(-1, keepdim=True)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.scale = torch.where(better, scale, self.scale)
        self.q = torch.where(better, q, self.q)
