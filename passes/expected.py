"""What rounding a weight is expected to cost, by what rounding it to nearest costs. Without torch: a report reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pocketphi.graph.config import EMBEDDING, HEAD
from pocketphi.graph.errors import InputError
from pocketphi.passes.quantizers import Quantizer, make_quantizer

_OF_SEARCH = {"search": 1.0, "two-sided": 0.93}
"""By recipe, of what `search` leaves: measured with int4 in blocks of 64."""
_LEFT = 0.34
_LEFT_BY_FORMAT = {
    ("nl4", 16): 0.26,
    ("nl4", 32): 0.28,
    **{("int2", block): 0.47 for block in (16, 32, 64)},
    **{("affine4", block): left for block, left in ((16, 0.20), (32, 0.20), (64, 0.20), (128, 0.26))},
    **{("palette", block): left for block, left in ((0, 0.42), (32, 0.32), (64, 0.32))},
    **{("palette3", block): left for block, left in ((0, 0.37), (32, 0.29), (64, 0.28))},
}
"""What `search` leaves of the cost of rounding to nearest, by format and block where that differs. On the sample, with all
weights in one format, it left 0.36, 0.34 and 0.33 (int4 in blocks of 64, 32 and 16), 0.33, 0.28 and 0.26 (nl4), 0.33 (int5,
64), 0.32 (int6, 64), 0.34 (nl3, 32) and 0.47 (int2, 16). Of affine4 it left six tenths of what it left of int4, in blocks of 32
and of 64; in large blocks offsets are worth little: in blocks of 256 the squared error is that of int4. Of
palettes, on five layers, it left 1.13 to 1.38 times what it left of int4 in 4 bits, and 1.05 times in 3; with tables of tiles
0.90, and 0.78 to 0.84."""
_LEFT_OF_HEAD = 0.32
"""The same of the matrix that the logits come from, in any format. Of the sample's, it left 0.32, 0.28 and 0.38 (int4 in blocks
of 64, of 64 with zero points, and of 32), 0.32 and 0.27 (affine4, 64 and 32), 0.29 (nl4, 32, and a palette)."""

NEVER, _MOST = 1e30, 1e25
"""A cost that no choice is worth, where it is no number; and what every other is below."""

Costs = dict[str, list[float]]
"""By weight: nats a token for each of its candidates, in their order."""


def costs_of(candidates: Mapping[str, Sequence[Quantizer]], nearest_costs: Mapping[str, Mapping[str, float]]) -> Costs:
    """By weight, what each candidate costs. nearest_costs: of rounding to nearest, by the words for it.

    Raises KeyError where a form is not among them, and InputError where no form can hold a weight.
    """
    return {
        name: _comparable(name, [left_of(one, name) * nearest_costs[name][nearest(one).describe()] for one in made])
        for name, made in candidates.items()
    }


def _comparable(name: str, costs: Sequence[float]) -> list[float]:
    """A form that cannot hold the weight is chosen last. Raises InputError where all are so."""
    if not any(cost < _MOST for cost in costs):
        raise InputError(
            f"{name}: what rounding it costs is no finite number: it, its inputs or the logits are too large; choose --block 32"
        )
    return [cost if cost < _MOST else NEVER for cost in costs]


def left_of(quantizer: Quantizer, name: str) -> float:
    """Of the cost of rounding a weight to nearest; all of it of a recipe that nothing is known about."""
    if quantizer.recipe not in _OF_SEARCH:
        return 1.0
    of_layers = _LEFT_BY_FORMAT.get((quantizer.format.name, quantizer.block), _LEFT)
    return _OF_SEARCH[quantizer.recipe] * (_LEFT_OF_HEAD if name in (EMBEDDING, HEAD) else of_layers)


def nearest(quantizer: Quantizer) -> Quantizer:
    """The one that rounds to nearest in the same form."""
    return make_quantizer("rtn", quantizer.format.name, {n: getattr(quantizer, n) for n in quantizer.parameters})
