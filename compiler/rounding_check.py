"""Are the weights of a bundle those of its model, rounded? Asked of some rows of each, however they were rounded."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.formats import format_of
from pocketphi.graph.lazy_weights import Constant, Dequantized, LazyWeight
from pocketphi.targets.base import Check

_ROWS = 16
"""Read from each of three places of a weight."""
_FAR, _GAIN = 0.6, 0.15
"""Four bits, rounded with any recipe, move a row by less than 0.6 of its length, and shrink or stretch a weight by less than
0.15: by 0.1 and 0.02 where they are rounded to nearest. A row of another weight is 1.4 lengths off, an empty one 1."""
_HALF = 2e-3
"""By how much a float weight may differ: a target may keep it as float16."""


def rounding_check(weights: Mapping[str, LazyWeight], source: Checkpoint) -> Check:
    """Three places of each weight of a program are those of the checkpoint, rounded.

    weights: by the names of the checkpoint's tensors; constants are left out
    """
    wrong, rows = [], 0
    for name, weight in weights.items():
        if isinstance(weight, Constant):
            continue
        came, expected = _samples(weight, source, name)
        rows += len(came)
        problem = _off(came, expected, rounded=bool(format_of(weight.parts)))
        if problem:
            wrong.append(f"{name} is {problem}")
    detail = f"first {wrong[0]}" if wrong else f"{rows:,} rows of {len(weights)} weights"
    return Check("weights that are not the model's, rounded", len(wrong), 0, detail)


def same_norms(weights: Mapping[str, LazyWeight], source: Checkpoint) -> bool:
    """Whether the float weights are the checkpoint's: in one whose norms were folded into its matrices they are not."""
    floats = {n: w for n, w in weights.items() if not (isinstance(w, Constant) or format_of(w.parts))}
    return rounding_check(floats, source).ok


def _samples(weight: LazyWeight, source: Checkpoint, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the weight holds, what the checkpoint holds) of the first rows, some in the middle and the last: float32 [R, K]."""
    plain = Dequantized(weight) if format_of(weight.parts) else weight
    count = plain.parts[""].shape[0]
    starts = sorted({0, max(0, count // 2 - _ROWS), max(0, count - _ROWS)})
    places = [(start, min(start + _ROWS, count)) for start in starts]
    came, expected = zip(*((plain.read(a, b)[""], source.read(name, a, b).float()) for a, b in places))
    width = came[0].shape[-1] if came[0].dim() > 1 else 1
    return torch.cat(came).view(-1, width), torch.cat(expected).view(-1, width)


def _off(came: torch.Tensor, expected: torch.Tensor, rounded: bool) -> str:
    """How rows are off, empty if they are not. Rows much smaller than the others may be lost."""
    lengths = expected.norm(dim=1)
    error = float(((came - expected).norm(dim=1) / (lengths + 0.1 * lengths.max() + 1e-30)).max())
    if not error <= (_FAR if rounded else _HALF):
        return f"off by {error:.2g} of a row"
    gain = float((came * expected).sum() / (expected.square().sum() + 1e-30))
    return f"{gain:.2f} times what it should be" if rounded and expected.any() and not abs(gain - 1) <= _GAIN else ""
