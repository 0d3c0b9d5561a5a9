"""`search` that knows both sides of a layer: what its inputs look like, and what its outputs are worth to the model.

`search` takes every output of a layer for worth the same, and independent of the others. Here rows are rounded in turn, some of
each block of `Outputs` at a time: before it is rounded, a row is shifted by what the errors of the rows before it ask of it. It
is YAQA's rounding (arXiv:2505.22988, algorithm 1) with groups of rows and whole rows of columns, whose scales `search` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pocketphi.graph.formats import Affine, Affine4, Blocks, Levels, specs
from pocketphi.passes.quantizers.affine import AffineSearch
from pocketphi.passes.quantizers.base import WORTH_A_PROCESS, BlockQuantizer
from pocketphi.passes.quantizers.search import LevelSearch, ScaleSearch

if TYPE_CHECKING:
    import torch

    from pocketphi.passes.quantizers.base import Feedback

_TOGETHER = 128
"""Rows of a block that are rounded together. With a quarter of it, and twice the gradients, the sample was closer on one
of two texts, in nearly twice the time."""


class TwoSided(ScaleSearch):
    """See the module."""

    recipe = "two-sided"
    does = "searches scales for the inputs that calibration measures, and weighs outputs by the model's gradients"
    weighs_outputs = True
    version = 3

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Blocks:
        return _by_rows(self, super().quantize, w, feedback)


class LevelTwoSided(TwoSided, LevelSearch):
    """The same to levels that a format says."""

    format: ClassVar[type[Levels]]


class AffineTwoSided(TwoSided, AffineSearch):
    """The same with an offset for each block."""

    format: ClassVar[type[Affine]] = Affine4


def _by_rows(
    quantizer: BlockQuantizer,
    search: Callable[[torch.Tensor, Feedback | None], Blocks],
    w: torch.Tensor,
    feedback: Feedback | None,
) -> Blocks:
    """search: rounds some rows, as the quantizer stores them; w: float32 [N, K], all of a weight where outputs were measured"""
    if feedback is None or feedback.outputs is None:
        return search(w, feedback)
    from pocketphi.graph.processes import in_workers, shared
    from pocketphi.graph.threads import WORKERS

    alone = replace(feedback, outputs=None)
    tasks = {
        f"{number}.{part}": (rows, mixing)
        for number, blocks in enumerate(feedback.outputs.blocks)
        for part, (rows, mixing) in enumerate(
            zip(*(one.tensor_split(WORKERS) for one in (blocks.rows, blocks.mixing(_TOGETHER))))
        )
        if len(rows)
    }
    made = shared(specs(quantizer.layout(tuple(w.shape))))

    def work(item: str, progress: Callable[[int], None]) -> None:
        for rows, form in _in_turn(lambda part: search(part, alone), w, *tasks[item]):
            for name, tensor in form.tensors().items():
                made[name][rows] = tensor

    in_workers(list(tasks), work, long=w.numel() >= WORTH_A_PROCESS)
    return quantizer.format(**made)


def _in_turn(
    search: Callable[[torch.Tensor], Blocks], w: torch.Tensor, rows: torch.Tensor, mixing: torch.Tensor
) -> Iterator[tuple[torch.Tensor, Blocks]]:
    """The rows [B, n] of w [N, K], in their order: their numbers, and what they became, part by part."""
    missed = w[rows]  # what a row has lost, once it is rounded: [B, n, K]
    for start in range(0, rows.shape[1], _TOGETHER):
        part = slice(start, start + _TOGETHER)
        met = missed[:, part].baddbmm(mixing[:, :start, part].mT, missed[:, :start]).flatten(0, 1)
        form = search(met)
        missed[:, part] -= form.dequantize().view(missed[:, part].shape)
        yield rows[:, part].flatten(), form
