"""Parts of the modules that are ours, written to be traced: rotary embedding, attention, and a model without its head, as
several models have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pocketphi.graph.config import LongRope, ModelConfig


@dataclass
class Output:
    logits: Tensor


class Rotary(nn.Module):
    """Rotary embedding (arXiv:2104.09864) whose frequencies are divided by LongRoPE's factors (arXiv:2402.13753).

    The long ones count for all tokens of a call once its last position is beyond the original maximum.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, rope = config.rotary_dim, config.long_rope
        powers = config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        self.original = rope.original_max_position if rope else 0
        factors = [torch.tensor(one) for one in (rope.short, rope.long)] if rope else [torch.ones(dim // 2)]
        self.frequencies = nn.Buffer(torch.stack([1.0 / (one * powers) for one in factors]), persistent=False)
        scales = attention_factors(rope, config.max_position) if rope else (1.0,)
        self.scales = nn.Buffer(torch.tensor(scales, dtype=torch.float32), persistent=False)

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [B, S] → cosine and sine, each float32 [B, S, D]."""
        frequencies, scale = self.frequencies[0], self.scales[0]
        if self.original:
            is_long = position_ids.max() >= self.original
            frequencies = torch.where(is_long, self.frequencies[1], frequencies)
            scale = torch.where(is_long, self.scales[1], scale)
        angles = position_ids[..., None].float() * frequencies
        both = torch.cat((angles, angles), dim=-1)
        return both.cos() * scale, both.sin() * scale


def attention_factors(rope: LongRope, longest: int) -> tuple[float, float]:
    """What cosine and sine are multiplied with, short and long: where a file leaves them out, they follow from how much
    longer texts may be (arXiv:2402.13753, equation 5)."""
    ratio = longest / rope.original_max_position
    follows = math.sqrt(1 + math.log(ratio) / math.log(rope.original_max_position)) if ratio > 1 else 1.0
    long = follows if rope.attention_factor is None else rope.attention_factor
    return (long if rope.short_attention_factor is None else rope.short_attention_factor), long


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, S, D] turned, first half paired with second (GPT-NeoX's order)."""
    half = x.shape[-1] // 2
    crossed = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos.unsqueeze(1) + crossed * sin.unsqueeze(1)


class Attention(nn.Module):
    """Attention whose scores are multiplied with `scale`."""

    def __init__(self, config: ModelConfig, layer: int, scale: float, bias: bool = True) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads, self.dim = layer, config.heads, config.kv_heads, config.head_dim
        self.scale = scale
        self.qkv_proj = nn.Linear(config.hidden_size, config.qkv_size, bias)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.hidden_size, bias)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor, cache: Any) -> Tensor:
        """x: float32 [B, S, K]; mask: bool [B or 1, 1 or H, S, T]."""
        batch, length, _ = x.shape
        q_end, k_end = self.heads * self.dim, (self.heads + self.kv_heads) * self.dim
        qkv = self.qkv_proj(x)
        q, k, v = (
            part.view(batch, length, -1, self.dim).transpose(1, 2)
            for part in (qkv[..., :q_end], qkv[..., q_end:k_end], qkv[..., k_end:])
        )
        keys, values = cache.update(rotated(k, *turns), v, self.layer)
        out = nn.functional.scaled_dot_product_attention(
            rotated(q, *turns), self._for_all(keys), self._for_all(values), attn_mask=mask, scale=self.scale
        )
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))

    def _for_all(self, x: Tensor) -> Tensor:
        """Keys or values [B, KV, T, D] for each query head of a group."""
        groups = self.heads // self.kv_heads
        batch, _, total, dim = x.shape
        whole = (batch, self.kv_heads, groups, total, dim)
        return x if groups == 1 else x[:, :, None].expand(whole).reshape(batch, self.heads, total, dim)


class Body(nn.Module):
    """A model without its head. layer: makes the one of a number, which takes hidden states, cosine and sine, what `_masks`
    gives, and a cache."""

    def __init__(self, config: ModelConfig, layer: Callable[[ModelConfig, int], nn.Module]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layer(config, number) for number in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb: nn.Module

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any) -> Tensor:
        x = self._embedded(input_ids)
        turns = self.rotary_emb(position_ids)
        past, length = cache.get_seq_length(), input_ids.shape[1]
        query, key = past + torch.arange(length)[:, None], torch.arange(past + length)[None]
        masks = self._masks(query, key, (key <= query) & attention_mask.bool()[:, None, None])
        for layer in self.layers:
            x = layer(x, turns, masks, cache)
        out: Tensor = self.norm(x)
        return out

    def _embedded(self, input_ids: Tensor) -> Tensor:
        rows: Tensor = self.embed_tokens(input_ids)
        return rows

    def _masks(self, query: Tensor, key: Tensor, seen: Tensor) -> Any:
        """Which keys each query sees. query, key: positions, int64 [S, 1] and [1, T]; seen: those up to the query that are no
        padding, bool [B, 1, S, T]."""
        return seen
