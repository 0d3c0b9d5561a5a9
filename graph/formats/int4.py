"""int4: blocks of values that share a scale, and perhaps a zero point or an offset. All targets hold it.

Example (block 4 for reading; real blocks are 16 and up), one row of K = 4 values:

    >>> w = torch.tensor([[-8.0, 7.0, 0.0, 1.0]])
    >>> Int4.pack(torch.tensor([[0, 15, 8, 9]]), torch.tensor([[1.0]])).q
    tensor([[240, 152]], dtype=torch.uint8)

The first byte holds q[0] = 0 in its low and q[1] = 15 in its high nibble: 15 · 16 + 0 = 240; w = (q - 8) · 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pocketphi.graph.formats.blocks import Blocks

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Int4(Blocks):
    """As `Blocks`, perhaps with an offset."""

    name = words = "int4"
    bits = 4
    suffix = "nbits"

    q: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    row_scale: torch.Tensor | None = None
