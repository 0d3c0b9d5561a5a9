"""The `edge::` operator vocabulary: few operators with exact semantics, each with a torch reference and a shape function.

A target lowers these; whatever it emits must compute what the reference here computes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pocketphi.graph import experts as reference
from pocketphi.graph.formats import FORMATS, Format
from pocketphi.graph.operators import EdgeOperator, edge_operator


@edge_operator("rms_norm")
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight · x / sqrt(mean(x²) + eps) over the last axis (arXiv:1910.07467, eq. 4). x: float32 [B, S, K]."""
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


rms_norm.register_fake(lambda x, weight, eps: x.new_empty(x.shape))


@edge_operator("add_rms_norm")
def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + y), x + y): the residual add and the norm that reads it. x, y: float32 [B, S, K]."""
    total = x + y
    return rms_norm(total, weight, eps), total


add_rms_norm.register_fake(lambda x, y, weight, eps: (x.new_empty(x.shape), x.new_empty(x.shape)))


@edge_operator("gated_silu")
def gated_silu(gate_up: Tensor) -> Tensor:
    """up · silu(gate) for gate_up = [gate | up] (SwiGLU, arXiv:2002.05202, eq. 6). float32 [B, S, 2I] → [B, S, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return up * functional.silu(gate)


gated_silu.register_fake(lambda gate_up: gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2))


@edge_operator("add_low_rank")
def add_low_rank(y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """y + (x · a) · b: a projection with an adapter beside its weight (arXiv:2106.09685, eq. 3); with rank 0, y to the bit.

    y: float32 [B, S, N]; x: [B, S, K]; a: [K, r]; b: [r, N].
    """
    return y + (x @ a) @ b if a.shape[1] else y.clone()


add_low_rank.register_fake(lambda y, x, a, b: y.new_empty(y.shape))


QUICK_GELU = 1.702
"""x · sigmoid(1.702 x) stands for GELU (arXiv:1606.08415, section 2)."""


@edge_operator("gegelu")
def gegelu(gate_up: Tensor, limit: float) -> Tensor:
    """gate · sigmoid(1.702 gate) · (up + 1) for gate_up = [gate | up], with gate ≤ limit and |up| ≤ limit (GEGLU,
    arXiv:2002.05202, eq. 6, with quick GELU and limits). float32 [B, S, 2I] → [B, S, I]. limit: 0 for none.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return gate * torch.sigmoid(gate * QUICK_GELU) * (up + 1.0)


gegelu.register_fake(lambda gate_up, limit: gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2))


@edge_operator("attention")
def attention(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position_ids: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    scale: float,
    window: int,
    long_after: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal self-attention with rotary embedding and an appended K/V cache.

    qkv:            float32 [B, S, (H + 2·KV)·D], heads of q, then k, then v
    k_cache, v_cache: float32 [B, KV, P, D], keys already rotated
    position_ids:   int64 [B, S], consecutive in a row; position_ids[b, 0] tokens of row b are in the cache
    cos, sin:       float32 [M, R/2], a row for each position; the first R of D dimensions are rotated, halves paired
    window:         a query at position p sees keys at positions p - window < j ≤ p; 0 for no window
    long_after:     LongRoPE: the first `long_after` table rows are the short ones; when a position of the batch reaches
                    `long_after`, position p reads row p + long_after. 0 for one table

    Returns (out float32 [B, S, H·D], keys [B, KV, P + S, D], values [B, KV, P + S, D]). New keys are written at
    position_ids[b, 0]. Shorter rows of a batch are padded on the right: their padding is never seen, being in the future
    of every real query, and later tokens overwrite it.
    """
    return attend(qkv, k_cache, v_cache, position_ids, cos, sin, heads, kv_heads, scale, window, long_after)


Kept = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(keys, values) float32 [B, KV, S, D], keys rotated → both as a cache keeps them."""


def attend(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position_ids: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    scale: float,
    window: int,
    long_after: int,
    *sparse: int,
    kept: Kept | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `edge.attention`. sparse: block, local, stride and step of a block-sparse layer; kept: what a cache makes of new keys
    and values, which all queries then see."""
    batch, length, _ = qkv.shape
    dim = k_cache.shape[-1]
    q, k, v = qkv.view(batch, length, -1, dim).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
    rows = position_ids
    if long_after and int(position_ids.max()) >= long_after:
        rows = rows + long_after
    q, k = rotated(q, cos[rows], sin[rows]), rotated(k, cos[rows], sin[rows])
    k, v = kept(k, v) if kept else (k, v)
    keys, values = _append(k_cache, k, position_ids), _append(v_cache, v, position_ids)

    key_position = torch.arange(keys.shape[2])
    query_position = position_ids[:, :1] + torch.arange(length)
    visible = key_position <= query_position[..., None]
    if window:
        visible &= key_position > query_position[..., None] - window
    visible = visible[:, None]
    if sparse:
        block, local, stride, step = sparse
        visible = visible & block_sparse(query_position, key_position, heads, block, local, stride, step)
    groups = heads // kv_heads
    out = functional.scaled_dot_product_attention(
        q, _repeat(keys, groups), _repeat(values, groups), attn_mask=visible, scale=scale
    )
    return out.transpose(1, 2).reshape(batch, length, -1), keys, values


@edge_operator("sparse_attention")
def sparse_attention(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position_ids: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    scale: float,
    window: int,
    long_after: int,
    block: int,
    local: int,
    stride: int,
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `edge.attention`, but each head sees only the keys that `block_sparse` lets it see."""
    sparse = block, local, stride, step
    return attend(qkv, k_cache, v_cache, position_ids, cos, sin, heads, kv_heads, scale, window, long_after, *sparse)


def block_sparse(query: Tensor, key: Tensor, heads: int, block: int, local: int, stride: int, step: int) -> Tensor:
    """Which keys a head may see (`graph.config.BlockSparse`), whether they are in its future or not.

    query: int64 [B, S], key: int64 [T], both positions; bool [B, H, S, T].
    """
    near = query[:, None, :, None] // block - key // block < local
    vertical = (key // block + step * torch.arange(heads)[:, None, None] + 1) % stride == 0
    return near | vertical


def _attention_types(
    qkv: Tensor, k_cache: Tensor, v_cache: Tensor, position_ids: Tensor, cos: Tensor, sin: Tensor, heads: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    batch, kv, past, dim = k_cache.shape
    length = qkv.shape[1]
    total = (batch, kv, past + length, dim)
    return qkv.new_empty(batch, length, heads * dim), k_cache.new_empty(total), v_cache.new_empty(total)


attention.register_fake(_attention_types)
sparse_attention.register_fake(_attention_types)

ATTENTIONS = ("edge.attention", "edge.sparse_attention")
"""The names of both; their first eleven arguments are the same."""


@edge_operator("route")
def route(x: Tensor, weight: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The two experts of each token, and their shares: see `graph.experts.route`. x: float32 [B, S, K], weight [E, K]."""
    return reference.route(x, weight, threshold)


route.register_fake(
    lambda x, weight, threshold: (
        x.new_empty(*x.shape[:-1], 2),
        x.new_empty(*x.shape[:-1], 2, dtype=torch.int64),
    )
)


@edge_operator("experts")
def experts(x: Tensor, chosen: Tensor, weight: Tensor, count: int) -> Tensor:
    """Products with the matrices of the chosen experts, out of `count` whose rows lie one after the other.

    x: float32 [B, S, K], or [B, S, T, K] with an input for each expert; chosen: int64 [B, S, T]; weight: float32
    [count · N, K]. Returns float32 [B, S, T, N]. A target reads the rows of the chosen experts only.
    """
    size = weight.shape[0] // count
    return reference.routed(x, chosen, size, lambda number: weight[number * size : (number + 1) * size])


experts.register_fake(
    lambda x, chosen, weight, count: x.new_empty(*chosen.shape, weight.shape[0] // count),
)


MATRIX_READERS: dict[Any, int] = {
    torch.ops.aten.linear.default: 1,
    torch.ops.aten.embedding.default: 0,
    torch.ops.edge.experts.default: 2,
}
"""Operators that read a matrix of the checkpoint, and which of their arguments it is."""


@edge_operator("combine")
def combine(x: Tensor, shares: Tensor) -> Tensor:
    """The sum of what a token's experts make, by their shares. float32 [B, S, T, K], [B, S, T] → [B, S, K]."""
    return (x * shares[..., None]).sum(2)


combine.register_fake(lambda x, shares: x.new_empty(*x.shape[:2], x.shape[3]))


@edge_operator("last_token")
def last_token(x: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
    """The last real token of each row: float32 [B, S, K] → [B, 1, K].

    attention_mask: int64 [B, T] of past and new tokens (right-padded); position_ids: int64 [B, S]. Row b holds
    sum(mask[b]) - position_ids[b, 0] real new tokens.
    """
    last = (attention_mask.sum(1) - 1 - position_ids[:, 0]).clamp(0, x.shape[1] - 1)
    return x[torch.arange(x.shape[0]), last][:, None].clone()


last_token.register_fake(lambda x, attention_mask, position_ids: x.new_empty(x.shape[0], 1, x.shape[2]))


@functools.cache
def operators_of(form: type[Format]) -> tuple[Any, Any, Any]:
    """The operators that read weights of a format, which are defined when they are first asked for.

    `edge::matmul_…(x, *parts)`: x · Wᵀ, float32 [B, S, K] → [B, S, N]
    `edge::embedding_…(ids, *parts)`: rows of W, int64 [B, S] → float32 [B, S, K]
    `edge::experts_…(x, chosen, count, *parts)`: as `edge.experts`
    """

    def shape(parts: tuple[Tensor, ...]) -> tuple[int, int]:
        return form.shape_of(dict(zip(form.part_names(), parts)))

    def experts_of(x: Tensor, chosen: Tensor, count: int, *parts: Tensor) -> Tensor:
        def matrix(number: int) -> Tensor:
            rows = [p if p is None else p[number * len(p) // count : (number + 1) * len(p) // count] for p in parts]
            return form(*rows).dequantize()

        return reference.routed(x, chosen, shape(parts)[0] // count, matrix)

    return (
        _define(
            f"matmul_{form.suffix}",
            "Tensor x",
            form,
            lambda x, *parts: functional.linear(x, form(*parts).dequantize()),
            lambda x, *parts: x.new_empty(*x.shape[:-1], shape(parts)[0]),
        ),
        _define(
            f"embedding_{form.suffix}",
            "Tensor ids",
            form,
            lambda ids, *parts: form(*parts).take(ids.reshape(-1)).view(*ids.shape, -1),
            lambda ids, *parts: ids.new_empty(*ids.shape, shape(parts)[1], dtype=torch.float32),
        ),
        _define(
            f"experts_{form.suffix}",
            "Tensor x, Tensor chosen, int count",
            form,
            experts_of,
            lambda x, chosen, count, *parts: x.new_empty(*chosen.shape, shape(parts)[0] // count),
        ),
    )


def _define(
    name: str, first: str, form: type[Format], run: Callable[..., Tensor], shape_only: Callable[..., Tensor]
) -> Any:
    parts = "".join(f", Tensor? {p}=None" if p in form.optional() else f", Tensor {p}" for p in form.part_names())
    schema = f"({first}{parts}) -> Tensor"
    EdgeOperator(name, run, schema).register_fake(shape_only)
    return getattr(torch.ops.edge, name).default


for _form in FORMATS.values():
    operators_of(_form)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (arXiv:2104.09864) of the first R dimensions; x [B, H, S, D], cos and sin [B, S, R/2]."""
    half = cos.shape[-1]
    cos, sin = torch.cat((cos, cos), -1)[:, None], torch.cat((sin, sin), -1)[:, None]
    turned, kept = x[..., : 2 * half], x[..., 2 * half :]
    crossed = torch.cat((-turned[..., half:], turned[..., :half]), -1)
    return torch.cat((turned * cos + crossed * sin, kept), -1)


def _append(cache: Tensor, new: Tensor, position_ids: Tensor) -> Tensor:
    """Grow the cache [B, KV, P, D] by S rows and write the new ones at each row's own position."""
    grown = torch.cat((cache, torch.zeros_like(new)), dim=2)
    at = position_ids[:, :1] + torch.arange(new.shape[2])
    index = at[:, None, :, None].expand_as(new)
    return grown.scatter_(2, index, new)


def _repeat(x: Tensor, groups: int) -> Tensor:
    batch, kv, length, dim = x.shape
    return x if groups == 1 else x[:, :, None].expand(batch, kv, groups, length, dim).reshape(batch, -1, length, dim)
