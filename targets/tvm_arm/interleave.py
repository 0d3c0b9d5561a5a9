"""The order of int4 weights in model.params: what one load of a kernel takes lies together. Nothing is requantized.

A matrix [N, K] is cut into units of `lanes` rows and one step of columns (32; 16 for blocks of 16), row groups outside, steps
inside. A unit is `step / 8` vectors of 4·lanes bytes. Without `pairs`, byte (row, j) of vector v holds column 4v + j in its
low and column step/2 + 4v + j in its high nibble. With `pairs` (smmla), vector 2g + p holds rows 2p and 2p + 1, 8 columns
each: 8g + j in the low and step/2 + 8g + j in the high nibbles.

Where the instruction set is `signed`, nibbles are q - 8 in two's complement: q ^ 8.

Scales are float16 [groups, K/block, lanes], zero points uint8 and offsets float32 of the same shape: one load a step. Rows
beyond N, up to the last group's end, are zeros, and so are their scales.

Example: 4 lanes, step 16, row 0 = 0 1 2 … 15: the two vectors begin with the bytes 0x80 0x91 0xA2 0xB3 and 0xC4 0xD5 0xE6 0xF7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pocketphi.graph.formats import PartSpec
from pocketphi.graph.packing import pack_nibbles, unpack_nibbles
from pocketphi.targets.tvm_arm.isa import Isa

STEP = 32

_STORED = {"q": torch.uint8, "scale": torch.float16, "zero": torch.uint8, "offset": torch.float32}


def step_of(block: int) -> int:
    """Columns that share an activation's scale: a block of 16, or 32 of larger ones."""
    return min(block, STEP)


@dataclass(frozen=True)
class Interleaved:
    """How a matrix of `rows` × `columns` in blocks lies in the file."""

    rows: int
    columns: int
    block: int
    lanes: int
    pairs: bool
    signed: bool = False

    @staticmethod
    def of(parts: Mapping[str, PartSpec], isa: Isa) -> Interleaved:
        rows, half = parts["q"].shape
        return Interleaved(rows, 2 * half, 2 * half // parts["scale"].shape[1], isa.lanes, isa.pairs, isa.signed)

    @property
    def step(self) -> int:
        return step_of(self.block)

    @property
    def groups(self) -> int:
        """Groups of rows, the last one perhaps with rows that are not there."""
        return -(-self.rows // self.lanes)

    @property
    def blocks(self) -> int:
        return self.columns // self.block

    def specs(self, parts: Mapping[str, PartSpec]) -> dict[str, PartSpec]:
        """The stored parts, flat within a group of rows: rows of these tensors are groups."""
        values = self.lanes * self.columns // 2
        return {p: PartSpec((self.groups, values if p == "q" else self.blocks * self.lanes), _STORED[p]) for p in parts}

    def store(self, rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Canonical parts of whole groups of rows (but for the last of all) → the parts as stored."""
        made = {}
        for part, tensor in rows.items():
            missing = -tensor.shape[0] % self.lanes
            padded = torch.nn.functional.pad(tensor, (0, 0, 0, missing)) if missing else tensor
            made[part] = self._store_q(padded) if part == "q" else self._store_blocks(part, padded)
        return made

    def restore(self, stored: Mapping[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
        """The inverse: the canonical parts of the first `rows` rows of these groups."""
        made = {}
        for part, tensor in stored.items():
            back = self._restore_q(tensor) if part == "q" else self._restore_blocks(part, tensor)
            made[part] = back[:rows].contiguous()
        return made

    def _store_q(self, q: torch.Tensor) -> torch.Tensor:
        groups = q.shape[0] // self.lanes
        values = unpack_nibbles(q, self.columns)
        if self.pairs:  # [group, pair of rows, row, step, nibble, 8-column group, column]
            split = values.view(groups, self.lanes // 2, 2, -1, 2, self.step // 16, 8)
            ordered = split.permute(0, 3, 5, 1, 2, 6, 4)
        else:  # [group, row, step, nibble, vector, column]
            split = values.view(groups, self.lanes, -1, 2, self.step // 8, 4)
            ordered = split.permute(0, 2, 4, 1, 5, 3)
        packed = pack_nibbles(ordered.reshape(groups, -1))
        return packed ^ 0x88 if self.signed else packed

    def _restore_q(self, stored: torch.Tensor) -> torch.Tensor:
        groups = stored.shape[0]
        values = unpack_nibbles(stored ^ 0x88 if self.signed else stored, 2 * stored.shape[1])
        if self.pairs:
            split = values.view(groups, -1, self.step // 16, self.lanes // 2, 2, 8, 2)
            ordered = split.permute(0, 3, 4, 1, 6, 2, 5)
        else:
            split = values.view(groups, -1, self.step // 8, self.lanes, 4, 2)
            ordered = split.permute(0, 3, 1, 5, 2, 4)
        return pack_nibbles(ordered.reshape(groups * self.lanes, self.columns))

    def _store_blocks(self, part: str, tensor: torch.Tensor) -> torch.Tensor:
        tensor = unpack_nibbles(tensor, self.blocks) if part == "zero" else tensor
        turned = tensor.view(-1, self.lanes, self.blocks).transpose(1, 2)
        return turned.reshape(-1, self.blocks * self.lanes).to(_STORED[part])

    def _restore_blocks(self, part: str, stored: torch.Tensor) -> torch.Tensor:
        tensor = stored.view(-1, self.blocks, self.lanes).transpose(1, 2).reshape(-1, self.blocks)
        return pack_nibbles(tensor) if part == "zero" else tensor.float()
