"""What a compile would do, without doing it: sizes, memory, what is fused and quantized."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pocketphi.artifacts.manifest import ExpectedRecord
from pocketphi.compiler.footprint import footprint, kept_weights
from pocketphi.compiler.format_rows import FormatRow, format_rows
from pocketphi.compiler.known_graphs import KnownGraphs
from pocketphi.compiler.known_text import opened
from pocketphi.compiler.learning import check_compute
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.outputs import weighed
from pocketphi.compiler.pipeline import quantization, run_passes
from pocketphi.compiler.policy_file import check_policy
from pocketphi.compiler.precision import asked_policy, kept_policy
from pocketphi.compiler.prefix import check_prefix, read_prefix
from pocketphi.compiler.smoothing import smoothing_bytes
from pocketphi.compiler.spend import Spent, measuring_bytes, spend
from pocketphi.compiler.ui import Ui
from pocketphi.graph.adapters import bytes_of_factors
from pocketphi.graph.checkpoint import CHUNK_BYTES, Checkpoint
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import CheckFailed, InputError
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.lora.beside import Beside, open_beside
from pocketphi.graph.program import Program
from pocketphi.graph.resident import resident_now
from pocketphi.graph.threads import WORKERS
from pocketphi.passes import cache_scales, learn, output_moments
from pocketphi.passes.base import PassReport
from pocketphi.passes.calibrate import AT_ONCE, WINDOW
from pocketphi.passes.carry_adapters import projections
from pocketphi.passes.choices import FILE_BLOCK
from pocketphi.passes.equal import working_bytes
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantizers import RoundToNearest
from pocketphi.passes.weight_cache import MAX_VALUES
from pocketphi.targets import TARGETS, find_target, packages_of
from pocketphi.targets.base import Prepared, check_formats
from pocketphi.targets.memory import Footprint

_CHUNK_COPIES = 14
"""Float32 copies of a chunk that quantizing it holds at once, in units of the chunk's bf16 bytes (measured: 12)."""
_WEIGHED_COPIES = 6
"""Float32 copies of a weight that rounding it by `two-sided` holds at once."""
_ROUNDING_COPIES = 8
"""Float32 copies of its rows that a worker of `search` holds at once."""
_FEWER_TOKENS = (4096, 2048, 1024, 512)
"""Of a calibration text, where that many more take too much memory."""
_MANIFEST_BYTES, _RULE_BYTES, _DIGEST_BYTES = 12_000, 200, 130
"""Of a manifest, with the model's settings; of a rule in it; of the digest of a weight of a target."""


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes.

    artifact: files of all targets; compile_memory: peak of the compile itself; run: of each target, when it runs; expected,
    formats: where formats were chosen, or differ
    """

    model: str
    parameters: int
    layers: int
    artifact: int
    compile_memory: int
    run: dict[str, Footprint] = field(default_factory=dict)
    applied: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: list[list[str]] = field(default_factory=list)
    operators: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    expected: ExpectedRecord | None = None
    formats: list[FormatRow] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "run": {name: run.as_json() for name, run in self.run.items()}}


def plan(options: CompileOptions, ui: Ui | None = None, allowed: Callable[[Policy], None] | None = None) -> Plan:
    """Trace and rewrite the graph; weights are read only where sensitivities have to be measured.

    allowed: judges the policy, and may raise
    """
    check_targets(options)
    check_adapters_switch(options)
    check_prefix(options)
    check_compute(options)
    source, text = opened(options)
    check_model(source.config, options)
    shipped, prefix = read_prefix(options, source)
    graphs = KnownGraphs(source, options.cache_folder)
    program, reports = graphs.fused(options.context, options.dump_graphs)
    adapters = take_adapters(program, source, options)
    start = resident_now()
    chosen = decide(source, graphs, program, options, ui or Ui(), shipped, prefix)
    policy = chosen.policy
    lowered = lower(program, policy, reports, options, allowed, prefix)
    reports = lowered.reports
    sizes = [bytes_of_factors(source.config, one.ranks) for one in adapters.values()]
    kept = kept_weights(source) if options.recipe == "keep" else {}
    smoothing = smoothing_bytes(source.config) if policy.smooth else 0
    measuring = measuring_bytes(source.config) if options.spends else smoothing
    return Plan(
        model=source.label,
        parameters=source.config.parameters,
        layers=source.config.layers,
        artifact=lowered.bytes,
        compile_memory=max(start + measuring, compile_memory(source.config, options, policy)),
        run={
            name: footprint(source.config, name, options, kept=kept, policy=policy).with_adapters(sizes)
            for name in lowered.prepared
        },
        applied={r.name: dict(r.applied) for r in reports},
        refused=[[r.name, *entry] for r in reports for entry in r.refused],
        operators=dict(lowered.program.operators()),
        notes=[
            *source.notices,
            *adapter_notices(adapters),
            *text.notices,
            *(f"{name}: {note}" for name, one in lowered.prepared.items() for note in one.notes),
        ],
        expected=chosen.expected,
        formats=format_rows(policy, source.config, options.of_targets),
    )


def decide(
    source: HashedCheckpoint,
    graphs: KnownGraphs,
    program: Program,
    options: CompileOptions,
    ui: Ui,
    shipped: str = "",
    prefix: tuple[int, ...] = (),
) -> Spent:
    """Which weight gets which format: what the options say, or what is chosen for their budget.

    program: fused; shipped, prefix: of `read_prefix`. Raises InputError for rules that do not fit the model or the targets, and
    for a budget that nothing keeps to.
    """
    if options.spends:
        around = sum(map(len, source.tokenizer_files().values())) + len(shipped.encode())
        return spend(
            source, lambda: graphs.traced, options, lambda policy: around + _own(program, policy, options, prefix), ui
        )
    policy = kept_policy(asked_policy(options, source.config.tied_embeddings), source)
    if options.policy is not None:
        check_policy(policy, source.config, options)
    return Spent(policy)


@dataclass(frozen=True)
class Lowered:
    """A quantized program, what all passes did, each target's files as they are planned, and the bytes of these."""

    program: Program
    reports: list[PassReport]
    prepared: dict[str, Prepared]
    bytes: int


def lower(
    program: Program,
    policy: Policy,
    reports: list[PassReport],
    options: CompileOptions,
    allowed: Callable[[Policy], None] | None,
    prefix: tuple[int, ...] = (),
    vocabulary: str = "",
) -> Lowered:
    """Give the weights of a fused program their formats, and plan each target's files: all that comes before the work.

    reports: of the passes before; allowed: judges the policy, and may raise; prefix, vocabulary: see `Asked`. Raises what
    `prepare` and `check_plan` do.
    """
    if allowed is not None:
        allowed(policy)
    if program.config.experts and weighed(policy, program.config.matrices()):
        raise InputError("two-sided: gradients of a model with experts cannot be measured yet; choose --recipe search")
    quantized, more = quantize(program, policy, options, options.dump_graphs, first=len(reports) + 1)
    prepared = prepare(quantized, options, prefix, vocabulary)
    done = [*reports, *more]
    return Lowered(quantized, done, prepared, check_plan(quantized, done, prepared, options, policy))


def quantize(
    program: Program, policy: Policy, options: CompileOptions, dump: Path | None = None, first: int = 0
) -> tuple[Program, list[PassReport]]:
    """A copy of a program whose weights get their formats, and what was done. dump, first: see `run_passes`."""
    quantized = program.copy()
    return quantized, run_passes(
        quantized, quantization(policy, {}, options.all_logits, bool(program.adapters)), dump, first
    )


def _own(program: Program, policy: Policy, options: CompileOptions, prefix: tuple[int, ...]) -> int:
    """What a bundle takes with this policy, beside its texts."""
    quantized, _ = quantize(program, policy, options)
    records = len(policy.rules) * (_RULE_BYTES + _DIGEST_BYTES * len(options.target_names)) + _MANIFEST_BYTES
    verified = options.verify != "never"
    made = prepare(quantized, options, prefix).values()
    return records + sum(one.bytes + one.around + (one.recorded if verified else 0) for one in made)


def compile_memory(config: ModelConfig, options: CompileOptions, policy: Policy) -> int:
    """Peak bytes of a compile that knows its policy, from here on: what is resident now, and the chunks (or, for calibration,
    one matrix with the activations that meet it and the statistics of its inputs)."""
    now = resident_now()
    streaming = WORKERS * _CHUNK_COPIES * CHUNK_BYTES
    if options.verify != "never":
        streaming = max(streaming, working_bytes(config, options.context or config.max_position))
    if any(one.calibrates for one in options.of_targets):
        streaming = max(streaming, cache_scales.working_bytes(config))
    if options.learn:
        scales = sum(_scales(policy, name, shape) for name, shape in config.matrices().items())
        streaming = max(streaming, learn.working_bytes(config, options.learn, WINDOW, scales))
    if not policy.calibrates:
        return now + streaming
    tokens = 2 * options.calibration_tokens  # once with float weights, once with int4
    hidden, widest = config.hidden_size, max(2 * config.intermediate_size, config.qkv_size)
    columns = max(hidden, config.intermediate_size, config.heads * config.head_dim)
    # what all tokens wait with before a matrix: its inputs, the residual stream, and what was made of that (measured: 4.3)
    waiting = tokens * (columns + 5 * hidden)
    # the widest layer, both of its weights, and of those tokens that go on what goes out and what becomes of it
    running = 2 * widest * hidden + waiting + min(tokens, 2 * AT_ONCE) * (2 * widest + config.heads * WINDOW)
    # for the layer with most inputs: a moment, what a shift is made of and the shift (of two matrices, where the tokens are
    # fewer); then the factor in place of the moment, the shift and rows
    few = options.calibration_tokens if options.calibration_tokens < columns else None
    shift = 2 * few * columns if few else columns**2
    solving = few * columns + 2 * few**2 if few else 2 * columns**2
    statistics = columns**2 + shift + max(solving, WORKERS * _ROUNDING_COPIES * MAX_VALUES)
    measuring = statistics + waiting + hidden * columns
    heaviest = max((math.prod(config.matrices()[name]) for name in weighed(policy, config.matrices())), default=0)
    if heaviest:
        streaming = max(streaming, output_moments.working_bytes(config, options.calibration_tokens))
        measuring = max(measuring, _WEIGHED_COPIES * heaviest + columns**2 + waiting)
    largest = max(math.prod(shape) for shape in config.tensors().values())
    if config.experts:  # of all of a layer, in float and as they were rounded
        largest *= 2
    return now + max(streaming, 4 * max(running, measuring, largest))


def _scales(policy: Policy, name: str, shape: tuple[int, int]) -> int:
    """Of a weight."""
    quantizer = policy.quantizer(name)
    return math.prod(quantizer.layout(shape)[quantizer.format.half_part].shape) if quantizer else 0


def check_targets(options: CompileOptions) -> None:
    """Raise CannotRun, before any work, where a target's packages are not installed."""
    for one in options.of_targets:
        find_target(one.target).check_installed(one)


def take_adapters(program: Program, source: Checkpoint, options: CompileOptions) -> dict[str, Beside]:
    """Open the adapters that an app is to switch, for a fused program, which has them from now on. Raises InputError for one
    that cannot be switched."""
    adapters = open_beside(options.adapter, source, list(projections(program)))
    program.adapters.update(adapters)
    return adapters


def adapter_notices(adapters: Mapping[str, Beside]) -> list[str]:
    """What a user should know of them."""
    return [notice for one in adapters.values() for notice in one.adapter.notices]


def check_adapters_switch(options: CompileOptions) -> None:
    """Raise InputError, before any work, where a target's runtime cannot switch the adapters that are asked for."""
    able = [name for name in TARGETS if find_target(name).switches]
    for name in options.target_names:
        if options.adapter and not find_target(name).switches:
            raise InputError(
                f"--adapter {options.adapter[0]}: {name} cannot switch adapters; merge one with --lora, or compile for "
                f"{' or '.join(able)}"
            )


def check_model(config: ModelConfig, options: CompileOptions) -> None:
    """Raise InputError, before any work, where a target or an option cannot have a model's experts."""
    if config.experts is None:
        return
    what = f"a {config.form.name} has {config.experts.count} experts a layer, of which a token reads {config.experts.chosen}"
    able = [name for name in TARGETS if find_target(name).routes_experts]
    for name in options.target_names:
        if not find_target(name).routes_experts:
            raise InputError(f"{name}: {what}; its files would read all of them: compile for {' or '.join(able)}")
    if options.spends:
        raise InputError(f"{what}: what rounding each would cost is not measured; name a --recipe, --block or --policy")
    if options.learn:
        raise InputError(f"{what}: their scales cannot be learned yet; leave out --learn")


def prepare(
    program: Program, options: CompileOptions, prefix: tuple[int, ...] = (), vocabulary: str = ""
) -> dict[str, Prepared]:
    """Plan the files of each target, once. prefix, vocabulary: see `Asked`. Raises InputError for what a target cannot write,
    CannotRun where its packages are not installed."""
    prepared = {}
    for one in options.of_targets:
        target = find_target(one.target)
        check_formats(target, one, program)
        with packages_of(target):
            prepared[target.name] = target.prepare(
                program, one, replace(options.asked, prefix=prefix, vocabulary=vocabulary)
            )
    return prepared


def check_plan(
    program: Program,
    reports: Sequence[PassReport],
    prepared: Mapping[str, Prepared],
    options: CompileOptions,
    policy: Policy,
) -> int:
    """Bytes that the bundle needs on disk.

    Raises CheckFailed where it, or the compile's memory, is over its budget, and InputError, under --strict, for what a pass
    left alone.
    """
    refused = [(report.name, *entry) for report in reports for entry in report.refused]
    if options.strict and refused:
        name, place, reason = refused[0]
        raise InputError(f"--strict: {name} left {len(refused)} places alone, first {place}: {reason}")
    needed = sum(one.bytes for one in prepared.values())
    if options.max_bytes is not None and needed > options.max_bytes:
        over = needed - options.max_bytes
        raise CheckFailed(f"the bundle would take {needed:,} bytes, {over:,} over --max-bytes; choose a larger --block")
    needed_memory = compile_memory(program.config, options, policy)
    options.check_memory(needed_memory, lambda limit: lighter(program.config, options, policy, limit))
    return needed


def lighter(config: ModelConfig, options: CompileOptions, policy: Policy, limit: int) -> str:
    """What a compile that takes too much memory could do in place of what is asked: the first way that keeps to the limit."""
    if policy.calibrates:
        for count in _FEWER_TOKENS:
            if count < options.calibration_tokens:
                fewer = replace(options, calibration_tokens=count)
                if compile_memory(config, fewer, policy) <= limit:
                    return f"try --calibration-tokens {count}"
    nearest, plain = Policy.of(RoundToNearest(FILE_BLOCK)), replace(options, learn=None, compute="cpu")
    if compile_memory(config, plain, nearest) <= limit:
        return "try --recipe rtn"
    least = compile_memory(config, replace(plain, verify="never"), nearest)
    return "try --recipe rtn and --verify never" if least <= limit else f"the least that any recipe takes is {least:,}"
