"""Scale search: of many scales for a block, take the one with the least error, weighted by activation statistics.

The error of a block is Σ h_k (w_k - q_k·s)², with h_k the mean square of the activations that meet column k: the expected
square of what the rounding adds to the layer's output, for inputs of independent columns (the diagonal of the Hessian in
GPTQ, arXiv:2210.17323, §3). For fixed q the best scale has a closed form, s = Σ h w q / Σ h q²; q and s are refined in turn.
"""

from __future__ import annotations

import torch

from pocketphi.graph.int4 import Int4
from pocketphi.passes.quantizers.base import Quantizer
from pocketphi.passes.quantizers.rtn import RoundToNearest, _reciprocal

_SHRINK = [1.0 - 0.03 * i for i in range(-2, 15)]
"""Candidate scales as fractions of the round-to-nearest one: smaller ones clip the extremes and serve the rest better."""


class ScaleSearch(Quantizer):
    """Searches around the round-to-nearest scale, of either sign, then refines by least squares."""

    name = "search"
    weighted = True

    def quantize(self, w: torch.Tensor, importance: torch.Tensor | None = None) -> Int4:
        shape = (w.shape[0], -1, self.block)
        blocks = w.view(shape)
        h = torch.ones_like(blocks) if importance is None else importance.expand_as(w).reshape(shape)
        start = RoundToNearest(self.block, self.symmetric).quantize(w)
        zeros = start.zeros()
        zero = torch.full_like(start.scale, 8.0) if zeros is None else zeros.float()
        best = _Best(blocks, h, zero[..., None])
        base = start.scale[..., None]
        for sign in (1.0, -1.0) if self.symmetric else (1.0,):
            for shrink in _SHRINK:
                best.offer(base * (sign * shrink), refine=True)
        return Int4.pack(best.q.view(w.shape), best.scale[..., 0], None if self.symmetric else zero)


class _Best:
    """The best scale found so far for every block at once. Shapes: blocks, h and q [N, B, block], scale [N, B, 1]."""

    def __init__(self, blocks: torch.Tensor, h: torch.Tensor, zero: torch.Tensor) -> None:
        self.blocks, self.h, self.zero = blocks, h, zero
        self.scale = torch.zeros_like(blocks[..., :1])
        self.q = zero.expand_as(blocks).clone()
        self.error = (h * blocks * blocks).sum(-1, keepdim=True)

    def offer(self, scale: torch.Tensor, refine: bool) -> None:
        """Keep `scale`, or the least-squares one for its rounding, where it beats the best so far."""
        q = (self.blocks * _reciprocal(scale)).round_().add_(self.zero).clamp_(0, 15)
        if refine:
            centred = q - self.zero
            weighted = self.h * centred
            norm = (weighted * centred).sum(-1, keepdim=True)
            fitted = (weighted * self.blocks).sum(-1, keepdim=True) / norm.clamp(min=1e-30)
            scale = torch.where(norm > 0, fitted, scale)
        error = (self.h * (self.blocks - (q - self.zero) * scale).square_()).sum(-1, keepdim=True)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.scale = torch.where(better, scale, self.scale)
        self.q = torch.where(better, q, self.q)
