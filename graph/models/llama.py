"""Llama 2 and 3, SmolLM2 and their kin: `LlamaForCausalLM`, compiled as a Phi-3 whose projections are stored apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.models import phi3
from pocketphi.graph.models.apart import gguf_apart, hf_apart
from pocketphi.graph.models.base import Gguf, Model
from pocketphi.graph.models.rope import read_scaled
from pocketphi.graph.models.settings import Layers, Positions, Positive, Settings, Size, Token, decoder_config


@dataclass(frozen=True, kw_only=True)
class LlamaSettings(Settings):
    vocab_size: Size = 32000
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Layers = 32
    num_attention_heads: Size = 32
    max_position_embeddings: Positions = 2048
    rms_norm_eps: Positive = 1e-6
    bos_token_id: Token | None = 1
    eos_token_id: Token | tuple[Token, ...] | None = 2
    pad_token_id: Token | None = None


def _read(settings: LlamaSettings, where: str, notices: list[str]) -> ModelConfig:
    rotary = read_scaled(settings, "Llama", where, notices)
    return decoder_config(phi3.FORM, settings, rotary, None, where, notices)


def _published(**settings: Any) -> ModelConfig:
    common: dict[str, Any] = {"rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    return _read(LlamaSettings(**common, **settings), "a published shape", [])


_LLAMA_3_2: dict[str, Any] = {
    "vocab_size": 128256,
    "intermediate_size": 8192,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}

MODEL = Model(
    name="Llama",
    model_type="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    form=phi3.FORM,
    settings=LlamaSettings,
    read=_read,
    layer=hf_apart,
    gguf=Gguf(architecture="llama", layer=lambda config: gguf_apart(config, in_pairs=True), in_pairs=True),
    published={
        "smollm2-135m": _published(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            rope_theta=100000.0,
            pad_token_id=2,
        ),
        "llama-3.2-1b": _published(
            **_LLAMA_3_2, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, head_dim=64
        ),
        "llama-3.2-3b": _published(
            **_LLAMA_3_2, hidden_size=3072, num_hidden_layers=28, num_attention_heads=24, head_dim=128
        ),
    },
)
