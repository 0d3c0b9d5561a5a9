"""Round the columns of a matrix one after the other, each making up for the errors of those before it (GPTQ,
arXiv:2210.17323, eq. 2 and 3, by the Cholesky factor of H⁻¹)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Nearest = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """A column float32 [N, 1] → (its integers, the values that these stand for), both float32 [N, 1]."""

PANEL = 64
"""Columns after which errors reach the rest of the matrix, where a scale or a table serves more than a block."""


def round_in_turn(w: torch.Tensor, upper: torch.Tensor, nearest: Nearest) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a panel of columns.

    w: float32 [N, panel]; upper: [panel, panel], of `Feedback`. Returns the integers uint8 [N, panel], and the errors
    [N, panel] in units of upper's diagonal, for the columns behind the panel.
    """
    import torch

    w = w.clone()
    values, errors = torch.empty_like(w), torch.empty_like(w)
    for k in range(w.shape[1]):
        column = w[:, k : k + 1]
        q, rounded = nearest(column)
        error = (column - rounded) / upper[k, k]
        w[:, k + 1 :] -= error * upper[k, k + 1 :]
        values[:, k : k + 1], errors[:, k : k + 1] = q, error
    return values.to(torch.uint8), errors
