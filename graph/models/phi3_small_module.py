"""The module of a Phi-3-small, for which transformers has no class: its structure, written to be traced.

Sources: the Phi-3 report (arXiv:2404.14219, section 2), and the files `configuration_phi3_small.py`, `modeling_phi3_small.py`,
`positional_embedding.py` and `triton_blocksparse_attention_layer.py` beside the checkpoint microsoft/Phi-3-small-8k-instruct.

What the published files store interleaved is taken apart when it is read (`phi3_small.py`), so that the projections here are
those of a Phi-3: rows of q, then k, then v; and those of the gate, then of the linear part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.edge_ops import QUICK_GELU
from pocketphi.graph.models.modules import Attention, Body, Output, Rotary

UNUSED = -16384.0
"""Added to the logits of tokens that stand for nothing. The published code has the smallest float32 there; exp gives 0 for
either, and float16 holds this one."""


class Gegelu(nn.Module):
    """GELU(gate) · (linear + 1), with gate ≤ limit and |linear| ≤ limit (GEGLU: arXiv:2002.05202, equation 6)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.limit = config.own.gegelu_limit
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        gate, linear = self.gate_up_proj(x).chunk(2, dim=-1)
        if self.limit is not None:
            gate, linear = gate.clamp(max=self.limit), linear.clamp(min=-self.limit, max=self.limit)
        return self.down_proj(gate * torch.sigmoid(gate * QUICK_GELU) * (linear + 1.0))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (
            nn.LayerNorm(config.hidden_size, config.rms_norm_eps) for _ in range(2)
        )
        # scores are multiplied with multiplier / D instead of 1 / sqrt(D): muP (arXiv:2203.03466)
        self.self_attn = Attention(config, number, config.own.scale(config.head_dim))
        self.mlp = Gegelu(config)
        every = config.own.dense_every
        self.is_sparse = config.sparse is not None and (not every or (number + 1) % every != 0)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor], cache: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turns, masks[self.is_sparse], cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class BlockSparse(Body):
    """What its layers are given are two masks: of dense ones bool [B, 1, S, T], and of sparse ones bool [B, H, S, T]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, Layer)
        self.heads, self.sparse, self.multiplier = config.heads, config.sparse, config.own.embedding_multiplier

    def _embedded(self, input_ids: Tensor) -> Tensor:
        x = super()._embedded(input_ids)
        return x * self.multiplier if self.multiplier else x

    def _masks(self, query: Tensor, key: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        if self.sparse is None:
            return seen, seen
        block, local, stride, step = self.sparse.block, self.sparse.local, self.sparse.stride, self.sparse.step
        key_block = key // block
        near = query // block - key_block < local
        vertical = (key_block + step * torch.arange(self.heads)[:, None, None] + 1) % stride == 0
        return seen, seen & (near | vertical)


class Phi3Small(nn.Module):
    """Logits are divided by muP's width multiplier; those of tokens that stand for nothing are too small for any share."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = BlockSparse(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.width = config.own.width_multiplier
        self.has_unused = bool(config.own.dummy_tokens)
        self.make_constants(config)

    def make_constants(self, config: ModelConfig) -> None:
        """What is no weight: rotary frequencies, and which tokens stand for nothing."""
        self.model.rotary_emb = Rotary(config)
        if self.has_unused:
            bias = torch.zeros(config.vocab_size)
            bias[list(config.own.dummy_tokens)] = UNUSED
            self.unused_bias = nn.Buffer(bias, persistent=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: Any, use_cache: bool
    ) -> Output:
        x = self.model(input_ids, attention_mask, position_ids, past_key_values)
        if self.width:
            x = x * (1.0 / self.width)
        return Output(nn.functional.linear(x, self.lm_head.weight, self.unused_bias if self.has_unused else None))


def build(config: ModelConfig) -> nn.Module:
    """The module of a config, whose embeddings are not tied; of the mode that is on."""
    return Phi3Small(config).eval()
