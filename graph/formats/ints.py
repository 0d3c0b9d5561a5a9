"""The widths that blocks of whole numbers come in, but for `int4`, which has a module of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pocketphi.graph.formats.blocks import Blocks

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Int2(Blocks):
    """q2: 0 … 3, four a byte."""

    name = words = suffix = "int2"
    bits = 2

    q2: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None


@dataclass(frozen=True)
class Int3(Blocks):
    """q3: 0 … 7, eight in three bytes."""

    name = words = suffix = "int3"
    bits = 3

    q3: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None


@dataclass(frozen=True)
class Int5(Blocks):
    """q5: 0 … 31, eight in five bytes."""

    name = words = suffix = "int5"
    bits = 5

    q5: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None


@dataclass(frozen=True)
class Int6(Blocks):
    """q6: 0 … 63, four in three bytes."""

    name = words = suffix = "int6"
    bits = 6

    q6: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None


@dataclass(frozen=True)
class Int8(Blocks):
    """q8: 0 … 255, for weights that are worth a byte a value: the embedding and the head. Zero points would gain nothing."""

    name = words = suffix = "int8"
    bits = 8

    q8: torch.Tensor
    scale: torch.Tensor
