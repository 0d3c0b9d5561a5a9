"""A Phi-3-small in plain loops of numpy float64, written from its published description, over the published tensors.

Nothing of the compiler is used: names and layouts are those of the files, the sparse pattern is the definition's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def sees(query: int, key: int, head: int, data: Mapping[str, Any]) -> bool:
    """Whether a head of a sparse layer sees the token `key` from the token `query`."""
    block, heads, stride = data["blocksparse_block_size"], data["num_attention_heads"], data["blocksparse_vert_stride"]
    step = 0 if data["blocksparse_homo_head_pattern"] else max(1, int(stride / heads))
    q, k = query // block, key // block
    return key <= query and (q - k < data["blocksparse_num_local_blocks"] or (k + head * step + 1) % stride == 0)


def is_dense(layer: int, data: Mapping[str, Any]) -> bool:
    every = data["dense_attention_every_n_layers"]
    return bool(every) and (layer + 1) % every == 0


def rotate(x: Array, position: int, total: int, data: Mapping[str, Any]) -> Array:
    """One head's vector of one token in a text of `total` tokens."""
    dim, half, rope = len(x), len(x) // 2, data.get("rope_scaling")
    out = np.empty(dim)
    factors, scale = np.ones(half), 1.0
    if rope:
        kind = "long" if total > rope["original_max_position_embeddings"] else "short"
        factors, scale = rope[f"{kind}_factor"], rope[f"{kind}_mscale"]
    for i in range(half):
        angle = position / (factors[i] * data["rope_embedding_base"] ** (2 * i / dim))
        out[i] = (x[i] * math.cos(angle) - x[half + i] * math.sin(angle)) * scale
        out[half + i] = (x[half + i] * math.cos(angle) + x[i] * math.sin(angle)) * scale
    return out


def gegelu(x: Array, limit: float | None) -> Array:
    """Even entries are the gate, odd ones the linear part."""
    out = np.empty(len(x) // 2)
    for i in range(len(out)):
        gate, linear = x[2 * i], x[2 * i + 1]
        if limit is not None:
            gate, linear = min(gate, limit), max(-limit, min(linear, limit))
        out[i] = gate / (1 + math.exp(-1.702 * gate)) * (linear + 1)
    return out


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def split_heads(mixed: Array, data: Mapping[str, Any]) -> tuple[list[Array], list[Array], list[Array]]:
    """A token's row of `query_key_value` → queries, keys and values: for each group its queries, then its key, its value."""
    heads, groups = data["num_attention_heads"], data["num_key_value_heads"]
    dim = data["hidden_size"] // heads
    queries, keys, values, at = [], [], [], 0
    for _ in range(groups):
        for _ in range(heads // groups):
            queries.append(mixed[at : at + dim])
            at += dim
        keys.append(mixed[at : at + dim])
        values.append(mixed[at + dim : at + 2 * dim])
        at += 2 * dim
    return queries, keys, values


def logits(stored: Mapping[str, Any], data: Mapping[str, Any], tokens: list[int]) -> Array:
    """stored: tensors by their published names; data: config.json. float64 [S, V]; -inf for tokens that stand for nothing."""
    w = {name: np.asarray(value, np.float64) for name, value in stored.items()}
    eps, heads = data["layer_norm_epsilon"], data["num_attention_heads"]
    group, dim = heads // data["num_key_value_heads"], data["hidden_size"] // heads
    scale = data["mup_attn_multiplier"] / dim if data["mup_use_scaling"] else dim**-0.5
    x = w["model.embed_tokens.weight"][tokens] * (data["mup_embedding_multiplier"] or 1)
    total = len(tokens)
    for layer in range(data["num_hidden_layers"]):

        def of(name: str, layer: int = layer) -> tuple[Array, Array]:
            return w[f"model.layers.{layer}.{name}.weight"], w[f"model.layers.{layer}.{name}.bias"]

        def linear(y: Array, name: str) -> Array:
            weight, bias = of(name)
            return y @ weight.T + bias

        mixed = linear(layer_norm(x, *of("input_layernorm"), eps), "self_attn.query_key_value")
        apart = [split_heads(row, data) for row in mixed]
        queries = [[rotate(q, t, total, data) for q in apart[t][0]] for t in range(total)]
        keys = [[rotate(k, t, total, data) for k in apart[t][1]] for t in range(total)]
        seen = np.zeros((total, heads * dim))
        for t in range(total):
            for h in range(heads):
                near = [j for j in range(t + 1) if is_dense(layer, data) or sees(t, j, h, data)]
                scores = np.array([scale * float(queries[t][h] @ keys[j][h // group]) for j in near])
                shares = np.exp(scores - scores.max())
                mean = sum(s * apart[j][2][h // group] for s, j in zip(shares / shares.sum(), near))
                seen[t, h * dim : (h + 1) * dim] = mean
        x = x + linear(seen, "self_attn.dense")
        inner = linear(layer_norm(x, *of("post_attention_layernorm"), eps), "mlp.up_proj")
        x = x + linear(np.stack([gegelu(row, data["gegelu_limit"]) for row in inner]), "mlp.down_proj")
    x = layer_norm(x, w["model.final_layernorm.weight"], w["model.final_layernorm.bias"], eps)
    head = w["model.embed_tokens.weight" if data.get("tie_word_embeddings", True) else "lm_head.weight"]
    out: Array = x @ head.T / (data["mup_width_multiplier"] or 1)
    out[:, list(data.get("dummy_token_indices", []))] = -np.inf
    return out
