"""Attention over a K/V cache that is written in place: rotary embedding, append, and a softmax that sees the cache once.

One task for each key/value head. It first writes the head's new keys and values into the cache, then serves its queries, a
tile of rows at a time, so that keys and values that were loaded once meet all rows of the tile: consecutive queries of a
head in prefill, the heads of a group in decode.

Where heads see blocks (`edge.sparse_attention`), only those are read: the near ones, which all rows of a tile share, and then
the columns of each head, which are its own. Scores lie at their key's position then, and gaps between them are never looked at.

Where queries see a window, the cache is a ring: position p lies in row p mod C. It has room for the window of a chunk's first
query and for the chunk, so that no row is written over while a query sees it. A mask is made of positions, and hides what a row
held before or holds by now.

Longer than most files: the four steps of one function share its buffers and rows. How a cache holds keys and values is in
`cache.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels import emit
from pocketphi.targets.tvm_arm.kernels.cache import open_cache, turn
from pocketphi.targets.tvm_arm.kernels.emit import Expr, Register, broadcast, floats, load, vector
from pocketphi.targets.tvm_arm.kv_cache import KEYS, KV_CACHES, KvCache

_HIDDEN = -1e30
_PREFILL_ROWS = 4


@dataclass(frozen=True)
class AttentionForm:
    """The arguments of `edge.attention`, and how a kernel is made: for one query or many, with a cache of which type.

    rotary: rotated dimensions; table_rows: rows of the rotary tables; sparse: block, local, stride and step of
    `edge.sparse_attention`
    """

    heads: int
    kv_heads: int
    dim: int
    rotary: int
    table_rows: int
    scale: float
    window: int
    long_after: int
    cache: KvCache = KV_CACHES["fp16"]
    single: bool = False
    sparse: tuple[int, int, int, int] | None = None

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class _Span:
    """Keys that rows of a tile see.

    begin, count: blocks of KEYS that follow each other, or with `stride` columns of sparse blocks, that many of them apart
    keys:         how many of the keys count: the last block may be cut
    shift:        blocks between a key and its score
    held:         where a ring has the first block
    """

    rows: tuple[int, ...]
    begin: Expr
    count: Expr
    keys: Expr
    shift: Expr
    stride: int = 0
    held: Expr | None = None


def attention(name: str, isa: Isa, form: AttentionForm) -> tirx.PrimFunc:
    """A function (qkv [S, (H + 2·KV)·D], keys, values [KV, C, row], cos, sin [M, R/2], position int32 [P], out [S, H·D]).

    row: D, in int8 a scale's four bytes more, in int4 half as many and D/32 for scales. There, `centre` [KV, D] comes before
    `position`: it is taken off each key.

    position: tokens that are in the cache, the new ones are written from there on; with LongRoPE also how many there will be
    in all, which decides between short and long factors for every chunk of a prompt.
    """
    with emit.function(name) as builder:
        _Body(isa, form).emit()
    return builder.get()


def position_size(long_after: int) -> int:
    return 2 if long_after else 1


class _Body:
    """The statements of one function."""

    def __init__(self, isa: Isa, form: AttentionForm) -> None:
        self.form, self.lanes, self.registers = form, isa.lanes, isa.registers
        self.rows = form.group if form.single else _PREFILL_ROWS
        self.s: Expr = 1 if form.single else T.int64()
        self.c: Expr = T.int64()
        self.qkv = emit.argument("qkv", (self.s, (form.heads + 2 * form.kv_heads) * form.dim))
        cache = (form.kv_heads, self.c, form.cache.row(form.dim))
        keys, values = (emit.argument(name, cache, form.cache.dtype) for name in ("keys", "values"))
        self.cache = open_cache(keys, values, form.dim, isa.lanes)
        self.cos, self.sin = (emit.argument(name, (form.table_rows, form.rotary // 2)) for name in ("cos", "sin"))
        self.centre = emit.argument("centre", (form.kv_heads, form.dim)) if form.cache.centred else None
        self.position = emit.argument("position", (position_size(form.long_after),), "int32")
        self.out = emit.argument("out", (self.s, form.heads * form.dim))

    def emit(self) -> None:
        form = self.form
        with T.parallel(0, form.kv_heads) as head:
            past = T.cast(self.position[0], "int64")
            table = past
            if form.long_after:  # the long factors' rows, once any position reaches the switch
                crossed = self.position[1] > form.long_after
                table = past + tirx.Select(crossed, _int64(form.long_after), _int64(0))
            key = emit.memory((form.dim,))
            value = emit.memory((form.dim,)) if self.cache.turned else None
            with T.serial(0, self.s) as new:
                self._append(head, new, past, table, key, value)
            queries = emit.memory((self.rows, form.dim))
            scores = emit.memory((self.rows, self.c))
            if form.single:
                self._tile(head, _int64(0), past, table, queries, scores)
                return
            with T.serial(0, form.group) as member, T.serial(0, (self.s + self.rows - 1) // self.rows) as tile:
                self._tile(head * form.group + member, tile * self.rows, past, table, queries, scores)

    # rows: of a tile, which is one query of each head of a group, or consecutive queries of one head

    def _query(self, first: Expr, row: int) -> Expr:
        """Which new token a row asks for; beyond the last, the last."""
        return _int64(0) if self.form.single else tirx.Min(first + row, self.s - 1)

    def _head(self, head: Expr, row: int) -> Expr:
        return head * self.form.group + row if self.form.single else head

    def _append(self, head: Expr, new: Expr, past: Expr, table: Expr, key: Any, value: Any) -> None:
        """Write one new key, rotated in the buffer `key`, and one value, turned in the buffer `value` if there is one."""
        form = self.form
        column = (form.heads + head) * form.dim
        start = (form.heads + form.kv_heads + head) * form.dim
        self._rotate(new, column, table + new, lambda d, rotated: T.buffer_store(key, rotated, [d]))
        if self.centre is not None:
            with T.serial(0, form.dim) as d:
                T.buffer_store(key, key[d] - self.centre[head, d], [d])
        if value is not None:
            with T.serial(0, form.dim) as d:
                T.buffer_store(value, self.qkv[new, start + d], [d])
            for row in (key, value):
                turn(row, lambda d: [d], form.dim)

        def new_value(d: Expr, lanes: int) -> Expr:
            return load(self.qkv, [new, start + d], lanes) if value is None else load(value, [d], lanes)

        row = past + new
        if form.window and not form.sparse:
            row = Register("int64", row % self.c).value
        self.cache.write(head, row, lambda d, lanes: load(key, [d], lanes), new_value)

    def _rotate(self, token: Expr, column: Expr, row: Expr, write: Callable[[Expr, Expr], None]) -> None:
        """Rotary embedding (arXiv:2104.09864), halves paired: of one head of one token, from `column` of qkv on.

        write: called with each dimension and its value
        """
        half = self.form.rotary // 2
        with T.serial(0, half) as d:
            first, second = (Register("float32", self.qkv[token, column + start + d]).value for start in (0, half))
            cos, sin = (Register("float32", table[row, d]).value for table in (self.cos, self.sin))
            write(d, first * cos - second * sin)
            write(half + d, second * cos + first * sin)
        if self.form.dim > 2 * half:
            with T.serial(0, self.form.dim - 2 * half) as rest:
                write(2 * half + rest, self.qkv[token, column + 2 * half + rest])

    def _tile(self, head: Expr, first: Expr, past: Expr, table: Expr, queries: Any, scores: Any) -> None:
        form = self.form
        for row in range(self.rows):
            query = self._query(first, row)

            def write(d: Expr, value: Expr, row: int = row) -> None:
                T.buffer_store(queries, value * floats(form.scale, 1), [row, d])

            self._rotate(query, self._head(head, row) * form.dim, table + query, write)
            if self.cache.turned:
                turn(queries, lambda d, row=row: [row, d], form.dim)  # type: ignore[misc]
        kv = head if form.single else head // form.group
        last = past + (_int64(0) if form.single else tirx.Min(first + self.rows, self.s) - 1)
        spans = self._spans(head, first, past, last)
        peaks = self._score(head, kv, first, past, spans, queries, scores)
        sums = self._exponentials(kv, spans, peaks, scores)
        for span in spans:
            self._mix(head, kv, first, span, scores, sums, add=span is not spans[0])
        if self.cache.turned:
            for row in range(self.rows):
                self._turn_back(head, first, row)

    # the keys of a tile

    def _spans(self, head: Expr, first: Expr, past: Expr, last: Expr) -> list[_Span]:
        """Those that a tile reads, whose first query is new token `first` and whose last one stands at position `last`."""
        form, every = self.form, tuple(range(self.rows))
        if not form.sparse:
            begin, held = _int64(0), None
            if form.window:
                begin = Register("int64", tirx.Max(past + first - (form.window - 1), _int64(0)) // KEYS).value
                held = Register("int64", begin % (self.c // KEYS)).value
            return [_Span(every, begin, last // KEYS + 1 - begin, last + 1 - begin * KEYS, begin, held=held)]
        block, local, stride, _ = form.sparse
        far = Register(
            "int64", tirx.Max((past + first) // block - (local - 1), _int64(0))
        ).value  # sparse blocks not near
        begin = far * (block // KEYS)
        spans = [_Span(every, begin, last // KEYS + 1 - begin, last + 1 - begin * KEYS, _int64(0))]
        for rows in [(row,) for row in every] if form.single else [every]:
            column = Register("int64", self._first_column(self._head(head, rows[0]))).value
            count = Register("int64", tirx.Max(far - column + stride - 1, _int64(0)) // stride).value
            spans.append(_Span(rows, column, count, count * block, _int64(0), stride))
        return spans

    def _first_column(self, head: Expr) -> Expr:
        """The first sparse block k with (k + step · head + 1) mod stride = 0."""
        _, _, stride, step = self.form.sparse or (0, 0, 1, 0)
        return _int64(stride - 1) - (T.cast(head, "int64") * step) % stride

    @contextmanager
    def _blocks(self, span: _Span, together: int = 1) -> Iterator[tuple[Expr, Expr, Expr]]:
        """A loop over blocks of KEYS, so many at a time: (number of the first, of the one where it lies, of its scores')."""
        if not span.stride:
            with T.serial(0, span.count) as i:
                yield span.begin + i, self._held(span, i, KEYS), span.begin - span.shift + i
            return
        within = self._sparse_block // KEYS
        with T.serial(0, span.count) as column, T.serial(0, within // together) as i:
            block = (span.begin + column * span.stride) * within + i * together
            yield block, block, block

    def _held(self, span: _Span, i: Expr, keys: int) -> Expr:
        """Where the cache has the i-th of a span's blocks; keys: of each, 1 for single keys."""
        many = KEYS // keys
        if span.held is None:
            return span.begin * many + i
        at, end = span.held * many + i, self.c // keys
        return Register("int64", tirx.Select(at < end, at, at - end)).value

    def _together(self, span: _Span) -> int:
        """How many blocks of a column are scored at a time: where there is one row, its sums would wait for each other."""
        within = self._sparse_block // KEYS
        return next(count for count in (4, 2, 1) if within % count == 0) if span.stride else 1

    @contextmanager
    def _positions(self, span: _Span) -> Iterator[tuple[Expr, Expr]]:
        """A loop over keys: (where it lies, place of its score)."""
        if not span.stride:
            with T.serial(0, span.keys) as t:
                yield self._held(span, t, 1), (span.begin - span.shift) * KEYS + t
            return
        with T.serial(0, span.count) as column, T.serial(0, self._sparse_block) as t:
            position = (span.begin + column * span.stride) * self._sparse_block + t
            yield position, position

    @property
    def _sparse_block(self) -> int:
        return self.form.sparse[0] if self.form.sparse else 0

    def _score(
        self, head: Expr, kv: Expr, first: Expr, past: Expr, spans: list[_Span], queries: Any, scores: Any
    ) -> list[Register]:
        """q · k of each row with each key it may see, and each row's largest."""
        lanes, parts = self.lanes, KEYS // self.lanes
        f32 = vector("float32", lanes)
        peaks = [Register(f32, floats(_HIDDEN, lanes)) for _ in range(self.rows)]
        limit = self.registers // 2 // parts or 1
        for span in spans:
            together = self._together(span)
            with self._blocks(span, together) as (block, held, place):
                units = [(i, row) for i in range(together) for row in span.rows]
                for start in range(0, len(units), limit):
                    chunk = units[start : start + limit]
                    sums = self._products(kv, held, chunk, queries)
                    for (i, row, part), s in sums.items():
                        score = s.value
                        if not span.stride:  # all of a column is seen
                            position = past + self._query(first, row)
                            score = self._masked(score, head, (block + i) * KEYS + part * lanes, position)
                        column = (place + i) * KEYS + part * lanes
                        T.buffer_store(scores, score, [row, tirx.Ramp(column, 1, lanes)])
                        peaks[row].set(emit.maximum(peaks[row].value, score, lanes))
        return [Register("float32", emit.largest(peak.value, lanes)) for peak in peaks]

    def _products(
        self, kv: Expr, block: Expr, units: list[tuple[int, int]], queries: Any
    ) -> dict[tuple[int, int, int], Register]:
        """q · k by (block after the first, row, part of a block). units: (block after the first, row)."""
        lanes, parts, cache = self.lanes, KEYS // self.lanes, self.cache
        f32 = vector("float32", lanes)
        places = [(*unit, part) for unit in units for part in range(parts)]
        steps = self.form.dim // cache.groups // cache.together

        def products(group: Expr) -> dict[tuple[int, int, int], Expr]:
            """Over the dimensions of a group."""
            sums = {place: Register(f32, floats(0.0, lanes)) for place in places}
            with T.serial(0, steps) as step:
                at = group * steps + step
                for i, part in dict.fromkeys((i, part) for i, _, part in sums):
                    for number, loaded in enumerate(cache.some_keys(kv, block + i, at, part)):
                        key = Register(f32, loaded).value
                        for row in (row for other, row in units if other == i):
                            s = sums[i, row, part]
                            query = broadcast(queries[row, at * cache.together + number], lanes)
                            s.set(emit.fma(query, key, s.value, lanes))
            return {
                (i, row, part): cache.scaled_scores(kv, (block + i) * parts + part, group, s.value)
                for (i, row, part), s in sums.items()
            }

        if cache.groups == 1:
            return {place: Register(f32, scaled) for place, scaled in products(0).items()}
        whole = {place: Register(f32, floats(0.0, lanes)) for place in places}
        with T.serial(0, cache.groups) as group:
            for place, scaled in products(group).items():
                whole[place].set(whole[place].value + scaled)
        return whole

    def _masked(self, score: Expr, head: Expr, first_key: Expr, position: Expr) -> Expr:
        """Scores of keys in the future, before the window, or in a block that this row does not see, are hidden."""
        lanes = self.lanes
        apart = T.cast(position - first_key, "int32")
        if self.form.sparse and not self.form.single:  # the queries of a tile may lie in two blocks
            block, local, stride, _ = self.form.sparse
            near = position // block - first_key // block < local
            column = (first_key // block - self._first_column(head) + stride) % stride == 0
            apart = tirx.Select(tirx.Or(near, column), apart, tirx.IntImm("int32", -1))
        ahead = broadcast(apart, lanes)
        distance = Register(vector("int32", lanes), ahead - tirx.Ramp(0, 1, lanes)).value
        visible = distance >= emit.ints(0, lanes)
        kept = tirx.Select(visible, score, floats(_HIDDEN, lanes))
        if self.form.window:
            kept = tirx.Select(distance < emit.ints(self.form.window, lanes), kept, floats(_HIDDEN, lanes))
        return Register(vector("float32", lanes), kept).value

    def _exponentials(self, kv: Expr, spans: list[_Span], peaks: list[Register], scores: Any) -> list[Register]:
        """Scores become weights: e^(score - largest), as the cache's values want them; returns each row's sum of powers."""
        lanes = self.lanes
        f32 = vector("float32", lanes)
        sums = [Register(f32, floats(0.0, lanes)) for _ in peaks]
        for span in spans:
            with self._blocks(span) as (_, held, place), T.serial(0, KEYS // lanes) as part:
                for row in span.rows:
                    column = place * KEYS + part * lanes
                    score = load(scores, [row, column], lanes)
                    power = Register(f32, emit.exponential(score - broadcast(peaks[row].value, lanes), lanes)).value
                    seen = score > floats(_HIDDEN / 2, lanes)
                    shown = Register(f32, tirx.Select(seen, power, floats(0.0, lanes))).value
                    weight = self.cache.scaled_weights(kv, held * (KEYS // lanes) + part, shown)
                    T.buffer_store(scores, weight, [row, tirx.Ramp(column, 1, lanes)])
                    sums[row].set(sums[row].value + shown)
        return [Register("float32", emit.total(s.value, lanes)) for s in sums]

    def _mix(
        self, head: Expr, kv: Expr, first: Expr, span: _Span, scores: Any, sums: list[Register], add: bool
    ) -> None:
        """The values of a span, weighted: as many dimensions at a time as the registers hold. add: to those before."""
        lanes = self.lanes
        f32 = vector("float32", lanes)
        vectors = self.form.dim // lanes
        rows = min(len(span.rows), 4)
        width = max(1, (self.registers - 6) // rows)
        for low in range(0, len(span.rows), rows):
            group = span.rows[low : low + rows]
            for start in range(0, vectors, width):
                parts = range(start, min(start + width, vectors))
                mixed = {(row, part): Register(f32, floats(0.0, lanes)) for row in group for part in parts}
                with self._positions(span) as (held, place):
                    weights = {row: broadcast(scores[row, place], lanes) for row in group}
                    for part in parts:
                        value = Register(f32, self.cache.value(kv, held, part * lanes)).value
                        for row in group:
                            m = mixed[row, part]
                            m.set(emit.fma(weights[row], value, m.value, lanes))
                for (row, part), m in mixed.items():
                    share = broadcast(floats(1.0, 1) / sums[row].value, lanes)
                    self._write(head, first, row, part * lanes, m.value * share, add)

    def _turn_back(self, head: Expr, first: Expr, row: int) -> None:
        """What a row attends to was mixed of turned values."""
        column = self._head(head, row) * self.form.dim
        query = 0 if self.form.single else first + row
        with emit.where(None if self.form.single else query < self.s):
            turn(self.out, lambda d: [query, column + d], self.form.dim)

    def _write(self, head: Expr, first: Expr, row: int, d: int, value: Expr, add: bool) -> None:
        column = self._head(head, row) * self.form.dim + d
        query = 0 if self.form.single else first + row
        with emit.where(None if self.form.single else query < self.s):
            if add:
                value = value + load(self.out, [query, column], self.lanes)
            T.buffer_store(self.out, value, [query, tirx.Ramp(column, 1, self.lanes)])


def _int64(value: int) -> Expr:
    return tirx.IntImm("int64", value)
