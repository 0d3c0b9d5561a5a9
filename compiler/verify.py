"""Is the saved artifact the model? And how far is that from the original?

Lowering error: the saved files, run by their own runtime, against transformers' own graph with the saved weights, run in torch.
None of our rewrites has touched that graph, and a check of its own compares it with the rewritten one bit for bit. An error
above rounding is a bug.
Quantization error (with a reference): the saved weights against those of the float model, both in that graph. It is a choice.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import Manifest, VerificationRecord
from pocketphi.compiler.evaluate import check_adapters, quantization_error
from pocketphi.compiler.files_check import asked_of, details_check, files_check, record_check
from pocketphi.compiler.hosts import open_host
from pocketphi.compiler.known_graphs import KnownGraphs
from pocketphi.compiler.numerics import Numerics
from pocketphi.compiler.pipeline import last_logits, run_passes
from pocketphi.compiler.prefix import prefix_checks
from pocketphi.compiler.rebuild import Rebuilt, rebuild
from pocketphi.compiler.recipe_check import recipe_check
from pocketphi.compiler.rounding_check import rounding_check, same_norms
from pocketphi.compiler.source_check import reading_checks, require, rewrites_check
from pocketphi.compiler.text import PROBE, random_tokens, tokens_of
from pocketphi.compiler.text_check import text_checks
from pocketphi.compiler.ui import Advance, Ui
from pocketphi.graph.adapters import Factors, factors_digest
from pocketphi.graph.channel_scales import scaled_alike
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import CannotRun
from pocketphi.graph.formats import format_of
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.hf_folder import read_tokenizer_files
from pocketphi.graph.lazy_weights import Constant, LazyWeight, digest, materialize
from pocketphi.graph.lora.named import Lora
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.program import Program
from pocketphi.graph.resident import free_memory
from pocketphi.graph.trace import trace
from pocketphi.passes.base import PassReport
from pocketphi.targets.base import Check, Host
from pocketphi.targets.target import Tools

log = logging.getLogger(__name__)

_PREFILL = 65
"""Tokens of the text that is run, at most."""

_RUNS = (
    *("heads", "kv_heads", "head_dim", "rms_norm_eps", "rope_theta", "rotary_dim", "long_rope", "sliding_window"),
    *("sparse", "own"),
)
"""Settings of a model that decide what it computes, beside the shapes of its tensors."""

_MEMORY_FACTOR = 5
"""Memory that verification takes, in sizes of the artifact: the runtime's copies, and the program's weights."""


@dataclass
class Verification:
    """All checks of a bundle; reference: quantization error, where a reference model was given; cannot: why some of the checks
    could not be run on this machine; caveats: what a user has to know of a bundle that is good."""

    checks: list[Check] = field(default_factory=list)
    reference: dict[str, float] | None = None
    cannot: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool | None:
        """None where no check failed, but not all could be run."""
        if not all(check.ok for check in self.checks):
            return False
        return None if self.cannot else True

    def require(self) -> Verification:
        """This, if all is well. Raises CheckFailed naming the first check that failed."""
        require(self.checks)
        return self

    def recorded(self) -> VerificationRecord:
        checks = tuple(check.recorded() for check in self.checks)
        return VerificationRecord(self.ok, checks, self.reference, "; ".join(self.cannot or self.caveats) or None)


def verify_folder(
    folder: Path,
    manifest: Manifest,
    ui: Ui,
    reference: str | None = None,
    only: str | None = None,
    extras: bool = False,
    as_far_as_it_runs: bool = False,
    tracer: Callable[[Checkpoint], Program] = trace,
    lora: Sequence[Lora] = (),
) -> Verification:
    """Check a bundle's files against the traced graph with its weights. folder may still lack its manifest file.

    only: a target's name, to leave the others out; extras: add the files that come out of running a good bundle;
    as_far_as_it_runs: note what this machine cannot run, in place of raising CannotRun; tracer: see `rebuild`
    lora: adapters of the reference, which have to be the bundle's
    """
    if reference is not None or lora:
        check_adapters(manifest.source, reference, lora)
    result = Verification()
    programs = []
    tracer = _once(tracer)
    several = len(manifest.targets) > 1
    for target in [only] if only else manifest.targets:
        checks, rebuilt, cannot = _verify_target(folder, manifest, target, ui, extras, tracer)
        if cannot is not None:
            if not as_far_as_it_runs and all(check.ok for check in checks):
                raise cannot
            result.cannot.append(f"{target}: {cannot}" if several else str(cannot))
        result.checks += [replace(check, name=f"{target}: {check.name}") if several else check for check in checks]
        if rebuilt is not None:
            programs.append(rebuilt)
        if rebuilt is not None and cannot is None:
            result.caveats += open_host(folder, manifest, target).caveats(manifest.context(target))
    if programs:
        result.checks += _one_set_of_weights(manifest, programs[0].quantized)
    result.checks += text_checks(folder, read_config(folder), manifest.text)
    result.checks += _other_files(folder, manifest)
    if reference is not None:
        result.checks += _against(
            open_checkpoint(reference, lora),
            programs[0].quantized if programs else None,
            manifest.recipe.smooth,
            lambda why: ui.say(f"--reference {reference}: {why}"),
        )
    if reference is not None and result.ok:
        result.reference = quantization_error(programs[0].traced, reference, folder, ui, lora=lora)
    return result


def _once(tracer: Callable[[Checkpoint], Program]) -> Callable[[Checkpoint], Program]:
    """All targets of a bundle have one graph."""
    traced: dict[ModelConfig, Program] = {}

    def get(source: Checkpoint) -> Program:
        if source.config not in traced:
            traced[source.config] = tracer(source)
        return traced[source.config].copy()

    return get


def _verify_target(
    folder: Path, manifest: Manifest, target: str, ui: Ui, extras: bool, tracer: Callable[[Checkpoint], Program]
) -> tuple[list[Check], Rebuilt | None, CannotRun | None]:
    """The checks of one target, the programs that it was compared with, and why not all of the checks could be run."""
    try:
        host = open_host(folder, manifest, target)
        saved = host.weights()
        adapters = host.adapters(manifest.switched)
    except CannotRun as error:
        return [], None, error
    limit = manifest.context(target)
    if adapters and not (same := adapters_check(manifest, adapters)).ok:
        return [same], None, None
    rebuilt = rebuild(folder, manifest.recipe, saved, tracer=tracer, adapters=adapters)
    config, count = rebuilt.traced.config, max(1, min(_PREFILL, limit // 2))
    tokens = tokens_of(None, PROBE, read_tokenizer_files(folder), config, count)
    prompt = torch.tensor([tokens + random_tokens(config, count - len(tokens))])
    size = sum(spec.bytes for weight in rebuilt.traced.weights.values() for spec in weight.parts.values())
    numerics = Numerics(host, rebuilt.traced, rebuilt.fused, prompt, limit, keep=size < free_memory() // 4)
    switched = [numerics.with_adapter(name) for name in adapters]
    steps = len(saved) + sum(one.tokens for one in (numerics, *switched))
    with ui.task(f"verify {target}", steps) as advance:
        for one in (numerics, *switched):
            one.taken = advance
        found = [_weights_check(host, saved, manifest.targets[target].weights, rebuilt.quantized, advance)]
        if not found[0].ok:  # the numbers would only repeat that the weights are wrong
            return found, rebuilt, None
        found += [adapters_check(manifest, adapters)] if adapters else []
        found.append(rewrites_check(rebuilt.traced, rebuilt.fused, manifest.recipe.context))
        cannot: list[str] = []
        lowered, reports = _lowered(rebuilt, manifest)
        asked = asked_of(manifest)
        for checks in (
            lambda: [*numerics.checks(), *host.own_checks(prompt)],
            lambda: [check for one in switched for check in one.checks()],
            lambda: host.graph_checks(lowered, asked),  # files are compared where they cannot be run
            lambda: [details_check(manifest, target, host, lowered), recipe_check(manifest, lowered.config, reports)],
            lambda: prefix_checks(folder, manifest, target, host, lowered),
        ):
            try:
                found += checks()
            except CannotRun as error:
                cannot.append(str(error))
        if cannot:
            return found, rebuilt, CannotRun("; ".join(cannot))
        if extras and all(check.ok for check in found):
            host.write_extras(prompt)
    return found, rebuilt, None


def _other_files(folder: Path, manifest: Manifest) -> Iterable[Check]:
    """What belongs to no target alone, and no run looks at."""
    yield record_check(manifest, read_config(folder))
    with contextlib.suppress(CannotRun):  # of a target whose packages are missing; that was said
        yield files_check(folder, manifest, [open_host(folder, manifest, target) for target in manifest.targets])


def _lowered(rebuilt: Rebuilt, manifest: Manifest) -> tuple[Program, list[PassReport]]:
    """The program that the target's files were written from, and what all passes did."""
    program = rebuilt.quantized.copy()
    last = run_passes(program, last_logits(manifest.recipe.all_logits))
    return program, [*rebuilt.reports, *last]


def _against(source: Checkpoint, program: Program | None, smooth: bool, say: Callable[[str], None]) -> list[Check]:
    """Whether the reference is read as others read it, runs as the bundle does, and has the weights that were rounded.

    smooth: the bundle's norms gave off factors of their channels
    """
    checks = reading_checks(source)
    if program is None or program.config.tensors() != source.config.tensors():
        return checks
    ours, theirs = vars(program.config), vars(source.config)
    differ = [name for name in _RUNS if ours[name] != theirs[name]]
    odd = [f"{name} is {ours[name]} in the bundle, {theirs[name]} in the reference" for name in differ]
    detail = odd[0] if odd else f"{len(_RUNS)} compared"
    checks.append(Check("settings that the reference has otherwise", len(odd), 0, detail))
    if smooth:
        source = scaled_alike(source, program.weights)
    if same_norms(program.weights, source):
        checks.append(rounding_check(program.weights, source))
    else:
        why = "its norms are not the bundle's: it is another model, or one whose norms were folded"
        say(f"{why}; weights were not compared")
    return checks


def _one_set_of_weights(manifest: Manifest, program: Program) -> Iterable[Check]:
    """All targets of a bundle hold the same int4 weights: by the digests that each was checked against."""
    digests = [target.weights for target in manifest.targets.values()]
    if len(digests) > 1:
        quantized = [name for name, weight in program.weights.items() if format_of(weight.parts)]
        wrong = sorted(name for name in quantized if len({one.get(name) for one in digests}) > 1)
        detail = f"{len(quantized)} weights in {len(digests)} targets" if not wrong else f"first {wrong[0]}"
        yield Check("int4 weights that differ between targets", len(wrong), 0, detail)


def verify_made(folder: Path, manifest: Manifest, mode: str, ui: Ui, cache: Path | None = None) -> VerificationRecord:
    """Verify a bundle under construction; what its manifest says of that. cache: where the compile keeps its traces.

    A check that cannot be run here has not failed: unless the mode is `always`, the bundle is kept as one that is not verified.
    Raises CheckFailed, and under `always` CannotRun.
    """

    def tracer(source: Checkpoint) -> Program:
        return KnownGraphs(source, cache).traced

    result = verify_folder(
        folder, manifest, ui, extras=True, as_far_as_it_runs=mode != "always", tracer=tracer
    ).require()
    if result.cannot:
        ui.say(f"not verified, because {'; '.join(result.cannot)}")
    elif result.caveats:
        ui.say(f"verified, but {'; '.join(result.caveats)}")
    return result.recorded()


def wants_verification(mode: str, artifact_bytes: int, ui: Ui) -> bool:
    """Whether to verify: `always`, `never`, or `auto` where it fits into half of the free memory."""
    if mode != "auto":
        return mode == "always"
    needed, free = _MEMORY_FACTOR * artifact_bytes, free_memory()
    if needed <= free // 2:
        return True
    ui.say(f"not verified: that takes {needed / 1e9:.1f} GB of memory; run 'pocketphi verify' on a larger machine")
    return False


def _weights_check(
    host: Host, saved: Mapping[str, LazyWeight], expected: Mapping[str, str], program: Program, advance: Advance
) -> Check:
    """Every saved weight, decoded, equals the program's to the bit: by digest, taken before it was written."""
    wrong = []
    own_weights = host.own_weights()
    wrong += [name for name, weight in own_weights.items() if digest(materialize(weight)) != expected.get(name)]
    for name, weight in saved.items():
        came = digest(materialize(weight))
        made = program.weights[name]
        constant = isinstance(made, Constant)
        own = digest(materialize(host.stored(name, made))) if constant else expected.get(name)
        if came != expected.get(name) or came != own:
            wrong.append(name)
        advance(1)
    missing = sorted(set(expected) - set(saved) - set(own_weights))
    detail = f"{len(saved) + len(own_weights)} weights" if not (wrong or missing) else f"first {(wrong + missing)[0]}"
    return Check("weights equal, bit for bit", len(wrong) + len(missing), 0, detail)


def adapters_check(manifest: Manifest, adapters: Mapping[str, Factors]) -> Check:
    """Every saved adapter holds the values that were written, for the weights that the manifest names."""
    wrong = [
        one.name
        for one in manifest.adapters
        if dict(adapters[one.name].ranks) != one.ranks or factors_digest(adapters[one.name]) != one.values
    ]
    detail = f"first {wrong[0]}" if wrong else f"{len(adapters)} adapters"
    return Check("adapters that are not as they were made", len(wrong), 0, detail)


def tools(ui: Ui) -> Tools:
    """What the compiler does for the commands that single targets have. ui: where a command tells what it does."""

    def rebuilt(bundle: Bundle, weights: Mapping[str, LazyWeight]) -> Program:
        recipe, names = bundle.manifest.recipe, bundle.manifest.switched
        adapters = open_host(bundle.path, bundle.manifest).adapters(names) if names else None
        return rebuild(bundle.path, recipe, weights, recipe.all_logits, adapters=adapters).quantized

    def verified(folder: Path, manifest: Manifest) -> VerificationRecord:
        return verify_folder(folder, manifest, ui, as_far_as_it_runs=True).require().recorded()

    return Tools(ui, rebuilt, verified)
