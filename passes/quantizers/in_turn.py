"""Round the columns of a matrix one after the other, each making up for the errors of those before it (LDLQ,
arXiv:2307.13304, eq. 2: what GPTQ, arXiv:2210.17323, does, without an inverse of H)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pocketphi.passes.quantizers.base import Feedback

    Nearest = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """A column float32 [N] → (its integers, the values that these stand for), both float32 [N]."""
    Levels = Callable[[torch.Tensor], Nearest]
    """The columns of a block as they are met, float32 [block, N] → how each of them is rounded."""

_TOGETHER = 16
"""Columns whose errors reach each other one by one: the others are reached by products of matrices."""


def round_in_turn(w: torch.Tensor, feedback: Feedback, block: int, levels: Levels) -> torch.Tensor:
    """The integers for w, uint8 [N, K].

    w: float32 [N, K]; levels: called once for each block of columns, when all columns before it are rounded
    """
    import torch

    met = w.T.contiguous()  # a column is a row here, so that its values lie side by side
    missed = met.clone()  # what a column has lost, once it is rounded
    values = torch.empty(met.shape, dtype=torch.uint8)
    mixing = feedback.mixing
    nearest = levels(met[:block])

    def few(start: int, stop: int) -> None:
        nonlocal nearest
        for k in range(start, stop):
            if k and k % block == 0:
                nearest = levels(met[k : k + block])
            values[k], rounded = nearest(met[k])
            missed[k] -= rounded
            met[k + 1 : stop].addr_(mixing[k, k + 1 : stop], missed[k])

    def turn(start: int, stop: int) -> None:
        """Halves of halves: most errors reach most columns in large products. No block lies on both sides of a middle."""
        unit = block if stop - start > block else 1
        if stop - start <= _TOGETHER:
            return few(start, stop)
        middle = start + (stop - start) // unit // 2 * unit
        turn(start, middle)
        met[middle:stop].addmm_(mixing[start:middle, middle:stop].T, missed[start:middle])
        turn(middle, stop)

    turn(0, len(met))
    return values.T.contiguous()
