"""Types and stored values of ML programs: a value's type, and the bytes of a constant as they lie in a file."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pocketphi.graph.packing import unpack_bits

BITS = {
    **{"fp16": 16, "fp32": 32, "fp64": 64, "bool": 8},
    **{"int4": 4, "int8": 8, "int16": 16, "int32": 32, "int64": 64},
    **{"uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6, "uint8": 8, "uint16": 16, "uint32": 32},
}
FLOATS = frozenset({"fp16", "fp32", "fp64"})
INTEGERS = frozenset(kind for kind in BITS if kind not in FLOATS)
"""With bool."""
_TORCH = {
    **{"fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64, "bool": torch.bool},
    **{"int4": torch.int8, "int8": torch.int8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64},
    **{"uint1": torch.uint8, "uint2": torch.uint8, "uint3": torch.uint8, "uint4": torch.uint8, "uint6": torch.uint8},
    **{"uint8": torch.uint8, "uint16": torch.int32, "uint32": torch.int64},
}


def carrier(dtype: str) -> torch.dtype:
    """The torch type that holds values of a type: its own where torch computes with that, else a wider one."""
    return _TORCH[dtype]


def for_kernel(value: torch.Tensor) -> torch.Tensor:
    """As kernels compute: floats in float32, integers in int64."""
    if value.is_floating_point():
        return value.float()
    return value if value.dtype == torch.bool else value.long()


def int_range(dtype: str) -> tuple[int, int]:
    """Smallest and largest value of an integer type."""
    bits = BITS[dtype]
    return (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@dataclass(frozen=True)
class ValueType:
    """dtype: fp16, fp32, int32, bool, string, int4, …; shape: None for a size that only a call knows."""

    dtype: str
    shape: tuple[int | None, ...] = ()
    state: bool = False

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{'state ' if self.state else ''}{self.dtype}[{sizes}]"

    @property
    def count(self) -> int:
        """Elements. Raises ValueError where the shape is not all known."""
        return math.prod(self.fixed_shape)

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        if any(size is None for size in self.shape):
            raise ValueError(f"{self} has no fixed shape")
        return tuple(size for size in self.shape if size is not None)


@dataclass(frozen=True)
class Raw:
    """A stored tensor, not decoded. data: uint8 [bytes], mapped from the file or in memory."""

    dtype: str
    shape: tuple[int, ...]
    data: torch.Tensor

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.data.numel()

    def tensor(self) -> torch.Tensor:
        """The values in their carrier type, in the stored shape: a view where the type is one of torch's."""
        if not self.count:
            return torch.empty(self.shape, dtype=carrier(self.dtype))
        if BITS[self.dtype] < 8:
            return unpack(self.data, self.dtype, self.count).view(self.shape)
        if self.dtype in ("uint16", "uint32"):
            array = self.data.numpy().view(self.dtype)
            return torch.from_numpy(array.astype("int32" if self.dtype == "uint16" else "int64")).view(self.shape)
        return self.data.view(carrier(self.dtype)).view(self.shape)

    def rows(self, start: int, stop: int) -> Raw:
        """Rows [start, stop) of the first axis. Raises ValueError where a row does not end with a byte."""
        return self.pick(slice(start, stop))

    def pick(self, rows: slice | torch.Tensor) -> Raw:
        """The same, or by their numbers, int64 [n]: a copy in memory."""
        bits = self.count // self.shape[0] * BITS[self.dtype]
        if bits % 8:
            raise ValueError(f"a row of {self.dtype} {list(self.shape)} is no whole number of bytes")
        picked = self.data.view(self.shape[0], bits // 8)[rows]
        return Raw(self.dtype, (len(picked), *self.shape[1:]), picked.reshape(-1))


def unpack(data: torch.Tensor, dtype: str, count: int) -> torch.Tensor:
    """Values of fewer than 8 bits: uint8 [bytes] → uint8 or int8 [count]. The first value lies in the lowest bits.

    >>> unpack(torch.tensor([0xF2], dtype=torch.uint8), "int4", 2)
    tensor([ 2, -1], dtype=torch.int8)
    """
    if dtype == "int4":
        signed = data.view(torch.int8)
        return torch.stack((signed << 4 >> 4, signed >> 4), dim=-1).view(-1)[:count]
    bits = BITS[dtype]
    if bits in (3, 6):
        return unpack_bits(data[None], bits, count)[0]
    fields = [(data >> (bits * i)) & (2**bits - 1) for i in range(8 // bits)]
    return torch.stack(fields, dim=-1).view(-1)[:count]
