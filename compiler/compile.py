"""The way of the data from checkpoint to bundle."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from pocketphi.artifacts.bundle import Bundle, check_replaceable, write_manifest
from pocketphi.artifacts.folder import new_folder
from pocketphi.artifacts.manifest import (
    FORMAT,
    AdapterRecord,
    Manifest,
    PassRecord,
    PrefixRecord,
    SourceRecord,
    SwitchedRecord,
    TargetRecord,
    vocabulary_of,
)
from pocketphi.compiler import __version__
from pocketphi.compiler.cache_scales import measure_caches
from pocketphi.compiler.calibration import calibration_tokens, weight_cache
from pocketphi.compiler.files_check import CONFIG, config_text, model_record
from pocketphi.compiler.hosts import check_runs_here
from pocketphi.compiler.known_graphs import KnownGraphs
from pocketphi.compiler.known_text import opened
from pocketphi.compiler.learning import check_compute, learned
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.outputs import Lookup, known_outputs
from pocketphi.compiler.plan import (
    adapter_notices,
    check_adapters_switch,
    check_model,
    check_targets,
    decide,
    lower,
    take_adapters,
)
from pocketphi.compiler.precision import rule_records
from pocketphi.compiler.prefix import PREFIX, check_prefix, read_prefix
from pocketphi.compiler.rounding_check import rounding_check
from pocketphi.compiler.smoothing import scales_check, smoothed
from pocketphi.compiler.source_check import factors_check, reading_checks, require, rewrites_check
from pocketphi.compiler.spend import Spent
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import verify_made, wants_verification
from pocketphi.graph.adapters import bytes_of_factors, factors_digest
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.errors import CheckFailed
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.lazy_weights import LazyWeight
from pocketphi.graph.lora.beside import Beside
from pocketphi.graph.program import Program
from pocketphi.graph.resident import free_memory
from pocketphi.graph.writing import write_files
from pocketphi.passes.base import PassReport
from pocketphi.passes.calibrate import quantize_calibrated, recalled
from pocketphi.passes.policy import Policy
from pocketphi.targets import find_target
from pocketphi.targets.base import Packaged


def compile_model(
    options: CompileOptions,
    ui: Ui | None = None,
    before_it_is_there: Callable[[], None] = lambda: None,
    policy: Policy | None = None,
    allowed: Callable[[Policy], None] | None = None,
) -> Bundle:
    """Compile a checkpoint to a bundle.

    policy: which weight gets which format, what the options say if None; allowed: judges it, and may raise
    before_it_is_there: called when all is done but the last step; may raise. Raises InputError for bad input, CheckFailed where
    a budget or a check fails.
    """
    ui = ui or Ui()
    check_replaceable(options.out, options.force)
    options.place.check()
    check_targets(options)
    check_adapters_switch(options)
    check_prefix(options)
    check_compute(options)
    source, text = opened(options)
    check_model(source.config, options)
    shipped, prefix = read_prefix(options, source)
    for notice in (*source.notices, *text.notices):
        ui.say(notice)
    if options.verify == "always":
        for target in options.of_targets:
            check_runs_here(target)
    with source.ahead(free_memory() // 2):
        graphs = KnownGraphs(source, options.cache_folder)
        program, reports = build_program(source, graphs, options, ui)
        adapters = take_adapters(program, source, options)
        for notice in adapter_notices(adapters):
            ui.say(notice)
        chosen = Spent(policy) if policy else decide(source, graphs, program, options, ui, shipped, prefix)
        policy = chosen.policy
        weights, program = smoothed(source, program, options, ui) if policy.smooth else (source, program)
        # before the work: what will be refused, is refused now
        lowered = lower(program, policy, reports, options, allowed, prefix, vocabulary_of(text.recorded))
        quantized = lowered.program
        verifies = wants_verification(options.verify, lowered.bytes, ui)
        read = reading_checks(source) if verifies else []
        if verifies and adapters:
            read.append(factors_check(adapters, source))
        if verifies and policy.smooth:
            read.append(scales_check(source, weights))
        require(read)

    with new_folder(options.out, lowered.bytes, replace=options.force) as folder:
        if policy.calibrates:
            outputs = partial(known_outputs, source, lambda: graphs.traced, policy, options, ui)
            quantized.weights.update(calibrate(program, weights, policy, outputs, options, ui))
        if options.learn:
            quantized.weights.update(learned(graphs.traced, weights, quantized.weights, policy, options, ui))
        if verifies:
            read.append(rounding_check(quantized.weights, weights, policy))
            require(read)
        measure_caches(program, weights, quantized.weights, lowered.prepared.values(), options, ui)
        packaged = {}
        for name, one in lowered.prepared.items():
            if name == options.target_names[-1] and source.file_bytes > free_memory() // 4:
                source.forget_behind()  # the last pass over a file that would push everything else out of memory
            with ui.task(f"write {name}", one.bytes, "bytes") as advance:
                packaged[name] = one.write(folder, advance)
        (folder / CONFIG).write_text(config_text(source.config), "utf-8")
        write_files(folder, source.tokenizer_files())
        if shipped:
            (folder / PREFIX).write_text(shipped, "utf-8")
        manifest = describe(source, options, lowered.reports, quantized, packaged)
        rules = rule_records(policy, manifest.recipe, source.config.tied_embeddings)
        recipe = replace(manifest.recipe, rules=rules, smooth=policy.smooth, expected=chosen.expected)
        manifest = replace(manifest, text=text.recorded, recipe=recipe, adapters=_switched(adapters, quantized))
        if shipped:
            computed_on = {name: made.computed_on for name, made in packaged.items()}
            manifest = replace(manifest, prefix=PrefixRecord(len(prefix), computed_on))
        if verifies:
            made = verify_made(folder, manifest, options.verify, ui, options.cache_folder)
            checks = (*(check.recorded() for check in read), *made.checks)
            manifest = replace(manifest, verification=replace(made, checks=checks))
        write_manifest(folder, manifest, {name: sha for p in packaged.values() for name, sha in p.sha256.items()})
        _check_size(folder, options)
        before_it_is_there()
        check_replaceable(options.out, options.force)  # another may have made it meanwhile
    return Bundle.open(options.out, check=False)


def build_program(
    source: Checkpoint, graphs: KnownGraphs, options: CompileOptions, ui: Ui
) -> tuple[Program, list[PassReport]]:
    """Trace and fuse: the float program, and what the rewrites did. Raises CheckFailed where they changed a bit."""
    ui.say(f"tracing {source.label}: {source.config.layers} layers, {source.config.parameters / 1e6:,.0f} M parameters")
    program, reports = graphs.fused(options.context, options.dump_graphs)
    if options.verify != "never":
        require([rewrites_check(graphs.traced, program, options.context)])
    return program, reports


def calibrate(
    program: Program,
    source: HashedCheckpoint,
    policy: Policy,
    outputs: Callable[[], Lookup],
    options: CompileOptions,
    ui: Ui,
) -> Mapping[str, LazyWeight]:
    """Quantize every layer that the policy says on the calibration text, into the cache on disk or from it. outputs: asked for
    only where something is to be rounded."""
    rows = calibration_tokens(source, options, ui)
    cache = weight_cache(source, options, ui)
    stored = recalled(program, rows, policy, cache)
    if stored is None:
        known, found = outputs(), program.operators()
        with ui.task("calibrate and quantize", found["linear"] + found["edge.experts"], "weights") as advance:
            stored = quantize_calibrated(program, rows, policy, cache, lambda: advance(1), known)
    fetched = f", {cache.fetched} of them in {cache.store.shown}" if cache.store else ""
    ui.say(f"int4 weights: {cache.computed} computed, {cache.found} found in the cache{fetched}")
    return stored


def _switched(adapters: Mapping[str, Beside], program: Program) -> tuple[SwitchedRecord, ...]:
    """What a manifest says of adapters that stay apart. program: has their factors as they were written."""
    return tuple(
        SwitchedRecord(
            name,
            one.adapter.blake3,
            one.named.lora.weight,
            dict(one.ranks),
            factors_digest(program.adapters[name]),
            bytes_of_factors(program.config, one.ranks),
        )
        for name, one in adapters.items()
    )


def _check_size(folder: Path, options: CompileOptions) -> None:
    """Raise CheckFailed where the files of a bundle, whose sizes were planned, are together larger than was asked for."""
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if options.max_bytes is not None and held > options.max_bytes:
        over = held - options.max_bytes
        raise CheckFailed(f"the bundle takes {held:,} bytes, {over:,} over --max-bytes; choose a smaller --max-bytes")


def describe(
    source: HashedCheckpoint,
    options: CompileOptions,
    reports: list[PassReport],
    program: Program,
    packaged: Mapping[str, Packaged],
) -> Manifest:
    """The manifest, but for the files and the verification."""
    config = source.config
    packages = [package for name in packaged for package in find_target(name).recorded]
    libraries = ["torch", "transformers", *packages]
    adapters = tuple(AdapterRecord(one.lora.name, one.blake3, one.lora.weight) for one in source.adapters)
    held = {name for name in libraries if any(importlib.metadata.distributions(name=name))}
    return Manifest(
        format=FORMAT,
        pocketphi=__version__,
        versions={name: importlib.metadata.version(name) for name in libraries if name in held},
        source=SourceRecord(Path(source.label).name, source.digest_all(), tuple(source.notices), adapters),
        recipe=options.recorded(),
        model=model_record(config, options.context),
        passes=tuple(PassRecord(r.name, dict(sorted(r.applied.items())), tuple(r.refused), r.removed) for r in reports),
        operators=dict(sorted(program.operators().items())),
        targets={
            name: TargetRecord(
                operators=dict(sorted(made.operators.items())),
                notes=tuple(made.notes),
                details=made.details,
                weights=made.weights,
            )
            for name, made in packaged.items()
        },
        verification=None,
        files={},
    )
