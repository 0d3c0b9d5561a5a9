"""A model whose layers take turns, one with a window and one without: transformers' Ministral, traced as itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tiny_phi3 import TINY

from pocketphi.graph.config import EMBEDDING, HEAD, Form, ModelConfig
from pocketphi.graph.models.settings import written_sizes, written_tokens

KINDS = ("sliding_attention", "full_attention")


def _tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner, q, kv = config.hidden_size, config.intermediate_size, config.heads * config.head_dim, config.kv_heads
    layer = {
        **{"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)},
        **{"self_attn.q_proj": (q, hidden), "self_attn.o_proj": (hidden, q)},
        **{f"self_attn.{kind}_proj": (kv * config.head_dim, hidden) for kind in "kv"},
        **{"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)},
    }
    layers = {f"model.layers.{i}.{name}.weight": shape for i in range(config.layers) for name, shape in layer.items()}
    ends: dict[str, tuple[int, ...]] = {"model.norm.weight": (hidden,), HEAD: (config.vocab_size, hidden)}
    return {EMBEDDING: (config.vocab_size, hidden), **layers, **ends}


def _settings(config: ModelConfig) -> dict[str, Any]:
    turns = {"sliding_window": config.sliding_window, "layer_types": [KINDS[i % 2] for i in range(config.layers)]}
    return {**written_sizes(config), **written_tokens(config), "head_dim": config.head_dim, **turns}


FORM = Form("toy", "MinistralForCausalLM", period=2, tensors=_tensors, settings=_settings, folds=())


def alternating(layers: int) -> ModelConfig:
    return replace(TINY, layers=layers, form=FORM)
