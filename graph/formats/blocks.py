"""Whole numbers of few bits in blocks that share a scale, and perhaps a zero point: what the formats `int2` … `int8` have in
common. A subclass is a width.

Example, one row of K = 8 values of 3 bits in blocks of 4, with the zero point in the middle of 0 … 7:

    >>> w = Int3.pack(torch.tensor([[0, 7, 4, 5, 4, 4, 4, 4]]), torch.tensor([[0.5, 1.0]]))
    >>> w.dequantize()
    tensor([[-2.0000,  1.5000,  0.0000,  0.5000,  0.0000,  0.0000,  0.0000,  0.0000]])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pocketphi.graph.formats.base import Format, Layout, Values
from pocketphi.graph.packing import pack_bits, unpack_bits

if TYPE_CHECKING:
    import torch


class Blocks(Format):
    """Rows of a matrix in blocks along K: w = (q - zero) · scale + offset.

    Its first part holds q, uint8 [N, ceil(K · bits / 8)] as `pack_bits` lays it out. The others:

    scale: float32 [N, K/block], every one a value that float16 has too, so that each target can hold it exactly; of either
           sign
    zero:  uint8 [N, ceil(K/block · bits / 8)], packed the same way, or None for the middle of q's range
    offset: float32 [N, K/block], or None for 0: what a file whose blocks have a float minimum needs to be kept as it is. Widths
           that such files come in have it
    row_scale: float32 [N, 1] as `row_scales` makes them, or None. Where it is given, every scale of a row is a whole number
           from -127 to 127 times it, so that a target may keep the scales as int8
    """

    half_part = "scale"

    scale: torch.Tensor

    @classmethod
    def middle(cls) -> int:
        """The zero point where none is stored: 8 of 0 … 15."""
        return int(1 << (cls.bits - 1))

    @classmethod
    def reach(cls) -> int:
        """The magnitude of the lowest level, which no other has a larger one than: 8 of -8 … 7."""
        return cls.middle()

    @classmethod
    def has_zeros(cls) -> bool:
        """Whether a weight in this format may have zero points."""
        return "zero" in cls.part_names()

    @classmethod
    def layout(
        cls, shape: tuple[int, ...], block: int, symmetric: bool = True, by_row: bool = False, offset: bool = False
    ) -> Layout:
        """block: 0 for whole rows; by_row: with `row_scale`; offset: with that."""
        rows, columns = shape
        blocks = (rows, columns // (block or columns))
        found = {cls.part_names()[0]: Values((rows, columns), cls.bits), "scale": Values(blocks, 32)}
        found |= {} if symmetric else {"zero": Values(blocks, cls.bits)}
        found |= {"offset": Values(blocks, 32)} if offset else {}
        return found | ({"row_scale": Values((rows, 1), 32)} if by_row else {})

    @classmethod
    def shape_of(cls, parts: Mapping[str, Any]) -> tuple[int, int]:
        rows, size = parts[cls.part_names()[0]].shape
        return rows, 8 * size // cls.bits

    @property
    def block(self) -> int:
        return self.shape_of(vars(self))[1] // self.scale.shape[1]

    @classmethod
    def pack(
        cls,
        values: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor | None = None,
        row_scale: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
        row_offset: torch.Tensor | None = None,
    ) -> Self:
        """From unpacked integers: values [N, K], zero [N, K/block] or None."""
        more = {"offset": offset, "row_scale": row_scale, "row_offset": row_offset}
        more["zero"] = None if zero is None else pack_bits(zero, cls.bits)
        given = {part: tensor for part, tensor in more.items() if tensor is not None}
        return cls(**{cls.part_names()[0]: pack_bits(values, cls.bits), "scale": scale, **given})

    def values(self) -> torch.Tensor:
        """Unpacked integers: uint8 [N, K]."""
        packed = getattr(self, self.part_names()[0])
        return unpack_bits(packed, self.bits, 8 * packed.shape[1] // self.bits)

    def zeros(self) -> torch.Tensor | None:
        """Unpacked zero points: uint8 [N, K/block], or None."""
        zero = getattr(self, "zero", None)
        return None if zero is None else unpack_bits(zero, self.bits, self.scale.shape[1])

    def dequantize(self) -> torch.Tensor:
        n, blocks = self.scale.shape
        scaled, offset = self.centred().view(n, blocks, -1) * self.scale[..., None], getattr(self, "offset", None)
        return (scaled if offset is None else scaled + offset[..., None]).view(n, -1)

    def centred(self) -> torch.Tensor:
        """The values in units of their scales: float32 [N, K]."""
        values, zeros = self.values(), self.zeros()
        if zeros is None:
            return values.float() - float(self.middle())
        return (values.view(*zeros.shape, -1).float() - zeros.float()[..., None]).view(values.shape)


_MOST = 127
"""The largest whole number of int8 that has an opposite."""


def row_scales(largest: torch.Tensor) -> torch.Tensor:
    """The least row scales whose 127-fold reaches the largest scale of each row: float32 [N, 1], magnitudes → [N, 1].

    Four significant bits, so that whole numbers of seven bits times them are values of float16, and no less than its smallest.
    """
    import torch

    least = largest / _MOST
    step = torch.exp2((torch.log2(least).floor() - 3).clamp(min=-24))
    return (least / step).ceil() * step


def scale_codes(scale: torch.Tensor, row_scale: torch.Tensor) -> torch.Tensor:
    """The whole numbers that stand for the nearest scales: float32, of magnitude 127 at most; 0 where the row scale is.
    Shapes: any that broadcast."""
    import torch

    # adding zero takes the sign off a zero, which int8 does not have
    return torch.where(row_scale > 0, scale / row_scale, scale * 0).round().clamp(-_MOST, _MOST) + 0.0
