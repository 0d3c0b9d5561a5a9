"""What each weight of a model costs in each form that it could be stored in: the expected KL divergence of the model's
predictions, in nats a token.

The error of rounding to nearest is taken of the whole weight. That of `search` makes up for itself along what inputs have in
common, so that it is taken of some rows, rounded with the same statistics as a compile would, and compared with rounding to
nearest of the same rows: E H Eᵀ with H the second moment of the inputs, rows by their part in the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from pocketphi.graph.formats import Format
from pocketphi.graph.lazy_weights import materialize
from pocketphi.graph.program import Program
from pocketphi.passes.fisher import Fisher, Measured
from pocketphi.passes.quantizers import Feedback, Quantizer, Statistics, make_quantizer

_ROWS = 64
"""Of a weight that are rounded as a compile would round them."""
_CHUNK = 1 << 22
"""Values that are rounded to nearest at once."""

Costs = dict[str, list[float]]
"""By weight: nats a token for each of its candidates, in their order."""


def sensitivities(
    program: Program,
    tokens: torch.Tensor,
    candidates: Mapping[str, Sequence[Quantizer]],
    samples: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Costs:
    """program: traced, in float; tokens: int64 [B, S]; candidates: of each weight by name. progress: steps done, of how many."""
    fisher = Fisher(program, tokens, samples)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, fisher.steps)

    costs = {name: [0.0] * len(quantizers) for name, quantizers in candidates.items()}
    feedback: dict[str, Feedback] = {}
    for found in fisher.measure(step):
        if found.name not in candidates:
            continue
        w = materialize(program.weights[found.name])[""]
        if found.moment is not None:
            feedback[found.name] = Feedback.of(Statistics(found.moment))
        for i, quantizer in enumerate(candidates[found.name]):
            costs[found.name][i] += _cost(w, found, quantizer, feedback.get(found.name))
    return costs


def _cost(w: torch.Tensor, found: Measured, quantizer: Quantizer, feedback: Feedback | None) -> float:
    """½ Σ F E² of one weight in one form. feedback: of all places that read the weight, the head's."""
    nearest = make_quantizer("rtn", quantizer.format.name, {n: getattr(quantizer, n) for n in quantizer.parameters})
    if found.rows is not None and quantizer.group == 1:
        w, picked = w[found.rows], None
    else:
        picked = found.rows
    whole = _whole(w, found.fisher, nearest, picked)
    if quantizer.recipe == "rtn":
        return whole
    rows = _some_rows(len(w), quantizer.group)
    part = w[rows]
    plain = nearest.quantize(part).dequantize() - part
    better = quantizer.quantize(part, feedback).dequantize() - part
    if found.weighed is None:
        return whole * _ratio(better.square().sum(), plain.square().sum())
    by_row = found.fisher[rows].sum(1)
    return whole * _ratio(_weighed(better, found.weighed, by_row), _weighed(plain, found.weighed, by_row))


def _whole(w: torch.Tensor, fisher: torch.Tensor, nearest: Quantizer, picked: torch.Tensor | None) -> float:
    step = max(1, _CHUNK // w.shape[1] // 64) * 64
    if picked is not None:
        return 0.5 * float((fisher * (nearest.quantize(w).dequantize() - w)[picked].square()).sum())
    total = 0.0
    for start in range(0, len(w), step):
        rows = w[start : start + step]
        made: Format = nearest.quantize(rows)
        total += float((made.dequantize() - rows).square_().mul_(fisher[start : start + step]).sum())
    return 0.5 * total


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
