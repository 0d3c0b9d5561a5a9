"""What a manifest says of how a bundle was made: options that somebody could have asked for, and the passes that ran.

The weights were compared with the recipe before, as far as they tell it (`rebuild`). What no file tells has to be possible.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pocketphi.artifacts.manifest import Manifest
from pocketphi.compiler import __version__
from pocketphi.compiler.options import CompileOptions, StorageOptions
from pocketphi.compiler.precision import recorded_policy, rule_records
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.options import declared
from pocketphi.graph.reading import named, show
from pocketphi.passes.base import PassReport
from pocketphi.passes.quantize_weights import QuantizeWeights
from pocketphi.passes.quantizers import Keep
from pocketphi.targets import find_target
from pocketphi.targets.base import Check

LIBRARIES = ("torch", "transformers")
"""Those of every bundle; `Target.recorded` has a target's."""


def recipe_check(manifest: Manifest, config: ModelConfig, reports: Sequence[PassReport]) -> Check:
    """reports: of the passes, run again on the bundle's own config and weights."""
    odd = [*_recipe(manifest, config), *_versions(manifest), *_passes(manifest, config, reports)]
    detail = odd[0] if odd else f"{len(manifest.passes)} passes"
    return Check("words of the manifest that no compile writes", len(odd), 0, detail)


def _recipe(manifest: Manifest, config: ModelConfig) -> Iterator[str]:
    recipe, tied = manifest.recipe, config.tied_embeddings
    storage = {name: getattr(recipe, name) for name in declared(StorageOptions)}
    try:
        targets = [find_target(name).options_of(record) for name, record in manifest.targets.items()]
        asked = CompileOptions(
            "", Path(), targets, recipe=recipe.name, context=recipe.context, learn=recipe.learned, **storage
        )
    except InputError as error:
        yield f"recipe: {error}"
        return
    policy = recorded_policy(recipe, tied)
    if rule_records(policy, replace(recipe, rules=()), tied) != recipe.rules:
        yield "recipe.rules say what the rest of it says"
    text = {name: getattr(recipe, name) for name in ("calibration", "calibration_tokens")}
    if recipe.rules and recipe.name != "keep":  # whose other options, and use of a text, are whatever was asked
        if len({value is None for value in text.values()}) > 1:
            yield "recipe has a calibration without its tokens, or tokens without a calibration"
        return
    uses_text = asked.uses_text or recipe.expected is not None
    for name, value in text.items():
        if (value is not None) != uses_text:
            use = "a use" if uses_text else "no use"
            yield f"recipe.{name} is {show(value)}; {named(recipe.name)} has {use} for it"
    if recipe.smooth and not uses_text:
        yield f"recipe.smooth is true, which {named(recipe.name)} does not know"


def _versions(manifest: Manifest) -> Iterator[str]:
    known = {*LIBRARIES, *(name for target in manifest.targets for name in find_target(target).recorded)}
    for name in sorted(set(manifest.versions) - known):
        yield f"versions names {named(name)}, expected {', '.join(sorted(known))}"
    for name in LIBRARIES:
        if name not in manifest.versions:
            yield f"versions names no {name}"


def _passes(manifest: Manifest, config: ModelConfig, reports: Sequence[PassReport]) -> Iterator[str]:
    """What another version of these libraries, or of ours, counted is not known."""
    said, wanted = [one.name for one in manifest.passes], [one.name for one in reports]
    if said != wanted:
        yield f"passes are {show(said)}, expected {show(wanted)}"
        return
    here = {name: importlib.metadata.version(name) for name in LIBRARIES}
    if manifest.pocketphi != __version__ or any(manifest.versions.get(name) != here[name] for name in here):
        return
    policy = recorded_policy(manifest.recipe, config.tied_embeddings)
    kept = any(isinstance(rule.quantizer, Keep) for rule in policy.rules)
    for record, report in zip(manifest.passes, reports):
        pairs = [("applied", record.applied, dict(report.applied)), ("removed", record.removed, report.removed)]
        if not (kept and report.name == QuantizeWeights.name):  # which speaks of the blocks of the model's file
            pairs.append(("refused", record.refused, tuple(report.refused)))
        for name, found, made in pairs:
            if found != made:
                yield f"passes: {report.name}: {name} is {show(found)}, expected {show(made)}"
