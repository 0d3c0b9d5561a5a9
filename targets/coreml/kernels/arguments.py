"""Reading parameters that arrive as tensors: axes, sizes, flags, points of a sampling mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

Parameter = torch.Tensor | None
Shape = TypeVar("Shape", bound=Sequence[int | None])


def integers(value: torch.Tensor) -> list[int]:
    """A parameter of integers as a list; a scalar gives one."""
    return [int(v) for v in value.reshape(-1).tolist()]


def integer(value: Parameter, default: int) -> int:
    return default if value is None else int(value.item())


def number(value: Parameter, default: float) -> float:
    return default if value is None else float(value.item())


def flag(value: Parameter, default: bool = False) -> bool:
    return default if value is None else bool(value.item())


LARGEST_VALUE = 1 << 29
"""Elements of one value: 2 GiB of float32. A K/V cache of 128k tokens has as many; a size in a damaged file soon has more."""


def affordable(shape: Shape) -> Shape:
    """A shape that memory can be made for; a size of None stands for one. Raises ValueError for any other."""
    count = 1
    for size in shape:
        count *= 1 if size is None else size
    if count > LARGEST_VALUE or any(size is not None and size < 0 for size in shape):
        raise ValueError(f"a value of {list(shape)}: more than {LARGEST_VALUE:,} elements, or a negative size")
    return shape


def axis_of(value: Parameter, rank: int, default: int) -> int:
    """An axis counted from the front. Raises ValueError where there is no such axis."""
    axis = integer(value, default)
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of a tensor with {rank} axes")
    return axis % rank


def axes_of(value: Parameter, rank: int) -> list[int]:
    """Axes counted from the front; all of them where none are given."""
    if value is None:
        return list(range(rank))
    axes = integers(value)
    if any(not -rank <= axis < rank for axis in axes):
        raise ValueError(f"axes {axes} of a tensor with {rank} axes")
    return [axis % rank for axis in axes]


def grid(size: float, count: int, mode: str) -> torch.Tensor:
    """Points of a sampling mode along an input of `size` points: float64 [count], not clamped to it."""
    affordable([count])
    i = torch.arange(count, dtype=torch.float64)
    count = max(1, count)
    if mode == "ALIGN_CORNERS" and count == 1:
        return i + (size - 1) / 2
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        return i * (size - 1) / max(1, count - 1)
    if mode == "DEFAULT":
        return i * (size - size / count) / max(1, count - 1)
    if mode == "OFFSET_CORNERS":
        return (i + 0.5) * max(1, size - 1) / count
    if mode == "UNALIGN_CORNERS":
        return (i + 0.5) * size / count - 0.5
    raise ValueError(f"sampling mode {mode!r} is not understood")
