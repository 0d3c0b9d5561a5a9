"""How much memory a model takes while it runs, from its config and options alone. Every command that speaks of memory asks
here; what a runtime does with a model is said by its target (`Target.runtime`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.options import CompileOptions, StorageOptions, eight_bit_weights
from pocketphi.graph.config import ModelConfig, read_config
from pocketphi.targets import find_target
from pocketphi.targets.memory import Footprint, Matrix, footprint_of

if TYPE_CHECKING:
    from pocketphi.graph.checkpoint import Checkpoint

PROMPT = 512
"""Tokens of the longest prompt that is planned for, unless the user says another number."""


def footprint(
    config: ModelConfig,
    target: str,
    options: CompileOptions,
    prompt: int = PROMPT,
    context: int | None = None,
    offsets: Collection[str] = (),
) -> Footprint:
    """Of one target. prompt: the longest text that is read at once; context: tokens of the cache, the options' or the
    runtime's default if None; offsets: weights whose blocks have one (`--recipe keep` of a file in Q4_1)."""
    found = find_target(target)
    longest = min(options.context or config.max_position, config.max_position)
    held = context or (longest if options.context else min(longest, found.default_context))
    runtime = found.runtime(config, options.of(target), longest, held)
    shapes = {name: shape for name, shape in config.tensors().items() if len(shape) == 2}
    matrices = {name: _matrix(config, name, options, name in offsets) for name in shapes}
    return footprint_of(config, runtime, matrices, longest, held, prompt)


def kept_offsets(source: Checkpoint) -> set[str]:
    """The weights that a file holds in blocks with an offset (Q4_1), and `--recipe keep` leaves so."""
    return {name for name in source.tensors if source.int4_kind(name) == "offset"}


def bundle_footprint(bundle: Bundle, target: str, prompt: int = PROMPT, context: int | None = None) -> Footprint:
    """Of a bundle that there is: its recipe, and its weights at the size that they have."""
    found, recipe, record = find_target(target), bundle.manifest.recipe, bundle.manifest.targets[target]
    options = CompileOptions(
        "-",
        bundle.path,
        [found.options_of(record)],
        block=recipe.block,
        symmetric=recipe.symmetric,
        palette=recipe.palette,
        embedding_bits=recipe.embedding_bits,
        head_bits=recipe.head_bits,
        context=recipe.context if record.context is None else record.context,
    )
    made = footprint(read_config(bundle.path), target, options, prompt, context)
    bundle.file(found.weights_file)
    files = bundle.manifest.files[found.weights_file].bytes
    return dataclasses.replace(made, files=files, weights=made.weights + files - made.files)


def _matrix(config: ModelConfig, name: str, options: StorageOptions, offsets: bool) -> Matrix:
    """How a weight of the checkpoint is stored, by the options."""
    rows, columns = config.tensors()[name]
    if name in eight_bit_weights(options, config):
        return Matrix(rows, columns, 8, (0 if options.palette else options.block) or columns)
    if options.palette:
        return Matrix(rows, columns, 4, columns, tables=rows // options.palette)
    return Matrix(rows, columns, 4, options.block or columns, 0, not options.symmetric and not offsets, offsets)
