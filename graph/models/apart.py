"""The projections of a layer where they are stored apart: q, k and v, gate and up. Stacked, they are those of a Phi-3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.models.base import Piece, Stacks

QKV, GATE_UP = "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"
_GGUF = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def hf_apart(config: ModelConfig, in_pairs: bool = False) -> Stacks:
    """As in the Hugging Face folders of nearly every decoder. in_pairs: rows of q and k that turn together lie together."""
    names = [f"self_attn.{kind}_proj.weight" for kind in "qkv"]
    return {QKV: _qkv(names, config, in_pairs), GATE_UP: _both("mlp.gate_proj.weight", "mlp.up_proj.weight", config)}


def gguf_apart(config: ModelConfig, in_pairs: bool) -> Mapping[str, Sequence[Sequence[Piece]]]:
    """The `blk.N.` tensors that llama.cpp's converter writes for such a model; q, k and v may be one."""
    attention = [["attn_qkv.weight"] * 3, [f"attn_{kind}.weight" for kind in "qkv"]]
    return {
        QKV: [_qkv(names, config, in_pairs) for names in attention],
        GATE_UP: [_both("ffn_gate.weight", "ffn_up.weight", config)],
        **{ours: [[Piece(stored, config.hidden_size)]] for ours, stored in _GGUF.items()},
    }


def _qkv(names: Sequence[str], config: ModelConfig, in_pairs: bool) -> list[Piece]:
    """names: of three tensors, or three times that of one."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    starts = (0, q, q + kv) if len(set(names)) == 1 else (0, 0, 0)
    pairs = (config.head_dim, config.head_dim, 0) if in_pairs else (0, 0, 0)
    return [Piece(name, rows, *rest) for name, rows, *rest in zip(names, (q, kv, kv), starts, pairs)]


def _both(gate: str, up: str, config: ModelConfig) -> list[Piece]:
    return [Piece(gate, config.intermediate_size), Piece(up, config.intermediate_size)]
