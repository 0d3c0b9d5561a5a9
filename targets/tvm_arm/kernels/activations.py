"""How a product's rounded activations lie in memory: as its instructions load them, for several rows at once where they can."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from pocketphi.targets.tvm_arm.kernels.dots import Dots
from pocketphi.targets.tvm_arm.kernels.emit import Expr, broadcast, load, memory, shuffle


@dataclass(frozen=True)
class Layout:
    """rows: of all activations, whole tiles; steps: of each; tile: rows whose steps lie together, where `dots` has patches."""

    dots: Dots
    rows: Expr
    steps: int
    tile: int

    @property
    def together(self) -> int:
        return self.tile if self.dots.patch[0] > 1 else 1


class Values:
    """int8 [rows, columns], as [tiles, steps, tile's rows / p, step / q, p · copies, q] for patches of p rows × q columns.

    Example: with patches of 4 × 4, the first 16 bytes are columns 0 … 3 of row 0, then of rows 1, 2 and 3.
    """

    def __init__(self, layout: Layout, step: int) -> None:
        self._patch, self._copies = layout.dots.patch, layout.dots.copies
        self._tile, self._steps, self._step = layout.together, layout.steps, step
        self._buffer = memory((layout.rows * self._copies * layout.steps * step,), "int8")

    def store(self, row: Expr, t: Expr, column: int, values: Expr, lanes: int) -> None:
        """Some columns of a step of a row."""
        for copy in range(self._copies):
            at = self._index(row // self._tile, row % self._tile, t, column, copy)
            T.buffer_store(self._buffer, values, [tirx.Ramp(at, 1, lanes)])

    def step(self, first_row: Expr, t: Expr) -> Expr:
        """Where a step of the tile that begins with `first_row` lies: int64."""
        return self._index(first_row // self._tile, 0, t, 0)

    def load(self, step: Expr, row: int, column: int, count: int) -> Expr:
        """`count` values in the order of patches, from `row` of the tile whose `step` this is."""
        within = self._index(row, 0, 0, column) if self._tile == 1 else self._index(0, row, 0, column)
        return load(self._buffer, [step + within], count)

    def _index(self, tile: Expr, row: Expr, t: Expr, column: int, copy: int = 0) -> Expr:
        rows, columns = self._patch
        height, line = rows * self._copies, self._copies * self._step
        step = (tile * self._steps + t) * (self._tile * line) + (row // rows) * (rows * line)
        return (
            step
            + (column // columns) * (height * columns)
            + (row % rows * self._copies + copy) * columns
            + column % columns
        )


class PerStep:
    """A number for each row and step, as [tiles, steps, tile's rows]. Where sums are `paired`, rows 0 1 0 1 2 3 2 3 …: in the
    order of their lanes."""

    def __init__(self, layout: Layout, dtype: str) -> None:
        dots = layout.dots
        self._lanes, self._paired, self._patch, self._tile = dots.lanes, dots.paired, dots.patch[0], layout.together
        self._width, self._steps = self._tile * (2 if self._paired else 1), layout.steps
        self._buffer = memory((layout.rows // self._tile * (layout.steps * self._width),), dtype)

    def store(self, row: Expr, t: Expr, value: Expr) -> None:
        within = row % self._tile
        at = within // 2 * 4 + within % 2 if self._paired else within
        for copy in (0, 2) if self._paired else (0,):
            T.buffer_store(self._buffer, value, [self.step(row, t) + at + copy])

    def step(self, first_row: Expr, t: Expr) -> Expr:
        """Where a step of the tile with `first_row` lies: int64."""
        return (first_row // self._tile * self._steps + t) * self._width

    def load(self, step: Expr, row: int) -> Expr:
        """The vector that goes with vector `row` of the sums of the tile whose `step` this is."""
        if self._tile == 1:
            return broadcast(load(self._buffer, [step + row * self._steps], 1), self._lanes)
        if self._paired:
            return load(self._buffer, [step + row // 2 * 4], 4)
        if self._lanes > self._patch:  # as one load, which repeats it
            return broadcast(load(self._buffer, [step + row], 1), self._lanes)
        several = load(self._buffer, [step + row // self._patch * self._patch], self._patch)
        return shuffle([several], [row % self._patch] * self._lanes)
