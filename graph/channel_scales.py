"""A checkpoint in which factors of channels lie elsewhere: the same model, to the bit.

W · (g ⊙ x) = (W · diag(2^k)) · (2^-k ⊙ g ⊙ x): a norm's weight gives off a power of two in each channel to the columns of the
projections behind it. Powers of two change exponents alone, so that every product, and every sum of them, is what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import HEAD, ModelConfig
from pocketphi.graph.formats import Blocks
from pocketphi.graph.kept import Kept
from pocketphi.graph.lazy_weights import LazyWeight

LARGEST = 8
"""Of the exponents: float16, which a target may keep a norm in, has room for them."""

_HALF_STEP = 2.0**-10
"""By how much a norm that was kept as float16 may be off."""

Exponents = Mapping[str, torch.Tensor]
"""By the name of a norm's weight: int32 [channels], whole numbers k."""


def norm_before(config: ModelConfig, name: str) -> str | None:
    """The norm whose output a projection reads, and no other layer."""
    if name == HEAD:
        return "model.norm.weight"
    ends = ((name.removesuffix(tail), norm) for tail, norm in config.form.folds if name.endswith(tail))
    return next((layer + norm for layer, norm in ends), None)


class ChannelScales(Checkpoint):
    """Wraps a checkpoint. The norm before a tied head stays as it is: the embedding would have to change with it."""

    def __init__(self, inner: Checkpoint, exponents: Exponents) -> None:
        """exponents: of some of the norms, at most `LARGEST` in magnitude."""
        self._inner = inner
        self.wrap(inner, "files", "forget_behind")
        self._turns: dict[str, torch.Tensor] = {}
        for name in inner.tensors:
            norm = norm_before(inner.config, name)
            if norm and norm in exponents and bool(exponents[norm].any()):
                self._turns |= {norm: -exponents[norm], name: exponents[norm]}
        self.tensors = {n: replace(i, dtype="fp32") if n in self._turns else i for n, i in inner.tensors.items()}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        rows = self._inner.read(name, start, stop)
        turn = self._turns.get(name)
        if turn is None:
            return rows
        return torch.ldexp(rows.float(), turn[start:stop] if rows.dim() == 1 else turn)

    def given_to(self, name: str) -> torch.Tensor | None:
        """int32 [K]: the exponents that the columns of a matrix took over; None where there are none."""
        return self._turns.get(name)

    def kept(self, name: str) -> Kept | None:
        return None if name in self._turns else self._inner.kept(name)

    def read_kept(self, name: str, start: int, stop: int) -> Blocks:
        return self._inner.read_kept(name, start, stop)


def scaled_alike(source: Checkpoint, weights: Mapping[str, LazyWeight]) -> Checkpoint:
    """The checkpoint with its factors where saved weights have them: what their norms are of the checkpoint's must be a power
    of two in each channel. Norms of which that is not so are left as they are."""
    found = {}
    norms = {norm_before(source.config, name) for name in source.tensors}
    for norm in (name for name in weights if name in norms):
        own = source.read(norm, 0, source.tensors[norm].rows).float()
        ratio = (weights[norm].read(0, len(own))[""].flatten().float() / own).nan_to_num(1.0)
        powers = ratio.clamp(min=2.0**-20).log2().round()
        if bool(((ratio / powers.exp2() - 1).abs() <= _HALF_STEP).all()) and float(powers.abs().max()) <= LARGEST:
            found[norm] = (-powers).int()
    return ChannelScales(source, found)


def not_cancelled(source: Checkpoint, scaled: Checkpoint) -> list[str]:
    """Projections whose columns, times their norm, are not to the bit what they are in `source`."""
    wrong = []
    for name in source.tensors:
        norm = norm_before(source.config, name)
        if norm is None or (name == HEAD and source.config.tied_embeddings):
            continue
        rows = min(16, source.tensors[name].rows)
        was, now = (
            each.read(name, 0, rows).float() * each.read(norm, 0, each.tensors[norm].rows).float()
            for each in (source, scaled)
        )
        if not torch.equal(was, now):
            wrong.append(name)
    return wrong
