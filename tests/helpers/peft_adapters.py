"""Adapters that PEFT makes and saves for small models, and what PEFT's own model gives with them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from decoder_folders import save_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.formats import weight_of
from pocketphi.graph.lazy_weights import materialize
from pocketphi.graph.program import Program
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.trace import trace
from pocketphi.targets.base import Host

BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "phi3": ("Phi3ForCausalLM", {"eos_token_id": 2}),
}
"""Small models to have adapters: their classes and settings."""
TOKENS = torch.randint(0, 256, (2, 60), generator=torch.Generator().manual_seed(3))


def save_bases(folder: Path) -> dict[str, Path]:
    """The folders of BASES."""
    common = {"vocab_size": 256, "pad_token_id": 0}
    return {name: save_model(folder / name, kind, **common, **own) for name, (kind, own) in BASES.items()}


@functools.cache
def traced(config: ModelConfig) -> Program:
    """The graph of a model of this shape."""
    return trace(RandomWeights("random:traced", config))


def load_saved(base: Path, host: Host) -> Any:
    """transformers' model of a bundle's base, with the weights that the bundle's files hold."""
    model, held = load(base), {name: materialize(weight) for name, weight in host.weights().items()}
    state = model.state_dict()
    for name in state:
        state[name].copy_(held[name][""] if "" in held[name] else weight_of(held[name]).dequantize())
    return model


def load(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa").eval()


def save_adapter(base: Path, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **settings: Any) -> Path:
    """An adapter whose every trained value is away from where it began, large enough to matter."""
    torch.manual_seed(seed)
    given: dict[str, Any] = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "init_lora_weights": False, **settings}
    model = get_peft_model(load(base), LoraConfig(**given))
    for name, value in model.named_parameters():
        if value.requires_grad:
            scale = 1.0 if "trainable_tokens" in name else 0.3 * float(value.detach().abs().mean())
            value.data += scale * torch.randn_like(value)
    model.to(dtype).save_pretrained(folder)
    return folder


def peft_logits(base: Path, *adapters: tuple[Path, float], merge: bool = True) -> torch.Tensor:
    """Of PEFT's model, float32 [2, 60, V]. adapters: with their weights; merge: by `merge_and_unload`."""
    model = load(base)
    (first, _), *others = adapters
    model = PeftModel.from_pretrained(model, first, "a0")
    for i, (folder, _) in enumerate(others, 1):
        model.load_adapter(folder, f"a{i}")
    names = [f"a{i}" for i in range(len(adapters))]
    for module in model.modules():
        for name, (_, weight) in zip(names, adapters):
            if hasattr(module, "set_scale") and name in module.scaling:
                module.set_scale(name, weight)
    model.base_model.set_adapter(names)
    if merge:
        model = model.merge_and_unload(adapter_names=names)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(TOKENS).logits
    return logits
