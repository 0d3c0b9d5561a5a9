"""Adapters that PEFT makes and saves for small models, and what PEFT's own model gives with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

TOKENS = torch.randint(0, 256, (2, 60), generator=torch.Generator().manual_seed(3))


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
