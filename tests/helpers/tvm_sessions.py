"""Conversations over real kernels that are kept in a file and go on, and that another bundle guesses for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.hosts import open_host
from pocketphi.targets.base import Keeps
from pocketphi.targets.tvm_arm.host import TvmHost
from pocketphi.targets.tvm_arm.process import RuntimeProcess


def check_goes_on(folder: Path, path: Path, tokens: int, more: int = 5) -> None:
    """A bundle's text of so many tokens goes on with the same bits in a process that read its file."""
    host = open_host(folder, Bundle.open(folder).manifest)
    text = torch.randint(64, (1, tokens + more), generator=torch.Generator().manual_seed(3))

    def rest(runner: Keeps) -> list[torch.Tensor]:
        return [runner.step(text[:, i : i + 1]) for i in range(tokens, tokens + more)]

    first, second = (host.talker(tokens + more, threads=1) for _ in range(2))
    assert isinstance(first, Keeps)
    assert isinstance(second, Keeps)
    first.step(text[:, :tokens])
    first.save(path, "said")
    expected = rest(first)
    assert second.load(path) == "said"
    assert all(torch.equal(a, b) for a, b in zip(expected, rest(second), strict=True))


def greedy(process: RuntimeProcess, prompt: list[int], count: int) -> tuple[list[np.ndarray], int]:
    """Logits behind a prompt and behind each of `count` tokens, and the calls for these."""
    process.reset()
    logits = [process.prefill(prompt).copy()]
    begin = process.calls
    for _ in range(count):
        logits.append(process.decode(int(logits[-1].argmax())).copy())
    return logits, process.calls - begin


def check_guesses_for_itself(folder: Path, tokens: int) -> None:
    """A bundle as its own draft model is right with every token, as long as its cache holds what it should: behind a text of so
    many tokens, another that begins as this one does, and the first one again."""
    host = open_host(folder, Bundle.open(folder).manifest)
    assert isinstance(host, TvmHost)
    text = torch.randint(64, (tokens,), generator=torch.Generator().manual_seed(3)).tolist()
    options = {"max_tokens": tokens + 17, "threads": 1}
    with (
        RuntimeProcess(host._command(), folder, **options) as plain,
        RuntimeProcess(host._command(), folder, draft="always", **options) as guessing,
    ):
        guessing.draft(folder)
        for prompt in (text, [*text[:10], 5], text):
            (wanted, calls), (got, fewer) = (greedy(one, prompt, 16) for one in (plain, guessing))
            assert all(np.array_equal(a, b) for a, b in zip(wanted, got, strict=True))
            assert (calls, fewer) == (16, 2)
