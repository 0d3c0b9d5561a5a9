"""Where the bytes of a bundle are: each quantized weight in each target's file, and what is around them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.candidates import bytes_by_target
from pocketphi.compiler.precision import recorded_policy
from pocketphi.graph.config import ModelConfig, layer_of
from pocketphi.targets import find_target
from pocketphi.targets.target import TargetOptions


@dataclass(frozen=True)
class WeightRow:
    """A quantized weight. layer: None for one that belongs to none; kind: its name in the layer, such as `mlp.down_proj`;
    values: how many it has; form: its format and what of it differs from the default; bytes: in the file of each target."""

    name: str
    layer: int | None
    kind: str
    values: int
    form: str
    bytes: tuple[int, ...]

    @property
    def bits(self) -> float:
        """Of a value, scales counted, in the largest file."""
        return 8 * max(self.bytes) / self.values


@dataclass(frozen=True)
class FileRow:
    """A file of the bundle. target: whose weights it holds, None for another file; weights: bytes of the quantized ones."""

    name: str
    bytes: int
    target: str | None = None
    weights: int = 0


def targets_of(bundle: Bundle) -> list[TargetOptions]:
    """The options of a bundle's targets, in its order."""
    return [find_target(name).options_of(record) for name, record in bundle.manifest.targets.items()]


def weight_rows(bundle: Bundle, config: ModelConfig) -> list[WeightRow]:
    """The quantized weights, in the order of the model."""
    policy, targets = recorded_policy(bundle.manifest.recipe, config.tied_embeddings), targets_of(bundle)
    rows = []
    for name, shape in config.matrices().items():
        quantizer = policy.quantizer(name)
        if quantizer is not None:
            held = tuple(bytes_by_target(quantizer, shape, targets))
            rows.append(WeightRow(name, layer_of(name), kind_of(name), shape[0] * shape[1], quantizer.describe(), held))
    return rows


def file_rows(bundle: Bundle, rows: Sequence[WeightRow]) -> list[FileRow]:
    """The files, the largest first; `weights` is never more than the file has."""
    files = bundle.manifest.files
    holds = {find_target(name).weights_file: i for i, name in enumerate(bundle.manifest.targets)}
    names = list(bundle.manifest.targets)
    made = []
    for name, entry in files.items():
        at = holds.get(name)
        if at is None:
            made.append(FileRow(name, entry.bytes))
        else:
            made.append(FileRow(name, entry.bytes, names[at], min(entry.bytes, sum(row.bytes[at] for row in rows))))
    return sorted(made, key=lambda row: -row.bytes)


def kind_of(name: str) -> str:
    """A weight's name without its layer: `model.layers.3.mlp.down_proj.weight` → `mlp.down_proj`."""
    return re.sub(r"^(model\.)?(layers\.\d+\.)?", "", name).removesuffix(".weight")
