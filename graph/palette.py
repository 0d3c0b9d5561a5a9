"""The canonical palette form: 4-bit indices into lookup tables, a table for every few rows of a matrix.

Example, one table for two rows of K = 2 values:

    >>> lut = torch.linspace(-1.0, 0.875, 16)[None]
    >>> Palette.pack(torch.tensor([[[0, 15], [8, 9]]]), lut).index
    tensor([[[240],
             [152]]], dtype=torch.uint8)

The first byte holds index 0 in its low and 15 in its high nibble: 15 · 16 + 0 = 240; the row is (lut[0], lut[15]).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pocketphi.graph.int4 import pack_nibbles, unpack_nibbles

ENTRIES = 16


@dataclass(frozen=True)
class Palette:
    """A matrix [G·R, K] in groups of R rows that share a table: w = lut[group, index].

    index: uint8 [G, R, K/2], two a byte, the first in the low nibble
    lut:   float32 [G, 16], every one a value that float16 has too

    A group is one row of both parts, so that whoever streams rows streams groups.
    """

    index: torch.Tensor
    lut: torch.Tensor

    @property
    def half_values(self) -> torch.Tensor:
        """What a target keeps as float16: float32 [G, …]."""
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
        """float32 [G·R, K]."""
        values = self.values()
        flat = values.view(values.shape[0], -1).long()
        return self.lut.gather(1, flat).view(-1, values.shape[2])

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Some rows of the matrix by their numbers int64 [n]: float32 [n, K]."""
        group, row = rows // self.index.shape[1], rows % self.index.shape[1]
        packed = self.index[group, row]
        return self.lut[group].gather(1, unpack_nibbles(packed, 2 * packed.shape[1]).long())
