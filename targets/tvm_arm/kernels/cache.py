"""A K/V cache as the kernels write and read it: where keys and values lie, and how they are rounded.

    float16, float32   [KV, C, D]
    int8               [KV, C, D + 4]: of each head C·D values, and behind them C scales in float32

Values of a head lie row by row: [C, D]. Keys of 16 positions lie together, dimension by dimension, so that one load is one
dimension of 16 keys and the dot products need no sum over lanes: [C/16, D, 16].

In int8 a key of a head, after rotary, is s·q with s = max|k|/127 over its D dimensions and q = round(k/s) in -127 … 127, and
so is a value. A row of zeros has s = 0, as have rows that were never written.

For example, with D = 32 and C = 48, position 19 of a head: dimension 2 of its key is byte (1·32 + 2)·16 + 3 = 547, of its
value byte 19·32 + 2 = 610; either's scale is bytes 48·32 + 4·19 = 1612 to 1615.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from pocketphi.targets.tvm_arm.kernels import emit
from pocketphi.targets.tvm_arm.kernels.emit import Expr, Register, broadcast, floats, load, load_float, vector

KEYS = 16
"""Positions of a block; a cache holds a multiple of them."""

_SCALE = 4
_SMALLEST = 2.0**-100
"""Rows whose largest value is not above are zeros: 127 ÷ it is far from what float32 holds."""

Row = Callable[[Expr, int], Expr]
"""(first dimension, lanes) → float32 x lanes: of a new key or value."""


class Cache(ABC):
    """Keys and values of one layer; vectors are of float32."""

    def __init__(self, keys: Any, values: Any, dim: int, lanes: int) -> None:
        self.keys, self.values, self.dim, self.lanes = keys, values, dim, lanes

    @abstractmethod
    def write(self, head: Expr, at: Expr, key: Row, value: Row) -> None:
        """Write a head's key and value of position `at`."""

    def key(self, head: Expr, block: Expr, d: Expr, part: int) -> Expr:
        """Dimension d of `lanes` keys of a block, from `part`·lanes on; in int8 without their scales."""
        return load_float(self.keys, self._key_place(head, block, d, part * self.lanes), self.lanes)

    def value(self, head: Expr, at: Expr, d: int) -> Expr:
        """`lanes` dimensions of one position's value, from d on; in int8 without its scale."""
        return load_float(self.values, self._value_place(head, at, d), self.lanes)

    def scaled_scores(self, head: Expr, part: Expr, scores: Expr) -> Expr:
        """q · k of `lanes` positions, from `part`·lanes on, made of what `key` gives: in int8 with the keys' scales."""
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

    def scaled_scores(self, head: Expr, part: Expr, scores: Expr) -> Expr:
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


def open_cache(keys: Any, values: Any, dim: int, lanes: int) -> Cache:
    """The cache in two tensors, by their type."""
    made = Int8Cache if str(keys.dtype) == "int8" else FloatCache
    return made(keys, values, dim, lanes)
