"""`edge.attention` in MIL: rotary embedding, the cache as two states, a mask from positions, grouped heads without copies.

After each layer's keys and values are written the state is updated, and attention reads what the state then holds. Rows of
the cache beyond a query's position are never visible to it, so that neither padding nor what a longer sequence left there
matters; later tokens overwrite it.

Where a model has a window that is shorter than the context, the cache is a ring: position p lies in row p mod R. A call's
tokens do not go around its end (`Rules`), and what the last chunk is padded with may lie behind it, in rows that nobody reads.
Its rows have the newest positions up to the call's last one. R is at least the window and a chunk less one, so that padding,
too, is only written over positions that no query sees any more.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx

from pocketphi.graph.config import layer_of
from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.program import shape_of
from pocketphi.targets.coreml.coremltools_parts import Var
from pocketphi.targets.coreml.emitter import STATES, Emitter
from pocketphi.targets.lowering import once

HIDDEN = -16384.0
"""Added to a score that must not be seen: exp gives 0, and the sum is far from the end of float16 whatever the score."""


def lower(e: Emitter, node: fx.Node) -> Var:
    """qkv [1, S, (H + 2·KV)·D] → [1, S, H·D]; keys and values go into the states."""
    args: Any = node.args
    qkv, _, _, _, cos, sin, heads, kv_heads, scale, window, long_after, *sparse = args
    name, dim = node.name, e.program.config.head_dim
    split = e.op("reshape", f"{name}_split", x=e.value(qkv), shape=[1, e.length, heads + 2 * kv_heads, dim])
    turned = e.op("transpose", f"{name}_heads", x=split, perm=[0, 2, 1, 3])
    qk, v = e.op("split", f"{name}_qk_v", x=turned, split_sizes=[heads + kv_heads, kv_heads], axis=1)
    q, k = e.op(
        "split", f"{name}_q_k", x=_rotate(e, name, qk, cos, sin, long_after), split_sizes=[heads, kv_heads], axis=1
    )
    keys, values = _remember(e, node, k, v)
    groups = heads // kv_heads
    rows = -1 if e.form.flexible else groups * e.length
    folded = q if groups == 1 else e.op("reshape", f"{name}_fold", x=q, shape=[1, kv_heads, rows, dim])
    attend = _fused if e.form.attention == "sdpa" else _decomposed
    visible = _visible_in_blocks(e, heads, kv_heads, *sparse) if sparse else _visible(e, groups, window)
    seen = attend(e, name, folded, keys, values, scale, visible)
    if groups > 1:
        seen = e.op("reshape", f"{name}_unfold", x=seen, shape=[1, heads, e.length, dim])
    merged = e.op("transpose", f"{name}_merge", x=seen, perm=[0, 2, 1, 3])
    return e.op("reshape", name, x=merged, shape=[1, e.length, heads * dim])


def _rotate(e: Emitter, name: str, x: Var, cos: fx.Node, sin: fx.Node, long_after: int) -> Var:
    """Turn the first R dimensions of each head, halves paired; the others stay. x: [1, heads, S, D]."""
    dim, half = e.program.config.head_dim, int(shape_of(cos)[1])
    sizes = [half, half] + ([dim - 2 * half] if 2 * half < dim else [])
    first, second, *kept = e.op("split", f"{name}_pairs", x=x, split_sizes=sizes, axis=-1)
    c, s = (_table_rows(e, str(table.target), long_after) for table in (cos, sin))
    straight = e.op("mul", f"{name}_first_cos", x=first, y=c), e.op("mul", f"{name}_second_cos", x=second, y=c)
    crossed = e.op("mul", f"{name}_second_sin", x=second, y=s), e.op("mul", f"{name}_first_sin", x=first, y=s)
    turned = [
        e.op("sub", f"{name}_first", x=straight[0], y=crossed[0]),
        e.op("add", f"{name}_second", x=straight[1], y=crossed[1]),
    ]
    return e.op("concat", f"{name}_rotated", values=[*turned, *kept], axis=-1)


@once
def _table_rows(e: Emitter, table: str, long_after: int) -> Var:
    """Rows of a rotary table for the tokens of this call: [1, 1, S, R/2]."""
    name, rows = table.replace(".", "_"), e.float_weight(table)
    two = 0 < long_after < e.form.positions
    index = _numbers(e, rows.shape[0] - (long_after if two else 0))
    if two:
        index = _long_numbers(e, index, long_after)
    found = e.op("gather", f"{name}_rows", x=rows, indices=index, axis=0)
    return e.op("expand_dims", f"{name}_turns", x=found, axes=[0, 1])


@once
def _numbers(e: Emitter, rows: int) -> Var:
    """Row numbers in a table of so many rows: the positions of the tokens."""
    if rows >= e.form.positions:
        return e.positions(1)
    return e.op("minimum", "clipped", x=e.positions(1), y=np.int32(rows - 1))  # only padding lies beyond


@once
def _long_numbers(e: Emitter, rows: Var, long_after: int) -> Var:
    """Rows of the long table, which lies behind the short one, once the sequence is longer than that."""
    is_long = e.op("greater", "is_long", x=e.total(), y=np.int32(long_after))
    flag = e.op("cast", "is_long_int", x=is_long, dtype="int32")
    start = e.op("mul", "table_start", x=flag, y=np.int32(long_after))
    return e.op("add", "rotary_rows", x=rows, y=start)


def _remember(e: Emitter, node: fx.Node, k: Var, v: Var) -> tuple[Var, Var]:
    """Write [1, KV, S, D] at the position of this layer's cache; returns its keys and values [1, KV, rows, D]."""
    layer = layer_of(str(node.args[1].target))  # type: ignore[union-attr]
    if layer is None:
        raise CompilerBug(f"{node.name} reads its cache from {node.args[1]}, which is no layer's")
    kv_heads, rows, dim = e.program.config.kv_heads, e.form.keys, e.program.config.head_dim
    at = np.array([layer], np.int32)
    none, after = np.array([0, 0], np.int32), np.array([layer + 1], np.int32)
    begin = e.op("concat", f"{node.name}_begin", values=[at, none, e.row(), none[:1]], axis=0)
    ends = [after, np.array([1, kv_heads], np.int32), e.row_end(), np.array([dim], np.int32)]
    end = e.op("concat", f"{node.name}_end", values=ends, axis=0)
    found = []
    for state, new in zip(STATES, (k, v)):
        name = f"{node.name}_{state}"
        if state not in e.caches:
            e.caches[state] = e.op("read_state", f"{state}_before", input=e.inputs[state])
        row = e.op("expand_dims", f"{name}_new", x=new, axes=[0])
        changed = e.op("slice_update", f"{name}_changed", x=e.caches[state], update=row, begin=begin, end=end)
        e.caches[state] = e.op("coreml_update_state", f"{name}_state", state=e.inputs[state], value=changed)
        found.append(
            e.op(
                "slice_by_index",
                f"{name}_layer",
                x=e.caches[state],
                begin=[layer, 0, 0, 0, 0],
                end=[layer + 1, 1, kv_heads, rows, dim],
                squeeze_mask=[True, False, False, False, False],
            )
        )
    return found[0], found[1]


@once
def _visible(e: Emitter, groups: int, window: int) -> Var:
    """bool [1, 1, groups · S, rows]: which keys a query sees. Made once for all layers that ask the same."""
    name, keys = f"visible_{groups}_{window}", _keys(e)
    queries = e.op("expand_dims", f"{name}_queries", x=e.positions(groups), axes=[1])
    seen = e.op("less_equal", f"{name}_past", x=keys, y=queries)
    if 0 < window < e.form.positions:
        first = e.op("sub", f"{name}_first", x=queries, y=np.int32(window))
        near = e.op("greater", f"{name}_near", x=keys, y=first)
        seen = e.op("logical_and", f"{name}_both", x=seen, y=near)
    return e.op("expand_dims", name, x=seen, axes=[0, 1])


@once
def _visible_in_blocks(e: Emitter, heads: int, kv_heads: int, block: int, local: int, stride: int, step: int) -> Var:
    """bool [1, KV, groups · S, rows]: which keys each head's queries see by `edge_ops.block_sparse`. Once for all layers."""
    name, keys = "visible_blocks", _keys(e)
    queries = e.op("expand_dims", f"{name}_queries", x=e.positions(1), axes=[1])
    past = e.op("less_equal", f"{name}_past", x=keys, y=queries)
    key = e.op("floor_div", f"{name}_key", x=keys, y=np.int32(block))
    query = e.op("floor_div", f"{name}_query", x=queries, y=np.int32(block))
    near = e.op("less", f"{name}_near", x=e.op("sub", f"{name}_apart", x=query, y=key), y=np.int32(local))
    offsets = (step * np.arange(heads, dtype=np.int32) + 1).reshape(heads, 1, 1)
    turned = e.op("add", f"{name}_turned", x=e.op("expand_dims", f"{name}_keys", x=key, axes=[0]), y=offsets)
    rest = e.op("mod", f"{name}_rest", x=turned, y=np.int32(stride))
    vertical = e.op("equal", f"{name}_vertical", x=rest, y=np.int32(0))
    near_or_vertical = e.op("logical_or", f"{name}_either", x=near, y=vertical)
    seen = e.op("logical_and", f"{name}_seen", x=past, y=near_or_vertical)
    rows = -1 if e.form.flexible else heads // kv_heads * e.length
    return e.op("reshape", name, x=seen, shape=[1, kv_heads, rows, e.form.keys])


@once
def _keys(e: Emitter) -> Var:
    """int32 [1, rows]: the position that each row of the cache has; of a ring's rows that have none yet, one that will come."""
    rows = e.constant("const.positions", np.arange(e.form.keys, dtype=np.int32))
    if not e.form.ring:
        return e.op("expand_dims", "keys", x=rows, axes=[0])
    ahead = e.op("sub", "keys_ahead", x=e.op("sub", "last_position", x=e.end(), y=np.int32(1)), y=rows)
    around = e.op("floor_div", "keys_around", x=ahead, y=np.int32(e.form.ring))
    turns = e.op("maximum", "keys_turns", x=around, y=np.int32(0))
    whole = e.op("mul", "keys_whole", x=turns, y=np.int32(e.form.ring))
    newest = e.op("add", "keys_newest", x=rows, y=whole)
    return e.op("expand_dims", "keys", x=newest, axes=[0])


def _fused(e: Emitter, name: str, q: Var, keys: Var, values: Var, scale: float, visible: Var) -> Var:
    """The operator has no scale, it divides by sqrt(D): another scale is put on the queries."""
    correction = scale * math.sqrt(e.program.config.head_dim)
    if not math.isclose(correction, 1.0, rel_tol=1e-6):
        q = e.op("mul", f"{name}_scaled", x=q, y=np.float16(correction))
    return e.op("scaled_dot_product_attention", f"{name}_sdpa", query=q, key=keys, value=values, attn_mask=visible)


def _decomposed(e: Emitter, name: str, q: Var, keys: Var, values: Var, scale: float, visible: Var) -> Var:
    """Queries are scaled before the product, whose values would leave float16 first otherwise."""
    mask = _added(e, visible)
    scaled = e.op("mul", f"{name}_scaled", x=q, y=np.float16(scale))
    scores = e.op("matmul", f"{name}_scores", x=scaled, y=keys, transpose_y=True)
    masked = e.op("add", f"{name}_masked", x=scores, y=mask)
    shares = e.op("softmax", f"{name}_shares", x=masked, axis=-1)
    return e.op("matmul", f"{name}_mixed", x=shares, y=values)


@once
def _added(e: Emitter, visible: Var) -> Var:
    """What is added to scores: 0 where a key is visible."""
    hidden = e.op("logical_not", f"{visible.name}_not", x=visible)
    ones = e.op("cast", f"{visible.name}_ones", x=hidden, dtype="fp16")
    return e.op("mul", f"{visible.name}_added", x=ones, y=np.float16(HIDDEN))
