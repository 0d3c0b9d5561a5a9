"""Products with a weight that is read a chunk of rows at a time, and never held whole."""

from __future__ import annotations

import functools
from typing import Any

import torch

from pocketphi.graph.experts import routed
from pocketphi.graph.lazy_weights import LazyWeight

aten = torch.ops.aten
_EXPERTS = torch.ops.edge.experts.default


def multiply(x: torch.Tensor, weight: LazyWeight) -> torch.Tensor:
    """x · Wᵀ: float32 [R, K] → [R, N]."""
    out = x.new_empty(len(x), weight.parts[""].shape[0])
    for start, stop in weight.chunks():
        torch.mm(x, weight.read(start, stop)[""].T, out=out[:, start:stop])
    return out


def rows_of(weight: LazyWeight, numbers: torch.Tensor) -> torch.Tensor:
    """Rows of a weight by their numbers int64 [R], of which only those are read: float32 [R, K]."""
    return torch.cat([weight.read(i, i + 1)[""] for i in numbers.tolist()])


def looked_up(weight: LazyWeight, ids: torch.Tensor) -> torch.Tensor:
    """The same for many numbers, of any shape: each chunk that has some of them is read once. int64 [...] → [..., K]."""
    flat = ids.flatten()
    out = torch.empty(len(flat), *weight.parts[""].shape[1:])
    for start, stop in weight.chunks():
        here = (flat >= start) & (flat < stop)
        if here.any():
            out[here] = weight.read(start, stop)[""][flat[here] - start]
    return out.view(*ids.shape, -1)


def expert(weight: LazyWeight, size: int, number: int) -> torch.Tensor:
    """The matrix of one expert, of `size` rows."""
    return weight.read(number * size, (number + 1) * size)[""]


def read_by(target: Any, args: tuple[Any, ...], weight: LazyWeight) -> torch.Tensor:
    """What an operator of `edge_ops.MATRIX_READERS` gives, with `weight` in place of its matrix.

    args: of the node; that of the matrix is not looked at
    """
    if target is aten.embedding.default:
        return looked_up(weight, args[1])
    if target is _EXPERTS:
        x, chosen, _, count = args
        size = weight.parts[""].shape[0] // count
        return routed(x, chosen, size, functools.partial(expert, weight, size))
    x, _, *bias = args
    out = multiply(x.flatten(0, -2), weight).view(*x.shape[:-1], -1)
    return out + bias[0] if bias else out
