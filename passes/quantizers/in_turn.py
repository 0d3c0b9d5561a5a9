"""Round the columns of a matrix one after the other, each making up for the errors of those before it (LDLQ,
arXiv:2307.13304, eq. 2: what GPTQ, arXiv:2210.17323, does, without an inverse of H)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

    w: float32 [N, K]; levels: called once for each block of columns in `feedback.order`, when all columns before it are rounded
    """
    import torch

    met = w.T[feedback.order]  # a column is a row here, so that its values lie side by side
    missed = met.clone()  # what a column has lost, once it is rounded
    values, places = torch.empty(met.shape, dtype=torch.uint8), feedback.order.tolist()
    mixing = feedback.mixing
    nearest = levels(met[:block])

    for start, middle, stop in _schedule(0, len(met), block):
        if middle < stop:
            met[middle:stop].addmm_(mixing[start:middle, middle:stop].T, missed[start:middle])
            continue
        for k in range(start, stop):
            if k and k % block == 0:
                nearest = levels(met[k : k + block])
            values[places[k]], rounded = nearest(met[k])
            missed[k] -= rounded
            met[k + 1 : stop].addr_(mixing[k, k + 1 : stop], missed[k])
    return values.T.contiguous()


def _schedule(start: int, stop: int, block: int) -> Iterator[tuple[int, int, int]]:
    """Halves of halves, so that most errors reach most columns in large products; no block lies on both sides of a middle.

    (start, stop, stop): these columns are rounded; (start, middle, stop): what those before the middle lose reaches the others.
    """
    if stop - start <= _TOGETHER:
        yield start, stop, stop
        return
    unit = block if stop - start > block else 1
    middle = start + (stop - start) // unit // 2 * unit
    yield from _schedule(start, middle, block)
    yield start, middle, stop
    yield from _schedule(middle, stop, block)
