"""affine4: blocks of 4 bits with a scale and an offset, each a float of its own. A zero point lies on one of the levels; an
offset lies anywhere between them, so that both ends of a block can be met exactly.

Example (block 4 for reading), one row of K = 4 values, of which none is zero:

    >>> w = Affine4.pack(torch.tensor([[0, 15, 8, 9]]), torch.tensor([[0.5]]), offset=torch.tensor([[4.25]]))
    >>> w.dequantize()
    tensor([[0.2500, 7.7500, 4.2500, 4.7500]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pocketphi.graph.formats.base import Layout, Values
from pocketphi.graph.formats.blocks import Blocks

if TYPE_CHECKING:
    import torch


class Affine(Blocks):
    """As `Blocks`, always with an offset and never with a zero point: w = (q - middle) · scale + offset.

    offset: float32 [N, K/block], every one a value that float16 has too: what q = middle stands for
    row_offset: float32 [N, 1], or None. It is there where `row_scale` is, and every offset of a row is a whole number from -127
           to 127 times it, so that a target may keep the offsets as int8
    """

    instead = "choose another format, such as int4"

    offset: torch.Tensor

    @classmethod
    def layout(
        cls, shape: tuple[int, ...], block: int, symmetric: bool = True, by_row: bool = False, offset: bool = True
    ) -> Layout:
        """As of `Blocks`; symmetric, offset: there is no choice."""
        found = super().layout(shape, block, offset=True)
        rows = Values((shape[0], 1), 32)
        return found | ({"row_scale": rows, "row_offset": rows} if by_row else {})


@dataclass(frozen=True)
class Affine4(Affine):
    """As `Affine`, in 4 bits."""

    name = words = suffix = "affine4"
    bits = 4

    a4: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    row_scale: torch.Tensor | None = None
    row_offset: torch.Tensor | None = None
