"""`pocketphi report`: gather what is known of a bundle, and draw it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import SIGNATURE, Manifest
from pocketphi.compiler.build_result import Claim
from pocketphi.compiler.device_plan import fit_of, runs_on
from pocketphi.compiler.devices import read_devices
from pocketphi.compiler.diff import changes
from pocketphi.compiler.footprint import bundle_footprint
from pocketphi.compiler.format_rows import format_rows
from pocketphi.compiler.graph_words import graph_rows
from pocketphi.compiler.precision import recorded_policy
from pocketphi.compiler.report import figures
from pocketphi.compiler.report.choices import Choices, Point, known_choices
from pocketphi.compiler.report.layer import known_layers
from pocketphi.compiler.report.page import render, size_text
from pocketphi.compiler.report.weights import file_rows, targets_of, weight_rows
from pocketphi.compiler.ui import Ui
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.lora.named import Lora
from pocketphi.targets import find_target
from pocketphi.targets.memory import Footprint

_STEPS = 24
"""Contexts that the memory is drawn for."""


@dataclass(frozen=True)
class Asked:
    """What a report is to be made with. against: a bundle to compare with; reference, lora: the model that was compiled, to
    measure the error of each weight; devices: more lines for the table; cache: where earlier commands kept what they measured;
    claims: of a build"""

    against: Bundle | None = None
    reference: str | None = None
    lora: Sequence[Lora] = ()
    devices: Path | None = None
    cache: Path | None = None
    claims: Sequence[Claim] = field(default_factory=tuple)


def report(bundle: Bundle, asked: Asked | None = None, ui: Ui | None = None) -> str:
    """A page in HTML that needs no network, the same for the same bundle and the same cache.

    Raises InputError where plotly is missing, and for a reference that is not the bundle's model.
    """
    asked, config = asked or Asked(), read_config(bundle.path)
    manifest, rows = bundle.manifest, weight_rows(bundle, config)
    files, choices = file_rows(bundle, rows), known_choices(bundle, config, asked.cache)
    drawn = {"bytes": figures.treemap(rows, files, manifest.bytes, list(manifest.targets))}
    bits = {round(row.bits, 3) for row in rows}
    if len(bits) > 1:
        drawn["bits"] = figures.by_layer(rows, {row.name: row.bits for row in rows}, "bits a weight")
    facts: dict[str, Any] = {
        "title": f"{manifest.source.model}: {' and '.join(find_target(name).title for name in manifest.targets)}",
        "path": bundle.path.name,
        "manifest": manifest,
        "tiles": _tiles(bundle, config),
        "graph": graph_rows(manifest.operators),
        "files": files,
        "weights": rows,
        "bits": sorted(bits),
        "formats": format_rows(recorded_policy(manifest.recipe, config.tied_embeddings), config, targets_of(bundle)),
        "why_no_choices": choices if isinstance(choices, str) else None,
        "layers": [
            {**vars(layer), "counts": Counter(call.operator for call in layer.calls).most_common()}
            for layer in known_layers(bundle, config, {row.name: row.form for row in rows}, asked.cache)
        ],
        "signed": (bundle.path / SIGNATURE).is_file(),
        "claims": asked.claims,
    }
    if isinstance(choices, Choices):
        drawn["costs"] = figures.by_layer(
            rows, {name: way.kl for name, way in choices.chosen.items()}, "nats a token", log=True
        )
        drawn["quality"] = figures.quality(choices, _others(asked.against))
        facts["neighbours"] = _worth(choices)
    if asked.reference is not None:
        from pocketphi.compiler.report.errors import weight_errors

        errors = weight_errors(bundle, asked.reference, asked.lora, ui or Ui())
        drawn["errors"] = figures.by_layer(
            rows, {name: 100 * e for name, e in errors.relative.items()}, "% of the weight"
        )
        facts |= {"errors": errors, "reference": asked.reference}
    facts["fits"], limits = _fits(bundle, config, asked.devices)
    facts["memory"] = []
    for name in manifest.targets:
        points = _memory(bundle, name)
        facts["memory"].append((name, points, f"memory-{name}"))
        drawn[f"memory-{name}"] = figures.memory(points, limits)
        fits = [one for one in facts["fits"] if one["target"] == name]
        if fits:
            drawn[f"roofline-{name}"] = figures.roofline(fits)
    if asked.against is not None:
        facts["against"] = asked.against
        facts["changes"] = changes(asked.against.manifest, manifest)
    return render(facts, drawn)


def _tiles(bundle: Bundle, config: ModelConfig) -> list[tuple[str, str, str]]:
    """(title, number, what of it) of what a reader wants first."""
    manifest, recipe = bundle.manifest, bundle.manifest.recipe
    tiles = [
        ("on disk", size_text(manifest.bytes), f"{len(manifest.files)} files and the manifest, {recipe.described()}"),
        (
            "parameters",
            f"{manifest.model.parameters / 1e6:,.0f} M",
            f"{config.layers} layers, {config.vocab_size:,} tokens",
        ),
    ]
    for name in manifest.targets:
        run, several = bundle_footprint(bundle, name), len(manifest.targets) > 1
        title = f"memory to run, {name}" if several else "memory to run"
        tiles.append((title, size_text(run.total()), f"with {run.context:,} tokens; {find_target(name).measured}"))
    return [*tiles, _lowering(manifest), _quality(manifest)]


def _lowering(manifest: Manifest) -> tuple[str, str, str]:
    recorded = manifest.verification
    if recorded is None:
        return "verification", "none", "run 'pocketphi verify'"
    met = f"{sum(check.ok for check in recorded.checks)} of {len(recorded.checks)} checks met when it was compiled"
    said = {True: "verified", False: "failed", None: "in part"}[recorded.ok]
    return "verification", said, met


def _quality(manifest: Manifest) -> tuple[str, str, str]:
    error = manifest.verification and manifest.verification.quantization_error
    if error:
        return "KL to the float model", f"{error['kl']:.3g}", f"nats a token, over {error['tokens']:,.0f} tokens"
    expected = manifest.recipe.expected
    if expected:
        return "expected KL", f"{expected.kl:.3g}", f"nats a token to the float model, chosen for {expected.budget}"
    return "KL to the float model", "not known", "'pocketphi eval --reference MODEL' measures it"


def _others(against: Bundle | None) -> list[Point]:
    """The other bundle, where it is known what was expected of it."""
    expected = against and against.manifest.recipe.expected
    return [Point(against.manifest.bytes, expected.kl, against.path.name)] if against and expected else []


def _worth(choices: Choices) -> dict[str, list[Point]]:
    """The neighbours that would have saved most: of KL for their bytes, and of bytes for their KL."""
    own = choices.own
    larger = [one for one in choices.neighbours() if one.bytes > own.bytes and one.kl < own.kl]
    smaller = [one for one in choices.neighbours() if one.bytes < own.bytes and one.kl > own.kl]
    larger.sort(key=lambda one: (own.kl - one.kl) / (one.bytes - own.bytes), reverse=True)
    smaller.sort(key=lambda one: (one.kl - own.kl) / (own.bytes - one.bytes))
    return {"larger": larger[:8], "smaller": smaller[:8]}


def _memory(bundle: Bundle, target: str) -> list[tuple[int, Footprint]]:
    """By tokens that the cache holds, up to what the bundle's files hold."""
    most = bundle.manifest.context(target)
    counts = dict.fromkeys(max(1, most * i // _STEPS) for i in range(_STEPS + 1))
    return [(count, bundle_footprint(bundle, target, context=count)) for count in counts]


def _fits(bundle: Bundle, config: ModelConfig, more: Path | None) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """A row for each device and target that runs there, the fastest first; and what an app may use, of which device."""
    made, limits, devices = [], dict[int, list[str]](), read_devices(more).values()
    for name in bundle.manifest.targets:
        run = bundle_footprint(bundle, name)
        for device in devices:
            if runs_on(name, device):
                one = fit_of(run, config, name, device, bundle.manifest.recipe.described())
                made.append(
                    {**dataclasses.asdict(one), "ok": one.ok, "title": device.title, "estimated": device.estimated}
                )
                if device.title not in limits.setdefault(device.app, []):
                    limits[device.app].append(device.title)
    made.sort(key=lambda one: (one["target"], -one["decode"], one["title"]))
    return made, {limit: _several(titles) for limit, titles in limits.items()}


def _several(titles: Sequence[str]) -> str:
    return titles[0] if len(titles) == 1 else f"{titles[0]} and {len(titles) - 1} more"
