"""Perplexity of a model or a bundle on a text, and its distance from a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import MANIFEST, AdapterRecord, SourceRecord, SwitchedRecord
from pocketphi.compiler.hosts import check_adapter, open_host, runner_of
from pocketphi.compiler.measure import Distance, Likelihood
from pocketphi.compiler.text import tokens_of, windows
from pocketphi.compiler.text_check import check_text
from pocketphi.compiler.ui import Ui
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.decoder import ProgramRunner, keeps
from pocketphi.graph.digests import digest_files
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.hf_folder import read_tokenizer_files
from pocketphi.graph.lora.named import Lora
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.program import Program
from pocketphi.graph.ranges import check_number
from pocketphi.graph.reading import named
from pocketphi.graph.trace import trace
from pocketphi.passes.calibrate import held_out_text
from pocketphi.targets.base import Runner


@dataclass(frozen=True)
class Evaluation:
    """perplexity over `tokens` predicted tokens; kl (nats a token), top1 and reference_perplexity against a reference."""

    model: str
    tokens: int
    window: int
    perplexity: float
    reference: str | None = None
    reference_perplexity: float | None = None
    kl: float | None = None
    top1: float | None = None


def evaluate_model(
    model: str,
    text: str | None,
    tokens: int,
    window: int,
    reference: str | None,
    ui: Ui,
    target: str | None = None,
    lora: Sequence[Lora] = (),
    adapter: str | None = None,
) -> Evaluation:
    """Run `tokens` tokens of the text through a checkpoint (in float) or a bundle, in windows without overlap.

    text: documentation of Python's library if None. lora: adapters of the checkpoint; of a bundle's reference;
    adapter: of the bundle, which is switched on.
    """
    is_bundle = check_compared(model, reference, lora, adapter)
    check_number("--tokens", tokens, least=2)
    check_number("--window", window, least=2)
    runner, files, config = open_runner(model, window, target, () if is_bundle else lora, adapter)
    rows = windows(tokens_of(text, held_out_text() if text is None else "", files, config, tokens), window)
    other, _, other_config = (None, None, config)
    if reference is not None:
        other, _, other_config = open_runner(reference, window, None, lora if is_bundle else ())
    check_vocabulary(reference, other_config, model, config)
    ours, theirs, apart = Likelihood(), Likelihood(), Distance()
    with ui.task("evaluate", rows.numel(), "tokens") as advance:
        for row in rows:
            logits = _logits(runner, row)
            ours.add(logits, row)
            if other:
                expected = _logits(other, row)
                theirs.add(expected, row)
                apart.add(expected, logits)
            advance(row.numel())
    if not other:
        return Evaluation(model, ours.tokens, window, ours.perplexity)
    return Evaluation(model, ours.tokens, window, ours.perplexity, reference, theirs.perplexity, apart.kl, apart.top1)


def check_compared(model: str, reference: str | None, lora: Sequence[Lora], adapter: str | None) -> bool:
    """Whether a model is a bundle. Raises InputError where a reference has other adapters (`check_adapters`)."""
    if not (Path(model) / MANIFEST).is_file():
        return False
    if reference is not None or lora:
        manifest = Bundle.open(Path(model), check=False).manifest
        check_adapters(manifest.source, reference, lora, [one for one in manifest.adapters if one.name == adapter])
    return True


def check_adapters(
    made_of: SourceRecord, reference: str | None, lora: Sequence[Lora], on: Sequence[SwitchedRecord] = ()
) -> None:
    """Raises InputError where a reference for a bundle is its model with other adapters than the bundle's: those that were
    merged, and those that are switched on."""
    adapters: list[AdapterRecord | SwitchedRecord] = [*made_of.adapters, *on]
    if reference is None:
        raise InputError("--lora: a bundle holds its adapters; they are for a --reference")
    said = [f"{one.name}={one.weight:g}" for one in adapters]
    needs = f"the bundle {'runs' if on else 'was made'} with {', '.join(said) or 'no adapter'}"
    if not lora and adapters and Path(reference).name == made_of.model:
        raise InputError(f"--reference {reference}: {needs}; name each with --lora, in this order, with its weight")
    if lora and [(digest_files(one.files), one.weight) for one in lora] != [(a.blake3, a.weight) for a in adapters]:
        raise InputError(
            f"--lora {' '.join(map(str, lora))}: {needs}, from other files, with other weights, or in another order"
        )


@dataclass(frozen=True)
class Opened:
    """A bundle or a checkpoint before it runs. files: of its tokenizer; context: tokens that it can hold; runner: opens one
    that gives every position's logits, for so many tokens"""

    model: str
    files: Mapping[str, bytes]
    config: ModelConfig
    context: int
    runner: Callable[[int], Runner]


def open_model(model: str, target: str | None = None, lora: Sequence[Lora] = (), adapter: str | None = None) -> Opened:
    """A bundle, whose files are checked, or a checkpoint, which runs as transformers runs it: a wrong rewrite must not be in
    both sides of a comparison."""
    folder = Path(model)
    if (folder / MANIFEST).is_file():
        manifest = Bundle.open(folder).manifest
        host = open_host(folder, manifest, target)
        check_adapter(manifest, adapter)
        files, config = read_tokenizer_files(folder), read_config(folder)
        return Opened(model, files, config, manifest.context(target), lambda n: runner_of(host, manifest, adapter, n))
    if adapter is not None:
        raise InputError(f"--adapter {named(adapter)}: {model} is a model, not a bundle; --lora merges one into it")
    if target:
        raise InputError(f"--target {target}: {model} is a model, not a bundle")
    source = open_checkpoint(model, lora)
    config, files = source.config, check_text(source).files
    return Opened(model, files, config, config.max_position, lambda _: ProgramRunner(trace(source), keeps(config)))


def open_runner(
    model: str, window: int, target: str | None = None, lora: Sequence[Lora] = (), adapter: str | None = None
) -> tuple[Runner, Mapping[str, bytes], ModelConfig]:
    """(runner with logits of every position, tokenizer files, config) of a bundle or a checkpoint."""
    opened = open_model(model, target, lora, adapter)
    if window > opened.context:
        raise InputError(f"--window {window}: {model} has {opened.context} positions")
    return opened.runner(window), opened.files, opened.config


def check_vocabulary(reference: str | None, other: ModelConfig, model: str, own: ModelConfig) -> None:
    """Raises InputError where two models have vocabularies of different sizes."""
    if other.vocab_size != own.vocab_size:
        raise InputError(f"--reference {reference}: {other.vocab_size} tokens, {model} has {own.vocab_size}")


def _logits(runner: Runner, row: torch.Tensor) -> torch.Tensor:
    """Of a text by itself, int64 [S]: float32 [S, V]."""
    runner.reset()
    return runner.step(row[None])[0]


def quantization_error(
    program: Program, reference: str, folder: Path, ui: Ui, tokens: int = 2048, lora: Sequence[Lora] = ()
) -> dict[str, float]:
    """KL and agreement of a program with the float reference, on a text that it was not calibrated on.

    program: the traced graph with the saved weights
    """
    window = min(512, program.config.max_position)
    float_runner, files, config = open_runner(reference, window, None, lora)
    if config.tensors() != program.config.tensors():
        raise InputError(f"--reference {reference}: has other shapes than the model in {folder}")
    rows = windows(tokens_of(None, held_out_text(), files, config, tokens), window)
    runner, apart = ProgramRunner(program, keep=keeps(config)), Distance()
    with ui.task("compare with reference", rows.shape[0]) as advance:
        for row in rows:
            apart.add(_logits(float_runner, row), _logits(runner, row))
            advance(1)
    return {"kl": apart.kl, "top1": apart.top1, "tokens": float(apart.positions)}
