"""int8: blocks of values that share a scale, for weights that are worth a byte a value: the embedding and the head.

Example, one row of K = 2 values:

    >>> Int8(torch.tensor([[0, 255]], dtype=torch.uint8), torch.tensor([[0.5]])).dequantize()
    tensor([[-64.0000,  63.5000]])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketphi.graph.formats.base import Format, Layout, Values

if TYPE_CHECKING:
    import torch

ZERO = 128
"""The zero point: the middle of 0 … 255."""


@dataclass(frozen=True)
class Int8(Format):
    """Rows of a matrix in blocks along K: w = (q8 - 128) · scale.

    q8:    uint8 [N, K]
    scale: float32 [N, K/block], every one a value that float16 has too; may be negative
    """

    name = "int8"
    bits = 8
    words = "int8"
    instead = "leave out --embedding-bits and --head-bits"
    suffix = "int8"

    q8: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def layout(shape: tuple[int, ...], block: int) -> Layout:
        """block: 0 for whole rows."""
        rows, columns = shape
        return {"q8": Values((rows, columns), 8), "scale": Values((rows, columns // (block or columns)), 32)}

    @staticmethod
    def shape_of(parts: Mapping[str, Any]) -> tuple[int, int]:
        rows, columns = parts["q8"].shape
        return rows, columns

    @property
    def half_values(self) -> torch.Tensor:
        return self.scale

    def dequantize(self) -> torch.Tensor:
        rows, blocks = self.scale.shape
        centred = self.q8.view(rows, blocks, -1).float() - ZERO
        return (centred * self.scale[..., None]).view(rows, -1)
