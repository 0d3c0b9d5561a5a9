"""Mistral 7B and its kin: `MistralForCausalLM`, a Llama with a sliding window, compiled as a Phi-3 like one."""

from __future__ import annotations

from dataclasses import dataclass

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.models import phi3
from pocketphi.graph.models.apart import hf_apart
from pocketphi.graph.models.base import Model
from pocketphi.graph.models.llama import LlamaSettings
from pocketphi.graph.models.rope import read_scaled
from pocketphi.graph.models.settings import Positions, Size, decoder_config


@dataclass(frozen=True, kw_only=True)
class MistralSettings(LlamaSettings):
    intermediate_size: Size = 14336
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Positions = 4096 * 32
    sliding_window: Size | None = 4096


def _read(settings: MistralSettings, where: str, notices: list[str]) -> ModelConfig:
    rotary = read_scaled(settings, "Mistral", where, notices)
    return decoder_config(phi3.FORM, settings, rotary, settings.sliding_window, where, notices)


MODEL = Model(
    name="Mistral",
    model_type="mistral",
    architectures=("MistralForCausalLM", "MistralModel"),
    form=phi3.FORM,
    settings=MistralSettings,
    read=_read,
    layer=hf_apart,
    published={
        "mistral-7b": _read(MistralSettings(max_position_embeddings=32768, rms_norm_eps=1e-5), "a published shape", []),
    },
)
