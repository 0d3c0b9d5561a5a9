"""x · Wᵀ with quantized weights: activations rounded to int8 step by step, or kept in float32 for verification.

One function quantizes the rows of x once (int8, one scale for `step` values) and then goes through W, a unit of rows after
the other, in parallel. While a unit's weights are in registers they meet `tile_rows` rows of activations, so that a long
prompt pays once for unpacking; decode is the same loop with one row.

    y[m, n] = row_scale[n] · Σ_blocks scale[n, b] · (Σ_steps s[m, t] · (Σ q·a - zero · Σ a)) + offset[n, b] · Σ x

Rounding x to s·a, s = max|x| / 127 over a step, changes it by at most s/2: the bound of docs/architecture.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels import emit
from pocketphi.targets.tvm_arm.kernels.activations import Layout, PerStep, Values
from pocketphi.targets.tvm_arm.kernels.chunks import Chunks
from pocketphi.targets.tvm_arm.kernels.dots import dots_of
from pocketphi.targets.tvm_arm.kernels.emit import Expr, Register, broadcast, floats, ints, load, load_float, vector

KERNELS = 4
"""Of the templates, raised when a loop changes so much that schedules tuned for it are no longer the best. They stay right."""

_EXACT_ROWS = 8
"""Of a tile at most, where activations are float32."""

_LINE = 64
"""Bytes of a cache line."""


@dataclass(frozen=True)
class Schedule:
    """What tuning may change. units: groups of rows that a loop body works on, to hide latency; rows: of activations in a
    tile (1 for decode); prefetch: bytes ahead of the weights, 0 for none; unroll: steps of columns in a loop body."""

    units: int = 1
    rows: int = 1
    prefetch: int = 0
    unroll: int = 1


def decode_schedule(isa: Isa) -> Schedule:
    return Schedule(units=isa.decode_units, unroll=isa.decode_unroll)


def prefill_schedule(isa: Isa) -> Schedule:
    return Schedule(units=isa.tile_units, rows=isa.tile_rows)


@dataclass(frozen=True)
class Form:
    """What a kernel is made for: the matrix, its parts beyond q and scale, how exact, for one row or many."""

    matrix: Interleaved
    zero: bool = False
    offset: bool = False
    exact: bool = False
    single: bool = False

    @property
    def key(self) -> str:
        """What a tuning database calls it."""
        m = self.matrix
        kind = "decode" if self.single else "prefill"
        return f"{kind} {m.rows}x{m.columns} block {m.block} {'+'.join(self.parts)}{' exact' if self.exact else ''}"

    @property
    def parts(self) -> tuple[str, ...]:
        more = (("zero", self.zero), ("offset", self.offset), ("row_scale", self.matrix.by_row))
        return (self.matrix.values, "scale", *(part for part, there in more if there))


def fitted(schedule: Schedule, form: Form) -> Schedule:
    """The schedule with the parts that do not divide a matrix made less. Exact sums have no integers, but twice the floats."""
    matrix = form.matrix
    units = schedule.units if matrix.groups % schedule.units == 0 else 1
    steps = matrix.columns // matrix.step
    unroll = next(count for count in range(schedule.unroll, 0, -1) if steps % count == 0)
    rows = 1 if form.single else min(schedule.rows, _EXACT_ROWS) if form.exact else schedule.rows
    return replace(schedule, units=units, unroll=unroll, rows=rows)


def matmul(name: str, isa: Isa, form: Form, schedule: Schedule) -> tirx.PrimFunc:
    """A function (x float32 [M, K], q, scale, zero?, offset?, row_scale?, y float32 [M, N]); M is 1 where `form.single`."""
    with emit.function(name) as builder:
        Body(isa, form, fitted(schedule, form)).emit()
    return builder.get()


def weight_argument(part: str, matrix: Interleaved) -> Any:
    """Declare a stored part of a matrix as an argument."""
    spec = matrix.spec(part)
    return emit.argument(part, (math.prod(spec.shape),), spec.type_name)


@dataclass(frozen=True)
class _Step:
    """One step of one unit: where it is, and the unit's scales, zero points and offsets in the order of vectors of sums."""

    t: Expr
    first_row: Expr
    weights: Chunks
    scale: list[Expr]
    zero: list[Expr] | None
    offset: list[Expr] | None


class Body:
    """The statements of one function."""

    def __init__(self, isa: Isa, form: Form, schedule: Schedule) -> None:
        self.isa, self.form, self.schedule = isa, form, schedule
        tile = not (form.single or form.exact) and schedule.rows % isa.together == 0
        self.matrix, self.dots = form.matrix, dots_of(isa, tile)
        self.m: Expr = 1 if form.single else T.int64()
        self._declare()
        self.lanes, self.step = isa.lanes, form.matrix.step
        self.steps = form.matrix.columns // self.step
        self.factor = 1 << form.matrix.shift  # by which weights are larger when they are multiplied
        self.subtracts = form.zero or not form.matrix.signed  # a multiple of Σ a is taken off each sum

    def _declare(self) -> None:
        """The arguments."""
        self.x = emit.argument("x", (self.m, self.matrix.columns))
        self.held = {part: weight_argument(part, self.matrix) for part in self.form.parts}
        self.y = emit.argument("y", (self.m, self.matrix.rows))

    def emit(self) -> None:
        rows = self.schedule.rows
        tiles = 1 if self.form.single else (self.m + (rows - 1)) // rows
        padded = 1 if self.form.single else tiles * rows
        group = self.dots.patch[0]
        used = padded if group == 1 else (self.m + (group - 1)) // group * group
        self._activations(padded, used, T.serial if self.form.single else T.parallel)
        with T.parallel(0, self.matrix.groups // self.schedule.units) as panel:
            if self.form.single:
                self._tile(panel, 0)
            else:
                with T.serial(0, tiles) as tile:
                    self._tile(panel, tile * rows)

    # activations

    def _activations(self, rows: Expr, used: Expr, loop: Any) -> None:
        """Prepare activations. rows: places for them, whole tiles; used: how many of them hold some."""
        layout = Layout(self.dots, rows, self.steps, self.schedule.rows)
        if not self.form.exact:
            self.values = Values(layout, self.step)
            self.scales = PerStep(layout, "float32")
            if self.subtracts:
                self.minus = PerStep(layout, "int32")
        if self.form.offset:
            self.sums = PerStep(layout, "float32")
        if not self.form.exact or self.form.offset:
            with loop(0, used) as row:
                self._prepare(row)

    def _source(self, row: Expr) -> Expr:
        """The row of x that is prepared as `row`. Rows beyond the last are those of the last again: never stored."""
        return 0 if self.form.single else tirx.Min(row, self.m - 1)

    def _prepare(self, row: Expr) -> None:
        """Quantize one row of x, or only sum its steps."""
        source = self._source(row)
        with T.serial(0, self.steps) as t:
            loads = [
                Register(vector("float32", self.lanes), load(self.x, [source, t * self.step + start], self.lanes)).value
                for start in range(0, self.step, self.lanes)
            ]
            if self.form.offset:
                total = loads[0]
                for value in loads[1:]:
                    total = total + value
                self.sums.store(row, t, emit.total(total, self.lanes))
            if not self.form.exact:
                self._round(row, t, loads)

    def _round(self, row: Expr, t: Expr, loads: list[Expr]) -> None:
        largest = emit.absolute(loads[0], self.lanes)
        for value in loads[1:]:
            largest = emit.maximum(largest, emit.absolute(value, self.lanes), self.lanes)
        peak = Register("float32", emit.largest(largest, self.lanes)).value
        unit = 1 / 127 / self.factor
        self.scales.store(row, t, peak * tirx.FloatImm("float32", unit))
        inverse = tirx.Select(
            peak > tirx.FloatImm("float32", 0), tirx.FloatImm("float32", 127) / peak, tirx.FloatImm("float32", 0)
        )
        factor = Register("float32", inverse).value
        total = None
        for number, value in enumerate(loads):
            near = emit.nearest(value * broadcast(factor, self.lanes), self.lanes)
            whole = Register(vector("int32", self.lanes), T.cast(near, vector("int32", self.lanes))).value
            total = whole if total is None else total + whole
            narrow = T.cast(whole, vector("int8", self.lanes))
            self.values.store(row, t, number * self.lanes, narrow, self.lanes)
        if self.subtracts:
            times = self.factor if self.form.zero else self.matrix.middle
            self.minus.store(row, t, emit.total(total, self.lanes) * tirx.IntImm("int32", -times))

    # products

    def _tile(self, panel: Expr, first_row: Expr) -> None:
        """A tile of rows with one group of rows out of each of `units` equal parts of the matrix: as panels go on, every part
        is one long stream from memory. Neighbouring groups would be streams of a few pages, which cost a fifth of the speed."""
        lanes, units, rows = self.lanes, self.schedule.units, self.schedule.rows
        groups = self._groups(panel, first_row)
        sums = [[Register(vector("float32", lanes), floats(0.0, lanes)) for _ in range(rows)] for _ in range(units)]
        present = self._present(first_row)
        if present is not None and self.dots.whole:
            with T.If(self._rows_there(first_row) == rows):
                with T.Then():
                    self._add_steps(groups, first_row, None, sums)
                with T.Else():
                    self._add_steps(groups, first_row, present, sums)
        else:
            self._add_steps(groups, first_row, present, sums)
        for group, totals in zip(groups, sums):
            for row, total in enumerate(self.dots.by_row([total.value for total in totals])):
                with emit.where(self._is_there(first_row, row)):
                    self._store(group, self._place(first_row, row), total)

    def _add_steps(self, groups: list[Expr], first_row: Expr, present: Expr | None, sums: list[list[Register]]) -> None:
        """Add all steps of some groups of rows to the tile's sums."""
        with T.serial(0, self.steps // self.schedule.unroll) as turn:
            for t in (turn * self.schedule.unroll + i for i in range(self.schedule.unroll)):
                for group, totals in zip(groups, sums):
                    self._unit(group, t, first_row, present, totals)

    def _groups(self, panel: Expr, first_row: Expr) -> list[Expr]:
        """The groups of rows of a panel. first_row: of the tile."""
        panels = self.matrix.groups // self.schedule.units
        return [unit * panels + panel for unit in range(self.schedule.units)]

    def _rows_there(self, first_row: Expr) -> Expr:
        """How many rows of a tile are there: int64."""
        return tirx.Min(self.m - first_row, tirx.IntImm("int64", self.schedule.rows))

    def _is_there(self, first_row: Expr, row: int) -> Expr | None:
        """Whether a row of a tile is; None where all of them always are."""
        return None if self.form.single else first_row + row < self.m

    def _place(self, first_row: Expr, row: int) -> Expr:
        """The row of y for a row of a tile."""
        return 0 if self.form.single else first_row + row

    def _present(self, first_row: Expr) -> Expr | None:
        """Bit r says that row r of the tile is there: int32. None where rows are not looked at in groups."""
        if self.dots.patch[0] == 1:
            return None
        rows = self._rows_there(first_row)
        return Register("int32", (tirx.IntImm("int32", 1) << T.cast(rows, "int32")) - 1).value

    def _unit(self, group: Expr, t: Expr, first_row: Expr, present: Expr | None, sums: list[Register]) -> None:
        """Add one step of one unit of rows to the tile's sums.

        Groups of rows that are not there are jumped over. The jump has a second use: LLVM does not mix what is on either
        side of it, for which there would be too few registers.
        """
        lanes, size = self.lanes, self.matrix.unit
        base = (group * self.steps + t) * size
        block = (group * self.matrix.blocks + t * self.step // self.matrix.block) * lanes
        if self.schedule.prefetch:
            self._prefetch(base + self.schedule.prefetch, size)

        def held(part: str) -> list[Expr]:
            return self._spread(load_float(self.held[part], [block], lanes), "float32")

        scale, zero = held("scale"), None
        if self.form.zero:
            stored = load(self.held["zero"], [block], lanes)
            zero = self._spread(T.cast(stored, vector("int32", lanes)), "int32")
        weights = Chunks(self.matrix, self.held[self.matrix.values], base)
        step = _Step(t, first_row, weights, scale, zero, held("offset") if self.form.offset else None)
        several = self.dots.patch[0] if present is not None else len(sums)
        for first in range(0, len(sums), several):
            with emit.where(None if first == 0 else (present & tirx.IntImm("int32", 1 << first)) != 0):
                self._add(step, range(first, first + several), sums)

    def _spread(self, values: Expr, dtype: str) -> list[Expr]:
        """A value for each of the matrix's rows, in registers of sums' order."""
        dtype = vector(dtype, self.lanes)
        return [Register(dtype, part).value for part in self.dots.spread(Register(dtype, values).value)]

    def _add(self, step: _Step, rows: range, sums: list[Register]) -> None:
        """Add a step's products with some rows of the tile."""
        products = self._exact(step, rows) if self.form.exact else self._rounded(step, rows)
        for row, (product, unit) in zip(rows, products):
            scale = step.scale[row % len(step.scale)]
            if unit is None:
                factors = product, scale
            elif self.isa.together > 1:  # no register beyond that of the product, and the unit by element
                factors = product * scale, unit
            else:
                factors = product, scale * unit
            sums[row].set(emit.fma(*factors, sums[row].value, self.lanes))
        if step.offset:
            place = Register("int64", self.sums.step(step.first_row, step.t))
            for row in rows:
                offset = step.offset[row % len(step.offset)]
                x = self.sums.load(place.value, row)
                sums[row].set(emit.fma(x, offset, sums[row].value, self.lanes))

    def _rounded(self, step: _Step, rows: range) -> Iterator[tuple[Expr, Expr]]:
        """For each vector of these rows' sums (Σ (q - zero)·a in float32, times `factor`, and the scales of its activations).

        `minus` holds -Σ a, times the zero point where that is the same for all, and times `factor`.
        """
        lanes, at = self.lanes, step.first_row
        # said once each: TVM looks for what such expressions share
        place = Register("int64", self.values.step(at, step.t))
        number = Register("int64", self.scales.step(at, step.t))

        def activation(row: int, column: int, count: int) -> Expr:
            return self.values.load(place.value, rows[row], column, count)

        start = [self.minus.load(number.value, row) if self.subtracts else ints(0, lanes) for row in rows]
        if step.zero:
            beyond = [zero - ints(self.matrix.middle, lanes) for zero in step.zero] if self.matrix.signed else step.zero
            start = [beyond[row % len(beyond)] * value for row, value in zip(rows, start)]
        for row, product in zip(rows, self.dots.products(start, step.weights, activation)):
            yield T.cast(product, vector("float32", lanes)), self.scales.load(number.value, row)

    def _exact(self, step: _Step, rows: range) -> Iterator[tuple[Expr, Expr | None]]:
        """For each row of the tile (Σ (q - zero)·x in float32, no further scale)."""
        lanes = self.lanes
        zero = step.zero[0] if step.zero else ints(self.matrix.middle, lanes)
        inner = [Register(vector("float32", lanes), floats(0.0, lanes)) for _ in rows]
        sources = [self._source(step.first_row + row) for row in rows]
        for group in range(self.step // 4):
            quad = Register(vector("int32", lanes), self.dots.quad(step.weights, group)).value
            for column in range(4):
                q = (quad >> ints(8 * column, lanes)) & ints(0xFF, lanes)
                weight = Register(vector("float32", lanes), T.cast(q - zero, vector("float32", lanes))).value
                for row in rows:
                    x = broadcast(self.x[sources[row], step.t * self.step + 4 * group + column], lanes)
                    inner[row].set(emit.fma(weight, x, inner[row].value, lanes))
        for product in inner:
            yield product.value, None

    def _prefetch(self, at: Expr, size: int) -> None:
        """Ask for the lines of a step that comes later, which are read once; beyond the end of the buffer this does nothing."""
        read, keep, data = (tirx.IntImm("int32", value) for value in (0, 0, 1))
        for start in range(0, size, _LINE):
            pointer = tirx.address_of(self.held[self.matrix.values][at + start])
            T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch.p0", pointer, read, keep, data))

    def _store(self, group: Expr, row: Expr, value: Expr) -> None:
        """One row's `lanes` results, as far as the matrix goes."""
        if self.matrix.by_row:
            value = value * load_float(self.held["row_scale"], [group * self.lanes], self.lanes)
        first, ragged = group * self.lanes, self.matrix.rows % self.lanes
        if not ragged:
            T.buffer_store(self.y, value, [row, tirx.Ramp(first, 1, self.lanes)])
            return
        with T.If(group < self.matrix.groups - 1):
            with T.Then():
                T.buffer_store(self.y, value, [row, tirx.Ramp(first, 1, self.lanes)])
            with T.Else():
                for lane in range(ragged):
                    T.buffer_store(self.y, emit.shuffle([value], [lane]), [row, first + lane])
