"""What each weight of a model costs in each form that it could be stored in: the expected KL divergence of the model's
predictions, in nats a token.

It is ½ Σ F E² for the error E of rounding to nearest; some rows of a weight, picked by their part in the cost, stand for all.
`search` rounds better, and its errors make up for each other along what inputs have in common. What it leaves of the cost is
taken to be the same for every weight. Measuring it for each, by E H Eᵀ with H = E[x xᵀ] of other text, made the choice
worse: on the sample at 5.6 bits KL was 0.055 nats a token, and 0.037 with one factor for all. Both were
measured when F was of the first window of the text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from pocketphi.graph.lazy_weights import LazyWeight, materialize
from pocketphi.passes.backward import Reached
from pocketphi.passes.expected import Costs, left_of, nearest
from pocketphi.passes.fisher import Fisher
from pocketphi.passes.quantizers import Quantizer

_ROWS = 128
"""Of a weight that are rounded."""


def sensitivities(
    fisher: Fisher,
    weights: Mapping[str, LazyWeight],
    candidates: Mapping[str, Sequence[Quantizer]],
    progress: Callable[[], None] = lambda: None,
    begun: tuple[Reached, Costs] | None = None,
    keep: Callable[[Reached, Costs], None] = lambda reached, costs: None,
) -> Costs:
    """weights: of the program that is measured, by name; candidates: of each weight; progress: called `fisher.steps` times;
    begun: what `keep` was given by a measurement that was stopped, which goes on from there to the same costs."""
    reached, costs = begun or (None, {name: [0.0] * len(quantizers) for name, quantizers in candidates.items()})
    for found in fisher.measure(progress, reached, lambda now: keep(now, costs)):
        if found.name not in candidates:
            continue
        w = materialize(weights[found.name])[""]
        w = w if found.rows is None else w[found.rows]
        total = float(found.sums.sum())
        of_groups = {
            group: _picked(found.sums, group, _ROWS) for group in {one.group for one in candidates[found.name]}
        }
        picked = {group: (w[rows], found.fisher(rows), mass) for group, (rows, mass) in of_groups.items()}
        for i, quantizer in enumerate(candidates[found.name]):
            cost = _nearest_cost(*picked[quantizer.group], nearest(quantizer))
            costs[found.name][i] += left_of(quantizer, found.name) * total * cost
        del found, w, picked  # as large as the weight: the next part of the model is run without them
    return costs


def _nearest_cost(rows: torch.Tensor, fisher: torch.Tensor, mass: torch.Tensor, nearest: Quantizer) -> float:
    """½ Σ F E² of a weight that is rounded to nearest, as a part of Σ F.

    rows, fisher: some rows of it and their F; mass: the sum of F over each group of these rows
    """
    error = nearest.quantize(rows).dequantize().sub_(rows).square_().mul_(fisher)
    return 0.5 * float((error.view(len(mass), -1).sum(1) / mass).mean())


def _picked(sums: torch.Tensor, group: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of about `count` rows in whole groups, each group as often as its part of the sum of F says (systematic sampling
    with probability proportional to size), and that part of each group. Of fewer rows than a group, as an embedding's are of a
    text with few different tokens, each is taken several times. sums: Σ F of each row"""
    read = len(sums)
    if read < group:
        sums = sums[torch.arange(group) % read]
    groups = len(sums) // group
    mass = sums[: groups * group].double().view(groups, group).sum(1)
    if not mass.sum() > 0:
        mass = torch.ones_like(mass)
    ends, points = mass.cumsum(0), (torch.arange(max(1, count // group)) + 0.5) / max(1, count // group)
    picked = torch.searchsorted(ends, points * ends[-1]).clamp_(max=groups - 1)
    return (picked[:, None] * group + torch.arange(group)).flatten() % read, mass[picked].float()
