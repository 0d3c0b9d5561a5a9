"""How much memory a model takes while it runs, from its config and options alone. Every command that speaks of memory asks
here; what a runtime does with a model is said by its target (`Target.runtime`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.options import CompileOptions, StorageOptions
from pocketphi.compiler.precision import asked_policy, recorded_policy
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.options import declared
from pocketphi.passes.policy import Policy
from pocketphi.targets import find_target
from pocketphi.targets.memory import Footprint, Matrix, footprint_of

if TYPE_CHECKING:
    from pocketphi.graph.checkpoint import Checkpoint
    from pocketphi.graph.kept import Kept

PROMPT = 512
"""Tokens of the longest prompt that is planned for, unless the user says another number."""


def footprint(
    config: ModelConfig,
    target: str,
    options: CompileOptions,
    prompt: int = PROMPT,
    context: int | None = None,
    kept: Mapping[str, Kept] | None = None,
    policy: Policy | None = None,
) -> Footprint:
    """Of one target. prompt: the longest text that is read at once; context: tokens of the cache, the options' or the
    runtime's default if None; kept: how the file holds weights that are taken over (`kept_weights`); policy: what the
    options say if None."""
    found = find_target(target)
    longest = min(options.context or config.max_position, config.max_position)
    held = context or (longest if options.context else min(longest, found.default_context))
    runtime = found.runtime(config, options.of(target), longest, held)
    policy = policy or asked_policy(options, config.tied_embeddings)
    matrices = {}
    for name, shape in config.matrices().items():
        quantizer = policy.quantizer(name)
        if quantizer is not None:
            held_as = (kept or {}).get(name)
            layout, form = quantizer.layout(shape, held_as), held_as.format if held_as else quantizer.format
            size = found.weight_bytes(form.name, layout, options.of(target))
            matrices[name] = Matrix.of(layout, size)
    return footprint_of(config, runtime, matrices, longest, held, prompt)


def kept_weights(source: Checkpoint) -> dict[str, Kept]:
    """The weights that `--recipe keep` takes over, and how."""
    return {name: kept for name in source.tensors if (kept := source.kept(name))}


def bundle_footprint(bundle: Bundle, target: str, prompt: int = PROMPT, context: int | None = None) -> Footprint:
    """Of a bundle that there is: its recipe, and its weights at the size that they have."""
    found, recipe, record = find_target(target), bundle.manifest.recipe, bundle.manifest.targets[target]
    options = CompileOptions(
        "-",
        bundle.path,
        [found.options_of(record)],
        context=recipe.context if record.context is None else record.context,
        **{name: getattr(recipe, name) for name in declared(StorageOptions)},
    )
    config = read_config(bundle.path)
    policy = recorded_policy(recipe, config.tied_embeddings)
    made = footprint(config, target, options, prompt, context, policy=policy)
    bundle.file(found.weights_file)
    files = bundle.manifest.files[found.weights_file].bytes
    made = dataclasses.replace(made, files=files, weights=made.weights + files - made.files)
    return made.with_adapters([one.bytes for one in bundle.manifest.adapters])
