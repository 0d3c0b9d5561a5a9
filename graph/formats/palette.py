"""palette: indices of few bits into lookup tables, a table for every few rows of a matrix, or of a block of its columns.

Example, one table for two rows of K = 2 values:

    >>> lut = torch.linspace(-1.0, 0.875, 16)[None]
    >>> Palette.pack(torch.tensor([[[0, 15], [8, 9]]]), lut).index
    tensor([[[240],
             [152]]], dtype=torch.uint8)

The first byte holds index 0 in its low and 15 in its high nibble: 15 · 16 + 0 = 240; the row is (lut[0], lut[15]).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Any, Self

from pocketphi.graph.formats.base import Format, Layout, Values
from pocketphi.graph.packing import pack_bits, unpack_bits

if TYPE_CHECKING:
    import torch


class Tables(Format):
    """A matrix [G·R, K] in groups of R rows that share a table: w = lut[group, index]. Where blocks of columns have tables of
    their own, w = lut[group, block, index]. A subclass is a width.

    Its first part holds the indices, uint8 [G, R, ceil(K · bits / 8)] as `pack_bits` lays them out. The other:

    lut: float32 [G, 2^bits], or [G, blocks, 2^bits], every one a value that float16 has too

    A group is one row of both parts, so that whoever streams rows streams groups.
    """

    instead = "choose another format, or compile it for coreml alone"
    half_part = "lut"

    lut: torch.Tensor

    @classmethod
    def entries(cls) -> int:
        """Of a table."""
        return int(1 << cls.bits)

    @classmethod
    def layout(cls, shape: tuple[int, ...], group: int, block: int = 0) -> Layout:
        """group, block: rows and columns of the matrix that share a table; 0: all columns."""
        rows, columns = shape
        groups = rows // group
        tables = (groups, columns // block) if 0 < block < columns else (groups,)
        indices = Values((groups, group, columns), cls.bits)
        return {cls.part_names()[0]: indices, "lut": Values((*tables, cls.entries()), 32)}

    @classmethod
    def shape_of(cls, parts: Mapping[str, Any]) -> tuple[int, int]:
        groups, rows, size = parts[cls.part_names()[0]].shape
        return groups * rows, 8 * size // cls.bits

    @property
    def indices(self) -> torch.Tensor:
        """As they are packed."""
        packed: torch.Tensor = getattr(self, self.part_names()[0])
        return packed

    @classmethod
    def pack(cls, values: torch.Tensor, lut: torch.Tensor) -> Self:
        """From unpacked indices: values [G, R, K]; a row has to end with a byte."""
        packed = pack_bits(values.flatten(0, 1), cls.bits).view(*values.shape[:2], -1)
        return cls(**{cls.part_names()[0]: packed, "lut": lut})

    def values(self) -> torch.Tensor:
        """Unpacked indices: uint8 [G, R, K]."""
        groups, rows, size = self.indices.shape
        return unpack_bits(self.indices.reshape(-1, size), self.bits, 8 * size // self.bits).view(groups, rows, -1)

    def dequantize(self) -> torch.Tensor:
        values = self.values()
        return self._looked_up(self.lut, values).view(-1, values.shape[2])

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        group, row = rows // self.indices.shape[1], rows % self.indices.shape[1]
        packed = self.indices[group, row]
        values = unpack_bits(packed, self.bits, 8 * packed.shape[1] // self.bits)
        return self._looked_up(self.lut[group], values[:, None])[:, 0]

    @staticmethod
    def _looked_up(lut: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What indices [G, R, K] stand for in the tables of their groups: float32 of that shape."""
        groups, rows, columns = values.shape
        tables = lut.view(groups, 1, -1, lut.shape[-1]).expand(-1, rows, -1, -1)
        return tables.gather(3, values.view(groups, rows, tables.shape[2], -1).long()).view(groups, rows, columns)


@dataclass(frozen=True)
class Palette(Tables):
    """index: 0 … 15, two a byte."""

    name = suffix = "palette"
    words = "a palette"
    instead = "leave out --palette, or compile it for coreml alone"
    bits = 4

    index: torch.Tensor
    lut: torch.Tensor


def _width(bits: int) -> type[Tables]:
    """`palette2` for 2 bits: indices from 0 to 3, in the part `index2`."""
    parts: list[Any] = [(f"index{bits}", "torch.Tensor"), ("lut", "torch.Tensor")]
    said = {"bits": bits, "words": f"a palette of {bits} bits", "__module__": __name__}
    said |= dict.fromkeys(("name", "suffix"), f"palette{bits}")
    return make_dataclass(f"Palette{bits}", parts, bases=(Tables,), namespace=said, frozen=True)


Palette2, Palette3, Palette6 = map(_width, (2, 3, 6))
