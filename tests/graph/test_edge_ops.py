"""The reference implementations of the `edge::` operators against numpy written for reading, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_phi3 import normal

from pocketphi.graph import edge_ops
from pocketphi.graph.formats import Int4
from pocketphi.graph.operators import EdgeOperator

edge = torch.ops.edge
Array = npt.NDArray[np.float64]
EPS = float(torch.finfo(torch.float32).eps)


def int4_matrix(rows: int, columns: int, symmetric: bool) -> Int4:
    generator = torch.Generator().manual_seed(rows)
    zero = None if symmetric else torch.randint(0, 16, (rows, columns // 32), generator=generator)
    return Int4.pack(torch.randint(0, 16, (rows, columns), generator=generator), normal(rows, columns // 32), zero)


def attention_arguments(window: int = 0, long_after: int = 0, past: int = 5, length: int = 4) -> tuple[Any, ...]:
    """Two rows that stand at different positions, two heads over one, 4 of 8 dimensions rotated."""
    batch, heads, kv, dim, table = 2, 2, 1, 8, 16
    starts = torch.tensor([[past], [past - 2]])
    angles = normal(table + long_after, 2, seed=3)
    return (
        normal(batch, length, (heads + 2 * kv) * dim),
        normal(batch, kv, past, dim, seed=1),
        normal(batch, kv, past, dim, seed=2),
        starts + torch.arange(length),
        angles.cos(),
        angles.sin(),
        heads,
        kv,
        0.3,
        window,
        long_after,
    )


CHOSEN = torch.tensor([[[0, 1], [3, 2], [1, 0]], [[2, 3], [0, 3], [1, 2]]])
CALLS = {
    "rms_norm": (edge.rms_norm, (normal(2, 3, 8), normal(8), 1e-5)),
    "add_rms_norm": (edge.add_rms_norm, (normal(2, 3, 8), normal(2, 3, 8, seed=1), normal(8), 1e-5)),
    "gated_silu": (edge.gated_silu, (normal(2, 3, 8),)),
    "gegelu": (edge.gegelu, (normal(2, 3, 8), 0.5)),
    "attention": (edge.attention, attention_arguments(window=3)),
    "sparse_attention": (edge.sparse_attention, (*attention_arguments(window=0), 2, 1, 2, 1)),
    "route": (edge.route, (normal(2, 3, 8), normal(4, 8), 0.5)),
    "experts": (edge.experts, (normal(2, 3, 8), CHOSEN, normal(4 * 5, 8), 4)),
    "combine": (edge.combine, (normal(2, 3, 2, 8), normal(2, 3, 2))),
    "add_low_rank": (edge.add_low_rank, (normal(2, 3, 5), normal(2, 3, 8, seed=1), normal(8, 2), normal(2, 5))),
    "last_token": (edge.last_token, (normal(2, 3, 4), torch.ones(2, 5, dtype=torch.int64), torch.full((2, 3), 2))),
    "matmul_nbits": (edge.matmul_nbits, (normal(2, 3, 64), *vars(int4_matrix(5, 64, False)).values())),
    "embedding_nbits": (edge.embedding_nbits, (torch.tensor([[1, 0, 4]]), *vars(int4_matrix(5, 64, True)).values())),
    "experts_nbits": (edge.experts_nbits, (normal(2, 3, 2, 64), CHOSEN, 4, *vars(int4_matrix(20, 64, True)).values())),
}


@pytest.mark.parametrize("name", CALLS)
def test_shape_function_and_schema(name: str) -> None:
    """torch's own checks: the shape function agrees with the operator, nothing is mutated or aliased."""
    arguments = CALLS[name][1]
    torch.library.opcheck(
        getattr(torch.ops.edge, name).default, arguments, test_utils=("test_schema", "test_faketensor")
    )


def test_every_operator_is_checked() -> None:
    made = {v.name for v in vars(edge_ops).values() if isinstance(v, EdgeOperator)}
    made |= {operator._schema.name.removeprefix("edge::") for operator in edge_ops.operators_of(Int4)}
    assert made == set(CALLS)


def norm(x: Array, weight: Array, eps: float) -> Array:
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def test_rms_norm() -> None:
    x, y, weight = normal(2, 3, 64), normal(2, 3, 64, seed=1), normal(64)
    x[0, 0] = 0  # eps alone
    want = norm(x.double().numpy(), weight.double().numpy(), 1e-5)
    got = edge.rms_norm(x, weight, 1e-5)
    assert np.abs(got.numpy() - want).max() <= 64 * EPS * np.abs(want).max()  # a rounding for each term of the mean
    normed, total = edge.add_rms_norm(x, y, weight, 1e-5)
    assert torch.equal(total, x + y)
    assert torch.equal(normed, edge.rms_norm(x + y, weight, 1e-5))


def test_add_low_rank() -> None:
    y, x, a, b = normal(2, 3, 5), normal(2, 3, 8, seed=1), normal(8, 2), normal(2, 5, seed=2)
    want = y.double().numpy() + x.double().numpy() @ a.double().numpy() @ b.double().numpy()
    terms = (y.abs() + x.abs() @ a.abs() @ b.abs()).numpy()
    assert bool((np.abs(edge.add_low_rank(y, x, a, b).numpy() - want) <= (8 + 2) * EPS * terms).all())
    y[0, 0, 0] = -0.0
    nothing = edge.add_low_rank(y, x, normal(8, 0), normal(0, 5))
    assert torch.equal(nothing.view(torch.int32), y.view(torch.int32))


def test_gated_silu() -> None:
    x = normal(2, 3, 64)
    gate, up = np.split(x.double().numpy(), 2, -1)
    want = up * gate / (1 + np.exp(-gate))
    # exponential, sum, quotient and two products: fewer than eight roundings
    assert np.abs(edge.gated_silu(x).numpy() - want).max() <= 8 * EPS * np.abs(want).max()


def attend(
    qkv: Array, k_cache: Array, v_cache: Array, positions: Any, cos: Array, sin: Array,
    heads: int, kv: int, scale: float, window: int, long_after: int,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """One row, one head, one query at a time."""
    batch, length, width = qkv.shape
    dim = width // (heads + 2 * kv)
    half = cos.shape[1]
    is_long = bool(long_after and positions.max() >= long_after)

    def rotated(x: Array, position: int) -> Array:
        c, s = (t[position + (long_after if is_long else 0)] for t in (cos, sin))
        a, b = x[:half], x[half : 2 * half]
        return np.concatenate([a * c - b * s, b * c + a * s, x[2 * half :]])

    out = np.zeros((batch, length, heads * dim))
    keys, values = (np.concatenate([c, np.zeros((batch, kv, length, dim))], 2) for c in (k_cache, v_cache))
    for b in range(batch):
        q, k, v = np.split(qkv[b].reshape(length, -1, dim), [heads, heads + kv], axis=1)
        for s, position in enumerate(positions[b]):
            for g in range(kv):
                keys[b, g, position], values[b, g, position] = rotated(k[s, g], position), v[s, g]
        for s, position in enumerate(positions[b]):
            first = max(0, position - window + 1) if window else 0
            for h in range(heads):
                seen = keys[b, h * kv // heads, first : position + 1]
                weight = np.exp(scale * seen @ rotated(q[s, h], position))
                mean = weight @ values[b, h * kv // heads, first : position + 1] / weight.sum()
                out[b, s, h * dim : (h + 1) * dim] = mean
    return out, keys, values


@pytest.mark.parametrize("window", [0, 1, 3, 100])
@pytest.mark.parametrize("long_after", [0, 7, 9])
def test_attention(window: int, long_after: int) -> None:
    """Row 0 reaches position 8: the long factors apply from 7 on, and not from 9."""
    arguments = attention_arguments(window, long_after)
    got = edge.attention(*arguments)
    doubles = [a.double().numpy() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    doubles[3] = arguments[3].numpy()
    want = attend(*doubles)
    # 8 terms of a score, 9 of a mean, and the exponential, which turns the score's error into a relative one
    bounds = [64 * EPS * np.abs(x).max() for x in (doubles[0], doubles[0], doubles[0])]
    assert [np.abs(g.numpy() - w).max() <= bound for g, w, bound in zip(got, want, bounds)] == [True] * 3


def test_attention_never_reads_what_lies_behind_a_row() -> None:
    """Row 1 has 3 tokens in the cache: its columns 3 and 4 are padding, which new tokens overwrite."""
    arguments = list(attention_arguments(length=1))
    out = edge.attention(*arguments)[0]
    for i in (1, 2):
        arguments[i] = arguments[i].clone()
        arguments[i][1, :, 3:] = 1e9
    assert torch.equal(edge.attention(*arguments)[0], out)


def test_last_token() -> None:
    x = normal(3, 4, 2)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    positions = torch.tensor([[2], [2], [0]]) + torch.arange(4)
    want = torch.stack([x[0, 3], x[1, 1], x[2, 0]])[:, None]  # a row without tokens: the first, whatever it is
    assert torch.equal(edge.last_token(x, mask, positions), want)


@pytest.mark.parametrize("symmetric", [True, False])
def test_int4_operators(symmetric: bool) -> None:
    w = int4_matrix(5, 64, symmetric)
    x, ids = normal(2, 3, 64), torch.tensor([[4, 0], [1, 4]])
    want = x.double().numpy() @ w.dequantize().double().numpy().T
    got = edge.matmul_nbits(x, w.q, w.scale, w.zero, w.offset)
    size = (x.abs().double() @ w.dequantize().abs().double().T).max().item()
    assert np.abs(got.numpy() - want).max() <= 64 * EPS * size  # a rounding for each of K terms
    assert torch.equal(edge.embedding_nbits(ids, w.q, w.scale, w.zero, w.offset), w.dequantize()[ids])
