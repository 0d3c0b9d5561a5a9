"""Routed experts: which of a layer's MLPs a token goes through, what each makes of it, and their sum. References in torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def route(x: Tensor, weight: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Sparse mixing (arXiv:2409.12136, as at inference): the two experts with the largest scores x · Wᵀ, each with a share.

    An expert's share is its softmax among the scores s that are near it: of those, (largest - s) / max(|s|, largest) is at
    most `threshold`. For the second one the first is left out. So the shares of a token do not add up to one.

    x: float32 [B, S, K], weight: float32 [E, K]. Returns (shares float32 [B, S, 2], experts int64 [B, S, 2]).
    """
    scores = functional.linear(x, weight)
    first, share = _best(scores, scores, threshold)
    second, other = _best(scores, scores.scatter(-1, first, float("-inf")), threshold)
    return torch.cat((share, other), -1), torch.cat((first, second), -1)


def _best(scores: Tensor, left: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The largest of the scores that are left: its number and its share, each [..., 1]."""
    largest, number = left.max(dim=-1, keepdim=True)
    far = (largest - scores) / scores.abs().clamp(min=largest) > threshold
    return number, left.masked_fill(far, float("-inf")).softmax(-1).gather(-1, number)


def each_input(x: Tensor, chosen: Tensor) -> Tensor:
    """What each of a token's experts is given: float32 [B, S, K], the same for all, or [B, S, T, K] → [B, S, T, K]."""
    return x if x.dim() == chosen.dim() + 1 else x[:, :, None].expand(*chosen.shape, x.shape[-1])


def routed(x: Tensor, chosen: Tensor, size: int, matrix: Callable[[int], Tensor]) -> Tensor:
    """Each token's products with the matrices of its experts.

    x: float32 [B, S, K], or [B, S, T, K] where each of a token's T experts has an input of its own; chosen: int64 [B, S, T];
    matrix: of an expert, float32 [size, K]. Returns float32 [B, S, T, size].
    """
    each = each_input(x, chosen)
    out = x.new_empty(*chosen.shape, size)
    for number in chosen.unique().tolist():
        here = chosen == number
        out[here] = functional.linear(each[here], matrix(number))
    return out
