"""The quantized program of a bundle, made again from its config and recipe, with the weights that were saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pocketphi.compiler.pipeline import fusions, quantization, run_passes
from pocketphi.graph.checkpoint import Checkpoint, TensorInfo
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import CheckFailed, CompilerBug
from pocketphi.graph.program import Program
from pocketphi.graph.recipe import Constant, PartSpec, Recipe
from pocketphi.graph.trace import trace
from pocketphi.passes.quantizers import RoundToNearest

Read = Callable[[], dict[str, torch.Tensor]]


class _ShapesOnly(Checkpoint):
    """A checkpoint known by its config alone."""

    def __init__(self, config: ModelConfig) -> None:
        self.label, self.config = "bundle", config
        self.tensors = {name: TensorInfo(shape, "saved") for name, shape in config.tensors().items()}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        raise CompilerBug(f"{name}: a bundle does not hold the original weights")


@dataclass(frozen=True)
class SavedWeight:
    """A weight read back from a bundle, whole."""

    parts: Mapping[str, PartSpec]
    load: Read = field(repr=False)

    def chunks(self) -> Iterator[tuple[int, int]]:
        return iter([(0, next(iter(self.parts.values())).shape[0])])

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return {part: tensor[start:stop] for part, tensor in self.load().items()}

    def describe(self) -> str:
        return "as saved"


def read_config(folder: Path) -> ModelConfig:
    """The bundle's config.json."""
    return ModelConfig.from_hf(json.loads((folder / "config.json").read_text("utf-8")), str(folder / "config.json"))


def rebuild(folder: Path, recipe: Mapping[str, Any], saved: Mapping[str, Read]) -> Program:
    """Trace and rewrite as the compile did, keeping the logits of every position.

    The rotary tables are computed anew, so that a wrong saved one is seen. Raises CheckFailed where the saved weights are
    not those that the program reads.
    """
    program = trace(_ShapesOnly(read_config(folder)))
    quantizer = RoundToNearest(recipe["block"], recipe["symmetric"])
    run_passes(program, [*fusions(recipe["context"]), *quantization(quantizer, {}, all_logits=True)])
    if set(program.weights) != set(saved):
        odd = sorted(set(program.weights) ^ set(saved))
        raise CheckFailed(f"the saved weights are not those of the program: {odd[0]} is on one side only")

    def swap(name: str, expected: Recipe) -> Recipe:
        return expected if isinstance(expected, Constant) else SavedWeight(dict(expected.parts), saved[name])

    program.weights = {name: swap(name, recipe) for name, recipe in program.weights.items()}
    return program
