"""Phi-3, Phi-3.5 and Phi-4-mini: `Phi3ForCausalLM`. Other models are compiled as one where that is the same function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketphi.graph.config import EMBEDDING, HEAD, Form, LongRope, ModelConfig
from pocketphi.graph.models.apart import GATE_UP, QKV, gguf_apart
from pocketphi.graph.models.base import Gguf, KnownWindow, Model, Piece
from pocketphi.graph.models.rope import Rope, check_factors, read_rope
from pocketphi.graph.models.settings import (
    Layers,
    Positions,
    Positive,
    Rotary,
    Settings,
    Size,
    Token,
    decoder_config,
    written_sizes,
    written_tokens,
)

_LONG_ROPE = ("longrope", "su", "yarn")
"""All of them are LongRoPE to transformers' Phi-3: it was first called `su`, and `yarn` before there was one."""


@dataclass(frozen=True, kw_only=True)
class Phi3Settings(Settings):
    vocab_size: Size = 32064
    hidden_size: Size = 3072
    intermediate_size: Size = 8192
    num_hidden_layers: Layers = 32
    num_attention_heads: Size = 32
    max_position_embeddings: Positions = 4096
    original_max_position_embeddings: Size = 4096
    rms_norm_eps: Positive = 1e-5
    sliding_window: Size | None = None
    bos_token_id: Token | None = 1
    eos_token_id: Token | tuple[Token, ...] | None = 32000
    pad_token_id: Token | None = 32000


@dataclass(frozen=True)
class Phi3Rope(Rope):
    short_factor: tuple[Positive, ...] | None = None
    long_factor: tuple[Positive, ...] | None = None
    attention_factor: Positive | None = None
    factor: Positive | None = None


def _read(settings: Phi3Settings, where: str, notices: list[str]) -> ModelConfig:
    rope, kind, at = read_rope(Phi3Rope, settings, "Phi-3", _LONG_ROPE, where, notices)
    rotary_dim = int(settings.head_size * rope.partial_rotary_factor)
    long_rope = _long_rope(rope, settings, rotary_dim, at, notices) if kind != "default" else None
    rotary = Rotary(rope.rope_theta, rotary_dim, long_rope)
    return decoder_config(FORM, settings, rotary, settings.sliding_window, where, notices)


def _long_rope(rope: Phi3Rope, settings: Phi3Settings, rotary_dim: int, where: str, notices: list[str]) -> LongRope:
    """The switch is the key beside rope_scaling, whatever the one in it says."""
    original = settings.original_max_position_embeddings
    if rope.original_max_position_embeddings not in (None, original):
        notices.append(
            f"{where}: original_max_position_embeddings is {rope.original_max_position_embeddings}; transformers' Phi-3 uses "
            f"{original}, from beside {where.rsplit(' ', 1)[-1]} or its default"
        )
    short, long = rope.short_factor or (), rope.long_factor or ()
    check_factors(short, long, rotary_dim, where)
    attention = rope.attention_factor
    if attention is None and rope.factor is not None and rope.factor != settings.max_position_embeddings / original:
        attention = 1.0
        if rope.factor > 1:
            attention = math.sqrt(1 + math.log(rope.factor) / math.log(max(original, 2)))
    return LongRope(short, long, original, attention)


def _write(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers 4 and 5 both read."""
    scaling: dict[str, Any] | None = None
    # as published configs have it without LongRoPE too: where it is missing transformers fills in 4096, and other
    # tools take a model of another length for a LongRoPE one
    data: dict[str, Any] = {"original_max_position_embeddings": config.max_position}
    if config.long_rope:
        data["original_max_position_embeddings"] = config.long_rope.original_max_position
        scaling = {
            "type": "longrope",
            "short_factor": list(config.long_rope.short),
            "long_factor": list(config.long_rope.long),
        }
        if config.long_rope.attention_factor is not None:
            scaling["attention_factor"] = config.long_rope.attention_factor
    partial = config.rotary_dim / config.head_dim
    if int(config.head_dim * partial) < config.rotary_dim:  # the reader rounds down
        partial = math.nextafter(partial, 1.0)
    if config.head_dim * config.heads != config.hidden_size:
        data["head_dim"] = config.head_dim
    return {
        "architectures": [FORM.architecture],
        "model_type": MODEL.model_type,
        **written_sizes(config),
        "rope_theta": config.rope_theta,
        "partial_rotary_factor": partial,
        "rope_scaling": scaling,
        "sliding_window": config.sliding_window,
        **written_tokens(config),
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "use_cache": True,
        **data,
    }


def _tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for i in range(config.layers):
        layer = f"model.layers.{i}"
        tensors[f"{layer}.input_layernorm.weight"] = (hidden,)
        tensors[f"{layer}.{QKV}"] = (config.qkv_size, hidden)
        tensors[f"{layer}.self_attn.o_proj.weight"] = (hidden, config.heads * config.head_dim)
        tensors[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        tensors[f"{layer}.{GATE_UP}"] = (2 * inner, hidden)
        tensors[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
    tensors["model.norm.weight"] = (hidden,)
    if not config.tied_embeddings:
        tensors[HEAD] = (config.vocab_size, hidden)
    return tensors


def _gguf_layer(config: ModelConfig) -> Mapping[str, Sequence[Sequence[Piece]]]:
    """Files have the packed projections, or the parts that older converters and other tools wrote."""
    apart = gguf_apart(config, in_pairs=False)
    return {
        **apart,
        QKV: [apart[QKV][-1], [Piece("attn_qkv.weight", config.qkv_size)]],
        GATE_UP: [apart[GATE_UP][-1], [Piece("ffn_up.weight", 2 * config.intermediate_size)]],
    }


FORM = Form(
    name="Phi-3",
    architecture="Phi3ForCausalLM",
    period=1,
    tensors=_tensors,
    settings=_write,
    folds=((QKV, "input_layernorm.weight"), (GATE_UP, "post_attention_layernorm.weight")),
)

_GGUF = Gguf(
    architecture="phi3",
    layer=_gguf_layer,
    whole_heads=False,
    rope_freqs=False,
    reads_window=True,
    # of files from before July 2024 (github.com/ggml-org/llama.cpp/pull/8931)
    windows=(
        KnownWindow(32, None, 4096, 2047, "Phi-3-mini-4k and Phi-3-medium-4k"),
        KnownWindow(40, None, 4096, 2047, "Phi-3-mini-4k and Phi-3-medium-4k"),
        KnownWindow(32, 32, 131072, 262144, "Phi-3-mini-128k"),
        KnownWindow(40, None, 131072, 131072, "Phi-3-medium-128k"),
    ),
    # as llama.cpp's src/llama-vocab.cpp: trained without the space after <|user|>; no metadata says so
    markers_take_space=True,
    keep_space=("<unk>", "<s>", "<|endoftext|>"),
)


def _ramp(start: float, stop: float, count: int) -> tuple[float, ...]:
    """Factors of the published magnitude: the true ones come with the checkpoint's own config."""
    return tuple(start + (stop - start) * i / (count - 1) for i in range(count))


def _published(long_rope: LongRope | None = None, **settings: Any) -> ModelConfig:
    """Of transformers' own defaults, which are the settings of Phi-3-mini, and changes to them."""
    made = Phi3Settings(**{"sliding_window": 2047, **settings})
    rotary = Rotary(made.rope_theta, int(made.head_size * made.partial_rotary_factor), long_rope)
    return decoder_config(FORM, made, rotary, made.sliding_window, "a published shape", [])


_LONG = {"max_position_embeddings": 131072, "sliding_window": 262144}

MODEL = Model(
    name="Phi-3",
    model_type="phi3",
    architectures=("Phi3ForCausalLM", "Phi3Model"),
    form=FORM,
    settings=Phi3Settings,
    read=_read,
    gguf=_GGUF,
    only={"full_attn_mod": (1, None), "interpolate_factor": (1, None)},
    harmless=frozenset({"embd_pdrop", "resid_pdrop"}),
    published={
        "phi-3-mini-4k": _published(),
        "phi-3-mini-128k": _published(**_LONG, long_rope=LongRope(_ramp(1.05, 2.9, 48), _ramp(1.03, 64.0, 48), 4096)),
        "phi-3.5-mini": _published(**_LONG, long_rope=LongRope(_ramp(1.0, 1.03, 48), _ramp(1.08, 64.5, 48), 4096)),
        "phi-3-medium-4k": _published(
            hidden_size=5120,
            intermediate_size=17920,
            num_hidden_layers=40,
            num_attention_heads=40,
            num_key_value_heads=10,
        ),
        "phi-4-mini": _published(
            **_LONG,
            vocab_size=200064,
            num_attention_heads=24,
            num_key_value_heads=8,
            partial_rotary_factor=0.75,
            tie_word_embeddings=True,
            bos_token_id=199999,
            eos_token_id=(200020, 199999),
            pad_token_id=199999,
            long_rope=LongRope(_ramp(1.0, 1.0, 48), _ramp(1.0, 47.8, 48), 4096),
        ),
        # small enough to compile in a second, with everything the family has: grouped heads, a window, untied embeddings
        "tiny": _published(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            sliding_window=48,
            eos_token_id=2,
            pad_token_id=0,
        ),
    },
)
