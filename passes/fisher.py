"""How much the prediction of a model depends on each value of each weight, measured on a text.

Let E be an error of a weight W. To second order the KL divergence between the predictions with and without it is, summed over
the tokens of a text, ½ · E[⟨G, E⟩²] with G the gradient of Σ log p(y) with respect to W, where every token y is drawn from the
model's own prediction at its position (Fisher information; S. Amari, Neural Computation 10(2), 1998). Tokens are drawn
independently, so that products of different positions' gradients vanish. Where the errors of different values are
uncorrelated, as those of rounding are, ⟨G, E⟩² is Σ G²E² in the mean, and

    KL ≈ ½ · Σ F · E²  nats a token,  with F = E[G²] / tokens  [N, K].

Of the head the mean is known in closed form: F = E[p (1 - p) h²] with h its inputs.

`Backward` says how it is measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pocketphi.graph.config import ModelConfig, layer_of
from pocketphi.graph.program import Program
from pocketphi.passes.backward import EXACT, Backward

aten = torch.ops.aten

_SPREAD = 1.2
"""What the system holds back of values that are freed, as a factor."""
_GRADIENTS = 75_000_000
"""Bytes that torch takes at the first use of gradients."""


@dataclass
class Measured:
    """What was measured of a weight [N, K] in one of its places.

    fisher:  F, float32 [N, K], or [R, K] where only some rows were read
    rows:    int64 [R], those rows; None for all
    """

    name: str
    fisher: torch.Tensor
    rows: torch.Tensor | None = None


class Fisher(Backward[Measured]):
    """F of every weight in every place that reads it, from the head back to the embedding."""

    def __init__(self, program: Program, tokens: torch.Tensor, samples: int = 2, seed: int = 0) -> None:
        super().__init__(program, tokens, samples, seed)
        self._sums: dict[str, Measured] = {}

    def _head(self, name: str, x: torch.Tensor, p: torch.Tensor) -> None:
        self._sum(name, p.shape[1], x).fisher.addmm_((p - p * p).T, x.square())

    def _layer(self, name: str, x: torch.Tensor, g: torch.Tensor) -> None:
        self._sum(name, g.shape[1], x).fisher.add_((g.T @ x).square_(), alpha=1 / self._samples)

    def _measured(self) -> Iterator[Measured]:
        while self._sums:  # each weight's sums go with it
            _, found = self._sums.popitem()
            found.fisher.div_(self._tokens.numel())
            yield found

    def _sum(self, name: str, rows: int, x: torch.Tensor) -> Measured:
        if name not in self._sums:
            self._sums[name] = Measured(name, torch.zeros(rows, x.shape[1]))
        return self._sums[name]

    def _embedding(self, gradients: Sequence[Sequence[Sequence[torch.Tensor]]]) -> Iterator[Measured]:
        node: Any = next(n for n in self._program.graph.nodes if n.target is aten.embedding.default)
        rows, places = self._tokens.unique(return_inverse=True)
        fisher = torch.zeros(len(rows), self._program.config.hidden_size)
        for window, samples in enumerate(gradients):
            for (gradient,) in samples:
                fisher += torch.zeros_like(fisher).index_add_(0, places[window], gradient[0]).square_()
        yield Measured(str(node.args[0].target), fisher.div_(self._samples * self._tokens.numel()), rows)


def working_bytes(config: ModelConfig, tokens: int, window: int, samples: int = 2, sums: bool = True) -> int:
    """What `Fisher` takes at most, beside the program: the states between layers, and the larger of the head and a layer, each
    with its weights, their sums, and what one window leaves for the way back. sums: without them, for False."""
    hidden, heads = config.hidden_size, config.heads * config.head_dim
    layers: Counter[int | None] = Counter()
    for name, shape in config.tensors().items():
        layers[layer_of(name)] += math.prod(shape)
    largest = max(math.prod(shape) for name, shape in config.tensors().items() if layer_of(name) is not None)
    kept = 14 * hidden + 3 * config.qkv_size + 5 * heads + 8 * config.intermediate_size + 3 * config.heads * window
    held = 2 if sums else 1
    layer = held * max(count for name, count in layers.items() if name is not None) + largest + window * kept
    head = held * config.vocab_size * hidden + (5 + samples) * window * config.vocab_size
    between, states = 2 * samples * tokens * hidden, (config.layers + 1) * tokens * hidden
    width = 4 if 4 * states <= EXACT else 2
    return _GRADIENTS + int(_SPREAD * (4 * (max(layer, head) + between) + width * states))
