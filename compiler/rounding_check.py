"""Are the weights of a bundle those of its model, rounded? Asked of some rows of each.

Of a weight that was rounded to nearest each value is checked: by how much it may be off follows from the model's own values.
`search` makes up for errors elsewhere, and at two bits moves a row by most of its length. Its rows have to be like the model's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.formats import Affine, Blocks, Format, Levels, Tables, format_of, rows_together
from pocketphi.graph.formats.blocks import row_scales
from pocketphi.graph.lazy_weights import Constant, Dequantized, LazyWeight
from pocketphi.passes.policy import Policy
from pocketphi.targets.base import Check

_ROWS = 16
"""Read from each of three places of a weight."""
_TO_NEAREST = ("rtn", "keep")
"""The recipes that round each value to the nearest that there is."""
_ALIKE = {Blocks: (0.3, 0.6), Tables: (0.15, 0.3)}
"""The least cosine between what is saved and the model's, below four bits and from there on. With a column 30 times as large as
the others, and inputs that differ by factors of 1,000, the worst recipe leaves 0.54 and 0.80, with tables 0.22 and 0.39. Rows
of another weight have 0 ± 1/√K, empty ones 0."""
_GAIN = {Blocks: (0.5, 1.15), Tables: (0.15, 1.15)}
"""By how much a weight may shrink or grow: there it shrinks to 0.66 and 0.21, and grows to 1.03 at most."""
_LONGER = 1.5
"""By how much a single row may grow."""
_HALF = 2e-3
"""By how much a float weight may differ: a target may keep it as float16."""
_HALF_STEP, _SMALLEST_HALF = 2.0**-11, 2.0**-25
"""What rounding to float16 adds to a scale at most: a part of it, or of scales near zero a number."""

_FEW_STEPS = 16
"""Of float16's least distance between two numbers: what rounds to fewer of them is not near what it was."""

Pieces = list[tuple[torch.Tensor, torch.Tensor]]
"""(what a weight holds, what the checkpoint holds) of rows that lie together: float32 [R, K] each."""


def rounding_check(weights: Mapping[str, LazyWeight], source: Checkpoint, policy: Policy | None = None) -> Check:
    """Three places of each weight of a program are those of the checkpoint, rounded.

    weights: by the names of the checkpoint's tensors; constants are left out
    policy: by which these very tensors were rounded; None where the checkpoint may hold other roundings of the same
    """
    wrong, rows = [], 0
    for name, weight in weights.items():
        if isinstance(weight, Constant):
            continue
        pieces = _samples(weight, source, name)
        rows += sum(len(came) for came, _ in pieces)
        quantizer, form = policy.quantizer(name) if policy else None, format_of(weight.parts)
        if form is None:
            problem = _far(pieces)
        else:
            nearest = quantizer is not None and quantizer.recipe in _TO_NEAREST
            problem = (_not_nearest(pieces, weight, form) if nearest else "") or _unlike(pieces, form)
        if problem:
            wrong.append(f"{name} is {_lost(pieces, form) or problem}")
    detail = f"first {wrong[0]}" if wrong else f"{rows:,} rows of {len(weights)} weights"
    return Check("weights that are not the model's, rounded", len(wrong), 0, detail)


def same_norms(weights: Mapping[str, LazyWeight], source: Checkpoint) -> bool:
    """Whether the float weights are the checkpoint's: in one whose norms were folded into its matrices they are not."""
    floats = {n: w for n, w in weights.items() if not (isinstance(w, Constant) or format_of(w.parts))}
    return rounding_check(floats, source).ok


def _samples(weight: LazyWeight, source: Checkpoint, name: str) -> Pieces:
    """The first rows, some in the middle and the last: whole groups of rows that share a table, or a part of one."""
    plain = Dequantized(weight) if format_of(weight.parts) else weight
    count = plain.parts[""].shape[0]
    starts = sorted({0, count // 2 // _ROWS * _ROWS, (count - 1) // _ROWS * _ROWS})
    places = [(start, min(start + _ROWS, count)) for start in starts]
    read = [(plain.read(a, b)[""], source.read(name, a, b).float()) for a, b in places]
    width = plain.parts[""].shape[-1] if len(plain.parts[""].shape) > 1 else 1
    return [(came.view(-1, width), expected.view(-1, width)) for came, expected in read]


def _joined(pieces: Pieces) -> tuple[torch.Tensor, torch.Tensor]:
    came, expected = zip(*pieces)
    return torch.cat(came), torch.cat(expected)


def _lost(pieces: Pieces, form: type[Format] | None) -> str:
    """Why rows cannot be what they should: float16 has too few values near zero for their scales. Empty if it has enough."""
    largest = float(_joined(pieces)[1].abs().max())
    reach = form.reach() if form and issubclass(form, Blocks) else 1
    if not 0 < largest / reach < _FEW_STEPS * 2 * _SMALLEST_HALF:
        return ""
    return f"lost in float16, in which its scales are kept: its values are {largest:.1g} at most"


def _far(pieces: Pieces) -> str:
    """How float rows are off, empty if they are not. Rows much smaller than the others may be lost."""
    came, expected = _joined(pieces)
    lengths = expected.norm(dim=1)
    error = float(((came - expected).norm(dim=1) / (lengths + 0.1 * lengths.max() + 1e-30)).max())
    return "" if error <= _HALF else f"off by {error:.2g} of a row"


def _not_nearest(pieces: Pieces, weight: LazyWeight, form: type[Format]) -> str:
    """How rows that were rounded to nearest are off, empty if they are not."""
    came, expected = _joined(pieces)
    if issubclass(form, Tables):
        group, blocks = min(rows_together(weight.parts), _ROWS), math.prod(weight.parts["lut"].shape[1:-1])
        parts = [part for piece in pieces for part in zip(*(_tiles(rows, group, blocks) for rows in piece))]
        odd = any(not _nearest_entries(*part) for part in parts)
        return "not rounded to the nearest entries of its tables" if odd else ""
    if not issubclass(form, Blocks):
        return ""
    shape, middle = (len(came), weight.parts["scale"].shape[1], -1), form.reach()
    error, value = (came - expected).view(shape).abs(), expected.view(shape)
    largest = value.abs().amax(-1, keepdim=True)
    symmetric = "zero" not in weight.parts and not issubclass(form, Affine)
    if issubclass(form, Levels):
        step = largest / middle
        bound = _to_levels(value, form)
    elif symmetric:  # beyond the last level on one side, up to a step is cut off
        step = largest / middle
        bound = (value.abs() - (middle - 1) * step).maximum(step / 2)
    elif issubclass(form, Affine):
        step = (value.amax(-1, keepdim=True) - value.amin(-1, keepdim=True)) / (2 * middle - 1)
        bound = step / 2
    else:
        step = (value.amax(-1, keepdim=True).relu() + (-value).amax(-1, keepdim=True).relu()) / (2 * middle - 1)
        bound = step / 2
    rounding = _HALF_STEP * step + _SMALLEST_HALF
    if "row_scale" in weight.parts:
        rounding = rounding + row_scales(step.amax(1)).unsqueeze(1) / 2
    slack = 2 * middle * rounding
    if issubclass(form, Affine):
        slack = slack + _rounded_offset(largest + step, "row_offset" in weight.parts)
    if not bool((error <= bound + slack).all()):
        return f"off by {float((error / (step + slack)).nan_to_num(torch.inf).max()):.2g} steps"
    if symmetric:  # the value of largest magnitude has the lowest level to itself
        least = error.masked_fill(value.abs() < largest, torch.inf).amin(-1, keepdim=True)
        if not bool((least <= slack).all()):
            return "off in its largest values"
    return ""


def _rounded_offset(largest: torch.Tensor, by_row: bool) -> torch.Tensor:
    """By how much an offset of such a magnitude may be off: float32 [R, blocks, 1]."""
    half = _HALF_STEP * largest + _SMALLEST_HALF
    return half + row_scales(largest.amax(1)).unsqueeze(1) / 2 if by_row else half


def _to_levels(value: torch.Tensor, form: type[Levels]) -> torch.Tensor:
    """How far values lie from the nearest level, where the extreme of a block is on the lowest: float32 [R, blocks, block]."""
    low, high = value.amin(-1, keepdim=True), value.amax(-1, keepdim=True)
    levels = torch.tensor(form.levels) * (torch.where(high > -low, high, low) / form.levels[0])
    return (levels.unsqueeze(-2) - value.unsqueeze(-1)).abs().amin(-1)


def _tiles(rows: torch.Tensor, group: int, blocks: int) -> list[torch.Tensor]:
    """Rows [R, K] in parts that share a table: of `group` rows and of one of so many blocks of columns."""
    return [part for some in rows.split(group) for part in some.chunk(blocks, 1)]


def _nearest_entries(came: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether each value is the nearest of those that these rows, which share a table, have: float32 [R, K] each."""
    entries = came.unique()
    best = entries[torch.searchsorted((entries[1:] + entries[:-1]) / 2, expected.contiguous())]
    tie = 1e-6 * expected.abs().max()
    return bool(((came - expected).abs() <= (best - expected).abs() + tie).all())


def _unlike(pieces: Pieces, form: type[Format]) -> str:
    """How rows are unlike the model's, empty if they are not. Rows much smaller than the others may be lost; those that share a
    table count together, since any of them may."""
    kind = Tables if issubclass(form, Tables) else Blocks
    rows = pieces if kind is Tables else [row for piece in pieces for row in zip(*piece)]
    products, lengths, whole = torch.tensor(
        [(float((c * e).sum()), float(e.norm()), float(c.norm())) for c, e in rows]
    ).T
    counts = lengths + 0.1 * lengths.max() + 1e-30
    cosines = products / (lengths * whole).clamp(min=1e-30)
    odd = (1 - cosines) * lengths / counts
    if not float(odd.max()) <= 1 - _ALIKE[kind][form.bits >= 4]:
        return f"unlike it: the cosine of a row is {float(cosines[odd.argmax()]):.2g}"
    if not bool((whole <= _LONGER * counts).all()):
        return f"{float((whole / counts).max()):.2g} times as long in a row"
    gain, (low, high) = float(products.sum() / (lengths.square().sum() + 1e-30)), _GAIN[kind]
    return f"{gain:.2f} times what it should be" if lengths.any() and not low <= gain <= high else ""
