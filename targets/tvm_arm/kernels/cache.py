"""A K/V cache as the kernels write and read it: where keys and values lie, and how they are rounded.

    float16, float32   [KV, C, D]
    int8               [KV, C, D + 4]: of each head C·D values, and behind them C scales in float32
    int4               uint8 [KV, C, D/2 + D/32]: of each head C·D values, two in a byte, and behind them C·D/32 scales

Values of a head lie row by row: [C, D]. Keys of 16 positions lie together, dimension by dimension, so that one load is one
dimension of 16 keys and the dot products need no sum over lanes: [C/16, D, 16].

In int8 a key of a head, after rotary, is s·q with s = max|k|/127 over its D dimensions and q = round(k/s) in -127 … 127, and
so is a value. A row of zeros has s = 0, as have rows that were never written.

For example, with D = 32 and C = 48, position 19 of a head: dimension 2 of its key is byte (1·32 + 2)·16 + 3 = 547, of its
value byte 19·32 + 2 = 610; either's scale is bytes 48·32 + 4·19 = 1612 to 1615.

In int4, 32 dimensions share a scale: a number is q + 8, with q = round(x/s) in -8 … 7. Before that they are turned by a
Hadamard matrix, which spreads what single dimensions have over all 32. Of keys, their layer's mean on a calibration text is
taken off before: every score of a query then changes by the same number, which a softmax does not see. s is a float16 without
a sign whose lowest seven bits are zero, a byte: of the least that is no smaller than max|x|/7.5, and the three below it, the
one with the least squared error. Keys lie [C/16, D/2, 16], dimension 2i in the lower half of a byte and 2i + 1 in the upper
one, so that one load is two dimensions of 16 keys; their scales [C/16, D/32, 16]. Values lie [C, D/32, 16], dimension i of 32
in the lower half and 16 + i in the upper one, and their scales [C, D/32].

For example, with D = 64 and C = 48, position 19 of a head: dimensions 34 and 35 of its key are byte (1·32 + 17)·16 + 3 = 787,
whose scale is byte 48·32 + (1·2 + 1)·16 + 3 = 1587; dimensions 34 and 50 of its value are byte (19·2 + 1)·16 + 2 = 626, whose
scale is byte 48·32 + 19·2 + 1 = 1575.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from pocketphi.targets.tvm_arm.kernels import emit
from pocketphi.targets.tvm_arm.kernels.emit import Expr, Register, broadcast, floats, load, load_float, vector
from pocketphi.targets.tvm_arm.kv_cache import GROUP, KEYS

HALF = GROUP // 2
"""Of the dimensions of a value that share a scale in int4, those that lie in the same half of their bytes."""

INT4_REACH, INT4_TRIED = 7.5, 4
_SCALE = 4
_SMALLEST = 2.0**-100
"""Rows whose largest value is not above are zeros: 127 ÷ it is far from what float32 holds."""

Row = Callable[[Expr, int], Expr]
"""(first dimension, lanes) → float32 x lanes: of a new key or value."""


class Cache(ABC):
    """Keys and values of one layer; vectors are of float32.

    groups: into which a key's dimensions are divided, each with a scale of its own; together: dimensions that `some_keys` gives
    turned: keys and values are kept less sharp, turned by `turn`: queries and results have to be turned as well
    """

    together = 1
    turned = False

    @property
    def groups(self) -> int:
        return 1

    def __init__(self, keys: Any, values: Any, dim: int, lanes: int) -> None:
        self.keys, self.values, self.dim, self.lanes = keys, values, dim, lanes

    @abstractmethod
    def write(self, head: Expr, at: Expr, key: Row, value: Row) -> None:
        """Write a head's key and value of position `at`."""

    def some_keys(self, head: Expr, block: Expr, d: Expr, part: int) -> list[Expr]:
        """Dimensions `together`·d … of `lanes` keys of a block, from `part`·lanes on, without their scales."""
        return [load_float(self.keys, self._key_place(head, block, d, part * self.lanes), self.lanes)]

    def value(self, head: Expr, at: Expr, d: int) -> Expr:
        """`lanes` dimensions of one position's value, from d on; in int8 without its scale."""
        return load_float(self.values, self._value_place(head, at, d), self.lanes)

    def scaled_scores(self, head: Expr, part: Expr, group: Expr, scores: Expr) -> Expr:
        """What `some_keys` gave, summed up to q · k over a group of dimensions, of `lanes` positions from `part`·lanes on: with
        the keys' scales."""
        return scores

    def scaled_weights(self, head: Expr, part: Expr, weights: Expr) -> Expr:
        """Weights of `lanes` positions, from `part`·lanes on, for what `value` gives: in int8 with the values' scales."""
        return weights

    def _key_place(self, head: Expr, block: Expr, d: Expr, within: Expr) -> list[Expr]:
        """Where dimension d of a key lies, `within` its block."""
        return self._place(head, (block * self.dim + d) * KEYS + within)

    def _value_place(self, head: Expr, at: Expr, d: Expr) -> list[Expr]:
        """Where dimension d of a value lies."""
        return self._place(head, at * self.dim + d)

    def _place(self, head: Expr, index: Expr) -> list[Expr]:
        """An index into what a head has, as one into the tensor."""
        row = self.keys.shape[2]
        return [head, index // row, index % row]


class FloatCache(Cache):
    """float16 or float32: [KV, C, D]."""

    def write(self, head: Expr, at: Expr, key: Row, value: Row) -> None:
        with T.serial(0, self.dim) as d:
            emit.store(self.keys, self._key_place(head, at // KEYS, d, at % KEYS), key(d, 1), 1)
        for d in range(0, self.dim, self.lanes):
            emit.store(self.values, self._value_place(head, at, d), value(d, self.lanes), self.lanes)


class Int8Cache(Cache):
    """int8 with a scale for each row: [KV, C, D + 4]. Scales meet scores and weights, a vector of positions at a time, so that
    the loops over dimensions only widen what they load."""

    def write(self, head: Expr, at: Expr, key: Row, value: Row) -> None:
        factor = self._write_scale(self.keys, head, at, key)
        with T.serial(0, self.dim) as d:
            self._store(self.keys, self._key_place(head, at // KEYS, d, at % KEYS), key(d, 1), factor, 1)
        factor = self._write_scale(self.values, head, at, value)
        for d in range(0, self.dim, self.lanes):
            self._store(self.values, self._value_place(head, at, d), value(d, self.lanes), factor, self.lanes)

    def scaled_scores(self, head: Expr, part: Expr, group: Expr, scores: Expr) -> Expr:
        return scores * self._scales(self.keys, head, part)

    def scaled_weights(self, head: Expr, part: Expr, weights: Expr) -> Expr:
        return weights * self._scales(self.values, head, part)

    def _write_scale(self, buffer: Any, head: Expr, at: Expr, row: Row) -> Expr:
        """Write the scale of a row; returns what its values are multiplied with, 1/s or 0."""
        peak = Register(vector("float32", self.lanes), floats(0.0, self.lanes))
        for d in range(0, self.dim, self.lanes):
            peak.set(emit.maximum(peak.value, emit.absolute(row(d, self.lanes), self.lanes), self.lanes))
        largest = Register("float32", emit.largest(peak.value, self.lanes)).value
        zero, most = floats(0.0, 1), floats(127.0, 1)
        some = largest > floats(_SMALLEST, 1)
        scale = T.reinterpret(vector("int8", _SCALE), tirx.Select(some, largest / most, zero))
        place = self._scale_place(head, at)
        T.buffer_store(buffer, scale, [*place[:-1], tirx.Ramp(place[-1], 1, _SCALE)])
        return Register("float32", tirx.Select(some, most / largest, zero)).value

    def _scales(self, buffer: Any, head: Expr, part: Expr) -> Expr:
        """Of `lanes` positions, from `part`·lanes on."""
        stored = load(buffer, self._scale_place(head, part * self.lanes), _SCALE * self.lanes)
        return T.reinterpret(vector("float32", self.lanes), stored)

    def _store(self, buffer: Any, place: list[Expr], row: Expr, factor: Expr, lanes: int) -> None:
        near = emit.nearest(row * broadcast(factor, lanes), lanes)
        emit.store(buffer, place, T.cast(near, vector("int32", lanes)), lanes)

    def _scale_place(self, head: Expr, at: Expr) -> list[Expr]:
        return self._place(head, self.keys.shape[1] * self.dim + _SCALE * at)


class Int4Cache(Cache):
    """uint8 with two values in a byte and a scale for every 32 dimensions: [KV, C, D/2 + D/32]. A group's keys are summed up
    before their scales meet the sum; a vector of values gets its scale at once."""

    together = 2
    turned = True

    @property
    def groups(self) -> int:
        return self.dim // GROUP

    def write(self, head: Expr, at: Expr, key: Row, value: Row) -> None:
        with T.serial(0, self.groups) as group:
            factor = self._write_scale(self.keys, self._key_scale(head, at // KEYS, group, at % KEYS), key, group)
            with T.serial(0, HALF) as pair:
                d = group * GROUP + 2 * pair
                place = self._key_pair(head, at // KEYS, group * HALF + pair, at % KEYS)
                self._store(self.keys, place, (key(d, 1), key(d + 1, 1)), factor, 1)
            factor = self._write_scale(self.values, self._value_scale(head, at, group), value, group)
            for i in range(0, HALF, self.lanes):
                d = group * GROUP + i
                place = self._place(head, (at * self.groups + group) * HALF + i)
                self._store(self.values, place, (value(d, self.lanes), value(d + HALF, self.lanes)), factor, self.lanes)

    def some_keys(self, head: Expr, block: Expr, d: Expr, part: int) -> list[Expr]:
        both = load(self.keys, self._key_pair(head, block, d, part * self.lanes), self.lanes)
        held = Register(vector("uint8", self.lanes), both)
        return [self._number(held.value, upper) for upper in (False, True)]

    def value(self, head: Expr, at: Expr, d: int) -> Expr:
        group, within = divmod(d, GROUP)
        place = self._place(head, (at * self.groups + group) * HALF + within % HALF)
        number = self._number(load(self.values, place, self.lanes), within >= HALF)
        return number * broadcast(_scale_of(load(self.values, self._value_scale(head, at, group), 1), 1), self.lanes)

    def scaled_scores(self, head: Expr, part: Expr, group: Expr, scores: Expr) -> Expr:
        parts = KEYS // self.lanes
        place = self._key_scale(head, part // parts, group, part % parts * self.lanes)
        return scores * _scale_of(load(self.keys, place, self.lanes), self.lanes)

    def _number(self, both: Expr, upper: bool) -> Expr:
        """One half of bytes uint8 x lanes, as q in float32."""
        lanes = self.lanes
        four = tirx.const(4, "uint8")
        half = both >> broadcast(four, lanes) if upper else both & broadcast(tirx.const(15, "uint8"), lanes)
        signed = T.cast(half, vector("int8", lanes)) - broadcast(tirx.const(8, "int8"), lanes)
        return T.cast(signed, vector("float32", lanes))

    def _write_scale(self, buffer: Any, place: list[Expr], row: Row, group: Expr) -> Expr:
        """Write the scale of a group; returns what its values are multiplied with, 1/s or 0."""
        lanes, f32 = self.lanes, vector("float32", self.lanes)
        dimensions = [group * GROUP + d for d in range(0, GROUP, lanes)]
        peak = Register(f32, floats(0.0, lanes))
        for d in dimensions:
            peak.set(emit.maximum(peak.value, emit.absolute(row(d, lanes), lanes), lanes))
        exact = Register("float32", emit.largest(peak.value, lanes) * floats(1 / INT4_REACH, 1)).value
        bits = T.cast(T.reinterpret("uint16", T.cast(exact, "float16")), "int32")
        largest = Register("int32", (bits + emit.ints(127, 1)) >> emit.ints(7, 1)).value
        best, least = Register("int32", largest), Register("float32", tirx.max_value("float32"))
        factor = Register("float32", floats(0.0, 1))
        with T.serial(0, INT4_TRIED) as smaller:
            byte = Register("int32", tirx.Max(largest - T.cast(smaller, "int32"), emit.ints(0, 1)))
            scale = Register("float32", _scale_of(T.cast(byte.value, "uint8"), 1))
            inverse = tirx.Select(scale.value > floats(0.0, 1), floats(1.0, 1) / scale.value, floats(0.0, 1))
            tried = Register("float32", inverse)
            errors = Register(f32, floats(0.0, lanes))
            for d in dimensions:
                number = T.cast(self._rounded(row(d, lanes), tried.value, lanes), f32) - floats(8.0, lanes)
                error = Register(f32, row(d, lanes) - number * broadcast(scale.value, lanes)).value
                errors.set(emit.fma(error, error, errors.value, lanes))
            lost = Register("float32", emit.total(errors.value, lanes))
            better = Register("int32", T.cast(lost.value < least.value, "int32"))
            for held, found in ((best, byte), (factor, tried), (least, lost)):
                held.set(tirx.Select(better.value > emit.ints(0, 1), found.value, held.value))
        T.buffer_store(buffer, T.cast(best.value, "uint8"), place)
        return factor.value

    def _store(self, buffer: Any, place: list[Expr], halves: tuple[Expr, Expr], factor: Expr, lanes: int) -> None:
        """halves: float32 x lanes, for the lower and the upper half of bytes."""
        low, high = (self._rounded(half, factor, lanes) for half in halves)
        emit.store(buffer, place, low + high * emit.ints(16, lanes), lanes)

    def _rounded(self, row: Expr, factor: Expr, lanes: int) -> Expr:
        """q + 8 in int32."""
        near = emit.nearest(row * broadcast(factor, lanes), lanes)
        cut = emit.minimum(emit.maximum(near, floats(-8.0, lanes), lanes), floats(7.0, lanes), lanes)
        return Register(vector("int32", lanes), T.cast(cut, vector("int32", lanes)) + emit.ints(8, lanes)).value

    def _key_pair(self, head: Expr, block: Expr, pair: Expr, within: Expr) -> list[Expr]:
        return self._place(head, (block * (self.dim // 2) + pair) * KEYS + within)

    def _key_scale(self, head: Expr, block: Expr, group: Expr, within: Expr) -> list[Expr]:
        return self._place(head, self._behind + (block * self.groups + group) * KEYS + within)

    def _value_scale(self, head: Expr, at: Expr, group: Expr) -> list[Expr]:
        return self._place(head, self._behind + at * self.groups + group)

    @property
    def _behind(self) -> Expr:
        """Where a head's scales begin."""
        return self.keys.shape[1] * (self.dim // 2)


def turn(buffer: Any, place: Callable[[Expr], list[Expr]], dim: int) -> None:
    """Multiply every 32 dimensions of a vector in a buffer with the Hadamard matrix (Sylvester's) over √32, which is its own
    inverse. place: a dimension → where it lies."""
    with T.serial(0, dim // GROUP) as group:
        for half in (1, 2, 4, 8, 16):
            factor = floats(GROUP**-0.5 if half == HALF else 1.0, 1)
            with T.serial(0, HALF) as pair:
                first = group * GROUP + pair // half * (2 * half) + pair % half
                a, b = (Register("float32", buffer[tuple(place(at))]).value for at in (first, first + half))
                total, rest = (Register("float32", one).value for one in (a + b, a - b))
                T.buffer_store(buffer, total * factor if half == HALF else total, place(first))
                T.buffer_store(buffer, rest * factor if half == HALF else rest, place(first + half))


def _scale_of(byte: Expr, lanes: int) -> Expr:
    """A scale of four bits' values: uint8 x lanes → float32 x lanes."""
    bits = T.cast(byte, vector("uint16", lanes)) << broadcast(tirx.const(7, "uint16"), lanes)
    return T.cast(T.reinterpret(vector("float16", lanes), bits), vector("float32", lanes))


def open_cache(keys: Any, values: Any, dim: int, lanes: int) -> Cache:
    """The cache in two tensors, by their type."""
    made = {"int8": Int8Cache, "uint8": Int4Cache}.get(str(keys.dtype), FloatCache)
    return made(keys, values, dim, lanes)
