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

from pocketphi.graph.formats.base import Layout, Values
from pocketphi.graph.formats.blocks import Blocks

if TYPE_CHECKING:
    import torch

SYMMETRIC_ZERO = 8
"""The zero point where none is stored: the middle of 0 … 15."""


@dataclass(frozen=True)
class Int4(Blocks):
    """As `Blocks`, and perhaps with an offset: w = (q - zero) · scale + offset.

    offset: float32 [N, K/block], or None for 0: what a file whose blocks have a float minimum needs to be kept as it is
    """

    name = words = "int4"
    bits = 4
    suffix = "nbits"

    q: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    row_scale: torch.Tensor | None = None

    @classmethod
    def layout(
        cls, shape: tuple[int, ...], block: int, symmetric: bool = True, by_row: bool = False, offset: bool = False
    ) -> Layout:
        found = super().layout(shape, block, symmetric, by_row)
        return found | ({"offset": Values(found["scale"].shape, 32)} if offset else {})

    def dequantize(self) -> torch.Tensor:
        scaled = super().dequantize()
        if self.offset is None:
            return scaled
        return (scaled.view(*self.offset.shape, -1) + self.offset[..., None]).view(scaled.shape)

    @staticmethod
    def concat(rows: list[Int4]) -> Int4:
        """Stack rows. Raises ValueError where some have a part that others lack."""
        import torch

        def stack(part: str) -> torch.Tensor | None:
            found = [tensor for row in rows if (tensor := getattr(row, part)) is not None]
            if len(found) not in (0, len(rows)):
                raise ValueError(f"cannot stack rows with {part} and rows without")
            return torch.cat(found) if found else None

        more = {part: stack(part) for part in ("zero", "offset", "row_scale")}
        return Int4(torch.cat([r.q for r in rows]), torch.cat([r.scale for r in rows]), **more)
