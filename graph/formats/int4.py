"""int4: blocks of values that share a scale, and perhaps a zero point or an offset. All targets hold it.

Example (block 4 for reading; real blocks are 16 and up), one row of K = 4 values:

    >>> w = torch.tensor([[-8.0, 7.0, 0.0, 1.0]])
    >>> Int4.pack(torch.tensor([[0, 15, 8, 9]]), torch.tensor([[1.0]])).q
    tensor([[240, 152]], dtype=torch.uint8)

The first byte holds q[0] = 0 in its low and q[1] = 15 in its high nibble: 15 · 16 + 0 = 240; w = (q - 8) · 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketphi.graph.formats.base import Format, Layout, Values
from pocketphi.graph.packing import pack_nibbles, unpack_nibbles

if TYPE_CHECKING:
    import torch

SYMMETRIC_ZERO = 8
"""The zero point where none is stored: the middle of 0 … 15."""


@dataclass(frozen=True)
class Int4(Format):
    """Rows of a matrix in blocks along K: w = (q - zero) · scale + offset.

    q:      uint8 [N, K/2], two values a byte, the first in the low nibble
    scale:  float32 [N, K/block], every one a value that float16 has too, so that each target can hold it exactly; may be
            negative
    zero:   uint8 [N, ceil(K/block/2)], packed the same way, or None for symmetric (zero point 8)
    offset: float32 [N, K/block], or None for 0: what a file whose blocks have a float minimum needs to be kept as it is
    """

    name = "int4"
    bits = 4
    words = "int4"
    suffix = "nbits"

    q: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    offset: torch.Tensor | None = None

    @staticmethod
    def layout(shape: tuple[int, ...], block: int, symmetric: bool = True, offset: bool = False) -> Layout:
        """block: 0 for whole rows."""
        rows, columns = shape
        blocks = (rows, columns // (block or columns))
        found = {"q": Values((rows, columns), 4), "scale": Values(blocks, 32)}
        found |= {} if symmetric else {"zero": Values(blocks, 4)}
        return found | ({"offset": Values(blocks, 32)} if offset else {})

    @staticmethod
    def shape_of(parts: Mapping[str, Any]) -> tuple[int, int]:
        rows, half = parts["q"].shape
        return rows, 2 * half

    @property
    def half_values(self) -> torch.Tensor:
        return self.scale

    @property
    def block(self) -> int:
        return self.q.shape[1] * 2 // self.scale.shape[1]

    @staticmethod
    def pack(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> Int4:
        """From unpacked integers 0 … 15: values [N, K], zero [N, K/block] or None."""
        return Int4(pack_nibbles(values), scale, None if zero is None else pack_nibbles(zero))

    def values(self) -> torch.Tensor:
        """Unpacked integers: uint8 [N, K]."""
        return unpack_nibbles(self.q, self.q.shape[1] * 2)

    def zeros(self) -> torch.Tensor | None:
        """Unpacked zero points: uint8 [N, K/block], or None."""
        return None if self.zero is None else unpack_nibbles(self.zero, self.scale.shape[1])

    def dequantize(self) -> torch.Tensor:
        n, blocks = self.scale.shape
        zeros = self.zeros()
        zero = float(SYMMETRIC_ZERO) if zeros is None else zeros.float()[..., None]
        centred = self.values().view(n, blocks, -1).float() - zero
        scaled = centred * self.scale[..., None]
        return (scaled if self.offset is None else scaled + self.offset[..., None]).view(n, -1)

    @staticmethod
    def concat(rows: list[Int4]) -> Int4:
        """Stack rows. Raises ValueError where some have zero points or offsets and others have none."""
        import torch

        def stack(part: str) -> torch.Tensor | None:
            found = [tensor for row in rows if (tensor := getattr(row, part)) is not None]
            if len(found) not in (0, len(rows)):
                raise ValueError(f"cannot stack rows with {part} and rows without")
            return torch.cat(found) if found else None

        return Int4(torch.cat([r.q for r in rows]), torch.cat([r.scale for r in rows]), stack("zero"), stack("offset"))
