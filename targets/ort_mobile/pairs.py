"""The order of rows that `QMoE` wants: those of an expert's gate and of its other half in turns, g0 u0 g1 u1 …; ours are all
of the gate and then all of the other half."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pocketphi.artifacts.stream import Rows
from pocketphi.graph.lazy_weights import Around


@dataclass(frozen=True)
class ByExpert(Around):
    """A weight whose rows are read an expert at a time. size: rows of an expert."""

    size: int

    def chunks(self) -> Iterator[tuple[int, int]]:
        rows = next(iter(self.parts.values())).shape[0]
        return ((start, start + self.size) for start in range(0, rows, self.size))

    def read(self, start: int, stop: int) -> Rows:
        """A chunk of the weight at a time, so that no expert is held in float."""
        spans = [(max(first, start), min(last, stop)) for first, last in self.weight.chunks()]
        read = [self.weight.read(first, last) for first, last in spans if first < last]
        return {part: torch.cat([rows[part] for rows in read]) for part in self.parts}


def in_turns(rows: Rows, size: int) -> Rows:
    """Rows of whole experts, as they are written. Example, of 4 rows: g0 g1 u0 u1 → g0 u0 g1 u1."""
    return {
        part: tensor.unflatten(0, (-1, 2, size // 2)).transpose(1, 2).flatten(0, 2).contiguous()
        for part, tensor in rows.items()
    }


def places(start: int, stop: int, size: int) -> np.ndarray:
    """Where rows [start, stop) of ours lie in the file: int64."""
    expert, row = np.divmod(np.arange(start, stop), size)
    half = size // 2
    return np.asarray(expert * size + 2 * (row % half) + row // half)
