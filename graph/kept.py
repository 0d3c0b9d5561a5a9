"""How a checkpoint holds a weight that can be taken over as it is, and how several such weights become one.

A stack of projections may hold values of several widths, blocks of several sizes, some with zero points and some with a float
minimum. What all of them fit into is found here, and none of it rounds: a value of 4 bits is one of 8 bits too, a block is two
halves with the same scale, and a zero point z is an offset of (middle - z) · scale.

Where blocks have offsets, narrow values are spread over the wider range: q · 2^j with scale / 2^j. A runtime that rounds
activations takes their rounded values times q - middle, and their exact ones times the offset. Were values of 4 bits left at
the bottom of 8, both would be large, and their difference all error. Where scale / 2^j is no value of float16, j is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.formats import Blocks, Int2, Int4, Int8, Layout
from pocketphi.graph.packing import half_precision

if TYPE_CHECKING:
    import torch

SIZES = (256, 128, 64, 32, 16)
"""Of blocks, as files of targets hold them."""
_FORMATS: tuple[type[Blocks], ...] = (Int2, Int4, Int8)
WIDEST = 8


@dataclass(frozen=True)
class Kept:
    """format: of the blocks; block: values of a row in one, one of SIZES; more: the part that blocks have beside their scales:
    `zero`, `offset`, or neither
    rounds: in which way it is not quite what the file says, for a message; empty where it is, bit for bit
    """

    format: type[Blocks]
    block: int
    more: str = ""
    rounds: str = ""

    def layout(self, shape: tuple[int, ...]) -> Layout:
        if self.more == "offset":
            return self.format.layout(shape, self.block, offset=True)
        return self.format.layout(shape, self.block, self.more != "zero")


@dataclass(frozen=True)
class Grouped:
    """Rows of a matrix as a tool stores them: w = scale · (q - zero) + bias, in groups of K/groups values of a row.

    q:     uint8 [N, K], below 2^bits
    scale: float32 [N, groups]
    zero:  int32 [N, groups], or None for the middle of q's range
    bias:  float32 [N, groups] where w = scale · q + bias, without a zero point; else None
    order: int64 [K], the group of each column where that is not column · groups / K; else None
    """

    q: torch.Tensor
    scale: torch.Tensor
    bits: int
    zero: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    order: torch.Tensor | None = None

    def dequantize(self) -> torch.Tensor:
        """float32 [N, K]."""
        scale = self._spread(self.scale)
        if self.bias is not None:
            return self.q.float() * scale + self._spread(self.bias)
        zero = float(1 << (self.bits - 1)) if self.zero is None else self._spread(self.zero.float())
        return (self.q.float() - zero) * scale

    def picked(self, rows: torch.Tensor) -> Grouped:
        """Some rows by their numbers int64 [n]."""
        zero, bias = (None if part is None else part[rows] for part in (self.zero, self.bias))
        return replace(self, q=self.q[rows], scale=self.scale[rows], zero=zero, bias=bias)

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        if self.order is not None:
            return values[:, self.order]
        return values.repeat_interleave(self.q.shape[1] // values.shape[1], 1)

    def as_blocks(self, kept: Kept) -> Blocks:
        """In canonical form. kept: one that it fits into, as `kept_of` says; scales and biases are rounded to float16."""
        form, repeat = kept.format, self.q.shape[1] // self.scale.shape[1] // kept.block
        scale, middle, own = half_precision(self.scale), form.middle(), 1 << (self.bits - 1)
        if kept.more == "zero":
            return _repeated(form, self.q, scale, repeat, zero=self._zeros(kept))
        if kept.more != "offset":
            return _repeated(form, self.q + (middle - own), scale, repeat)
        if self.bias is not None:
            lowest = half_precision(self.bias)
        else:
            lowest = (-own if self.zero is None else -self.zero.float()) * scale
        q, scale = _spread_out(self.q, scale, form.bits - self.bits)
        return _repeated(form, q, scale, repeat, offset=lowest + middle * scale)

    def _zeros(self, kept: Kept) -> torch.Tensor:
        import torch

        if self.zero is None:
            return torch.full(self.scale.shape, 1 << (self.bits - 1), dtype=torch.int32)
        if int(self.zero.max()) >= 1 << kept.format.bits:
            raise CompilerBug(f"a zero point of {int(self.zero.max())} in {kept.format.name}")
        return self.zero


def kept_of(bits: int, group: int, zero: bool = False, bias: bool = False, rounds: str = "") -> Kept | None:
    """What values of `bits` in groups of `group` fit into; None where blocks are of no size that files of targets hold.

    zero: whether there are zero points, below 2^bits; bias: whether there are float minimums
    """
    block = next((size for size in SIZES if group % size == 0), None)
    form = next((form for form in _FORMATS if form.bits >= bits and not (bias and form is Int2)), None)
    if block is None or form is None:
        return None
    return Kept(form, block, "offset" if bias else "zero" if zero else "", rounds)


def kept_together(several: Sequence[Kept]) -> Kept:
    """What all of these fit into."""
    form = max((one.format for one in several), key=lambda form: form.bits)
    more = {one.more for one in several}
    offset = "offset" in more
    if offset and form is Int2:
        form = Int4
    block = math.gcd(*(one.block for one in several))
    rounds = next((one.rounds for one in several if one.rounds), "")
    return Kept(form, block, "offset" if offset else max(more), rounds)


def fitted(blocks: Blocks, kept: Kept) -> Blocks:
    """Blocks in the form that several share, of the same values to the bit."""
    import torch

    form, scale = kept.format, blocks.scale
    repeat, zero, offset = blocks.block // kept.block, blocks.zeros(), getattr(blocks, "offset", None)
    if (type(blocks), repeat, kept.more) == (
        form,
        1,
        "zero" if zero is not None else "" if offset is None else "offset",
    ):
        return blocks
    up, middle = form.middle() - blocks.middle(), blocks.middle()
    if kept.more == "offset":
        if offset is None:
            offset = (middle - (middle if zero is None else zero.float())) * scale
        lowest = offset - middle * scale  # stays as it is: a target may keep that as float16
        q, scale = _spread_out(blocks.values(), scale, form.bits - blocks.bits)
        return _repeated(form, q, scale, repeat, offset=lowest + form.middle() * scale)
    if kept.more == "zero":
        zero = torch.full(scale.shape, middle, dtype=torch.uint8) if zero is None else zero
        return _repeated(form, blocks.values(), scale, repeat, zero)
    return _repeated(form, blocks.values() + up, scale, repeat)


def _spread_out(q: torch.Tensor, scale: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values q [N, K] that use so many bits less than there are, and their scales [N, blocks]: q · 2^j and scale / 2^j, j at
    most `bits`, of each block the largest with which the scale is one of float16."""
    import torch

    if not bits:
        return q, scale
    times = torch.ones_like(scale)
    for j in range(1, bits + 1):
        less = scale / 2**j
        times = torch.where(half_precision(less) == less, 2.0**j, times)
    wider = q.view(*scale.shape, -1) * times[..., None]
    return wider.to(torch.uint8).view(q.shape), scale / times


def _repeated(
    form: type[Blocks],
    q: torch.Tensor,
    scale: torch.Tensor,
    times: int,
    zero: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
) -> Blocks:
    """Each block cut into so many of the same scale."""

    def cut(part: torch.Tensor) -> torch.Tensor:
        return part.repeat_interleave(times, 1)

    return form.pack(q, cut(scale), None if zero is None else cut(zero), offset=None if offset is None else cut(offset))


def stacked(rows: Sequence[Blocks]) -> Blocks:
    """Rows of several weights in one form, one under the other."""
    import torch

    if len(rows) == 1:
        return rows[0]
    parts = [one.tensors() for one in rows]
    return type(rows[0])(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
