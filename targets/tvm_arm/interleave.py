"""The order of weights in model.params: what one load of a kernel takes lies together. Nothing is requantized.

A matrix [N, K] is cut into units of `lanes` rows and one step of columns (32; 16 for blocks that 32 does not divide), row
groups outside, steps inside. A unit is `step / 4` chunks of 4·lanes values, each of which is one vector of bytes when it is
multiplied. They lie in planes (`planes.py`), one plane of the unit after the other. Without `pairs`, byte (row, j) of chunk c
is column 4c + j. With `pairs` (smmla), chunk 2g + p has rows 2p and 2p + 1, 8 columns each: 8g + j.

Where a matrix is `signed`, values are q - middle in two's complement: their highest bit is turned. Numbers of levels lie as
they are: a kernel looks the levels up, and multiplies those, or levels + middle where unsigned.

Scales are float16 [groups, K/block, lanes], zero points uint8 and offsets float32 of the same shape: one load a step. Where a
weight has row scales, its scales are int8, as multiples of them, and they are float16 [groups, lanes]; `held.py` says of
which weights that is so. Rows beyond N, up to the last group's end, are zeros, and so are their scales.

Example: 4 lanes, step 16, 4 bits, row 0 = 0 1 2 … 15: the two vectors begin with the bytes 0x80 0x91 0xA2 0xB3 and
0xC4 0xD5 0xE6 0xF7. In 5 bits, row 0 = 0 2 4 … 30: the same two, and a half of one with the lowest bits, all 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pocketphi.graph.formats import Blocks, Int4, Levels, PartSpec, known_format
from pocketphi.graph.formats.blocks import scale_codes
from pocketphi.graph.packing import pack_bits, unpack_bits
from pocketphi.targets.tvm_arm.held import held
from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.planes import Plane, planes_of

STEP = 32

_STORED = {"scale": torch.float16, "offset": torch.float32, "row_scale": torch.float16}
"""Types of parts; the others are uint8."""

_WIDTH_OF_LEVELS = 7


def step_of(block: int) -> int:
    """Columns that share an activation's scale: 32, or 16 where those do not divide a block."""
    return STEP if block % STEP == 0 else 16


@dataclass(frozen=True)
class Interleaved:
    """How a matrix of `rows` × `columns` in blocks lies in the file. by_row: whether scales are multiples of row scales."""

    rows: int
    columns: int
    block: int
    lanes: int
    pairs: bool
    signed: bool = False
    format: type[Blocks] = Int4
    by_row: bool = False

    @staticmethod
    def of(parts: Mapping[str, PartSpec], isa: Isa) -> Interleaved:
        form = known_format(parts)
        assert issubclass(form, Blocks)
        rows, columns = form.shape_of(parts)
        block = columns // parts["scale"].shape[1]
        return Interleaved(
            rows, columns, block, isa.lanes, isa.pairs, _is_signed(form, isa), form, "row_scale" in held(parts)
        )

    @property
    def bits(self) -> int:
        return self.format.bits

    @property
    def levels(self) -> tuple[int, ...] | None:
        """What values are numbers of, if they are."""
        return self.format.levels if issubclass(self.format, Levels) else None

    @property
    def width(self) -> int:
        """Bits of what is multiplied."""
        return _WIDTH_OF_LEVELS if self.levels else self.bits

    @property
    def middle(self) -> int:
        """What is multiplied in place of zero, where it is not signed."""
        return 1 << (self.width - 1)

    @property
    def shift(self) -> int:
        """Bits by which a byte to multiply is shifted: signed values are at its upper end, so that the sign is the byte's."""
        return 8 - self.width if self.signed and not self.levels else 0

    @property
    def values(self) -> str:
        """The name of the part that holds values."""
        return self.format.part_names()[0]

    @property
    def step(self) -> int:
        return step_of(self.block)

    @property
    def planes(self) -> tuple[Plane, ...]:
        return planes_of(self.bits, self.step)

    @property
    def unit(self) -> int:
        """Bytes of values in a step of a group of rows."""
        return self.lanes * self.step * self.bits // 8

    @property
    def groups(self) -> int:
        """Groups of rows, the last one perhaps with rows that are not there."""
        return -(-self.rows // self.lanes)

    @property
    def blocks(self) -> int:
        return self.columns // self.block

    def spec(self, part: str) -> PartSpec:
        """A stored part, flat within a group of rows: rows of the tensor are groups."""
        blocks = 1 if part == "row_scale" else self.blocks
        size = self.columns // self.step * self.unit if part == self.values else blocks * self.lanes
        dtype = torch.int8 if part == "scale" and self.by_row else _STORED.get(part, torch.uint8)
        return PartSpec((self.groups, size), dtype)

    def specs(self, parts: Mapping[str, PartSpec]) -> dict[str, PartSpec]:
        """The stored parts."""
        return {part: self.spec(part) for part in held(parts)}

    def store(self, rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Canonical parts of whole groups of rows (but for the last of all) → the parts as stored."""
        made = {}
        if self.by_row:
            rows = {**rows, "scale": scale_codes(rows["scale"], rows["row_scale"])}
        for part, tensor in held(rows).items():
            missing = -tensor.shape[0] % self.lanes
            padded = torch.nn.functional.pad(tensor, (0, 0, 0, missing)) if missing else tensor
            made[part] = self._store_values(padded) if part == self.values else self._store_blocks(part, padded)
        return made

    def restore(self, stored: Mapping[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
        """The inverse: the canonical parts of the first `rows` rows of these groups."""
        made = {}
        for part, tensor in stored.items():
            back = self._restore_values(tensor) if part == self.values else self._restore_blocks(part, tensor)
            made[part] = back[:rows].contiguous()
        if self.by_row:
            made["scale"] *= made["row_scale"]
        return made

    def _store_values(self, packed: torch.Tensor) -> torch.Tensor:
        values = unpack_bits(packed, self.bits, self.columns)
        chunks = self._chunks(values ^ self._turned)
        return torch.cat([_join(plane, chunks) for plane in self.planes], -1).view(-1, self.spec(self.values).shape[1])

    def _restore_values(self, stored: torch.Tensor) -> torch.Tensor:
        units = stored.view(stored.shape[0], -1, self.unit)
        chunks = torch.zeros((*units.shape[:2], self.step // 4, 4 * self.lanes), dtype=torch.uint8)
        for plane in self.planes:
            _split(plane, units[..., plane.start(self.lanes) :], chunks)
        values = self._rows(chunks)
        return pack_bits(values ^ self._turned, self.bits)

    @property
    def _turned(self) -> int:
        """The bit by which values differ from those in canonical form."""
        return self.middle if self.signed and self.levels is None else 0

    def _chunks(self, values: torch.Tensor) -> torch.Tensor:
        """[rows, columns] → [groups, steps, chunks, 4 · lanes]."""
        steps = self.columns // self.step
        if self.pairs:  # [group, pair of rows, row, step, 8-column group, column]
            split = values.view(-1, self.lanes // 2, 2, steps, self.step // 8, 8)
            return split.permute(0, 3, 4, 1, 2, 5).reshape(-1, steps, self.step // 4, 4 * self.lanes)
        split = values.view(-1, self.lanes, steps, self.step // 4, 4)
        return split.permute(0, 2, 3, 1, 4).reshape(-1, steps, self.step // 4, 4 * self.lanes)

    def _rows(self, chunks: torch.Tensor) -> torch.Tensor:
        """The inverse."""
        steps = chunks.shape[1]
        if self.pairs:
            split = chunks.view(-1, steps, self.step // 8, self.lanes // 2, 2, 8)
            return split.permute(0, 3, 4, 1, 2, 5).reshape(-1, self.columns)
        split = chunks.view(-1, steps, self.step // 4, self.lanes, 4)
        return split.permute(0, 3, 1, 2, 4).reshape(-1, self.columns)

    def _store_blocks(self, part: str, tensor: torch.Tensor) -> torch.Tensor:
        tensor = unpack_bits(tensor, self.bits, self.blocks) if part == "zero" else tensor
        turned = tensor.view(-1, self.lanes, tensor.shape[1]).transpose(1, 2)
        return turned.reshape(len(turned), -1).to(self.spec(part).dtype)

    def _restore_blocks(self, part: str, stored: torch.Tensor) -> torch.Tensor:
        blocks = stored.shape[1] // self.lanes
        tensor = stored.view(-1, blocks, self.lanes).transpose(1, 2).reshape(-1, blocks)
        return pack_bits(tensor, self.bits) if part == "zero" else tensor.float()


def _is_signed(form: type[Blocks], isa: Isa) -> bool:
    """Levels are signed where it helps, at no cost: they are looked up either way."""
    return isa.is_signed(8 if issubclass(form, Levels) else form.bits)


def _join(plane: Plane, chunks: torch.Tensor) -> torch.Tensor:
    """A plane of chunks [groups, steps, chunks, width] as it is stored: [groups, steps, bytes]."""
    parts = [(chunks[..., c, :] >> plane.low) & ((1 << plane.bits) - 1) for c in range(plane.chunks)]
    stored = [torch.zeros_like(parts[0]) for _ in range(plane.vectors)]
    for c, part in enumerate(parts):
        vector, bit = plane.place(c)
        stored[vector] |= part << bit
    if plane.halves == 2:
        first, second = stored[0].chunk(2, -1)
        return first | second << 4
    return torch.cat(stored, -1)


def _split(plane: Plane, stored: torch.Tensor, chunks: torch.Tensor) -> None:
    """The inverse: put a plane, at the beginning of `stored`, into chunks that lack it."""
    width = chunks.shape[-1]
    for c in range(plane.chunks):
        vector, bit = plane.place(c)
        if plane.halves == 2:
            held = torch.cat([stored[..., : width // 2], stored[..., : width // 2] >> 4], -1)
        else:
            held = stored[..., vector * width : (vector + 1) * width]
        chunks[..., c, :] |= ((held >> bit) & ((1 << plane.bits) - 1)) << plane.low
