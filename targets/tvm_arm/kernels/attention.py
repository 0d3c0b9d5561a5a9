"""Attention over a K/V cache that is written in place: rotary embedding, append, and a softmax that sees the cache once.

One task for each key/value head. It first writes the head's new keys and values into the cache, then serves its queries, a
tile of rows at a time, so that keys and values that were loaded once meet all rows of the tile: consecutive queries of a
head in prefill, the heads of a group in decode, and two queries of some of those heads in calls of 1, 2, 5 and 6 tokens, in
which guessed ones are checked.

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
_PREFILL_QUERIES = 4
_GUESSED_QUERIES = 2
_GUESSED_HEADS = 4  # at most: a tile's rows are unrolled, and each has scores of its own


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
class _Tile:
    """Rows that are served together: consecutive queries of each of some heads, which share a key/value head.

    kv: that one; head: the first of them, heads: how many; first: the first new token that asks, queries: how many ask;
    s: new tokens in all
    """

    kv: Expr
    head: Expr
    heads: int
    first: Expr
    queries: int
    s: Expr

    @property
    def rows(self) -> range:
        return range(self.heads * self.queries)

    def head_of(self, row: int) -> Expr:
        return self.head + row % self.heads

    def asks(self, row: int) -> Expr:
        """The new token that this row is of. In the last tile it may be none."""
        return self.first + row // self.heads

    def query_of(self, row: int) -> Expr:
        """The same; the last one where it is none."""
        return self.first if self.queries == 1 else tirx.Min(self.asks(row), self.s - 1)

    def is_there(self, row: int) -> Expr | None:
        """Whether it is one; None if it always is."""
        return None if self.queries == 1 else self.asks(row) < self.s

    @property
    def last(self) -> Expr:
        """The last new token that asks."""
        return self.first if self.queries == 1 else tirx.Min(self.first + self.queries, self.s) - 1


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
            if form.single:
                self._tiles(head, past, table, form.group, 1)
                return
            guessed = self._guessed()
            if guessed is not None:
                with emit.where(guessed):
                    heads = next(n for n in range(_GUESSED_HEADS, 0, -1) if form.group % n == 0)
                    self._tiles(head, past, table, heads, _GUESSED_QUERIES)
            with emit.where(None if guessed is None else tirx.Not(guessed)):
                self._tiles(head, past, table, 1, _PREFILL_QUERIES)

    def _guessed(self) -> Expr | None:
        """Whether tiles of two queries have fewer rows that nobody asks for: for 1, 2, 5 and 6 queries. Where each head sees
        blocks of its own there are none."""
        few = self.s <= _PREFILL_QUERIES + _GUESSED_QUERIES
        return None if self.form.sparse else tirx.And(few, (self.s - 1) % _PREFILL_QUERIES < _GUESSED_QUERIES)

    def _tiles(self, kv: Expr, past: Expr, table: Expr, heads: int, queries: int) -> None:
        """All rows of a key/value head, in tiles of so many heads and queries."""
        group = self.form.group
        buffers = emit.memory((heads * queries, self.form.dim)), emit.memory((heads * queries, self.c))
        with T.serial(0, group // heads) as member, T.serial(0, (self.s + queries - 1) // queries) as number:
            tile = _Tile(kv, kv * group + member * heads, heads, number * queries, queries, self.s)
            self._tile(tile, past, table, *buffers)

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

    def _tile(self, tile: _Tile, past: Expr, table: Expr, queries: Any, scores: Any) -> None:
        form = self.form
        for row in tile.rows:
            query = tile.query_of(row)

            def write(d: Expr, value: Expr, row: int = row) -> None:
                T.buffer_store(queries, value * floats(form.scale, 1), [row, d])

            self._rotate(query, tile.head_of(row) * form.dim, table + query, write)
            if self.cache.turned:
                turn(queries, lambda d, row=row: [row, d], form.dim)  # type: ignore[misc]
        spans = self._spans(tile, past)
        peaks = self._score(tile, past, spans, queries, scores)
        sums = self._exponentials(tile.kv, spans, peaks, scores)
        for span in spans:
            self._mix(tile, span, scores, sums, add=span is not spans[0])
        if self.cache.turned:
            for row in tile.rows:
                self._turn_back(tile, row)

    # the keys of a tile

    def _spans(self, tile: _Tile, past: Expr) -> list[_Span]:
        """Those that a tile reads."""
        form, every = self.form, tuple(tile.rows)
        first, last = tile.first, past + tile.last
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
            column = Register("int64", self._first_column(tile.head_of(rows[0]))).value
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

    def _score(self, tile: _Tile, past: Expr, spans: list[_Span], queries: Any, scores: Any) -> list[Register]:
        """q · k of each row with each key it may see, and each row's largest."""
        lanes, parts = self.lanes, KEYS // self.lanes
        f32 = vector("float32", lanes)
        peaks = [Register(f32, floats(_HIDDEN, lanes)) for _ in tile.rows]
        limit = self.registers // 2 // parts or 1
        for span in spans:
            together = self._together(span)
            with self._blocks(span, together) as (block, held, place):
                units = [(i, row) for i in range(together) for row in span.rows]
                for start in range(0, len(units), limit):
                    chunk = units[start : start + limit]
                    sums = self._products(tile.kv, held, chunk, queries)
                    for (i, row, part), s in sums.items():
                        score = s.value
                        if not span.stride:  # all of a column is seen
                            position = past + tile.query_of(row)
                            score = self._masked(score, tile.head_of(row), (block + i) * KEYS + part * lanes, position)
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

    def _mix(self, tile: _Tile, span: _Span, scores: Any, sums: list[Register], add: bool) -> None:
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
                        value = Register(f32, self.cache.value(tile.kv, held, part * lanes)).value
                        for row in group:
                            m = mixed[row, part]
                            m.set(emit.fma(weights[row], value, m.value, lanes))
                for (row, part), m in mixed.items():
                    share = broadcast(floats(1.0, 1) / sums[row].value, lanes)
                    self._write(tile, row, part * lanes, m.value * share, add)

    def _turn_back(self, tile: _Tile, row: int) -> None:
        """What a row attends to was mixed of turned values."""
        column = tile.head_of(row) * self.form.dim
        with emit.where(tile.is_there(row)):
            turn(self.out, lambda d: [tile.asks(row), column + d], self.form.dim)

    def _write(self, tile: _Tile, row: int, d: int, value: Expr, add: bool) -> None:
        query, column = tile.asks(row), tile.head_of(row) * self.form.dim + d
        with emit.where(tile.is_there(row)):
            if add:
                value = value + load(self.out, [query, column], self.lanes)
            T.buffer_store(self.out, value, [query, tirx.Ramp(column, 1, self.lanes)])


def _int64(value: int) -> Expr:
    return tirx.IntImm("int64", value)
