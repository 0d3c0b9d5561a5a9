"""What an error in each output of a layer costs the model, together with errors in others.

For a layer y = W x, let g be the gradients of what the model predicts with respect to y, and H = E[g gᵀ]. Errors E of the rows
of W then cost the model's predictions about trace(Eᵀ H E · E[x xᵀ]): the Kronecker-factored Fisher information (K-FAC,
arXiv:1503.05671), which YAQA (arXiv:2505.22988) rounds with. A text tells H of many rows badly, and a factor of it takes their
cube: only rows of one block count together, those with large gradients with others of such.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_BLOCK = 1024
"""Rows that count together, at most."""
_DAMPING = 1.0
"""Part of H's mean diagonal that is added to it: with a tenth of it, 4,096 tokens made the sample worse on other text."""
_MOST = 0.5
"""Of the mean of |g|², what a token counts for at most: less than without by a tenth to a quarter on other text."""
_TINY = 1e-30


@dataclass(frozen=True)
class RowBlocks:
    """Blocks of as many rows each.

    rows:   int64 [B, n], their numbers, those with the largest gradients first
    factor: bfloat16 [B, n, n], upper triangular, with H + damping = factor · factorᵀ
    """

    rows: torch.Tensor
    factor: torch.Tensor

    def mixing(self, together: int) -> torch.Tensor:
        """How errors of rows are made up for by those behind them, which are rounded `together` at a time: float32 [B, n, n].

        Errors E of a block cost Σ over those parts of |D (E_part + Σ over the rows i before of mixing[i, part] E_i)|², so that
        each part can make up for all before it.
        """
        import torch

        mixing = self.factor.float()
        for start in range(0, mixing.shape[1], together):
            part = slice(start, min(start + together, mixing.shape[1]))
            own = mixing[:, part, part].clone()
            mixing[:, :start, part] = torch.linalg.solve_triangular(
                own, mixing[:, :start, part], upper=True, left=False
            )
        return mixing


@dataclass(frozen=True)
class Outputs:
    """blocks: of all rows of a weight, each in one of them."""

    blocks: tuple[RowBlocks, ...]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that was measured, by name."""
        return {f"outputs.{i}.{name}": one for i, made in enumerate(self.blocks) for name, one in vars(made).items()}

    @staticmethod
    def of(gradients: torch.Tensor) -> Outputs:
        """gradients: [T, N], of each token that was drawn; overwritten."""
        import torch

        _clip(gradients)
        energy = torch.stack([part.float().square().sum(0) for part in gradients.split(512)]).sum(0)
        added = _DAMPING * float(energy.mean()) + _TINY
        order = energy.argsort(descending=True, stable=True)
        made = []
        for rows in _alike(order.tensor_split(-(-len(order) // _BLOCK))):
            factors = [_factor(gradients[:, one].float(), added) for one in rows]
            made.append(RowBlocks(rows, torch.stack(factors)))
        return Outputs(tuple(made))


def _clip(gradients: torch.Tensor) -> None:
    """Give no token more than a part of the mean of |g|²: the first ones of a text may have half of all, which say nothing of
    another text."""
    import torch

    energy = torch.cat([part.float().square().sum(1) for part in gradients.split(512)])
    least = (_MOST * energy.mean() / energy.clamp(min=_TINY)).clamp(max=1).sqrt()
    gradients.mul_(least[:, None].to(gradients.dtype))


def _alike(parts: tuple[torch.Tensor, ...]) -> Iterator[torch.Tensor]:
    """Those of each length together: at most two lengths, [B, n]."""
    import torch

    for length in dict.fromkeys(map(len, parts)):
        yield torch.stack([part for part in parts if len(part) == length])


def _factor(gradients: torch.Tensor, added: float) -> torch.Tensor:
    """The upper factor of E[g gᵀ] + added: that of the rows in reverse, in reverse, is a lower one."""
    import torch

    moment = gradients.T @ gradients
    moment.diagonal().add_(added)
    return torch.linalg.cholesky(moment.flip(0, 1)).flip(0, 1).bfloat16()
