"""What each weight of a model costs in each form that it could be stored in: the expected KL divergence of the model's
predictions, in nats a token.

Some rows of a weight stand for all, picked by their part in the cost. For rounding to nearest it is ½ Σ F E². The errors of
`search` make up for each other along what inputs have in common, so that this would not do: rows are rounded as a compile
would round them, and compared with rounding to nearest of the same rows by E H Eᵀ, with H the second moment of other inputs.
What is left of the cost is taken to be the same for all block sizes of a width, and is measured on a few layers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pocketphi.graph.lazy_weights import LazyWeight, materialize
from pocketphi.graph.threads import one_thread
from pocketphi.passes.fisher import Fisher, Measured
from pocketphi.passes.quantizers import Feedback, Quantizer, Statistics, make_quantizer

_ROWS, _SEARCHED = 128, 32
"""Of a weight that are rounded to nearest, and those of them that are rounded as a compile would round them."""

_LAYERS = 4
"""Whose weights are searched; the others are taken to gain as much."""

Costs = dict[str, list[float]]
"""By weight: nats a token for each of its candidates, in their order."""


def sensitivities(
    fisher: Fisher,
    weights: Mapping[str, LazyWeight],
    candidates: Mapping[str, Sequence[Quantizer]],
    progress: Callable[[], None] = lambda: None,
) -> Costs:
    """weights: of the program that is measured, by name; candidates: of each weight; progress: called `fisher.steps` times."""
    plain = {name: [0.0] * len(quantizers) for name, quantizers in candidates.items()}
    searched = _searched(candidates)
    gains: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    feedback: dict[str, Feedback] = {}
    for found in fisher.measure(progress):
        if found.name not in candidates:
            continue
        w = materialize(weights[found.name])[""]
        w = w if found.rows is None else w[found.rows]
        for i, quantizer in enumerate(candidates[found.name]):
            plain[found.name][i] += _nearest_cost(w, found, _nearest(quantizer))
        if found.name in searched:
            if found.moment is not None:
                feedback[found.name] = Feedback.of(Statistics(found.moment))
            for kind, alike in _by_kind(candidates[found.name]).items():
                gained = _gain(w, found, alike[len(alike) // 2], feedback.get(found.name))
                gains[_alike(found.name), kind].append(gained)
    mean = {key: sum(each) / len(each) for key, each in gains.items()}
    return {
        name: [mean[_alike(name), _kind(one)] * cost for one, cost in zip(candidates[name], plain[name], strict=True)]
        for name in candidates
    }


def _alike(name: str) -> str:
    """The name without its layer's number: weights of one place in the layers."""
    return re.sub(r"\.[0-9]+\.", ".*.", name)


def _searched(candidates: Mapping[str, Any]) -> set[str]:
    """The weights on which the gain of `search` is measured: of each place some, from the first layer to the last."""
    places: dict[str, list[str]] = defaultdict(list)
    for name in candidates:
        places[_alike(name)].append(name)
    return {
        names[i * (len(names) - 1) // max(1, _LAYERS - 1)]
        for names in places.values()
        for i in range(_LAYERS if len(names) > 1 else 1)
    }


def _by_kind(quantizers: Sequence[Quantizer]) -> dict[tuple[Any, ...], list[Quantizer]]:
    found: dict[tuple[Any, ...], list[Quantizer]] = defaultdict(list)
    for one in quantizers:
        found[_kind(one)].append(one)
    return found


def _kind(quantizer: Quantizer) -> tuple[Any, ...]:
    """Quantizers that differ in nothing but the size of blocks or groups gain alike."""
    return quantizer.format.name, quantizer.recipe, quantizer.symmetric


def _nearest(quantizer: Quantizer) -> Quantizer:
    """The one that rounds to nearest in the same form."""
    return make_quantizer("rtn", quantizer.format.name, {n: getattr(quantizer, n) for n in quantizer.parameters})


def _nearest_cost(w: torch.Tensor, found: Measured, nearest: Quantizer) -> float:
    """½ Σ F E² of a weight that is rounded to nearest, from some rows of it."""
    rows, mass = _picked(found.fisher, nearest.group, _ROWS)
    part = w[rows]
    error = nearest.quantize(part).dequantize().sub_(part).square_().mul_(found.fisher[rows])
    each = error.view(len(mass), -1).sum(1) / mass
    return 0.5 * float(each.mean() * found.fisher.sum())


def _gain(w: torch.Tensor, found: Measured, quantizer: Quantizer, feedback: Feedback | None) -> float:
    """What is left of the cost of rounding to nearest. feedback: of all places that read the weight, the head's."""
    if quantizer.recipe == "rtn":
        return 1.0
    rows, _ = _picked(found.fisher, quantizer.group, _SEARCHED)
    part = w[rows]
    with one_thread():
        plain = _nearest(quantizer).quantize(part).dequantize() - part
        better = quantizer.quantize(part, feedback).dequantize() - part
    if found.weighed is None:
        return _ratio(better.square().sum(), plain.square().sum())
    return _ratio((better @ found.weighed * better).sum(), (plain @ found.weighed * plain).sum())


def _picked(fisher: torch.Tensor, group: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of about `count` rows in whole groups, each group as often as its part of the sum of F says (systematic sampling
    with probability proportional to size), and that part of each group."""
    groups = len(fisher) // group
    mass = fisher[: groups * group].sum(1).view(groups, group).sum(1).double()
    if not mass.sum() > 0:
        mass = torch.ones_like(mass)
    ends, points = mass.cumsum(0), (torch.arange(max(1, count // group)) + 0.5) / max(1, count // group)
    picked = torch.searchsorted(ends, points * ends[-1]).clamp_(max=groups - 1)
    return (picked[:, None] * group + torch.arange(group)).flatten(), mass[picked].float()


def _ratio(better: torch.Tensor, plain: torch.Tensor) -> float:
    return float(better / plain) if plain > 0 else 1.0
