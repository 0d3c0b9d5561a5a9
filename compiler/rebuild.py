"""The quantized program of a bundle, made again from its config and recipe, with the weights that were saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pocketphi.artifacts.manifest import RecipeRecord
from pocketphi.compiler.pipeline import fusions, quantization, run_passes
from pocketphi.compiler.precision import recorded_policy
from pocketphi.graph.adapters import Factors
from pocketphi.graph.checkpoint import Checkpoint, TensorInfo
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import CheckFailed, CompilerBug
from pocketphi.graph.formats import HINTS, PartSpec, format_of, specs
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.lazy_weights import Constant, Dequantized, LazyWeight
from pocketphi.graph.program import Program
from pocketphi.graph.trace import trace
from pocketphi.passes.base import PassReport
from pocketphi.passes.quantizers import Keep, Quantizer


class _ShapesOnly(Checkpoint):
    """A checkpoint known by its config alone."""

    def __init__(self, config: ModelConfig) -> None:
        self.label, self.config = "bundle", config
        self.tensors = {name: TensorInfo(shape, "saved") for name, shape in config.tensors().items()}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        raise CompilerBug(f"{name}: a bundle does not hold the original weights")


@dataclass(frozen=True)
class Rebuilt:
    """A bundle's program, and the statements that it is checked against.

    traced:    transformers' own graph with the saved weights as the float32 values that they stand for: no rewrite of ours,
               no `edge::` operator
    fused:     the same after the float rewrites
    quantized: the program that was lowered, with the saved weights
    reports:   of the passes between these
    """

    traced: Program
    fused: Program
    quantized: Program
    reports: list[PassReport]


def rebuild(
    folder: Path,
    recipe: RecipeRecord,
    saved: Mapping[str, LazyWeight],
    all_logits: bool = True,
    tracer: Callable[[Checkpoint], Program] = trace,
    adapters: Mapping[str, Factors] | None = None,
) -> Rebuilt:
    """Trace and rewrite as the compile did, with the saved weights.

    all_logits: keep the logits of every position, whatever the compile did; tracer: gives the traced graph; adapters: the
    saved ones, which all three programs then have, and only the quantized one has inputs for.

    The rotary tables are computed anew, so that a wrong saved one is seen. Raises CheckFailed where the saved weights are
    not those that the program reads.
    """
    traced = tracer(_ShapesOnly(read_config(folder)))
    traced.adapters.update(adapters or {})
    fused = traced.copy()
    reports = run_passes(fused, fusions(recipe.context))
    program = fused.copy()
    policy = recorded_policy(recipe, program.config.tied_embeddings)
    quantized = {name: weight for name, weight in saved.items() if format_of(weight.parts)}
    for name, weight in quantized.items():
        wanted, form = policy.quantizer(name), format_of(weight.parts)
        if wanted is None or wanted.format is not form:
            said = wanted.format.words if wanted else "a float"
            raise CheckFailed(f"{name} is saved as {form.words if form else 'a float'}, its recipe makes it {said}")
        if not isinstance(wanted, Keep) and not _laid_out(wanted, program.config.tensors()[name], weight):
            raise CheckFailed(
                f"{name} is saved in other blocks, or with other zero points or scales, than its recipe makes"
            )
    reports += run_passes(program, quantization(policy, quantized, all_logits, bool(adapters)))
    if set(program.weights) != set(saved):
        odd = sorted(set(program.weights) ^ set(saved))
        raise CheckFailed(f"the saved weights are not those of the program: {odd[0]} is on one side only")
    for name, expected in program.weights.items():
        if not isinstance(expected, Constant) and dict(expected.parts) != dict(saved[name].parts):
            raise CheckFailed(f"{name} is saved as {dict(saved[name].parts)}, the program reads {dict(expected.parts)}")
    floats = {name: Dequantized(weight) if format_of(weight.parts) else weight for name, weight in saved.items()}
    for one in (traced, fused):
        one.weights = _with_saved(one, floats)
    program.weights = _with_saved(program, saved)
    return Rebuilt(traced, fused, program, reports)


def _laid_out(wanted: Quantizer, shape: tuple[int, ...], weight: LazyWeight) -> bool:
    """Whether a weight has the parts that its quantizer makes, but for hints, which a target may leave out and not add."""

    def without_hints(parts: Mapping[str, PartSpec]) -> dict[str, PartSpec]:
        return {part: spec for part, spec in parts.items() if part not in HINTS}

    made = specs(wanted.layout(shape))
    added = set(weight.parts) - set(made)
    return not added and without_hints(made) == without_hints(weight.parts)


def _with_saved(program: Program, saved: Mapping[str, LazyWeight]) -> dict[str, LazyWeight]:
    """A program's weights: its own constants, and what was saved of the checkpoint."""
    own = program.weights.items()
    return {name: weight if isinstance(weight, Constant) else saved[name] for name, weight in own}
