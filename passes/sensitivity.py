"""What each weight of a model costs in each form that it could be stored in: the expected KL divergence of the model's
predictions, in nats a token.

The error of rounding to nearest is taken of the whole weight. That of `search` makes up for itself along what inputs have in
common, so that ½ Σ F E² would not do: some rows are rounded as a compile would round them, and compared with rounding to
nearest of the same rows by E H Eᵀ, with H the second moment of other inputs. What is left of the cost is taken to be the same
for all block sizes of a width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pocketphi.graph.lazy_weights import LazyWeight, materialize
from pocketphi.graph.threads import one_thread
from pocketphi.passes.choices import GROUPS
from pocketphi.passes.fisher import Fisher, Measured
from pocketphi.passes.quantizers import Feedback, Quantizer, Statistics, make_quantizer

_ROWS = 32
"""Of a weight that are rounded as a compile would round them."""
_MOST_GROUP = max(GROUPS)
_CHUNK = 1 << 22
"""Values that are rounded to nearest at once."""

Costs = dict[str, list[float]]
"""By weight: nats a token for each of its candidates, in their order."""


def sensitivities(
    fisher: Fisher,
    weights: Mapping[str, LazyWeight],
    candidates: Mapping[str, Sequence[Quantizer]],
    progress: Callable[[], None] = lambda: None,
) -> Costs:
    """weights: of the program that is measured, by name; candidates: of each weight; progress: called `fisher.steps` times."""
    costs = {name: [0.0] * len(quantizers) for name, quantizers in candidates.items()}
    feedback: dict[str, Feedback] = {}
    for found in fisher.measure(progress):
        if found.name not in candidates:
            continue
        w = materialize(weights[found.name])[""]
        if found.moment is not None:
            feedback[found.name] = Feedback.of(Statistics(found.moment))
        gains: dict[tuple[Any, ...], float] = {}
        for i, quantizer in enumerate(candidates[found.name]):
            alike = [one for one in candidates[found.name] if _kind(one) == _kind(quantizer)]
            if _kind(quantizer) not in gains:
                gains[_kind(quantizer)] = _gain(w, found, alike[len(alike) // 2], feedback.get(found.name))
            costs[found.name][i] += gains[_kind(quantizer)] * _nearest_cost(w, found, _nearest(quantizer))
    return costs


def _kind(quantizer: Quantizer) -> tuple[Any, ...]:
    """Quantizers that differ in nothing but the size of blocks or groups gain alike."""
    return quantizer.format.name, quantizer.recipe, quantizer.symmetric


def _nearest(quantizer: Quantizer) -> Quantizer:
    """The one that rounds to nearest in the same form."""
    return make_quantizer("rtn", quantizer.format.name, {n: getattr(quantizer, n) for n in quantizer.parameters})


def _nearest_cost(w: torch.Tensor, found: Measured, nearest: Quantizer) -> float:
    """½ Σ F E² of a weight that is rounded to nearest."""
    if found.rows is not None:
        rows = found.rows
        if nearest.group == 1:
            w, rows = w[rows], torch.arange(len(rows))
        return 0.5 * float((found.fisher * (nearest.quantize(w).dequantize() - w)[rows].square()).sum())
    step = max(1, _CHUNK // w.shape[1] // _MOST_GROUP) * _MOST_GROUP
    total = 0.0
    for start in range(0, len(w), step):
        part = w[start : start + step]
        error = nearest.quantize(part).dequantize() - part
        total += float(error.square_().mul_(found.fisher[start : start + step]).sum())
    return 0.5 * total


def _gain(w: torch.Tensor, found: Measured, quantizer: Quantizer, feedback: Feedback | None) -> float:
    """What is left of the cost of rounding to nearest. feedback: of all places that read the weight, the head's."""
    if quantizer.recipe == "rtn":
        return 1.0
    part = w[_some_rows(len(w), quantizer.group)]
    with one_thread():
        plain, better = (
            made.dequantize() - part
            for made in (_nearest(quantizer).quantize(part), quantizer.quantize(part, feedback))
        )
    if found.weighed is None:
        return _ratio(better.square().sum(), plain.square().sum())
    by_row = found.fisher[_some_rows(len(w), quantizer.group)].sum(1)
    return _ratio(_weighed(better, found.weighed, by_row), _weighed(plain, found.weighed, by_row))


def _some_rows(count: int, group: int) -> torch.Tensor:
    """Numbers of about `_ROWS` rows, all over the weight, in whole groups."""
    groups = count // group
    taken = min(groups, max(1, _ROWS // group))
    first = torch.arange(taken) * groups // taken * group
    return (first[:, None] + torch.arange(group)).flatten()


def _weighed(error: torch.Tensor, moment: torch.Tensor, by_row: torch.Tensor) -> torch.Tensor:
    return ((error @ moment * error).sum(1) * by_row).sum()


def _ratio(better: torch.Tensor, plain: torch.Tensor) -> float:
    return float(better / plain) if plain > 0 else 1.0
