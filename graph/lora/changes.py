"""What an adapter does to rows of a weight.

All is computed in float64 from the values as they are stored. PEFT computes in float32, and rounds to the type of the base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pocketphi.graph.safetensors_file import RowReader, Stored


@dataclass
class Rows:
    """Rows of a module's weight on their way, float64 [R, …].

    numbers: int64 [R], which rows of the module's weight they are
    base:    as the base has them, which DoRA takes the norms of; now: with what was done so far
    cuts:    row ranges that are computed by themselves: what a row becomes does not depend on those that are asked for with it
    """

    numbers: torch.Tensor
    base: torch.Tensor
    now: torch.Tensor
    cuts: Sequence[tuple[int, int]]


class Change(Protocol):
    """replaces: whether it takes the place of what the base has, or other adapters have made of it."""

    @property
    def replaces(self) -> bool: ...

    def apply(self, rows: Rows) -> None:
        """Change `rows.now`."""


@dataclass(frozen=True)
class Tensor:
    """A tensor in an adapter's file. A small one is kept, in float64, once it was read."""

    stored: Stored
    name: str
    reader: RowReader = field(repr=False)
    kept: dict[str, torch.Tensor] = field(repr=False)

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Of these numbers, in float64."""
        first, last = int(numbers.min()), int(numbers.max()) + 1
        read = self.reader.read(self.stored, self.name, first, last).double()
        return read if len(read) == len(numbers) and bool((numbers.diff() == 1).all()) else read[numbers - first]

    def whole(self) -> torch.Tensor:
        """All of it, in float64. The last few that were asked for are kept."""
        found = self.kept.get(self.name)
        if found is None:
            found = self.reader.read(self.stored, self.name, 0, self.stored.shape[0]).double()
            for oldest in list(self.kept)[: max(0, len(self.kept) - _KEPT + 1)]:
                self.kept.pop(oldest, None)
            self.kept[self.name] = found
        return found


_KEPT = 6


@dataclass(frozen=True)
class LowRank:
    """W + s·B·A (arXiv 2106.09685); with a magnitude m, of DoRA (arXiv 2402.09353), each row m/|W₀ + s·B·A| times as long.

    a: [r, K]; b: [N, r]; magnitude: [N]; scale: s
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None
    replaces = False

    def apply(self, rows: Rows) -> None:
        a, b = self.a.whole(), self.b.rows(rows.numbers)
        for start, stop in rows.cuts:
            delta = (b[start:stop] @ a) * self.scale
            rows.now[start:stop] += delta
            if self.magnitude is not None:
                norm = torch.linalg.vector_norm(rows.base[start:stop] + delta, dim=1)
                factor = self.magnitude.rows(rows.numbers[start:stop]) / norm
                rows.now[start:stop] *= factor[:, None]


@dataclass(frozen=True)
class OfEmbedding:
    """The same of an embedding, whose matrix PEFT takes for the transposed one: row t is W[t] + s·(B·A[:, t]), and a magnitude
    is of each column.

    a: [r, N]; b: [K, r]; magnitude: [K]; norms: float64 [K], the lengths of the columns of W₀ + s·(B·A)ᵀ
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None
    norms: Callable[[], torch.Tensor] | None = None
    replaces = False

    def delta(self, numbers: torch.Tensor) -> torch.Tensor:
        """float64 [R, K]"""
        return (self.a.whole()[:, numbers].T @ self.b.whole().T) * self.scale

    def apply(self, rows: Rows) -> None:
        for start, stop in rows.cuts:
            rows.now[start:stop] += self.delta(rows.numbers[start:stop])
        if self.magnitude is not None and self.norms is not None:
            rows.now *= self.magnitude.whole() / self.norms()


@dataclass(frozen=True)
class Whole:
    """Rows of a weight that was trained whole. base: it stands for the base's own, which changes then work on."""

    tensor: Tensor
    replaces = True

    def apply(self, rows: Rows) -> None:
        rows.now = self.tensor.rows(rows.numbers)
        rows.base = rows.now.clone()


@dataclass(frozen=True)
class SomeRows:
    """Rows of an embedding that were trained by themselves. numbers: int64, which; tensor: as many rows."""

    tensor: Tensor
    numbers: torch.Tensor
    replaces = True

    def apply(self, rows: Rows) -> None:
        values = self.tensor.whole()
        for place, number in enumerate(self.numbers.tolist()):
            rows.now[rows.numbers == number] = values[place]
