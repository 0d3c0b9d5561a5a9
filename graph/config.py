"""The shape of a Phi-3 model, read from and written to Hugging Face's `config.json`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketphi.graph.errors import InputError

ARCHITECTURE = "Phi3ForCausalLM"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""The names of two tensors; where they are tied, there is only the first."""


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (arXiv:2402.13753): per-frequency factors, switched by the total length.

    short, long: `rotary_dim / 2` factors each; long applies once a position reaches `original_max_position`.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_max_position: int


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
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise InputError(f"config: rotary dimension {self.rotary_dim} must be even and at most {self.head_dim}")

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

        Raises InputError for another architecture, a rope type that Phi-3 does not have, or a key that is missing or of
        another type.
        """
        architectures = data.get("architectures") or [ARCHITECTURE]
        if architectures[0] != ARCHITECTURE or data.get("model_type", "phi3") != "phi3":
            came = architectures[0] if architectures[0] != ARCHITECTURE else data.get("model_type")
            raise InputError(f"{where}: unknown architecture {came!r}, expected {ARCHITECTURE} (model_type phi3)")
        if data.get("hidden_act", "silu") != "silu":
            raise InputError(f"{where}: hidden_act {data['hidden_act']!r}, expected 'silu'")

        def whole(key: str, default: int | None = None, least: int = 1) -> int:
            value = data.get(key, default)
            value = default if value is None else value
            if not isinstance(value, int) or value < least:
                kind = "a positive whole number" if least else "a whole number"
                raise InputError(f"{where}: {key} is {value!r}, expected {kind}")
            return int(value)

        def optional(key: str, least: int = 0) -> int | None:
            return None if data.get(key) is None else whole(key, least=least)

        # transformers 5 keeps everything about rotary embedding in rope_parameters, 4 in rope_scaling and rope_theta
        rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise InputError(f"{where}: rope_scaling is {rope!r}, expected an object")

        def real(key: str, default: float) -> float:
            value = rope.get(key, data.get(key))
            value = default if value is None else value
            if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise InputError(f"{where}: {key} is {value!r}, expected a positive number")
            return float(value)

        heads = whole("num_attention_heads")
        head_dim = whole("head_dim", whole("hidden_size") // heads)
        rotary_dim = int(head_dim * real("partial_rotary_factor", 1.0))
        eos = data.get("eos_token_id")
        eos = eos if isinstance(eos, list) else [] if eos is None else [eos]
        if not all(isinstance(token, int) for token in eos):
            raise InputError(f"{where}: eos_token_id is {data['eos_token_id']!r}, expected token numbers")
        return ModelConfig(
            vocab_size=whole("vocab_size"),
            hidden_size=whole("hidden_size"),
            intermediate_size=whole("intermediate_size"),
            layers=whole("num_hidden_layers"),
            heads=heads,
            kv_heads=whole("num_key_value_heads", heads),
            head_dim=head_dim,
            max_position=whole("max_position_embeddings"),
            rms_norm_eps=real("rms_norm_eps", 1e-5),
            rope_theta=real("rope_theta", 10000.0),
            rotary_dim=rotary_dim,
            long_rope=_long_rope(rope, data, rotary_dim, where),
            sliding_window=optional("sliding_window", least=1),
            tied_embeddings=bool(data.get("tie_word_embeddings", False)),
            bos=optional("bos_token_id"),
            eos=tuple(eos),
            pad=optional("pad_token_id"),
        )

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
    return ModelConfig.from_hf(json.loads(path.read_text("utf-8")), str(path))


def layer_of(name: str) -> int | None:
    """The decoder layer that a tensor or input belongs to, by its name: `model.layers.3.…` → 3."""
    found = re.search(r"(?:layers|past_key_values|present)\.(\d+)\.", name)
    return int(found.group(1)) if found else None


def _long_rope(rope: Mapping[str, Any], data: Mapping[str, Any], rotary_dim: int, where: str) -> LongRope | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", None):
        return None
    if kind not in ("longrope", "su"):
        raise InputError(f"{where}: unknown rope type {kind!r}, expected 'default' or 'longrope'")
    original = rope.get("original_max_position_embeddings") or data.get("original_max_position_embeddings")
    if not isinstance(original, int):
        raise InputError(f"{where}: longrope needs original_max_position_embeddings, got {original!r}")
    for key in ("attention_factor", "short_mscale", "long_mscale"):
        if rope.get(key) is not None:
            raise InputError(
                f"{where}: rope {key} = {rope[key]!r} is not supported: it changes the size of rotated vectors"
            )
    factors = {}
    for key in ("short_factor", "long_factor"):
        values = rope.get(key)
        if not isinstance(values, list) or len(values) != rotary_dim // 2:
            came = len(values) if isinstance(values, list) else repr(values)
            raise InputError(f"{where}: rope {key} has {came} values, expected {rotary_dim // 2}")
        if not all(isinstance(v, (int, float)) and 0 < v < math.inf for v in values):
            raise InputError(f"{where}: rope {key} holds a value that is not a positive number")
        factors[key] = tuple(float(v) for v in values)
    return LongRope(factors["short_factor"], factors["long_factor"], original)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
