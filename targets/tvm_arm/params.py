"""model.params: every weight as the kernels read it, at planned offsets, so that a device maps the file and copies nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pocketphi.artifacts.stream import Layout, Progress, Rows, Written, plan_layout, write_weights
from pocketphi.graph.formats import PartSpec, format_of
from pocketphi.graph.lazy_weights import LazyWeight, row_chunks
from pocketphi.graph.program import Program, split_target
from pocketphi.targets.tvm_arm.codecs import CODECS
from pocketphi.targets.tvm_arm.description import PARAMS_FILE, Description
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import Isa


@dataclass(frozen=True)
class Stored:
    """A weight's parts as they lie in the file: what `plan_layout` asks of a weight."""

    parts: Mapping[str, PartSpec]


@dataclass(frozen=True)
class ParamsFile:
    """The plan of model.params. weights: in the order in which the graph reads them; stored: their parts in the file."""

    weights: dict[str, LazyWeight]
    stored: dict[str, Stored]
    layout: Layout
    isa: Isa

    @staticmethod
    def plan(program: Program, isa: Isa) -> ParamsFile:
        weights = program.weights_read()
        stored = {name: Stored(_stored_parts(weight.parts, isa)) for name, weight in weights.items()}
        return ParamsFile(weights, stored, plan_layout(stored), isa)

    def write(self, path: Path, progress: Progress) -> Written:
        """Stream the weights."""

        def encode(name: str, rows: Rows) -> Rows:
            matrix = _placed(self.weights[name].parts, self.isa)
            return matrix.store(rows) if matrix else rows

        return write_weights(path, self.weights, self.layout, progress, encode)

    def arguments(self) -> dict[str, PartSpec]:
        """The tensors by target (`split_target`), as a kernel takes them: interleaved parts are one row of values. Functions
        take them in this order, in which model.json lists them."""
        found = {}
        for name, stored in self.stored.items():
            for part, spec in stored.parts.items():
                shape = (math.prod(spec.shape),) if format_of(stored.parts) else spec.shape
                found[f"{name}:{part}" if part else name] = PartSpec(shape, spec.dtype)
        return found

    def table(self) -> list[dict[str, object]]:
        """What model.json says of each tensor."""
        return [
            {
                "name": target,
                "dtype": spec.type_name,
                "shape": list(spec.shape),
                "offset": self.layout.offsets[split_target(target)],
            }
            for target, spec in self.arguments().items()
        ]


def _stored_parts(parts: Mapping[str, PartSpec], isa: Isa) -> Mapping[str, PartSpec]:
    matrix = _placed(parts, isa)
    return matrix.specs(parts) if matrix else parts


def _placed(parts: Mapping[str, PartSpec], isa: Isa) -> Interleaved | None:
    """How a weight lies in the file; None for one in float."""
    form = format_of(parts)
    return CODECS[form.name].placed(parts, isa) if form else None


@dataclass(frozen=True)
class SavedWeight:
    """A weight in model.params: a `LazyWeight` that reads its rows back from disk in canonical form."""

    path: Path
    parts: Mapping[str, PartSpec]
    offsets: Mapping[str, int]
    matrix: Interleaved | None

    def chunks(self) -> Iterator[tuple[int, int]]:
        return row_chunks(self.parts)

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        if self.matrix is None:
            return {part: self._rows(part, spec, start, stop) for part, spec in self.parts.items()}
        lanes = self.matrix.lanes
        first, last = start // lanes, -(-stop // lanes)
        stored = {p: self._rows(p, spec, first, last) for p, spec in self.matrix.specs(self.parts).items()}
        skip = start - first * lanes
        return {part: rows[skip:] for part, rows in self.matrix.restore(stored, skip + stop - start).items()}

    def _rows(self, part: str, spec: PartSpec, start: int, stop: int) -> torch.Tensor:
        row = spec.bytes // spec.shape[0]
        data = np.fromfile(self.path, np.uint8, (stop - start) * row, offset=self.offsets[part] + start * row)
        return torch.from_numpy(data).view(spec.dtype).view(stop - start, *spec.shape[1:])

    def describe(self) -> str:
        return f"as saved in {self.path.name}"


def read_weights(folder: Path, described: Description) -> dict[str, LazyWeight]:
    """The saved weights by name, read lazily."""
    found: dict[str, LazyWeight] = {}
    for name, held in described.parts().items():
        matrix, parts = None, {part: tensor.spec for part, tensor in held.items()}
        if name in described.matrices:
            parts = described.matrices[name].parts(held)
            matrix = _placed(parts, described.isa)
        offsets = {part: tensor.offset for part, tensor in held.items()}
        found[name] = SavedWeight(folder / PARAMS_FILE, parts, offsets, matrix)
    return found
