"""Routed experts: which two a token goes through, its products with their matrices, and their sum.

Products read the chosen experts' rows only. A decode has a tile for each of its token's experts. A prefill first puts the pairs
(token, expert) in the order of experts, so that a tile's rows are tokens of one expert, and its weights are unpacked once for
all of them. The last tile of an expert may have fewer rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels import emit
from pocketphi.targets.tvm_arm.kernels.elementwise import rows_of
from pocketphi.targets.tvm_arm.kernels.emit import Expr, Register, broadcast, floats, load, vector
from pocketphi.targets.tvm_arm.kernels.matmul import (
    Body,
    Form,
    Schedule,
    decode_schedule,
    fitted,
    prefill_schedule,
    weight_argument,
)


@dataclass(frozen=True)
class Routed:
    """form: of the matrix with the rows of all experts; count: how many; chosen: for each token; apart: whether each of a
    token's experts has an input of its own."""

    form: Form
    count: int
    chosen: int
    apart: bool

    @property
    def rows(self) -> int:
        """Of an expert."""
        return self.form.matrix.rows // self.count


def experts(name: str, isa: Isa, routed: Routed) -> tirx.PrimFunc:
    """A function (chosen int32 [M, T], x float32 [M, K] or [M · T, K], parts of the matrix, y float32 [M · T, N])."""
    schedule = decode_schedule(isa) if routed.form.single else prefill_schedule(isa)
    alone = replace(routed.form, matrix=replace(routed.form.matrix, rows=routed.rows))
    with emit.function(name) as builder:
        _Experts(isa, routed, fitted(schedule, alone)).emit()
    return builder.get()


class _Experts(Body):
    """Rows of activations are pairs of a token and one of its experts."""

    def __init__(self, isa: Isa, routed: Routed, schedule: Schedule) -> None:
        self.routed = routed
        super().__init__(isa, routed.form, schedule)
        self.groups = routed.rows // isa.lanes
        self.panels = self.groups // schedule.units

    def _declare(self) -> None:
        of, matrix = self.routed, self.matrix
        self.pairs = self.m * of.chosen
        self.chosen = emit.argument("chosen", (self.m, of.chosen), "int32")
        self.x = emit.argument("x", (self.pairs if of.apart else self.m, matrix.columns))
        self.held = {part: weight_argument(part, matrix) for part in self.form.parts}
        self.y = emit.argument("y", (self.pairs, of.rows))

    def emit(self) -> None:
        if self.form.single:
            self._activations(self.pairs, self.pairs, T.serial)
            with T.parallel(0, self.pairs * self.panels) as task:
                self._tile(task % self.panels, task // self.panels)
            return
        rows = self.schedule.rows
        most = (self.pairs + (rows - 1)) // rows + self.routed.count
        self._sort(most)
        self._activations(most * rows, self._tiles() * rows, T.parallel)
        with T.parallel(0, self.panels) as panel, T.serial(0, self._tiles()) as tile:
            self._tile(panel, tile * rows)

    # the order of pairs

    def _sort(self, most: Expr) -> None:
        """Give each expert whole tiles, and each pair a place in them. most: tiles that there can be."""
        count, rows = self.routed.count, tirx.IntImm("int64", self.schedule.rows)
        self.sizes, self.next = (emit.memory((count,), "int64") for _ in range(2))
        self.slots = emit.memory((most * rows,), "int64")
        self.expert_of, self.rows_of = (emit.memory((most,), "int64") for _ in range(2))
        self.total = emit.memory((1,), "int64")
        zero = tirx.IntImm("int64", 0)
        with T.serial(0, count) as number:
            T.buffer_store(self.sizes, zero, [number])
        with T.serial(0, self.pairs) as pair:
            number = self._expert(pair)
            T.buffer_store(self.sizes, self.sizes[number] + 1, [number])
        T.buffer_store(self.total, zero, [0])
        with T.serial(0, count) as number:
            T.buffer_store(self.next, self.total[0] * rows, [number])
            with T.serial(0, (self.sizes[number] + (rows - 1)) // rows) as part:
                T.buffer_store(self.expert_of, T.cast(number, "int64"), [self.total[0] + part])
                T.buffer_store(self.rows_of, tirx.Min(self.sizes[number] - part * rows, rows), [self.total[0] + part])
            T.buffer_store(self.total, self.total[0] + (self.sizes[number] + (rows - 1)) // rows, [0])
        with T.serial(0, self.pairs) as pair:
            number = self._expert(pair)
            T.buffer_store(self.slots, T.cast(pair, "int64"), [self.next[number]])
            T.buffer_store(self.next, self.next[number] + 1, [number])

    def _tiles(self) -> Expr:
        return self.total[0]

    def _expert(self, pair: Expr) -> Expr:
        return T.cast(self.chosen[pair // self.routed.chosen, pair % self.routed.chosen], "int64")

    def _pair(self, place: Expr) -> Expr:
        """The pair at a place of the activations; where there is none, the first one of its tile."""
        if self.form.single:
            return place
        rows = self.schedule.rows
        tile = place // rows
        return self.slots[tirx.Select(place % rows < self.rows_of[tile], place, tile * rows)]

    # what a product asks for

    def _source(self, row: Expr) -> Expr:
        pair = self._pair(row)
        return pair if self.routed.apart else pair // self.routed.chosen

    def _groups(self, panel: Expr, first_row: Expr) -> list[Expr]:
        number = self._expert(first_row) if self.form.single else self.expert_of[first_row // self.schedule.rows]
        first = Register("int64", number * self.groups).value
        return [first + (unit * self.panels + panel) for unit in range(self.schedule.units)]

    def _rows_there(self, first_row: Expr) -> Expr:
        return self.rows_of[first_row // self.schedule.rows]

    def _is_there(self, first_row: Expr, row: int) -> Expr | None:
        return None if self.form.single else row < self._rows_there(first_row)

    def _place(self, first_row: Expr, row: int) -> Expr:
        return first_row if self.form.single else self.slots[first_row + row]

    def _store(self, group: Expr, row: Expr, value: Expr) -> None:
        if self.matrix.by_row:
            value = value * emit.load_float(self.held["row_scale"], [group * self.lanes], self.lanes)
        T.buffer_store(self.y, value, [row, tirx.Ramp(group % self.groups * self.lanes, 1, self.lanes)])


def route(name: str, isa: Isa, size: int, count: int, threshold: float, single: bool) -> tirx.PrimFunc:
    """(x float32 [M, K], weight float32 [E, K], shares float32 [M, 2], chosen int32 [M, 2]) as `edge.route`."""
    lanes = isa.lanes
    with emit.function(name) as builder:
        m = 1 if single else T.int64()
        x = emit.argument("x", (m, size))
        weight = emit.argument("weight", (count, size))
        shares = emit.argument("shares", (m, 2))
        chosen = emit.argument("chosen", (m, 2), "int32")
        scores = emit.memory((m, count))
        with T.parallel(0, m * count) as task:
            row, number = task // count, task % count
            sums = Register(vector("float32", lanes), floats(0.0, lanes))
            with T.serial(0, size // lanes) as part:
                at = part * lanes
                sums.set(emit.fma(load(x, [row, at], lanes), load(weight, [number, at], lanes), sums.value, lanes))
            T.buffer_store(scores, emit.total(sums.value, lanes), [row, number])
        with rows_of(m, single) as row:
            taken = Register("int32", tirx.IntImm("int32", -1))
            for rank in range(2):
                number, share = _best(scores, row, count, threshold, taken.value)
                T.buffer_store(shares, share, [row, rank])
                T.buffer_store(chosen, number, [row, rank])
                taken.set(number)
    return builder.get()


def _best(scores: Any, row: Expr, count: int, threshold: float, taken: Expr) -> tuple[Expr, Expr]:
    """The expert with the largest score of those that are not taken, and its share."""
    top = Register("float32", tirx.FloatImm("float32", -math.inf))
    best = Register("int32", tirx.IntImm("int32", 0))
    with T.serial(0, count) as number:
        is_better = tirx.all(T.cast(number, "int32") != taken, scores[row, number] > top.value)
        with emit.where(is_better):
            top.set(scores[row, number])
            best.set(T.cast(number, "int32"))
    total = Register("float32", tirx.FloatImm("float32", 0.0))
    with T.serial(0, count) as number:
        score = scores[row, number]
        below = top.value - score
        far = below / emit.maximum(emit.absolute(score, 1), top.value, 1) > tirx.FloatImm("float32", threshold)
        with emit.where(tirx.all(T.cast(number, "int32") != taken, tirx.Not(far))):
            total.set(total.value + emit.exponential(-below, 1))
    return best.value, tirx.FloatImm("float32", 1.0) / total.value


def combine(name: str, isa: Isa, size: int, chosen: int, single: bool) -> tirx.PrimFunc:
    """(shares float32 [M, T], x float32 [M · T, K], out float32 [M, K]) as `edge.combine`."""
    lanes = isa.lanes
    with emit.function(name) as builder:
        m = 1 if single else T.int64()
        shares = emit.argument("shares", (m, chosen))
        x = emit.argument("x", (m * chosen, size))
        out = emit.argument("out", (m, size))
        with rows_of(m, single) as row, T.serial(0, size // lanes) as part:
            at, total = part * lanes, None
            for rank in range(chosen):
                value = load(x, [row * chosen + rank, at], lanes) * broadcast(shares[row, rank], lanes)
                total = value if total is None else total + value
            T.buffer_store(out, total, [row, tirx.Ramp(at, 1, lanes)])
    return builder.get()
