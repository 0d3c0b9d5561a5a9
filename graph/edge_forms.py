"""The `edge::` operators of weights in the other canonical forms: int8, and palettes. See `edge_ops` for int4."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pocketphi.graph.int8 import Int8
from pocketphi.graph.palette import Palette


@torch.library.custom_op("edge::matmul_int8", mutates_args=())
def matmul_int8(x: Tensor, q8: Tensor, scale: Tensor) -> Tensor:
    """x · Wᵀ with W in the canonical int8 form (`Int8`). x: float32 [B, S, K] → [B, S, N]."""
    return functional.linear(x, Int8(q8, scale).dequantize())


@matmul_int8.register_fake
def _(x: Tensor, q8: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], q8.shape[0])


@torch.library.custom_op("edge::embedding_int8", mutates_args=())
def embedding_int8(ids: Tensor, q8: Tensor, scale: Tensor) -> Tensor:
    """Rows of an int8 table: int64 [B, S] → float32 [B, S, K]."""
    flat = ids.reshape(-1)
    return Int8(q8[flat], scale[flat]).dequantize().view(*ids.shape, -1)


@embedding_int8.register_fake
def _(ids: Tensor, q8: Tensor, scale: Tensor) -> Tensor:
    return scale.new_empty(*ids.shape, q8.shape[1])


@torch.library.custom_op("edge::matmul_palette", mutates_args=())
def matmul_palette(x: Tensor, index: Tensor, lut: Tensor) -> Tensor:
    """x · Wᵀ with W as indices into lookup tables (`Palette`). x: float32 [B, S, K] → [B, S, G·R]."""
    return functional.linear(x, Palette(index, lut).dequantize())


@matmul_palette.register_fake
def _(x: Tensor, index: Tensor, lut: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], index.shape[0] * index.shape[1])


@torch.library.custom_op("edge::embedding_palette", mutates_args=())
def embedding_palette(ids: Tensor, index: Tensor, lut: Tensor) -> Tensor:
    """Rows of a table kept as indices into lookup tables: int64 [B, S] → float32 [B, S, K]."""
    return Palette(index, lut).take(ids.reshape(-1)).view(*ids.shape, -1)


@embedding_palette.register_fake
def _(ids: Tensor, index: Tensor, lut: Tensor) -> Tensor:
    return lut.new_empty(*ids.shape, 2 * index.shape[2])
