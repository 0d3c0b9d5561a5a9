"""Tokens a second of a bundle on this machine: prefill and decode, medians of several rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.hosts import check_draft, check_guesses, open_host, talker_of
from pocketphi.compiler.text import random_tokens
from pocketphi.compiler.ui import Advance, Ui
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.ranges import check_number, check_threads
from pocketphi.graph.resident import forget_peak
from pocketphi.targets.base import Draft, Host, Runner


@dataclass(frozen=True)
class Speed:
    """Medians over rounds; tokens a second; load in seconds; memory: peak resident bytes of the process that runs the model,
    since it was loaded with this number of threads where the system can tell (Linux)."""

    threads: int
    prompt: int
    generated: int
    prefill: float
    decode: float
    load: float
    memory: int


def bench(
    path: Path,
    threads: list[int],
    prompt: int,
    generate: int,
    rounds: int,
    ui: Ui,
    target: str | None = None,
    adapter: str | None = None,
    draft: Draft = "none",
) -> list[Speed]:
    """Measure a bundle, with one of its adapters if that is named, with each number of threads, one after the other: threads
    that wait for work in one runner would take the cores from those of another. draft: `auto` to guess what comes next, in the
    text that a random prompt leads to, or a bundle that guesses as well."""
    for option, value in (("--prompt-tokens", prompt), ("--generate", generate), ("--rounds", rounds)):
        check_number(option, value)
    for count in threads:
        check_threads(count, least=1)
    bundle = Bundle.open(path)
    host = open_host(path, bundle.manifest, target)
    if draft == "auto":
        check_guesses(draft, host, bundle)
    check_draft(draft, host, bundle, target)
    context = bundle.manifest.context(target)
    if prompt + generate > context:
        raise InputError(f"--prompt-tokens {prompt} and --generate {generate}: {path} holds {context} tokens")

    def opened(count: int) -> Runner:
        return talker_of(host, bundle.manifest, adapter, prompt + generate, count, draft)

    tokens = torch.tensor([random_tokens(read_config(path), prompt)])
    with ui.task("bench", (rounds + 1) * len(threads), "rounds") as advance:
        return [_measure(host, opened, tokens, count, generate, rounds, advance) for count in threads]


def _measure(
    host: Host,
    opened: Callable[[int], Runner],
    tokens: torch.Tensor,
    threads: int,
    generate: int,
    rounds: int,
    advance: Advance,
) -> Speed:
    """One runner, which is gone before the next one is made."""
    prompt = tokens.shape[1]
    forget_peak()
    begin = time.perf_counter()
    runner = opened(threads)
    load = time.perf_counter() - begin
    times = []
    for _ in range(rounds + 1):
        times.append(_round(runner, tokens, generate))
        advance(1)
    prefill, decode = (statistics.median(side) for side in zip(*times[1:]))  # the first round warms up
    return Speed(threads, prompt, generate, prompt / prefill, generate / decode, load, host.peak_bytes(runner))


def _round(runner: Runner, tokens: torch.Tensor, generate: int) -> tuple[float, float]:
    """Seconds of prefill and of `generate` decode steps."""
    runner.reset()
    begin = time.perf_counter()
    logits = runner.step(tokens)
    middle = time.perf_counter()
    for _ in range(generate):
        logits = runner.step(logits[:, -1:].argmax(-1))
    return middle - begin, time.perf_counter() - middle
