"""palette: 4-bit indices into lookup tables, a table for every few rows of a matrix.

Example, one table for two rows of K = 2 values:

    >>> lut = torch.linspace(-1.0, 0.875, 16)[None]
    >>> Palette.pack(torch.tensor([[[0, 15], [8, 9]]]), lut).index
    tensor([[[240],
             [152]]], dtype=torch.uint8)

The first byte holds index 0 in its low and 15 in its high nibble: 15 · 16 + 0 = 240; the row is (lut[0], lut[15]).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketphi.graph.formats.base import Format, Layout, Values
from pocketphi.graph.packing import pack_nibbles, unpack_nibbles

if TYPE_CHECKING:
    import torch

ENTRIES = 16


@dataclass(frozen=True)
class Palette(Format):
    """A matrix [G·R, K] in groups of R rows that share a table: w = lut[group, index].

    index: uint8 [G, R, K/2], two a byte, the first in the low nibble
    lut:   float32 [G, 16], every one a value that float16 has too

    A group is one row of both parts, so that whoever streams rows streams groups.
    """

    name = "palette"
    bits = 4
    words = "a palette"
    instead = "leave out --palette, or compile it for coreml alone"
    suffix = "palette"

    index: torch.Tensor
    lut: torch.Tensor

    @staticmethod
    def layout(shape: tuple[int, ...], group: int) -> Layout:
        """group: rows of the matrix that share a table."""
        rows, columns = shape
        groups = rows // group
        return {"index": Values((groups, group, columns), 4), "lut": Values((groups, ENTRIES), 32)}

    @staticmethod
    def shape_of(parts: Mapping[str, Any]) -> tuple[int, int]:
        groups, rows, half = parts["index"].shape
        return groups * rows, 2 * half

    @property
    def half_values(self) -> torch.Tensor:
        return self.lut

    @staticmethod
    def pack(values: torch.Tensor, lut: torch.Tensor) -> Palette:
        """From unpacked indices 0 … 15: values [G, R, K], K even."""
        return Palette(pack_nibbles(values.flatten(0, 1)).view(*values.shape[:2], -1), lut)

    def values(self) -> torch.Tensor:
        """Unpacked indices: uint8 [G, R, K]."""
        groups, rows, half = self.index.shape
        return unpack_nibbles(self.index.reshape(-1, half), 2 * half).view(groups, rows, -1)

    def dequantize(self) -> torch.Tensor:
        values = self.values()
        flat = values.view(values.shape[0], -1).long()
        return self.lut.gather(1, flat).view(-1, values.shape[2])

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        group, row = rows // self.index.shape[1], rows % self.index.shape[1]
        packed = self.index[group, row]
        return self.lut[group].gather(1, unpack_nibbles(packed, 2 * packed.shape[1]).long())
