"""Conversations over real kernels that are kept in a file and go on."""

from __future__ import annotations

from pathlib import Path

import torch

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.hosts import open_host
from pocketphi.targets.base import Keeps


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
