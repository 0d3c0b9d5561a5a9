"""Constants that are decoded only where and when they are needed: stored tensors and the `constexpr_…` operators over them.

Each has rows along its first axis: `rows(start, stop)` and `pick(index)` decode only these, `dense()` all of it. Floats come
as float16 or float32, integers in their carrier type. `half`: round what is decoded to float16, as the declared type says.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from pocketphi.targets.coreml.raw import BITS, Raw, unpack

Rows = slice | Tensor
"""Which rows: slice(start, stop), or numbers int64 [n]."""


class Weight(ABC):
    """shape, dtype: of the decoded tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def key(self) -> Hashable:
        """Equal for weights that decode the same stored bytes in the same way, as functions of a package share them."""
        return id(self)

    @abstractmethod
    def pick(self, rows: Rows) -> Tensor:
        """Some rows, decoded: [n, *shape[1:]]."""

    def rows(self, start: int, stop: int) -> Tensor:
        return self.pick(slice(start, stop))

    def dense(self) -> Tensor:
        return self.pick(slice(0, self.shape[0]))

    @property
    def count(self) -> int:
        return math.prod(self.shape)


class Stored(Weight):
    """A tensor as it lies in the file; `dtype` another than its own is `constexpr_cast`."""

    def __init__(self, raw: Raw, dtype: str | None = None) -> None:
        self.raw = raw
        self.shape, self.dtype = raw.shape, dtype or raw.dtype
        bits = BITS[raw.dtype] * math.prod(raw.shape[1:])
        self._by_row = bool(raw.shape) and raw.shape[0] > 0 and bits % 8 == 0 and bits > 0

    @property
    def key(self) -> Hashable:
        return self.raw.data.data_ptr(), self.shape, self.dtype

    def pick(self, rows: Rows) -> Tensor:
        if not self._by_row:
            return self.dense()[rows]
        return self.raw.pick(rows).tensor()

    def dense(self) -> Tensor:
        return self.raw.tensor()


class Known(Weight):
    """A tensor that was computed when the package was opened: of old palettes and sparse ones no row can be decoded alone."""

    def __init__(self, value: Tensor, dtype: str) -> None:
        self.value, self.shape, self.dtype = value, tuple(value.shape), dtype

    def pick(self, rows: Rows) -> Tensor:
        return self.value[rows]


class Blockwise(Weight):
    """`constexpr_blockwise_shift_scale`: scale · (data - offset), a scale and an offset for each block.

    data [D0, D1, …], scale and offset [S0, S1, …] with Si a divisor of Di: element i belongs to block i // (Di / Si).
    """

    def __init__(self, data: Weight, scale: Weight, offset: Weight | None, dtype: str, half: bool) -> None:
        if len(data.shape) != len(scale.shape) or any(s == 0 or d % s for d, s in zip(data.shape, scale.shape)):
            raise ValueError(f"scales {list(scale.shape)} do not divide data {list(data.shape)} into blocks")
        if offset is not None and offset.shape != scale.shape:
            raise ValueError(f"offsets {list(offset.shape)} do not match scales {list(scale.shape)}")
        self.data, self.scale, self.offset = data, scale, offset
        self.shape, self.dtype = data.shape, dtype
        self.half = half and dtype == "fp16"

    @property
    def key(self) -> Hashable:
        return self.data.key, self.scale.key, self.offset and self.offset.key, self.half

    def pick(self, rows: Rows) -> Tensor:
        values = self.data.pick(rows).float()
        sizes = (size for d, s in zip(self.shape[1:], self.scale.shape[1:]) for size in (s, d // s))
        blocked = values.view(values.shape[0], *sizes)
        if self.offset is not None:
            blocked = blocked - self._by_block(self.offset, rows)
        decoded = (blocked * self._by_block(self.scale, rows)).view(values.shape)
        return decoded.half() if self.half else decoded

    def _by_block(self, parameter: Weight, rows: Rows) -> Tensor:
        """The parameter for these rows, ready to be broadcast: [n, S1, 1, S2, 1, …]."""
        picked = pick_blocks(parameter, rows, self.shape[0] // self.scale.shape[0]).float()
        return picked.view(picked.shape[0], *(size for s in self.scale.shape[1:] for size in (s, 1)))


class Lut(Weight):
    """`constexpr_lut_to_dense`: indices into tables. lut [G0, G1, …, palette, V]: a table for each group of the indices.

    V > 1 gives vectors, which lie along `vector_axis` of the result.
    """

    def __init__(self, indices: Weight, lut: Weight, vector_axis: int, dtype: str) -> None:
        rank = len(indices.shape)
        if len(lut.shape) != rank + 2 or any(g == 0 or d % g for d, g in zip(indices.shape, lut.shape)):
            raise ValueError(f"tables {list(lut.shape)} do not fit indices {list(indices.shape)}")
        if lut.shape[-2] < 2 ** BITS[indices.dtype]:
            raise ValueError(f"a table of {lut.shape[-2]} for indices of {BITS[indices.dtype]} bits")
        self.indices, self.lut, self.axis, self.dtype = indices, lut, vector_axis % rank, dtype
        self.vector = lut.shape[-1]
        sizes = list(indices.shape)
        sizes[self.axis] *= self.vector
        self.shape = tuple(sizes)
        self._by_rows = rank == 2 and self.vector == 1
        by_bytes = isinstance(indices, Stored) and indices.raw.dtype == "uint4" and not self.shape[-1] % 2
        self._by_bytes = self._by_rows and by_bytes and lut.shape[1] == 1 and lut.shape[2] == 16

    @property
    def key(self) -> Hashable:
        return self.indices.key, self.lut.key, self.axis

    def pick(self, rows: Rows) -> Tensor:
        if self._by_rows:
            return self._decode_rows(rows)
        if self.vector > 1 and self.axis == 0:
            return self.dense()[rows]
        return self._decode(rows)

    def dense(self) -> Tensor:
        return self._decode(slice(0, self.indices.shape[0]))

    def _decode_rows(self, rows: Rows) -> Tensor:
        """A matrix with tables for every few rows. Two values at a time, as a byte, where they have four bits and one table."""
        numbers = torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        used, place = (numbers // (self.shape[0] // self.lut.shape[0])).unique(return_inverse=True)
        tables = self.lut.pick(used).view(len(used), -1)
        if not self._by_bytes:
            _, blocks, entries, _ = self.lut.shape
            first = tables.shape[1] * place.int()[:, None] + entries * torch.arange(blocks, dtype=torch.int32)
            index = self.indices.pick(rows).int().view(len(numbers), blocks, -1) + first[..., None]
            return tables.view(-1).index_select(0, index.view(-1)).view(len(numbers), -1)
        assert isinstance(self.indices, Stored)
        picked = self.indices.raw.pick(rows)
        pairs = torch.stack((tables.repeat(1, 16), tables.repeat_interleave(16, 1)), -1)  # byte 16 · high + low
        both = pairs.view({1: torch.int16, 2: torch.int32, 4: torch.int64}[pairs.itemsize]).view(-1)
        index = picked.data.view(len(numbers), -1).int() + (256 * place.int())[:, None]
        return both.index_select(0, index.view(-1)).view(tables.dtype).view(len(numbers), self.shape[1])

    def _decode(self, rows: Rows) -> Tensor:
        index = self.indices.pick(rows).long()
        lut = pick_blocks(self.lut, rows, self.indices.shape[0] // self.lut.shape[0])
        groups = []
        for axis, (size, count) in enumerate(zip(index.shape, lut.shape)):
            group = torch.arange(size) // max(1, size // count)
            groups.append(group.view(-1, *[1] * (index.dim() - 1 - axis)))
        found = lut[(*groups, index)]
        if self.vector == 1:
            return found.squeeze(-1)
        return found.movedim(-1, self.axis + 1).flatten(self.axis, self.axis + 1)


def affine(data: Weight, scale: Weight, zero_point: Weight, axis: int, dtype: str, half: bool) -> Weight:
    """`constexpr_affine_dequantize` (iOS 16): scale and zero point for each position along an axis, or one for all."""
    values = [parameter.dense().reshape(-1) for parameter in (scale, zero_point)]
    shape = [1] * len(data.shape)
    shape[axis] = max(value.numel() for value in values)
    scales, zeros = (value.expand(shape[axis]).reshape(shape) for value in values)
    return Blockwise(data, Known(scales, scale.dtype), Known(zeros, zero_point.dtype), dtype, half)


def palette(indices: Raw, lut: Weight, shape: Sequence[int], dtype: str) -> Weight:
    """`constexpr_lut_to_dense` of iOS 16: indices of log2(entries) bits in uint8 [bytes], one table."""
    count, entries = math.prod(shape), math.prod(lut.shape)
    bits = entries.bit_length() - 1
    if 2**bits != entries or indices.nbytes != -(-count * bits // 8):
        raise ValueError(f"{indices.nbytes} bytes of indices for {count} values from a table of {entries}")
    index = unpack(indices.data, f"uint{bits}", count) if bits < 8 else indices.data
    return Known(lut.dense().view(-1)[index.long()].reshape(tuple(shape)), dtype)


def sparse(nonzero: Weight, mask: Tensor, shape: Sequence[int], dtype: str) -> Weight:
    """`constexpr_sparse_to_dense`: values where the mask has a one, in order."""
    where = mask.reshape(-1).bool()
    if int(where.sum()) != math.prod(nonzero.shape):
        raise ValueError(f"{math.prod(nonzero.shape)} values for {int(where.sum())} places")
    values = nonzero.dense().reshape(-1)
    made = torch.zeros(where.numel(), dtype=values.dtype)
    made[where] = values
    return Known(made.reshape(tuple(shape)), dtype)


def still_sparse(decoded: Weight, mask: Weight, dtype: str, axis: int = 0, vector: int = 1) -> Weight:
    """One of the two results of an operator over sparse values: its mask (which alone is uint1), or what it kept [n].

    decoded: the values as if dense; vector: how many of them stand along `axis` for one place of the mask.
    """
    where = mask.dense().bool().repeat_interleave(vector, axis) if vector > 1 else mask.dense().bool()
    if dtype == "uint1":
        return Known(where.to(torch.uint8), "uint1")
    return Known(decoded.dense()[where], dtype)


def bits_of(mask: Raw, count: int) -> Tensor:
    """A mask of bits in uint8 bytes, lowest first: bool [count]."""
    return torch.from_numpy(np.unpackbits(mask.data.numpy(), bitorder="little")[:count].astype(bool))


def pick_blocks(parameter: Weight, rows: Rows, block: int) -> Tensor:
    """The parameter's rows for rows of the data, of which `block` share one."""
    if parameter.shape[0] == 1:
        return parameter.dense()
    if block == 1:
        return parameter.pick(rows)
    index = torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    return parameter.pick(index // block)
