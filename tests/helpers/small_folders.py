"""Folders of tiny Phi-3-small models with random weights, under the published names and in the published order of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pocketphi.graph.published import PUBLISHED

TINY = PUBLISHED["phi-3-small-tiny"]
SU = {
    "type": "su",
    "short_factor": [1 + i / 16 for i in range(8)],
    "long_factor": [1.0 + 2 * i for i in range(8)],
    "short_mscale": 1.1,
    "long_mscale": 1.4,
    "original_max_position_embeddings": 64,
}


def published_tensors(data: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random ones under their published names and shapes."""
    hidden, inner, vocabulary = data["hidden_size"], data["ff_intermediate_size"], data["vocab_size"]
    dim = hidden // data["num_attention_heads"]
    qkv = (data["num_attention_heads"] + 2 * data["num_key_value_heads"]) * dim
    projections = {
        "self_attn.query_key_value": (qkv, hidden),
        "self_attn.dense": (hidden, hidden),
        "mlp.up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    generator = torch.Generator().manual_seed(5)
    made = {"model.embed_tokens.weight": torch.randn(vocabulary, hidden, generator=generator)}
    for layer in range(data["num_hidden_layers"]):
        for name, shape in projections.items():
            made[f"model.layers.{layer}.{name}.weight"] = (
                torch.randn(shape, generator=generator) * 1.5 * shape[1] ** -0.5
            )
            made[f"model.layers.{layer}.{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.2
    norms = [
        f"layers.{i}.{n}"
        for i in range(data["num_hidden_layers"])
        for n in ("input_layernorm", "post_attention_layernorm")
    ]
    for name in (*norms, "final_layernorm"):
        made[f"model.{name}.weight"] = 1 + 0.2 * torch.randn(hidden, generator=generator)
        made[f"model.{name}.bias"] = 0.2 * torch.randn(hidden, generator=generator)
    if not data["tie_word_embeddings"]:
        made["lm_head.weight"] = torch.randn(vocabulary, hidden, generator=generator)
    return made


def save(folder: Path, **changes: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    data = {**TINY.to_hf(), **changes}
    tensors = published_tensors(data)
    (folder / "config.json").write_text(json.dumps(data))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors, data
