"""Matrix products and attention. A stored weight multiplies by itself: it is decoded in pieces, never as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pocketphi.targets.coreml.kernels.arguments import Parameter, flag


def linear(x: Tensor, weight: Any, bias: Parameter = None) -> Tensor:
    """x [..., K] · weight [N, K]ᵀ + bias [N]."""
    product = functional.linear(x, weight) if isinstance(weight, Tensor) else weight.product(x)
    return product if bias is None else product + bias


def matmul(x: Any, y: Any, transpose_x: Parameter = None, transpose_y: Parameter = None) -> Tensor:
    """[..., M, K] · [..., K, N]; a stored second factor of rank 2 is decoded in pieces."""
    left = x if isinstance(x, Tensor) else x.dense()
    left = left.transpose(-1, -2) if flag(transpose_x) and left.dim() > 1 else left
    if not isinstance(y, Tensor):
        if len(y.shape) == 2 and left.dim() > 1:
            product: Tensor = y.product(left) if flag(transpose_y) else y.product_of_rows(left)
            return product
        y = y.dense()
    return torch.matmul(left, y.transpose(-1, -2) if flag(transpose_y) and y.dim() > 1 else y)


def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, list(values))


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Parameter = None) -> Tensor:
    """softmax(q · kᵀ / sqrt(E) + mask) · v. attn_mask: float to be added, or bool with True where to attend."""
    return functional.scaled_dot_product_attention(query, key, value, attn_mask)
