"""A checkpoint with the norm weights folded into the projections behind them: the same model, other numbers.

W · (g ⊙ x) = (W · diag(g)) · x: the columns of the projections behind a norm (and of an untied head) are scaled by the norm's
weight, which becomes one. Weights that lay on a 4-bit grid are off it afterwards. The model's `Form` says which those are.
"""

from __future__ import annotations

import torch

from pocketphi.graph.channel_scales import norm_before
from pocketphi.graph.checkpoint import Checkpoint, TensorInfo


class FoldedNorms(Checkpoint):
    """Wraps a checkpoint. The norm before a tied head stays: the embedding would have to be scaled with it."""

    def __init__(self, inner: Checkpoint) -> None:
        self._inner = inner
        self.wrap(inner)
        self.tensors = {name: TensorInfo(info.shape, "fp32") for name, info in inner.tensors.items()}
        self._norm_of = {name: norm for name in inner.tensors if (norm := norm_before(self.config, name))}
        self._gain = {norm: inner.read(norm, 0, inner.tensors[norm].rows).float() for norm in self._norm_of.values()}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        if name in self._gain:
            return torch.ones(stop - start)
        rows = self._inner.read(name, start, stop).float()
        return rows * self._gain[self._norm_of[name]] if name in self._norm_of else rows
