"""Tokens a second of a bundle on this machine: prefill and decode, medians of several rounds in turn."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.hosts import context_of, open_host
from pocketphi.compiler.text import random_tokens
from pocketphi.compiler.ui import Ui
from pocketphi.graph.config import read_config
from pocketphi.graph.errors import InputError
from pocketphi.targets.base import Runner


@dataclass(frozen=True)
class Speed:
    """Medians over rounds; tokens a second; load in seconds; memory: peak resident bytes so far of
    the process that runs the model."""

    threads: int
    prompt: int
    generated: int
    prefill: float
    decode: float
    load: float
    memory: int


def bench(
    path: Path, threads: list[int], prompt: int, generate: int, rounds: int, ui: Ui, target: str | None = None
) -> list[Speed]:
    """Measure a bundle with each number of threads; rounds alternate between them, so that all meet the same machine."""
    bundle = Bundle.open(path)
    host = open_host(path, bundle.manifest, target)
    context = context_of(bundle.manifest, target)
    if prompt + generate > context:
        raise InputError(f"--prompt-tokens {prompt} and --generate {generate}: {path} holds {context} tokens")
    tokens = torch.tensor([random_tokens(read_config(path), prompt)])
    runners: dict[int, Runner] = {}
    loads = {}
    for count in threads:
        begin = time.perf_counter()
        runners[count] = host.runner(prompt + generate, threads=count)
        loads[count] = time.perf_counter() - begin
    times: dict[int, list[tuple[float, float]]] = {count: [] for count in threads}
    with ui.task("bench", (rounds + 1) * len(threads), "rounds") as advance:
        for _ in range(rounds + 1):
            for count in threads:
                times[count].append(_round(runners[count], tokens, generate))
                advance(1)
    speeds = []
    for count in threads:
        prefill, decode = (statistics.median(side) for side in zip(*times[count][1:]))  # the first round warms up
        memory = host.peak_bytes(runners[count])
        speeds.append(Speed(count, prompt, generate, prompt / prefill, generate / decode, loads[count], memory))
    return speeds


def _round(runner: Runner, tokens: torch.Tensor, generate: int) -> tuple[float, float]:
    """Seconds of prefill and of `generate` decode steps."""
    runner.reset()
    begin = time.perf_counter()
    logits = runner.step(tokens)
    middle = time.perf_counter()
    for _ in range(generate):
        logits = runner.step(logits[:, -1:].argmax(-1))
    return middle - begin, time.perf_counter() - middle
