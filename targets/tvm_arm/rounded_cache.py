"""What the kernels' caches of int8 and int4 keep, in torch: `kernels/cache.py` says it in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pocketphi.targets.tvm_arm.kv_cache import GROUP

REACH, TRIED = 7.5, 4
"""Of int4: what its numbers reach to, in scales, and how many scales are tried."""


@dataclass(frozen=True)
class RowScales:
    """int8: q = round(x/s) with s = max|x|/127 over a head's key or value of a token."""

    def kept(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._rounded(keys), self._rounded(values)

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        return (x * torch.where(scale > 0, 1 / scale, 0)).round() * scale


@dataclass(frozen=True)
class TurnedInt4:
    """int4, with a scale for 32 dimensions, which were turned before. centres: what is taken off each layer's keys, [KV, D]."""

    centres: Sequence[torch.Tensor]

    def kept(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centre = self.centres[layer][:, None]
        return self.rounded(keys - centre) + centre, self.rounded(values)

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [..., D]."""
        q, scale = numbers(turned(x))
        return turned((q * scale).flatten(-2))


def numbers(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turned vectors float32 [..., D] as q [..., D/32, 32] and scales [..., D/32, 1]."""
    parts = x.unflatten(-1, (-1, GROUP))
    exact = (parts.abs().amax(-1, keepdim=True) * torch.tensor(1 / REACH)).half()
    largest = exact.view(torch.int16).int() + 127 >> 7
    found = torch.zeros_like(parts), torch.zeros_like(parts[..., :1])
    least = torch.full_like(found[1], torch.finfo(torch.float32).max)
    for smaller in range(TRIED):
        scale = ((largest - smaller).clamp(min=0) << 7).short().view(torch.float16).float()
        q = (parts * torch.where(scale > 0, 1 / scale, 0)).round().clamp(-8, 7)
        lost = (parts - q * scale).square().sum(-1, keepdim=True)
        better = lost < least
        found = torch.where(better, q, found[0]), torch.where(better, scale, found[1])
        least = torch.where(better, lost, least)
    return found


def turned(x: torch.Tensor) -> torch.Tensor:
    """Every 32 dimensions of float32 [..., D] times the Hadamard matrix over √32: sums and differences, as in the kernel."""
    parts = x.unflatten(-1, (-1, GROUP))
    half = 1
    while half < GROUP:
        pairs = parts.unflatten(-1, (-1, 2, half))
        first, second = pairs.unbind(-2)
        parts = torch.stack([first + second, first - second], -2).flatten(-3)
        half *= 2
    return (parts * torch.tensor(GROUP**-0.5)).flatten(-2)
