"""Lazy weights: where the rows come from and what is done to them. Nothing is computed until rows are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from blake3 import blake3

from pocketphi.graph.checkpoint import ROWS_TOGETHER, Checkpoint
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import HINTS, PartSpec, rows_together, shape_of_parts, weight_of
from pocketphi.graph.packing import tensor_bytes


class LazyWeight(Protocol):
    """A weight that is made when it is asked for.

    parts: what it yields: `""` for a plain tensor; those of its format (`graph.formats`) for a quantized one, `q`, `scale`
    and perhaps `zero` for instance.
    """

    @property
    def parts(self) -> Mapping[str, PartSpec]: ...

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Row ranges that cover the weight in order, each small enough to compute in a core's cache."""

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        """All parts of rows [start, stop). Safe to call from several threads."""

    def describe(self) -> str:
        """One readable line for dumps: source and steps."""


@dataclass(frozen=True)
class FloatWeight:
    """A checkpoint tensor as float32, unchanged. Reading raises InputError where a value is not finite."""

    checkpoint: Checkpoint = field(repr=False)
    tensor: str

    @property
    def parts(self) -> Mapping[str, PartSpec]:
        return {"": PartSpec(self.checkpoint.tensors[self.tensor].shape, torch.float32)}

    def chunks(self) -> Iterator[tuple[int, int]]:
        return self.checkpoint.chunks(self.tensor)

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        rows = self.unchecked(start, stop)
        if not torch.isfinite(rows.sum()):  # a sum may also be too large: look again
            self.refuse_odd(rows, start)
        return {"": rows}

    def unchecked(self, start: int, stop: int) -> torch.Tensor:
        """float32 rows that may hold NaN or infinity, for a reader that will find them at less cost than another pass."""
        return self.checkpoint.read(self.tensor, start, stop).float()

    def refuse_odd(self, rows: torch.Tensor, start: int) -> None:
        """Raise InputError naming the first row that is not finite, if there is one. start: number of the first row."""
        odd = (~torch.isfinite(rows)).view(rows.shape[0], -1).any(1)
        if odd.any():
            row = start + int(odd.int().argmax())
            raise InputError(f"{self.tensor}: row {row} holds a value that is not finite (NaN or infinity)")

    def describe(self) -> str:
        return f"{self.tensor} [{self.checkpoint.tensors[self.tensor].dtype}] → float32"


@dataclass(frozen=True)
class Around:
    """Another weight as it is; a subclass changes how it is read."""

    weight: LazyWeight = field(repr=False)

    @property
    def parts(self) -> Mapping[str, PartSpec]:
        return self.weight.parts

    def chunks(self) -> Iterator[tuple[int, int]]:
        return self.weight.chunks()

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return self.weight.read(start, stop)

    def describe(self) -> str:
        return self.weight.describe()


@dataclass(frozen=True)
class Dequantized:
    """A quantized weight [N, K] as the float32 values that it stands for."""

    weight: LazyWeight = field(repr=False)

    @property
    def parts(self) -> Mapping[str, PartSpec]:
        return {"": PartSpec(shape_of_parts(self.weight.parts), torch.float32)}

    def chunks(self) -> Iterator[tuple[int, int]]:
        group = rows_together(self.weight.parts)
        return ((start * group, stop * group) for start, stop in self.weight.chunks())

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        group = rows_together(self.weight.parts)
        first = start // group
        rows = weight_of(self.weight.read(first, -(-stop // group))).dequantize()
        return {"": rows[start - first * group : stop - first * group]}

    def describe(self) -> str:
        return f"{self.weight.describe()} → float32"


@dataclass(frozen=True)
class Constant:
    """A tensor of at least one dimension known at compile time, such as a rotary table."""

    value: torch.Tensor = field(repr=False)
    origin: str

    @property
    def parts(self) -> Mapping[str, PartSpec]:
        return {"": PartSpec(tuple(self.value.shape), self.value.dtype)}

    def chunks(self) -> Iterator[tuple[int, int]]:
        return iter([(0, self.value.shape[0])])

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return {"": self.value[start:stop]}

    def describe(self) -> str:
        return f"constant from {self.origin}"


def materialize(weight: LazyWeight) -> dict[str, torch.Tensor]:
    """The whole weight, all parts: for running in torch; a target streams chunks instead."""
    made = {part: torch.empty(spec.shape, dtype=spec.dtype) for part, spec in weight.parts.items()}
    for start, stop in weight.chunks():
        for part, rows in weight.read(start, stop).items():
            made[part][start:stop] = rows
    return made


def row_chunks(parts: Mapping[str, PartSpec], size: int = 1 << 22) -> Iterator[tuple[int, int]]:
    """Row ranges of about `size` bytes that cover a weight which only has to be read; see ROWS_TOGETHER."""
    rows = next(iter(parts.values())).shape[0]
    step = max(1, size * rows // max(1, sum(spec.bytes for spec in parts.values())) // ROWS_TOGETHER) * ROWS_TOGETHER
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def digest(parts: Mapping[str, torch.Tensor]) -> str:
    """BLAKE3 of a weight in its canonical form: of the digests of its parts, by name, but for hints.

    SHA-256 would take four times as long, and the tensors are most of what a compile reads and writes.
    """
    return combine({name: blake3(tensor_bytes(t)) for name, t in parts.items()})


def combine(hashes: Mapping[str, blake3]) -> str:
    """The digest of a weight from those of its parts."""
    lines = "".join(f"{part} {hashes[part].hexdigest()}\n" for part in sorted(hashes) if part not in HINTS)
    return blake3(lines.encode()).hexdigest()
