"""What a weight format is. Importing this, or any format, does not load torch: sizes can be asked for without it."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PartSpec:
    """One tensor of a weight. All parts of a weight have the same number of rows."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def type_name(self) -> str:
        """As numpy and TVM call it: `float32`."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Values:
    """What a part holds before it is packed.

    shape: of the values; bits: of each. More than 8 are a float, others a whole number. A row ends with a byte.
    """

    shape: tuple[int, ...]
    bits: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape[:-1]) * math.ceil(self.shape[-1] * self.bits / 8)

    @property
    def spec(self) -> PartSpec:
        """The part as a tensor in canonical form: float32, or uint8 that holds several values where they are small."""
        import torch

        if self.bits > 8:
            return PartSpec(self.shape, torch.float32)
        return PartSpec((*self.shape[:-1], math.ceil(self.shape[-1] * self.bits / 8)), torch.uint8)


HINTS = frozenset({"row_scale", "row_offset"})
"""Parts that say how a file may hold the others, and nothing of what the weight is: a target may leave them out."""

Layout = dict[str, Values]
"""The parts of a weight by name."""


def specs(layout: Layout) -> dict[str, PartSpec]:
    """The parts as tensors in canonical form."""
    return {part: values.spec for part, values in layout.items()}


def bytes_of(layout: Layout, bits: Mapping[str, int] | None = None) -> int:
    """What a weight takes. bits: of a value of a part, where a target keeps it in another number of them."""
    kept = bits or {}
    return sum(dataclasses.replace(v, bits=kept.get(part, v.bits)).bytes for part, v in layout.items())


class Format(ABC):
    """A subclass is a format, a dataclass whose fields are its parts in the order of the operators' arguments; an instance is a
    weight [N, K] in that format, or some rows of one. No other format has a part of the first field's name.

    A format also has a static method `layout(shape, …) -> Layout`, with parameters of its own. Rows of the parts are
    independent of each other, so that they can be streamed; one of them stands for one row of the matrix, or several.

    name:    what policies call it
    bits:    of a value
    words:   what a message calls a weight in it
    instead: what a user may do where a target cannot hold it
    suffix:  of its operators' names: `edge::matmul_…` and `edge::embedding_…`
    half_part: the part that a target keeps as float16 in any case
    """

    name: ClassVar[str]
    bits: ClassVar[int]
    words: ClassVar[str]
    instead: ClassVar[str] = "choose another format"
    suffix: ClassVar[str]
    half_part: ClassVar[str]

    @classmethod
    def part_names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    @classmethod
    def optional(cls) -> frozenset[str]:
        """The parts that a weight may lack."""
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        return frozenset(field.name for field in fields if field.default is None)

    @classmethod
    @abstractmethod
    def shape_of(cls, parts: Mapping[str, Any]) -> tuple[int, int]:
        """[N, K] of the matrix that parts stand for; of specifications or tensors."""

    @classmethod
    def block_of(cls, parts: Mapping[str, Any]) -> int | None:
        """Values of a row that share a scale; None where parts hold no scales."""
        return cls.shape_of(parts)[1] // int(parts["scale"].shape[1]) if "scale" in parts else None

    @property
    def half_values(self) -> torch.Tensor:
        """The values of `half_part`: float32 [rows, …], each one that float16 has."""
        values: torch.Tensor = getattr(self, self.half_part)
        return values

    @abstractmethod
    def dequantize(self) -> torch.Tensor:
        """The values that these rows stand for: float32 [N, K]."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The parts by name, without those that are not there."""
        return {part: tensor for part, tensor in vars(self).items() if tensor is not None}

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Some rows of the matrix by their numbers int64 [n]: float32 [n, K]."""
        return self.picked(rows).dequantize()

    def picked(self, rows: torch.Tensor) -> Self:
        """Some rows of the parts by their numbers int64 [n]."""
        return type(self)(**{part: tensor[rows] for part, tensor in self.tensors().items()})
