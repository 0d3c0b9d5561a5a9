"""The canonical int8 form, for weights that are worth a byte a value: the embedding and the head.

Example, one row of K = 2 values:

    >>> Int8(torch.tensor([[0, 255]], dtype=torch.uint8), torch.tensor([[0.5]])).dequantize()
    tensor([[-64.0000,  63.5000]])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ZERO = 128
"""The zero point: the middle of 0 … 255."""


@dataclass(frozen=True)
class Int8:
    """Rows of a matrix in blocks along K: w = (q8 - 128) · scale.

    q8:    uint8 [N, K]
    scale: float32 [N, K/block], every one a value that float16 has too; may be negative
    """

    q8: torch.Tensor
    scale: torch.Tensor

    @property
    def half_values(self) -> torch.Tensor:
        """What a target keeps as float16: float32 [N, …]."""
        return self.scale

    def dequantize(self) -> torch.Tensor:
        """float32 [N, K]."""
        rows, blocks = self.scale.shape
        centred = self.q8.view(rows, blocks, -1).float() - ZERO
        return (centred * self.scale[..., None]).view(rows, -1)
