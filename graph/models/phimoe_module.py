"""The module of a Phi-MoE, written to be traced: what transformers' `PhimoeForCausalLM` computes at inference.

transformers' own class loops over the experts that a text meets, which no graph can hold. Here the choice of experts and the
products with their matrices are operators (`edge.route`, `edge.experts`), and all experts of a layer lie in one matrix. The
tests compare its logits with transformers'.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pocketphi.graph import edge_ops as edge_ops  # registers the edge:: operators
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.models.modules import Attention, Body, Output, Rotary


class Matrices(nn.Module):
    """The rows of all experts of a layer, one expert after the other: those of its gate, then those of its other half."""

    def __init__(self, config: ModelConfig, count: int) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Linear(hidden, count * 2 * inner, bias=False)
        self.down_proj = nn.Linear(inner, count * hidden, bias=False)


class Mixture(nn.Module):
    """An MLP of several experts (SwiGLU: arXiv:2002.05202, equation 6), of which each token goes through two."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.experts is not None
        self.count, self.threshold = config.experts.count, config.experts.threshold
        self.router = nn.Linear(config.hidden_size, self.count, bias=False)
        self.experts = Matrices(config, self.count)

    def forward(self, x: Tensor) -> Tensor:
        shares, chosen = torch.ops.edge.route(x, self.router.weight, self.threshold)
        both = torch.ops.edge.experts(x, chosen, self.experts.gate_up_proj.weight, self.count)
        gate, up = both.chunk(2, dim=-1)
        inner = nn.functional.silu(gate) * up
        made = torch.ops.edge.experts(inner, chosen, self.experts.down_proj.weight, self.count)
        out: Tensor = torch.ops.edge.combine(made, shares)
        return out


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (
            nn.LayerNorm(config.hidden_size, config.rms_norm_eps) for _ in range(2)
        )
        self.self_attn = Attention(config, number, config.head_dim**-0.5, config.own.attention_bias)
        self.mlp = Mixture(config)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor, cache: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turns, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Windowed(Body):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, Layer)
        self.window = config.sliding_window

    def _masks(self, query: Tensor, key: Tensor, seen: Tensor) -> Tensor:
        return seen if self.window is None else seen & (key > query - self.window)


class PhiMoe(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = Windowed(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, config.own.head_bias)
        self.make_constants(config)

    def make_constants(self, config: ModelConfig) -> None:
        """What is no weight: rotary frequencies."""
        self.model.rotary_emb = Rotary(config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: Any, use_cache: bool
    ) -> Output:
        return Output(self.lm_head(self.model(input_ids, attention_mask, position_ids, past_key_values)))


def build(config: ModelConfig) -> nn.Module:
    """The module of a config, whose embeddings are not tied; of the mode that is on."""
    return PhiMoe(config).eval()
