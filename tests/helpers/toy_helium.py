"""A model added the way that CONTRIBUTING describes: transformers' Helium, whose q and k turn pairs that lie together."""

from __future__ import annotations

from dataclasses import dataclass

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.models import phi3
from pocketphi.graph.models.apart import hf_apart
from pocketphi.graph.models.base import Model
from pocketphi.graph.models.rope import Rope, read_rope
from pocketphi.graph.models.settings import (
    Layers,
    Positions,
    Positive,
    Rotary,
    Settings,
    Size,
    Token,
    decoder_config,
)


@dataclass(frozen=True, kw_only=True)
class HeliumSettings(Settings):
    vocab_size: Size = 48000
    hidden_size: Size = 2560
    intermediate_size: Size = 7040
    num_hidden_layers: Layers = 24
    num_attention_heads: Size = 20
    num_key_value_heads: Size | None = 20
    head_dim: Size | None = 128
    max_position_embeddings: Positions = 4096
    rms_norm_eps: Positive = 1e-8
    rope_theta: Positive = 100000.0
    bos_token_id: Token | None = 1
    eos_token_id: Token | tuple[Token, ...] | None = 2
    pad_token_id: Token | None = 3


def _read(settings: HeliumSettings, where: str, notices: list[str]) -> ModelConfig:
    rope, _, _ = read_rope(Rope, settings, "Helium", (), where, notices)
    rotary = Rotary(rope.rope_theta, settings.head_size)
    return decoder_config(phi3.FORM, settings, rotary, None, where, notices)


MODEL = Model(
    name="Helium",
    model_type="helium",
    architectures=("HeliumForCausalLM", "HeliumModel"),
    form=phi3.FORM,
    settings=HeliumSettings,
    read=_read,
    layer=lambda config: hf_apart(config, in_pairs=True),
)
