"""The shape of a Phi-3 model, read from and written to Hugging Face's `config.json`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import read_json

ARCHITECTURE = "Phi3ForCausalLM"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""The names of two tensors; where they are tied, there is only the first."""


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (arXiv:2402.13753): per-frequency factors, switched by the total length.

    short, long: `rotary_dim / 2` factors each; long applies once a position reaches `original_max_position`.
    attention_factor: what rotated vectors are multiplied with; None: what follows from the lengths
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_max_position: int
    attention_factor: float | None = None


@dataclass(frozen=True)
class ModelConfig:
    """What the compiler needs to know of a model. Lengths are in tokens, sizes in elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_position: int
    rms_norm_eps: float
    rope_theta: float
    rotary_dim: int
    long_rope: LongRope | None
    sliding_window: int | None
    tied_embeddings: bool
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"config: {name} = {getattr(self, name)}, expected a positive number")
        if self.heads % self.kv_heads:
            raise InputError(f"config: {self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise InputError(
                f"config: rotary dimension {self.rotary_dim} must be even and at most {self.head_dim}, not 0"
            )

    @property
    def qkv_size(self) -> int:
        """Rows of the packed projection: (heads + 2 kv_heads) · head_dim."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def parameters(self) -> int:
        return sum(_count(shape) for shape in self.tensors().values())

    def kv_cache_bytes(self, tokens: int, bytes_per_value: int = 4, bytes_per_row: int = 0) -> int:
        """Bytes that keys and values of `tokens` tokens take over all layers.

        bytes_per_row: what lies beside each token's key of a head, and beside its value
        """
        return 2 * self.layers * self.kv_heads * (self.head_dim * bytes_per_value + bytes_per_row) * tokens

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a checkpoint of this model holds: name → shape."""
        hidden, inner = self.hidden_size, self.intermediate_size
        tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, hidden)}
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            tensors[f"{layer}.input_layernorm.weight"] = (hidden,)
            tensors[f"{layer}.self_attn.qkv_proj.weight"] = (self.qkv_size, hidden)
            tensors[f"{layer}.self_attn.o_proj.weight"] = (hidden, self.heads * self.head_dim)
            tensors[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
            tensors[f"{layer}.mlp.gate_up_proj.weight"] = (2 * inner, hidden)
            tensors[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
        tensors["model.norm.weight"] = (hidden,)
        if not self.tied_embeddings:
            tensors[HEAD] = (self.vocab_size, hidden)
        return tensors

    @staticmethod
    def from_hf(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """Read a Hugging Face `config.json` of a `Phi3ForCausalLM`.

        Raises InputError for another architecture, a value of another type, or a setting that cannot be honoured.
        """
        from pocketphi.graph.hf_config import read_hf_config

        return read_hf_config(data, where).model

    def to_hf(self) -> dict[str, Any]:
        """A `config.json` that transformers 4 and 5 both read."""
        scaling: dict[str, Any] | None = None
        # as published configs have it without LongRoPE too: where it is missing transformers fills in 4096, and other
        # tools take a model of another length for a LongRoPE one
        data: dict[str, Any] = {"original_max_position_embeddings": self.max_position}
        if self.long_rope:
            data["original_max_position_embeddings"] = self.long_rope.original_max_position
            scaling = {
                "type": "longrope",
                "short_factor": list(self.long_rope.short),
                "long_factor": list(self.long_rope.long),
            }
            if self.long_rope.attention_factor is not None:
                scaling["attention_factor"] = self.long_rope.attention_factor
        partial = self.rotary_dim / self.head_dim
        if int(self.head_dim * partial) < self.rotary_dim:  # the reader rounds down
            partial = math.nextafter(partial, 1.0)
        if self.head_dim * self.heads != self.hidden_size:
            data["head_dim"] = self.head_dim
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "phi3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": partial,
            "rope_scaling": scaling,
            "sliding_window": self.sliding_window,
            "tie_word_embeddings": self.tied_embeddings,
            "bos_token_id": self.bos,
            "eos_token_id": list(self.eos) if len(self.eos) != 1 else self.eos[0],
            "pad_token_id": self.pad,
            "attention_dropout": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "use_cache": True,
            **data,
        }


def read_config(folder: Path) -> ModelConfig:
    """The config.json of a bundle."""
    path = folder / "config.json"
    return ModelConfig.from_hf(read_json(path), str(path))


def layer_of(name: str) -> int | None:
    """The decoder layer that a tensor or input belongs to, by its name: `model.layers.3.…` → 3."""
    found = re.search(r"(?:layers|past_key_values|present)\.(\d+)\.", name)
    return int(found.group(1)) if found else None


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
