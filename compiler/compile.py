"""The way of the data from checkpoint to bundle."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from pocketphi.artifacts.bundle import Bundle, check_replaceable, write_manifest
from pocketphi.artifacts.folder import new_folder
from pocketphi.artifacts.manifest import FORMAT, Manifest, ModelRecord, PassRecord, SourceRecord, TargetRecord
from pocketphi.compiler import __version__
from pocketphi.compiler.hosts import check_runs_here
from pocketphi.compiler.memory import free_memory
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.pipeline import dump_graph, eight_bits, fusions, quantization, run_passes
from pocketphi.compiler.plan import check_plan
from pocketphi.compiler.rounding_check import rounding_check
from pocketphi.compiler.source_check import reading_checks, require, rewrites_check
from pocketphi.compiler.targets import make_target
from pocketphi.compiler.text import read_text, tokens_of, windows
from pocketphi.compiler.text_check import check_text
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import verify_made, wants_verification
from pocketphi.graph.checkpoint import Checkpoint, open_checkpoint
from pocketphi.graph.errors import InputError
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.places import default_folder
from pocketphi.graph.program import Program
from pocketphi.graph.reading import typed
from pocketphi.graph.recipe import Recipe
from pocketphi.graph.trace import trace
from pocketphi.passes.base import PassReport
from pocketphi.passes.calibrate import WINDOW, default_text, quantize_calibrated
from pocketphi.passes.int4_cache import Int4Cache
from pocketphi.passes.quantizers import Quantizer, make_quantizer
from pocketphi.targets.base import Packaged, Target


def compile_model(
    options: CompileOptions, ui: Ui | None = None, before_it_is_there: Callable[[], None] = lambda: None
) -> Bundle:
    """Compile a checkpoint to a bundle.

    before_it_is_there: called when all is done but the last step; may raise. Raises InputError for bad input, CheckFailed where
    a budget or a check fails.
    """
    ui = ui or Ui()
    check_replaceable(options.out, options.force)
    source = HashedCheckpoint(open_checkpoint(options.model))
    text = check_text(source, options.targets)
    for notice in (*source.notices, *text.notices):
        ui.say(notice)
    source.tokenizer_files = lambda: text.files  # type: ignore[method-assign]  # from here on, as transformers reads them
    targets = [make_target(name, options) for name in options.targets]
    if options.verify == "always":
        for target in targets:
            check_runs_here(target)
    quantizer = make_quantizer(options.recipe, options.block, options.symmetric, options.palette)
    special = eight_bits(options, source.config)
    with source.ahead(free_memory() // 2):
        program, reports = build_program(source, options, ui)

        quantized = program.copy()
        passes = quantization(quantizer, {}, options.all_logits, special)
        reports += run_passes(quantized, passes, options.dump_graphs, first=len(reports) + 1)
        # before the work: what will be refused, is refused now
        needed = check_plan(quantized, reports, targets, options)
        verifies = wants_verification(options.verify, needed, ui)
        read = reading_checks(source) if verifies else []
        require(read)

    with new_folder(options.out, needed, replace=options.force) as folder:
        if quantizer.weighted:
            quantized.weights.update(calibrate(program, source, quantizer, options, ui, special))
        if verifies:
            read.append(rounding_check(quantized.weights, source))
            require(read)
        packaged = {}
        for target in targets:
            if target is targets[-1] and source.file_bytes > free_memory() // 4:
                source.forget_behind()  # the last pass over a file that would push everything else out of memory
            with ui.task(f"write {target.name}", target.planned_bytes(quantized), "bytes") as advance:
                packaged[target.name] = target.package(quantized, folder, advance)
        write_model_files(folder, source)
        manifest = describe(source, options, reports, quantized, targets, packaged)
        manifest = replace(manifest, text=text.recorded)
        if verifies:
            made = verify_made(folder, manifest, options.verify, ui)
            checks = (*(check.recorded() for check in read), *made.checks)
            manifest = replace(manifest, verification=replace(made, checks=checks))
        write_manifest(folder, manifest, {name: sha for p in packaged.values() for name, sha in p.sha256.items()})
        before_it_is_there()
        check_replaceable(options.out, options.force)  # another may have made it meanwhile
    return Bundle.open(options.out, check=False)


def build_program(source: Checkpoint, options: CompileOptions, ui: Ui) -> tuple[Program, list[PassReport]]:
    """Trace and fuse: the float program, and what the rewrites did. Raises CheckFailed where they changed a bit."""
    ui.say(f"tracing {source.label}: {source.config.layers} layers, {source.config.parameters / 1e6:,.0f} M parameters")
    traced = trace(source)
    dump_graph(traced, options.dump_graphs, 0, "traced")
    program = traced.copy()
    reports = run_passes(program, fusions(options.context), options.dump_graphs, first=1)
    if options.verify != "never":
        require([rewrites_check(traced, program, options.context)])
    return program, reports


def calibrate(
    program: Program,
    source: HashedCheckpoint,
    quantizer: Quantizer,
    options: CompileOptions,
    ui: Ui,
    without: Collection[str] = (),
) -> Mapping[str, Recipe]:
    """Quantize every layer on the calibration text, into the cache on disk or from it. without: weights to leave alone."""
    text = None
    if options.calibration is not None:
        text = read_text(options.calibration, "the calibration text", options.content("calibration"))
    files = source.tokenizer_files()
    if not files:
        ui.say("the model has no tokenizer: calibrated on random tokens")
    tokens = tokens_of(text, default_text(), files, source.config, options.calibration_tokens)
    if not tokens:
        raise InputError(f"{options.calibration}: the calibration text holds no tokens")
    cache = Int4Cache(options.cache or default_folder(), source)
    with ui.task("calibrate and quantize", program.operators()["linear"], "weights") as advance:
        rows = windows(tokens, min(WINDOW, options.context or source.config.max_position))
        stored = quantize_calibrated(program, rows, quantizer, cache, lambda: advance(1), without)
    ui.say(f"int4 weights: {cache.computed} computed, {cache.found} found in the cache")
    return stored


def write_model_files(folder: Path, source: Checkpoint) -> None:
    """config.json and the tokenizer."""
    (folder / "config.json").write_text(json.dumps(source.config.to_hf(), indent=1) + "\n", "utf-8")
    for name, content in source.tokenizer_files().items():
        (folder / name).write_bytes(content)


def describe(
    source: HashedCheckpoint,
    options: CompileOptions,
    reports: list[PassReport],
    program: Program,
    targets: list[Target],
    packaged: Mapping[str, Packaged],
) -> Manifest:
    """The manifest, but for the files and the verification."""
    config = source.config
    libraries = ["torch", "transformers", *(package for target in targets for package in target.packages)]
    held = {name for name in libraries if any(importlib.metadata.distributions(name=name))}
    return Manifest(
        format=FORMAT,
        pocketphi=__version__,
        versions={name: importlib.metadata.version(name) for name in libraries if name in held},
        source=SourceRecord(Path(source.label).name, source.digest_all(), tuple(source.notices)),
        recipe=options.recorded(),
        model=ModelRecord(
            parameters=config.parameters,
            layers=config.layers,
            context=options.context or config.max_position,
            sliding_window=config.sliding_window,
            long_rope_after=config.long_rope.original_max_position if config.long_rope else None,
            kv_cache_bytes_per_token=config.kv_cache_bytes(1),
        ),
        passes=tuple(PassRecord(r.name, dict(sorted(r.applied.items())), tuple(r.refused), r.removed) for r in reports),
        operators=dict(sorted(program.operators().items())),
        targets={name: _target_record(name, p) for name, p in packaged.items()},
        verification=None,
        files={},
    )


def _target_record(name: str, made: Packaged) -> TargetRecord:
    operators = dict(sorted(made.operators.items()))
    said = {"operators": operators, "notes": made.notes, **made.details, "weights": made.weights}
    return typed(TargetRecord, said, f"{name}: its entry in the manifest")
