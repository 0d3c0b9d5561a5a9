"""How far two models are apart, and how good one is: KL divergence, perplexity, agreement."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_ROWS = 64  # positions compared at once: their float64 probabilities stay small


@dataclass
class Distance:
    """Sums over positions of how far logits are from expected ones."""

    positions: int = 0
    kl_sum: float = 0.0
    agree: int = 0
    largest: float = 0.0

    def add(self, expected: torch.Tensor, came: torch.Tensor) -> None:
        """expected, came: float32 [N, V]."""
        for start in range(0, expected.shape[0], _ROWS):
            p = expected[start : start + _ROWS].double().log_softmax(-1)
            q = came[start : start + _ROWS].double().log_softmax(-1)
            self.kl_sum += float((p.exp() * (p - q)).sum())
            self.agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        self.largest = max(self.largest, float((expected - came).abs().max()))
        self.positions += expected.shape[0]

    @property
    def kl(self) -> float:
        """Mean of KL(expected ‖ came) in nats a token (Kullback and Leibler 1951)."""
        return self.kl_sum / max(self.positions, 1)

    @property
    def top1(self) -> float:
        """Fraction of positions with the same most likely token."""
        return self.agree / max(self.positions, 1)


@dataclass
class Likelihood:
    """Sums the negative log-likelihood of a text."""

    tokens: int = 0
    nll: float = 0.0

    def add(self, logits: torch.Tensor, tokens: torch.Tensor) -> None:
        """logits float32 [S, V] of a window, tokens int64 [S]: position i predicts token i + 1."""
        for start in range(0, logits.shape[0] - 1, _ROWS):
            rows = logits[start : min(start + _ROWS, logits.shape[0] - 1)].double().log_softmax(-1)
            self.nll -= float(rows.gather(1, tokens[start + 1 : start + 1 + rows.shape[0], None]).sum())
        self.tokens += logits.shape[0] - 1

    @property
    def perplexity(self) -> float:
        return float(torch.tensor(self.nll / max(self.tokens, 1)).exp())


def distance(expected: torch.Tensor, came: torch.Tensor) -> Distance:
    """Of logits [N, V]."""
    made = Distance()
    made.add(expected, came)
    return made
