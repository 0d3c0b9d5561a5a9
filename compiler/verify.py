"""Is the saved artifact the quantized program? And how far is that from the original?

Lowering error: the saved files, run by their own runtime, against the quantized program in torch. Above rounding it is a bug.
Quantization error (with a reference): the quantized program against the float model. It is a choice.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pocketphi.compiler.evaluate import quantization_error
from pocketphi.compiler.hosts import context_of, open_host
from pocketphi.compiler.measure import distance
from pocketphi.compiler.memory import free_memory
from pocketphi.compiler.rebuild import rebuild
from pocketphi.compiler.text import PROBE, random_tokens, tokens_of
from pocketphi.compiler.ui import Ui
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.decoder import ProgramRunner
from pocketphi.graph.errors import CheckFailed
from pocketphi.graph.forms import form_of
from pocketphi.graph.hf_folder import TOKENIZER_FILES
from pocketphi.graph.program import Program
from pocketphi.graph.recipe import Constant, Recipe, digest, materialize
from pocketphi.targets.base import Check, Host, Runner

log = logging.getLogger(__name__)

PREFILL, DECODE = 65, 64
_MEMORY_FACTOR = 5
"""Memory that verification takes, in sizes of the artifact: the runtime's copies, and the program's weights."""


@dataclass
class Verification:
    """All checks of a bundle; reference: quantization error, where a reference model was given."""

    checks: list[Check] = field(default_factory=list)
    reference: dict[str, float] | None = None

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def require(self) -> Verification:
        """This, if all is well. Raises CheckFailed naming the first check that failed."""
        for check in self.checks:
            if not check.ok:
                raise CheckFailed(
                    f"verification: {check.name}: {check.measured:.2g} exceeds {check.bound:g} ({check.detail})"
                )
        return self

    def recorded(self) -> dict[str, Any]:
        return {"ok": self.ok, "checks": [c.recorded() for c in self.checks], "quantization_error": self.reference}


def verify_folder(
    folder: Path,
    manifest: Mapping[str, Any],
    ui: Ui,
    reference: str | None = None,
    only: str | None = None,
    extras: bool = False,
) -> Verification:
    """Check a bundle's files against the quantized program; see the module. folder may still lack its manifest file.

    only: a target's name, to leave the others out; extras: add the files that come out of running a good bundle
    """
    result = Verification()
    programs = []
    for target in [only] if only else manifest["targets"]:
        checks, program = _verify_target(folder, manifest, target, ui, extras)
        several = len(manifest["targets"]) > 1
        result.checks += [replace(check, name=f"{target}: {check.name}") if several else check for check in checks]
        programs.append(program)
    result.checks += _one_set_of_weights(manifest, programs[0])
    if reference and result.ok:
        result.reference = quantization_error(programs[0], reference, folder, ui)
    return result


def _verify_target(
    folder: Path, manifest: Mapping[str, Any], target: str, ui: Ui, extras: bool
) -> tuple[list[Check], Program]:
    """The checks of one target, and the quantized program with its saved weights."""
    host = open_host(folder, manifest, target)
    limit = context_of(manifest, target)
    with ui.task(f"verify {target}", 5) as advance:
        saved = host.weights()
        program = rebuild(folder, manifest["recipe"], saved)
        found = [_weights_check(host, saved, manifest["targets"][target]["weights"], program)]
        if not found[0].ok:  # the numbers would only repeat that the weights are wrong
            return found, program
        prompt = _probe_tokens(folder, program.config, min(PREFILL, limit // 2))
        for checks in (
            _numerics(host, program, prompt, min(DECODE, limit - prompt.shape[1])),
            _boundaries(host, program, limit),
            _other_runtimes(host, program.config, prompt, min(8, limit - prompt.shape[1])),
            host.own_checks(prompt),
        ):
            advance(1)
            found += checks
        if extras and all(check.ok for check in found):
            host.write_extras(prompt)
    return found, program


def _one_set_of_weights(manifest: Mapping[str, Any], program: Program) -> Iterable[Check]:
    """All targets of a bundle hold the same int4 weights: by the digests that each was checked against."""
    digests = [target["weights"] for target in manifest["targets"].values()]
    if len(digests) > 1:
        int4 = [name for name, recipe in program.weights.items() if form_of(recipe.parts)]
        wrong = sorted(name for name in int4 if len({one.get(name) for one in digests}) > 1)
        detail = f"{len(int4)} weights in {len(digests)} targets" if not wrong else f"first {wrong[0]}"
        yield Check("int4 weights that differ between targets", len(wrong), 0, detail)


def wants_verification(mode: str, artifact_bytes: int, ui: Ui) -> bool:
    """Whether to verify: `always`, `never`, or `auto` where it fits into half of the free memory."""
    if mode != "auto":
        return mode == "always"
    needed, free = _MEMORY_FACTOR * artifact_bytes, free_memory()
    if needed <= free // 2:
        return True
    ui.say(f"not verified: that takes {needed / 1e9:.1f} GB of memory; run 'pocketphi verify' on a larger machine")
    return False


def _weights_check(host: Host, saved: Mapping[str, Recipe], expected: Mapping[str, str], program: Program) -> Check:
    """Every saved weight, decoded, equals the program's to the bit: by digest, taken before it was written."""
    wrong = []
    for name, weight in saved.items():
        came = digest(materialize(weight))
        recipe = program.weights[name]
        constant = isinstance(recipe, Constant)
        own = digest(materialize(host.stored(name, recipe))) if constant else expected.get(name)
        if came != expected.get(name) or came != own:
            wrong.append(name)
    missing = sorted(set(expected) - set(saved))
    detail = f"{len(saved)} weights" if not (wrong or missing) else f"first {(wrong + missing)[0]}"
    return Check("weights equal, bit for bit", len(wrong) + len(missing), 0, detail)


def _numerics(host: Host, program: Program, prompt: torch.Tensor, steps: int) -> Iterable[Check]:
    """Prefill and `steps` of decode with the cache, exact and as saved; greedy choice."""
    start, total = prompt.shape[1], prompt.shape[1] + steps
    chosen, greedy_logits = generate(host.runner(total), prompt, steps)
    sequence = torch.cat([prompt, chosen], dim=1)
    yardstick = ProgramRunner(program, keep=_keeps(program))
    expected = yardstick.step(sequence)[0]

    exact = host.runner(total, exact=True, every_position=True)
    prefill = exact.step(prompt)[0]
    yield _kl("prefill, exact", expected[:start], prefill, host.exact_bound)
    decode = torch.cat([exact.step(sequence[:, i : i + 1])[0] for i in range(start, total)])
    yield _kl("decode, exact", expected[start:], decode, host.exact_bound)
    whole = host.runner(total, every_position=True).step(sequence)[0]
    yield _kl("prefill, as saved", expected, whole, host.saved_bound)
    yield _kl("decode, as saved", expected[start - 1 : -1], greedy_logits, host.saved_bound)
    # KL ≈ ½ Var(Δlogit) for small differences, so that the bound allows logits to differ by σ = sqrt(2·bound): 4 σ is a tie
    tie = 4 * math.sqrt(2 * host.saved_bound)
    rows = expected[start - 1 : -1]
    gaps = rows.max(-1).values - rows.gather(1, chosen[0, :, None])[:, 0]
    same = int((gaps == 0).sum())
    yield Check("greedy tokens that differ", int((gaps > tie).sum()), 0, f"{same}/{steps} equal, ties within {tie:.2g}")


def _boundaries(host: Host, program: Program, limit: int) -> Iterable[Check]:
    """Past the sliding window, and on both sides of the LongRoPE switch: exact prefill, and decode across the window."""
    config = program.config
    window = config.sliding_window
    if window and window + 10 <= limit:
        yield from _window(host, program, window)
    if config.long_rope and config.long_rope.original_max_position < limit:
        yield from _long_rope(host, program, config.long_rope.original_max_position)


def _long_rope(host: Host, program: Program, switch: int) -> Iterable[Check]:
    """At the last length with short factors and the first with long ones: prefill, and decode from one to the other."""
    tokens = torch.tensor([random_tokens(program.config, switch + 1)])
    stepping = host.runner(switch + 1, exact=True)
    stepping.step(tokens[:, : switch - 1])
    for length in (switch, switch + 1):
        expected = ProgramRunner(program, keep=False).step(tokens[:, :length])[0, -1:]
        prefill = host.runner(length, exact=True).step(tokens[:, :length])[0, -1:]
        decode = stepping.step(tokens[:, length - 1 : length])[0, -1:]
        both = torch.cat([prefill, decode])
        yield _kl(f"LongRoPE at {length} tokens", expected.expand_as(both), both, host.exact_bound)


def _window(host: Host, program: Program, window: int) -> Iterable[Check]:
    tokens = torch.tensor([random_tokens(program.config, window + 9)])
    expected = ProgramRunner(program, keep=False).step(tokens)[0]
    runner = host.runner(window + 9, exact=True, every_position=True)
    start = window - 3
    yield _kl(f"prefill past the window of {window}", expected, runner.step(tokens)[0], host.exact_bound)
    runner.reset()
    runner.step(tokens[:, :start])
    decode = torch.cat([runner.step(tokens[:, i : i + 1])[0] for i in range(start, window + 9)])
    yield _kl(f"decode past the window of {window}", expected[start:], decode, host.exact_bound)
    expected = host.runner(window + 9).step(tokens)[0, -1:]
    for name, other in host.other_runners(window + 10).items():
        yield _kl(f"{name}, past the window", expected, other.step(tokens)[0, -1:], host.exact_bound)


def _other_runtimes(host: Host, config: ModelConfig, prompt: torch.Tensor, steps: int) -> Iterable[Check]:
    """Other runtimes and files of the same bundle, against the first: prefill and `steps` of decode, as saved."""
    total = prompt.shape[1] + steps
    pieces = [prompt, *torch.tensor([random_tokens(config, steps)]).split(1, dim=1)]
    first = host.runner(total)
    expected = torch.cat([first.step(piece)[0, -1:] for piece in pieces])
    for name, other in host.other_runners(total).items():
        came = torch.cat([other.step(piece)[0, -1:] for piece in pieces])
        yield _kl(f"{name}, prefill and decode", expected, came, host.exact_bound)


def generate(runner: Runner, prompt: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy: (tokens int64 [1, count], the logits that chose them float32 [count, V])."""
    tokens, logits = prompt, []
    chosen: list[torch.Tensor] = []
    for _ in range(count):
        logits.append(runner.step(tokens)[0, -1])
        tokens = logits[-1].argmax().view(1, 1)
        chosen.append(tokens)
    return torch.cat(chosen, dim=1), torch.stack(logits)


def _kl(name: str, expected: torch.Tensor, came: torch.Tensor, bound: float) -> Check:
    found = distance(expected, came)
    detail = f"{found.positions} positions, top-1 {found.top1:.3f}, max |Δlogit| {found.largest:.2g}"
    return Check(f"KL {name}", found.kl, bound, detail)


def _probe_tokens(folder: Path, config: ModelConfig, count: int) -> torch.Tensor:
    """int64 [1, count]: a text for a model with a tokenizer, random tokens for others."""
    files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    tokens = tokens_of(None, PROBE, files, config, count)
    return torch.tensor([tokens + random_tokens(config, count - len(tokens))])


def _keeps(program: Program) -> bool:
    size = sum(spec.bytes for recipe in program.weights.values() for spec in recipe.parts.values())
    return size < free_memory() // 4
