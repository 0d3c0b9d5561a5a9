"""Hugging Face folders of tiny models, as transformers and safetensors write them, and what transformers makes of a folder."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_phi3 import VARIANTS, inputs

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.lazy_weights import FloatWeight
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.program import Program, Weights
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.trace import trace

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEAD, EMBEDDING, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"
Tensors = dict[str, torch.Tensor]


def tensors(variant: str = "tiny", dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensors:
    source = RandomWeights(f"random:{variant}@{seed}", VARIANTS[variant])
    return {name: source.read(name, 0, info.rows).to(dtype) for name, info in source.tensors.items()}


def save(folder: Path, values: Mapping[str, torch.Tensor], variant: str = "tiny", shards: int = 1) -> Path:
    """A folder as transformers leaves it."""
    (folder / "config.json").write_text(json.dumps(VARIANTS[variant].to_hf()))
    if shards == 1:
        save_file(dict(values), folder / "model.safetensors", {"format": "pt"})
        return folder
    names = list(values)
    files = {
        name: f"model-{i * shards // len(names) + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)
    }
    for file in sorted(set(files.values())):
        save_file({n: values[n] for n in names if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def configure(folder: Path, *left_out: str, **changes: Any) -> Path:
    """Change keys of config.json, and leave others out."""
    data = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({key: data[key] for key in data if key not in left_out}))
    return folder


def transformers_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    with torch.no_grad():
        logits: torch.Tensor = model(tokens).logits
    return logits


def our_logits(folder: Path, tokens: torch.Tensor) -> tuple[torch.Tensor, Checkpoint]:
    """The traced program's, with the weights of the folder; and the folder opened."""
    source = open_checkpoint(folder)
    source.check_settings()
    program = _traced(source.config)
    weights = {n: FloatWeight(source, n) if isinstance(w, FloatWeight) else w for n, w in program.weights.items()}
    feeds = {**inputs(source.config, tokens.shape[1]), "input_ids": tokens}
    return program.run(feeds, Weights(weights, keep=False))["logits"], source


@functools.cache
def _traced(config: ModelConfig) -> Program:
    return trace(RandomWeights("random:traced", config))
