"""Folders of tiny Phi-MoE models with random weights, as transformers itself saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small_folders import SU

from pocketphi.graph.published import PUBLISHED

TINY = PUBLISHED["tiny-moe"]
LONG = {**SU, "type": "longrope"}
LONG_CHANGES = {"rope_scaling": LONG, "original_max_position_embeddings": 64}


def save(folder: Path, together: bool = False, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """transformers' model, as saved. together: all experts of a layer in one tensor."""
    from transformers import PhimoeConfig, PhimoeForCausalLM

    torch.manual_seed(3)
    model = PhimoeForCausalLM(PhimoeConfig(**{**TINY.to_hf(), **changes})).eval().to(dtype)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1:
                value.normal_(0, 1.5 * value.shape[-1] ** -0.5)
            else:
                value.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)
    model.save_pretrained(folder, save_original_format=not together)
    return model.float()


def with_long_factors(model: Any) -> Any:
    """transformers' model with the frequencies that it computes for a text's length, which version 5.23 does not look at."""
    rotary = model.model.rotary_emb
    rotary.rope_init_fn = lambda config: (rotary.inv_freq, 1.0)
    return model
