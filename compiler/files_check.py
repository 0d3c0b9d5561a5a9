"""What of a bundle no run looks at: which files it has, config.json, and what the manifest says of the model.

A manifest can be made to fit any file. What a compile writes can be made again, and is compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketphi.artifacts.manifest import Manifest, ModelRecord, vocabulary_of
from pocketphi.compiler.prefix import prefix_files
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.hf_folder import TOKENIZER_FILES
from pocketphi.graph.program import Program
from pocketphi.graph.reading import named, read_whole, show
from pocketphi.targets import find_target
from pocketphi.targets.base import Check, Host
from pocketphi.targets.target import Asked

CONFIG = "config.json"


def config_text(config: ModelConfig) -> str:
    """config.json of a bundle."""
    return json.dumps(config.to_hf(), indent=1) + "\n"


def model_record(config: ModelConfig, context: int | None) -> ModelRecord:
    """What a manifest says of a model. context: tokens that were asked for."""
    return ModelRecord(
        parameters=config.parameters,
        layers=config.layers,
        context=context or config.max_position,
        sliding_window=config.sliding_window,
        long_rope_after=config.long_rope.original_max_position if config.long_rope else None,
        kv_cache_bytes_per_token=config.kv_cache_bytes(1),
    )


def files_check(folder: Path, manifest: Manifest, hosts: Iterable[Host]) -> Check:
    """config.json is as a compile writes it, and there is no file that none writes.

    hosts: of all targets of the bundle
    """
    config = read_config(folder)
    odd = []
    if read_whole(folder / CONFIG) != config_text(config).encode():
        odd.append(CONFIG)
    own = [host.files() for host in hosts]
    if own and None not in own:
        adapters = {
            find_target(target).switches.format(name) for target in manifest.targets for name in manifest.switched
        }
        known = {CONFIG, *TOKENIZER_FILES, *adapters, *prefix_files(manifest)}.union(
            *(names for names in own if names is not None)
        )
        odd += [named(name) for name in sorted(set(manifest.files) - known)]
    detail = f"first {odd[0]}" if odd else f"{len(manifest.files) or 'all'} files"
    return Check("files that no compile writes", len(odd), 0, detail)


def record_check(manifest: Manifest, config: ModelConfig) -> Check:
    """What the manifest says of the model is what its config says."""
    odd = list(_differences("model", vars(manifest.model), vars(model_record(config, manifest.recipe.context))))
    detail = odd[0] if odd else f"{len(vars(manifest.model))} compared"
    return Check("numbers of the manifest that are not the model's", len(odd), 0, detail)


def asked_of(manifest: Manifest) -> Asked:
    """What every target was asked for."""
    recipe = replace(manifest.recipe, rules=())
    return Asked(
        context=recipe.context,
        version=manifest.pocketphi,
        recipe=recipe.described(),
        vocabulary=vocabulary_of(manifest.text),
    )


def details_check(manifest: Manifest, target: str, host: Host, program: Program) -> Check:
    """What the manifest says of a target's files is what they are. program: what was lowered."""
    record = manifest.targets[target]
    wanted = host.details(program)
    found = {name: record.details.get(name) for name in wanted}
    odd = list(_differences(target, found, wanted))
    odd += [
        f"{target}.{named(name)}, which no compile writes" for name in record.details if wanted and name not in wanted
    ]
    said = host.said(program, asked_of(manifest), record.notes)
    if said is not None:
        operators, notes = said
        odd += [f"{target}.operators are not the files'"] if dict(record.operators) != dict(operators) else []
        other = [note for note in (*record.notes, *notes) if note not in notes or note not in record.notes]
        odd += [f"{target}.notes: {show(other[0])}"] if other else []
    recipe = vars(manifest.recipe)
    odd += _differences(
        "recipe", recipe, {name: value for name, value in wanted.items() if name in recipe and name != "context"}
    )
    if dict(manifest.operators) != dict(program.operators()):
        odd.append("operators are not the graph's")
    detail = odd[0] if odd else f"{1 + len(wanted)} compared"
    return Check("words of the manifest that are not the files'", len(odd), 0, detail)


def _differences(where: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterable[str]:
    for name, value in wanted.items():
        if json.dumps(found.get(name), sort_keys=True) != json.dumps(value, sort_keys=True):
            yield f"{where}.{name} is {show(found.get(name))}, expected {show(value)}"
