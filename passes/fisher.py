"""How much the prediction of a model depends on each value of each weight, measured on a text.

Let E be an error of a weight W. To second order the KL divergence between the predictions with and without it is, summed over
the tokens of a text, ½ · E[⟨G, E⟩²] with G the gradient of Σ log p(y) with respect to W, where every token y is drawn from the
model's own prediction at its position (Fisher information; S. Amari, Neural Computation 10(2), 1998). Tokens are drawn
independently, so that products of different positions' gradients vanish. Where the errors of different values are
uncorrelated, as those of rounding are, ⟨G, E⟩² is Σ G²E² in the mean, and

    KL ≈ ½ · Σ F · E²  nats a token,  with F = E[G²] / tokens  [N, K].

Of the head the mean is known in closed form: F = E[p (1 - p) h²] with h its inputs.

`Backward` says how the gradients are found. Of each row of a weight its sum Σ F is measured, and F itself of the rows that
somebody asks for: with x [S, K] the inputs of a window and g [S, N] the gradients of the outputs, G = gᵀx, so that the sum of
row n is Σ_k G² = gₙᵀ (x xᵀ) gₙ. That takes S² (K + N) products, in place of S · N · K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pocketphi.graph.config import ModelConfig, layer_of
from pocketphi.graph.program import Program
from pocketphi.passes import backward
from pocketphi.passes.backward import Backward

aten = torch.ops.aten


@dataclass(frozen=True)
class Measured:
    """What was measured of a weight [N, K] in one of its places.

    sums:    Σ F of each row, float32 [N], or [R] where only some rows were read
    fisher:  F of some of these, by their numbers: int64 [M] → float32 [M, K]
    rows:    int64 [R], the rows that were read; None for all
    """

    name: str
    sums: torch.Tensor
    fisher: Callable[[torch.Tensor], torch.Tensor]
    rows: torch.Tensor | None = None


class Fisher(Backward[Measured]):
    """F of every weight in every place that reads it, from the head back to the embedding."""

    def __init__(self, program: Program, tokens: torch.Tensor, samples: int = 2, seed: int = 0) -> None:
        super().__init__(program, tokens, samples, seed)
        self._met: dict[str, _OfHead | _OfLayer] = {}

    def _head(self, name: str, x: torch.Tensor, p: torch.Tensor) -> None:
        self._met.setdefault(name, _OfHead()).add(x, p)

    def _layer(self, name: str, x: torch.Tensor, g: torch.Tensor) -> None:
        self._met.setdefault(name, _OfLayer()).add(x, g)

    def _measured(self) -> Iterator[Measured]:
        while self._met:  # what is kept of each weight goes with it
            name, one = self._met.popitem()
            yield self._mean(name, one.sums, one.fisher, 1 if isinstance(one, _OfHead) else self._samples)

    def _embedding(self, gradients: Sequence[Sequence[Sequence[torch.Tensor]]]) -> Iterator[Measured]:
        node: Any = next(n for n in self._program.graph.nodes if n.target is aten.embedding.default)
        rows, places = self._tokens.unique(return_inverse=True)
        found = torch.zeros(len(rows), self._program.config.hidden_size)
        for window, samples in enumerate(gradients):
            for (gradient,) in samples:
                found += torch.zeros_like(found).index_add_(0, places[window], gradient[0]).square_()
        yield self._mean(str(node.args[0].target), found.sum(1), found.__getitem__, self._samples, rows)

    def _mean(
        self,
        name: str,
        sums: torch.Tensor,
        fisher: Callable[[torch.Tensor], torch.Tensor],
        samples: int,
        rows: torch.Tensor | None = None,
    ) -> Measured:
        count = samples * self._tokens.numel()
        return Measured(name, sums / count, lambda picked: fisher(picked) / count, rows)


class _OfLayer:
    """What the windows have left of a linear layer, over all of them and their samples. sums: of G² over each row."""

    def __init__(self) -> None:
        self.sums = torch.zeros(())
        self._windows: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
        self._alike = torch.zeros(())

    def add(self, x: torch.Tensor, g: torch.Tensor) -> None:
        """x: float32 [S, K], the same tensor for all samples of a window; g: float32 [S, N]"""
        if not self._windows or self._windows[-1][0] is not x:
            self._windows.append((x, []))
            self._alike = x @ x.T
        self._windows[-1][1].append(g.bfloat16())
        self.sums = self.sums + (self._alike @ g).mul_(g).sum(0).clamp_(min=0)

    def fisher(self, rows: torch.Tensor) -> torch.Tensor:
        """Of G² the sum."""
        found = torch.zeros(len(rows), self._windows[0][0].shape[1])
        for x, samples in self._windows:
            for g in samples:
                found += (g[:, rows].float().T @ x).square_()
        return found


class _OfHead:
    """The same of the head, in closed form: Σ p (1 - p) h² over all positions."""

    def __init__(self) -> None:
        self.sums = torch.zeros(())
        self._windows: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, x: torch.Tensor, p: torch.Tensor) -> None:
        """x: float32 [S, K]; p: float32 [S, V]"""
        spread, squares = (p - p * p), x.square()
        self.sums = self.sums + squares.sum(1) @ spread
        self._windows.append((squares, spread.bfloat16()))

    def fisher(self, rows: torch.Tensor) -> torch.Tensor:
        return sum((spread[:, rows].float().T @ squares for squares, spread in self._windows), torch.zeros(()))


def working_bytes(config: ModelConfig, tokens: int, window: int, samples: int = 2) -> int:
    """What `Fisher` takes at most, beside the program: its way back, and what all windows leave of the head, or of a layer."""
    layer = [shape for name, shape in config.matrices().items() if layer_of(name) == 0]
    of_layer = sum(2 * samples * rows + 4 * columns for rows, columns in layer)
    of_head = 2 * config.vocab_size + 4 * config.hidden_size
    return backward.working_bytes(config, tokens, window, samples) + tokens * max(of_layer, of_head)
