"""`search` that knows both sides of a layer: what its inputs look like, and what its outputs are worth to the model.

`search` takes every output of a layer for worth the same, and independent of the others. Here rows are rounded in turn, some of
each block of `Outputs` at a time: before it is rounded, a row is shifted by what the errors of the rows before it ask of it. It
is YAQA's rounding (arXiv:2505.22988, algorithm 1) with groups of rows and whole rows of columns, whose scales `search` chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pocketphi.graph.formats import Blocks
from pocketphi.passes.quantizers.search import LevelSearch, ScaleSearch

if TYPE_CHECKING:
    import torch

    from pocketphi.passes.quantizers.base import Feedback

_TOGETHER = 32
"""Rows of a block that are rounded together. With fewer, each makes up for a little more, and it takes longer."""


class TwoSided(ScaleSearch):
    """See the module."""

    recipe = "two-sided"
    does = "searches scales for the inputs that calibration measures, and weighs outputs by the model's gradients"
    weighs_outputs = True
    version = 2

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Blocks:
        return _by_rows(super().quantize, w, feedback)


class LevelTwoSided(LevelSearch):
    """The same to levels that a format says."""

    recipe = TwoSided.recipe
    does = TwoSided.does
    weighs_outputs = True
    version = TwoSided.version

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Blocks:
        return _by_rows(super().quantize, w, feedback)


def _by_rows(
    search: Callable[[torch.Tensor, Feedback | None], Blocks], w: torch.Tensor, feedback: Feedback | None
) -> Blocks:
    """search: rounds some rows; w: float32 [N, K], all of a weight, where outputs were measured."""
    if feedback is None or feedback.outputs is None:
        return search(w, feedback)
    import torch

    from pocketphi.graph.threads import WORKERS, workers

    alone = replace(feedback, outputs=None)
    tasks = [
        (rows, mixing)
        for blocks in feedback.outputs.blocks
        for rows, mixing in zip(*(one.tensor_split(WORKERS) for one in (blocks.rows, blocks.mixing(_TOGETHER))))
        if len(rows)
    ]
    with workers() as pool:
        found = pool.map(lambda task: _in_turn(lambda part: search(part, alone), w, *task), tasks)
        made = [one for several in found for one in several]
    order = torch.cat([rows for rows, _ in made]).argsort()
    parts = [form.tensors() for _, form in made]
    whole = {name: torch.cat([one[name] for one in parts])[order] for name in parts[0]}
    return type(made[0][1])(**whole)


def _in_turn(
    search: Callable[[torch.Tensor], Blocks], w: torch.Tensor, rows: torch.Tensor, mixing: torch.Tensor
) -> list[tuple[torch.Tensor, Blocks]]:
    """The rows [B, n] of w [N, K], in their order: their numbers, and what they became, part by part."""
    made = []
    missed = w[rows]  # what a row has lost, once it is rounded: [B, n, K]
    for start in range(0, rows.shape[1], _TOGETHER):
        part = slice(start, start + _TOGETHER)
        met = missed[:, part].baddbmm(mixing[:, :start, part].mT, missed[:, :start]).flatten(0, 1)
        form = search(met)
        missed[:, part] -= form.dequantize().view(missed[:, part].shape)
        made.append((rows[:, part].flatten(), form))
    return made
