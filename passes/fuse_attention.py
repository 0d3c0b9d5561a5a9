"""Before: packed projection → slices → heads → rotary embedding → concatenation with the cache → repeated K/V heads →
`scaled_dot_product_attention(…, mask)` → heads merged.
After: `edge.attention(qkv, k_cache, v_cache, position_ids, cos, sin, …)`, or `edge.sparse_attention(…)` where heads see other
keys, those of the config's blocks.

The rotary tables and the mask are not matched but run: the traced subgraph that makes them is evaluated on chosen
inputs, and the result becomes the table, or is compared with what `edge.attention` would see. So default and long rotary
embeddings, partial ones, and sliding windows need no pattern of their own, and anything else is refused with its reason.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pocketphi.graph.edge_ops import block_sparse
from pocketphi.graph.errors import InputError
from pocketphi.graph.lazy_weights import Constant
from pocketphi.graph.program import Program, Weights, evaluate, free_inputs, shape_of
from pocketphi.passes.base import Pass, PassReport
from pocketphi.passes.pattern import Bound, OneOf, Op, Pattern, Var, part

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten.reshape.default)
_TO_END = Var("_end", lambda v: isinstance(v, int) and v > 0)


@dataclass(frozen=True)
class _Tables:
    """Rotary tables [M, R/2]; long_after > 0 where the rows of the short ones come first."""

    cos: torch.Tensor
    sin: torch.Tensor
    long_after: int


class Refused(ValueError):
    """Why an attention cannot be expressed as `edge.attention`."""


class FuseAttention(Pass):
    """Fuses every scaled dot-product attention that is causal self-attention over a K/V cache."""

    name = "fuse-attention"

    def __init__(self, context: int | None = None) -> None:
        """context: how many positions the rotary tables cover; the model's own maximum if None."""
        self.context = context

    def rewrite(self, program: Program, report: PassReport) -> None:
        if self.context is not None and self.context > program.config.max_position:
            raise InputError(f"--context {self.context}: the model has {program.config.max_position} positions")
        pattern = _pattern()
        tables: dict[tuple[fx.Node, fx.Node], _Tables] = {}
        masks: dict[fx.Node, tuple[int, tuple[int, ...]]] = {}
        inputs = {str(node.target): node for node in program.inputs}
        for node in list(program.graph.nodes):
            if node.target is not aten.scaled_dot_product_attention.default:
                continue
            merged = _merged(node)
            found = pattern.match(node)
            if not found or merged is None:
                report.refuse(node.name, "the operators around it are not a packed projection, heads, rotary and cache")
                continue
            try:
                rope, mask = (found["cos"], found["sin"]), _mask_of(node)
                if rope not in tables:
                    tables[rope] = _rotary_tables(program, *rope, self.context or program.config.max_position)
                if mask not in masks:
                    by_head = shape_of(mask)[1] != 1
                    masks[mask] = (0, _blocks(program, mask)) if by_head else (_window(program, mask), ())
                self._fuse(program, node, merged, found, tables[rope], *masks[mask], inputs["position_ids"])
                report.applied["attention"] += 1
            except Refused as reason:
                report.refuse(node.name, str(reason))

    @staticmethod
    def _fuse(
        program: Program,
        sdpa: fx.Node,
        merged: fx.Node,
        found: Bound,
        tables: _Tables,
        window: int,
        blocks: tuple[int, ...],
        positions: fx.Node,
    ) -> None:
        qkv = found["qkv"]
        heads, kv_heads, dim = _head_counts(found)
        if found["half"] != tables.cos.shape[1]:
            raise Refused(f"rotary pairs are {found['half']} apart, the tables have {tables.cos.shape[1]} columns")
        scale = sdpa.kwargs.get("scale") or dim**-0.5
        after = qkv.next
        cos, sin = (
            program.weight(f"rope.{kind}", Constant(table, f"traced rotary {kind}"), before=after)[""]
            for kind, table in (("cos", tables.cos), ("sin", tables.sin))
        )
        tensors = (qkv, found["past_k"], found["past_v"], positions, cos, sin)
        arguments = (*tensors, heads, kv_heads, scale, window, tables.long_after, *blocks)
        operation = torch.ops.edge.sparse_attention.default if blocks else torch.ops.edge.attention.default
        # right behind the projection: the caches that go out have earlier readers than the attention itself
        fused = program.call(operation, arguments, before=after)
        for index, old in enumerate((merged, found["keys"], found["values"])):
            old.replace_all_uses_with(program.call(operator.getitem, (fused, index), before=after))


def _pattern() -> Pattern:
    qkv = Var("qkv")
    cos = Op(aten.unsqueeze.default, Var("cos"), 1)
    sin = Op(aten.unsqueeze.default, Var("sin"), 1)
    q = _rotary(_heads(qkv, "q"), cos, sin)
    k = _rotary(_heads(qkv, "k"), cos, sin)
    keys = Op(aten.cat.default, [Var("past_k", _is_input), k], 2, name="keys")
    values = Op(aten.cat.default, [Var("past_v", _is_input), _heads(qkv, "v")], 2, name="values")
    return Op(aten.scaled_dot_product_attention.default, q, _shared(keys), _shared(values), keywords=True)


def _heads(qkv: Pattern, name: str) -> Pattern:
    """[B, S, …] → [B, heads, S, D]; binds the slice's bounds and the heads' node."""
    columns = part(qkv, 2, Var(f"{name}_start"), Var(f"{name}_stop"))
    return Op(aten.transpose.int, Op(_VIEWS, columns), 1, 2, name=name)


def _rotary(x: Pattern, cos: Pattern, sin: Pattern) -> Pattern:
    """x · cos + rotate_half(x) · sin, over all dimensions of a head or the first R."""

    def turned(y: Pattern) -> Pattern:
        upper = Op(aten.neg.default, part(y, 3, Var("half"), _TO_END))
        crossed = Op(aten.cat.default, [upper, part(y, 3, 0, Var("half"))], -1)
        straight = Op(aten.mul.Tensor, y, cos, commutes=True)
        return Op(aten.add.Tensor, straight, Op(aten.mul.Tensor, crossed, sin, commutes=True), commutes=True)

    partial = turned(part(x, 3, 0, Var("rotary_dim")))
    rest = part(x, 3, Var("rotary_dim"), _TO_END)
    return OneOf(turned(x), Op(aten.cat.default, [partial, rest], -1))


def _shared(cache: Pattern) -> Pattern:
    """The cache itself, or each of its heads repeated for a group of query heads."""
    return OneOf(cache, Op(_VIEWS, Op(aten.expand.default, Op(aten.unsqueeze.default, cache, 2))))


def _is_input(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "placeholder"


def _merged(sdpa: fx.Node) -> fx.Node | None:
    """The node that merges the heads of the output again: transpose, then reshape."""
    for pattern in (Op(aten.transpose.int, Var("x"), 1, 2), Op(_VIEWS, Var("x"))):
        users = list(sdpa.users)
        if len(users) != 1 or not pattern.match(users[0]):
            return None
        sdpa = users[0]
    return sdpa if len(shape_of(sdpa)) == 3 else None


def _mask_of(sdpa: fx.Node) -> fx.Node:
    mask = sdpa.args[3] if len(sdpa.args) > 3 else sdpa.kwargs.get("attn_mask")
    if not isinstance(mask, fx.Node):
        raise Refused("it has no mask")
    if len(sdpa.args) > 4 or any(sdpa.kwargs.get(key) for key in ("dropout_p", "is_causal", "enable_gqa")):
        raise Refused("it has dropout, or a mask beside its own causal one")
    return mask


def _head_counts(found: Bound) -> tuple[int, int, int]:
    """(heads, kv_heads, head_dim), after checking that q, k and v tile the packed projection."""
    heads, dim = (int(size) for size in (shape_of(found["q"])[1], shape_of(found["q"])[3]))
    kv_heads = int(shape_of(found["k"])[1])
    bounds = [0, heads * dim, (heads + kv_heads) * dim, (heads + 2 * kv_heads) * dim]
    width = int(shape_of(found["qkv"])[2])
    came = [found["q_start"], found["q_stop"], found["k_start"], found["k_stop"], found["v_start"]]
    if came != [bounds[0], bounds[1], bounds[1], bounds[2], bounds[2]] or bounds[3] != width:
        raise Refused(f"q, k and v do not tile the {width} columns of the projection in this order")
    if shape_of(found["k"]) != shape_of(found["v"]):
        raise Refused("keys and values have different heads")
    return heads, kv_heads, dim


def _rotary_tables(program: Program, cos: fx.Node, sin: fx.Node, positions: int) -> _Tables:
    """Run the traced rotary subgraph on every position."""
    other = (free_inputs(cos) | free_inputs(sin)) - {"position_ids"}
    if other:
        raise Refused(f"the rotary embedding depends on {sorted(other)}, not on position_ids alone")
    weights = Weights(program.weights, keep=True)

    def table(length: int) -> list[torch.Tensor]:
        rows = evaluate([cos, sin], {"position_ids": torch.arange(length)[None]}, weights)
        found = [rows[node][0] for node in (cos, sin)]
        half = found[0].shape[1] // 2
        if any(not torch.equal(t[:, :half], t[:, half:]) for t in found):
            raise Refused("the two halves of the rotary table differ")
        return [t[:, :half].contiguous() for t in found]

    full = table(positions)
    long_rope = program.config.long_rope
    original = long_rope.original_max_position if long_rope else 0
    switched = 0 < original < positions
    short = table(original) if switched else full
    # a table of fewer positions has to be the beginning of a longer one, on either side of the switch
    for length, rows in ((2, short), (len(short[0]) // 2, short), *([(original + 1, full)] if switched else [])):
        if any(not torch.equal(a, b[: len(a)]) for a, b in zip(table(min(length, positions)), rows)):
            raise Refused("the rotary embedding of a position depends on the other positions")
    cos_rows, sin_rows = (torch.cat(pair) for pair in zip(short, full)) if switched else full
    return _Tables(cos_rows, sin_rows, original if switched else 0)


def _window(program: Program, mask: fx.Node) -> int:
    """Run the traced mask and compare it with causal ∧ window ∧ padding; returns the window, 0 for none."""
    longest = program.config.max_position
    row = _run_mask(program, mask, length=1, past=longest)[0, 0, 0]
    seen = int(row.sum())
    window = 0 if seen == longest + 1 else seen
    probes = [(1, longest), (5, 7), (9, 0)]
    if window:
        probes += [(4, max(window - 2, 0)), (3, window + 1)] + ([(window + 3, 0)] if window < 4096 else [])
    for length, past in probes:
        padding = torch.ones(1, past + length, dtype=torch.int64)
        padding[0, (past + length) // 3] = 0
        came = _run_mask(program, mask, length, past, padding)
        if not torch.equal(came, _expected_mask(length, past, window, padding)):
            raise Refused(
                f"its mask for {length} tokens after {past} is not causal with a window of {window or 'any size'}"
            )
    return window


def _blocks(program: Program, mask: fx.Node) -> tuple[int, ...]:
    """Run the traced mask, which differs by head, and compare it with the config's blocks; returns what describes those."""
    sparse, config = program.config.sparse, program.config
    if sparse is None:
        raise Refused("its mask differs by head, and the model is not block-sparse")
    pattern = sparse.block, sparse.local, sparse.stride, sparse.step
    edge = sparse.block * sparse.local
    for length, past in ((1, config.max_position), (5, 7), (9, 0), (4, max(edge - 2, 0)), (sparse.block + 3, edge + 1)):
        padding = torch.ones(1, past + length, dtype=torch.int64)
        padding[0, (past + length) // 3] = 0
        came = _run_mask(program, mask, length, past, padding)
        query, key = past + torch.arange(length)[None], torch.arange(past + length)
        expected = _expected_mask(length, past, 0, padding) & block_sparse(query, key, config.heads, *pattern)
        if not torch.equal(came, expected):
            raise Refused(f"its mask for {length} tokens after {past} is not that of {sparse}")
    return pattern


def _expected_mask(length: int, past: int, window: int, padding: torch.Tensor) -> torch.Tensor:
    query, key = past + torch.arange(length)[:, None], torch.arange(past + length)[None]
    visible = (key <= query) & padding[:, None, None].bool()
    return visible & (key > query - window) if window else visible


def _run_mask(
    program: Program, mask: fx.Node, length: int, past: int, padding: torch.Tensor | None = None
) -> torch.Tensor:
    inputs = program.prefill_inputs(torch.zeros(1, length, dtype=torch.int64), past)
    if padding is not None:
        inputs["attention_mask"] = padding
    # only the size of a cache matters: zeros that take no memory
    cache = torch.zeros(1).expand(1, program.config.kv_heads, past, program.config.head_dim)
    inputs |= dict.fromkeys((name for name in inputs if name.startswith("past_key_values.")), cache)
    result = evaluate([mask], inputs, Weights(program.weights, keep=True))[mask]
    if result.dtype is not torch.bool:
        raise Refused(f"its mask is {result.dtype}, expected bool")
    return result
