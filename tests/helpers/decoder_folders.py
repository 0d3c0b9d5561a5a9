"""Folders of small random models that transformers makes and saves, and its logits beside those of our traced graph."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_phi3 import hf_run, inputs, rounding

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.lazy_weights import FloatWeight
from pocketphi.graph.program import Program, Weights
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.trace import trace

SIZES = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # large enough for attention to matter
}
WINDOW = 48
CASES = [(60, 0, 2), (5, 9, 2), (9, 44, 1), (1, 70, 1), (3, 250, 1)]
"""(new tokens, tokens in the cache, batch): prompts and decoding, beyond the window, to the last position."""


def save_model(folder: Path, architecture: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A folder as `save_pretrained` leaves it, with norm weights that are not all one."""
    kind = getattr(transformers, architecture)
    torch.manual_seed(7)
    model = kind(kind.config_class(**{**SIZES, **settings}))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder)
    return folder


Outputs = list[dict[str, torch.Tensor]]


def theirs(folder: Path, config: ModelConfig) -> Outputs:
    """What transformers' own model gives for CASES, as `from_pretrained` loads it."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    return [hf_run(model.eval(), inputs(config, *case)) for case in CASES]


def ours(source: Checkpoint) -> Outputs:
    """The same of our traced graph with the weights of a folder."""
    source.check_settings()
    program = _traced(source.config)
    weights = {n: FloatWeight(source, n) if isinstance(w, FloatWeight) else w for n, w in program.weights.items()}
    kept = Weights(weights, keep=True)
    return [program.run(inputs(source.config, *case), kept) for case in CASES]


def differing(came: Outputs, expected: Outputs, config: ModelConfig) -> list[str]:
    """The outputs that differ by more than float32's rounding."""
    wrong = []
    for case, got, wanted in zip(CASES, came, expected):
        for name, want in wanted.items():
            bound = rounding(config, float(want.abs().max()), case[0] + case[1])
            if not float((got[name] - want).abs().max()) <= bound:
                wrong.append(f"{name} of {case}")
    return wrong


@functools.cache
def _traced(config: ModelConfig) -> Program:
    return trace(RandomWeights("random:traced", config))
