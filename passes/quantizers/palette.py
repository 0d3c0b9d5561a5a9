"""4-bit palettes: a table of 16 values for every few rows, found by weighted k-means; indices instead of multiples of a scale.

For one table the values are one-dimensional, where k-means needs no distances: clusters are intervals, and with cumulative
sums over a histogram a step of Lloyd's algorithm (IEEE Trans. Inf. Theory 28(2), 1982) costs as much as there are clusters.
The first clusters hold equal parts of the cube root of the density, which is the best choice where the density is smooth
(P. F. Panter, W. Dite, Proc. IRE 39(1), 1951).

With statistics of the inputs a value counts as much as an error in its column costs, and the error of each column is made up
for by those behind it, as in `search`. Without, a value counts √(1 + (w / σ)²): the least squared error alone would give
nearly all entries to the many small values, and the few large ones are what a model misses (on the sample, KL 3.5 nats a token
with plain k-means, 2.1 so).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Layout, Palette, Tables
from pocketphi.graph.packing import half_precision
from pocketphi.passes.choices import GROUPS, TABLE_BLOCKS
from pocketphi.passes.quantizers.base import Feedback, Parameter, Quantizer, check_block
from pocketphi.passes.quantizers.in_turn import round_in_turn

if TYPE_CHECKING:
    import torch

    from pocketphi.graph.kept import Kept
    from pocketphi.passes.quantizers.in_turn import Nearest

_BINS = 1024
_STEPS = 24
"""Of Lloyd's algorithm; more change nothing in the third digit of the error."""


class KMeans(Quantizer):
    """See the module."""

    recipe = "rtn"
    format: ClassVar[type[Tables]] = Palette
    does = "rounds to nearest"
    version = 2
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "group": Parameter(GROUPS, 16),
        "block": Parameter((0, *TABLE_BLOCKS), 0),
    }

    def __init__(self, group: int, block: int = 0) -> None:
        super().__init__(block)
        self.group = group

    def check(self, name: str, rows: int, columns: int) -> None:
        if columns * self.format.bits % 8:
            raise InputError(f"{name}: K={columns}: a row of {self.format.bits}-bit indices has to end with a byte")
        if rows % self.group:
            fitting = ", ".join(str(g) for g in GROUPS if rows % g == 0)
            raise InputError(f"{name}: N={rows} is not a multiple of --palette {self.group}; choose one of {fitting}")
        if self.block:
            check_block(name, columns, self.block)

    def layout(self, shape: tuple[int, ...], stored: Kept | None = None) -> Layout:
        return self.format.layout(shape, self.group, self.block)

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Tables:
        import torch

        columns = w.shape[1]
        block, entries = self.block or columns, self.format.entries()
        lut = torch.empty(w.shape[0] // self.group, columns // block, entries)
        if feedback is None:
            by_table = w.view(-1, self.group, columns // block, block).transpose(1, 2)
            flat = by_table.reshape(-1, self.group * block)
            lut.view(-1, entries).copy_(tables(flat, None, entries))
            index = nearest(flat, lut.view(-1, entries)).view(by_table.shape).transpose(1, 2)
        else:
            met_blocks = iter(feedback.order.split(block))
            cost = feedback.cost

            def levels(met: torch.Tensor) -> Nearest:
                these = next(met_blocks)
                groups = met.T.reshape(-1, self.group * block)
                found = tables(groups, cost[these].repeat(self.group), entries)
                lut[:, int(these[0]) // block] = found
                return _to_entries(found.repeat_interleave(self.group, 0))

            index = round_in_turn(w, feedback, block, levels)
        return self.format.pack(index.reshape(-1, self.group, columns), lut if block < columns else lut[:, 0])

    def describe(self) -> str:
        columns = f" and {self.block} columns" if self.block else ""
        return f"int{self.format.bits} palette {self.recipe}, a table for {self.group} rows{columns}"


class WeightedKMeans(KMeans):
    """The same where calibration has measured the inputs."""

    recipe = "search"
    does = "searches tables for the inputs that calibration measures"
    calibrates = True
    version = 5


def tables(w: torch.Tensor, cost: torch.Tensor | None = None, entries: int = 16) -> torch.Tensor:
    """The values for each row of w that leave the least Σ cost · (w - value)²: float32 [G, M] → [G, entries], ascending.

    cost: float32 [M]; if None, see the module. A row that is not finite gives a table that is not.
    """
    import torch

    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    width = ((high - low) / _BINS).clamp(min=torch.finfo(torch.float32).tiny)
    bins = w.sub(low).div_(width).long().clamp_(0, _BINS - 1)
    weight = torch.ones(()) if cost is None else cost
    mass = torch.zeros(w.shape[0], _BINS).scatter_add_(1, bins, weight.expand_as(w)).double()
    values = low + width * (torch.arange(_BINS) + 0.5)
    if cost is None:
        variance = w.square().mean(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        mass *= (1 + values.square() / variance).sqrt()
    moment = mass * values
    below = [torch.nn.functional.pad(total.cumsum(1), (1, 0)) for total in (mass, moment)]
    density = mass.pow(1 / 3).cumsum(1)
    parts = torch.arange(1, entries) / entries
    edges = (torch.searchsorted(density, density[:, -1:] * parts) + 1).clamp_(max=_BINS)
    centres = low + (high - low) * (torch.arange(entries) + 0.5) / entries
    for _ in range(_STEPS):
        centres = _means(below, edges, centres)
        middles = (centres[:, 1:] + centres[:, :-1]) / 2
        edges = ((middles - low) / width).round_().long().clamp_(0, _BINS)
    found = half_precision(_means(below, edges, centres))
    return torch.where(torch.isfinite(high - low), found, torch.nan)


def _means(below: list[torch.Tensor], edges: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """The mean of each cluster, and for an empty one what it was. edges: int64 [G, entries - 1], bins between clusters."""
    import torch

    ends = torch.nn.functional.pad(edges, (1, 0)), torch.nn.functional.pad(edges, (0, 1), value=_BINS)
    mass, moment = (total.gather(1, ends[1]) - total.gather(1, ends[0]) for total in below)
    return torch.where(mass > 0, moment / mass, before.double()).float().sort(1).values


def nearest(w: torch.Tensor, lut: torch.Tensor) -> torch.Tensor:
    """Which entry of its row's table each value is nearest to: float32 [G, M], [G, entries] → uint8 [G, M]."""
    import torch

    index = torch.zeros(w.shape, dtype=torch.uint8)
    for middle in ((lut[:, 1:] + lut[:, :-1]) / 2).unbind(1):  # a search for each value takes ten times as long
        index += w > middle[:, None]
    return index


def _to_entries(lut: torch.Tensor) -> Nearest:
    """Round each row of a column to an entry of its table, lut [N, entries]."""
    middles = (lut[:, 1:] + lut[:, :-1]) / 2

    def to_entry(column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        index = (column[:, None] > middles).sum(1)
        return index, lut.gather(1, index[:, None])[:, 0]

    return to_entry
