"""model.params: every weight as the kernels read it, at planned offsets, so that a device maps the file and copies nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from pocketphi.artifacts.stream import Layout, Progress, Rows, Stored, Written, plan_layout, write_weights
from pocketphi.graph.formats import PartSpec, format_of
from pocketphi.graph.lazy_weights import Constant, LazyWeight
from pocketphi.graph.program import Program, split_target
from pocketphi.targets.saved_weight import SavedWeight
from pocketphi.targets.tvm_arm.description import PARAMS_FILE, Description
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kv_cache import KV_CACHES, KvCache, centre_name


@dataclass(frozen=True)
class ParamsFile:
    """The plan of model.params. weights: in the order in which the graph reads them; stored: their parts in the file."""

    weights: dict[str, LazyWeight]
    stored: dict[str, Stored]
    layout: Layout
    isa: Isa

    @staticmethod
    def plan(program: Program, isa: Isa, cache: KvCache = KV_CACHES["fp16"]) -> ParamsFile:
        """cache: of the functions that are not exact. Where it is centred, its centres are zeros until they are measured."""
        weights, config = program.weights_read(), program.config
        if cache.centred:
            nothing = Constant(torch.zeros(config.kv_heads, config.head_dim), "nothing yet")
            weights |= {centre_name(layer): nothing for layer in range(config.layers)}
        stored = {}
        for name, weight in weights.items():
            parts = weight.parts
            stored[name] = Stored(Interleaved.of(parts, isa).specs(parts) if format_of(parts) else parts)
        return ParamsFile(weights, stored, plan_layout(stored), isa)

    def write(self, path: Path, progress: Progress) -> Written:
        """Stream the weights."""

        def encode(name: str, rows: Rows) -> Rows:
            return Interleaved.of(self.weights[name].parts, self.isa).store(rows) if format_of(rows) else rows

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


@dataclass(frozen=True)
class SavedMatrix(SavedWeight):
    """A quantized weight in model.params, read back in canonical form."""

    matrix: Interleaved

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        lanes = self.matrix.lanes
        first, last = start // lanes, -(-stop // lanes)
        skip = start - first * lanes
        groups = self.stored(self.matrix.specs(self.parts), first, last)
        return {part: rows[skip:] for part, rows in self.matrix.restore(groups, skip + stop - start).items()}


def read_weights(folder: Path, described: Description) -> dict[str, LazyWeight]:
    """The saved weights by name, read lazily."""
    found: dict[str, LazyWeight] = {}
    for name, held in described.parts().items():
        path, offsets = folder / PARAMS_FILE, {part: tensor.offset for part, tensor in held.items()}
        if name in described.matrices:
            parts = described.matrices[name].parts(held)
            found[name] = SavedMatrix(path, parts, offsets, Interleaved.of(parts, described.isa))
        else:
            found[name] = SavedWeight(path, {part: tensor.spec for part, tensor in held.items()}, offsets)
    return found
