"""Reading parameters that arrive as tensors: axes, sizes, flags."""

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
