"""A weight as it lies in a bundle's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pocketphi.graph.formats import PartSpec
from pocketphi.graph.lazy_weights import row_chunks


@dataclass(frozen=True)
class SavedWeight:
    """A `LazyWeight` that reads its rows back from disk. offsets: of its parts in the file, which holds them as they are."""

    path: Path
    parts: Mapping[str, PartSpec]
    offsets: Mapping[str, int]

    def chunks(self) -> Iterator[tuple[int, int]]:
        return row_chunks(self.parts)

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return self.stored(self.parts, start, stop)

    def stored(self, parts: Mapping[str, PartSpec], start: int, stop: int) -> dict[str, torch.Tensor]:
        """Rows of parts of these shapes, from the file."""
        found = {}
        for part, spec in parts.items():
            row = spec.bytes // spec.shape[0]
            data = np.fromfile(self.path, np.uint8, (stop - start) * row, offset=self.offsets[part] + start * row)
            found[part] = torch.from_numpy(data).view(spec.dtype).view(stop - start, *spec.shape[1:])
        return found

    def describe(self) -> str:
        return f"as saved in {self.path.name}"
