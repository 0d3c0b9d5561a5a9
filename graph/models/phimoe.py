"""Phi-tiny-MoE, Phi-mini-MoE and Phi-3.5-MoE: `PhimoeForCausalLM`, whose MLP is one of several experts for each token.

Its own module is in `phimoe_module.py`. Files have the experts apart, as they were published (`block_sparse_moe.experts.N.w1`,
the gate, `.w3` and `.w2`), or all of a layer in one tensor, as transformers 5 holds them. Ours are stacked into one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from pocketphi.graph.config import EMBEDDING, HEAD, Experts, Form, LongRope, ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.models.apart import QKV
from pocketphi.graph.models.base import Model, Piece, Stacks
from pocketphi.graph.models.rope import Rope, check_factors, one_original, read_rope
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

ExpertCount = Annotated[int, Field(ge=2, le=256)]
Jitter = Annotated[float, Field(ge=0, le=1)]

CHOSEN = 2
"""Experts of a token. transformers' router has no other number, whatever num_experts_per_tok says."""

_ROUTER, _GATE_UP, _DOWN = (f"mlp.{name}.weight" for name in ("router", "experts.gate_up_proj", "experts.down_proj"))


@dataclass(frozen=True, kw_only=True)
class PhiMoeSettings(Settings):
    vocab_size: Size = 32064
    hidden_size: Size = 4096
    intermediate_size: Size = 6400
    num_hidden_layers: Layers = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Positions = 131072
    rms_norm_eps: Positive = 1e-5
    rope_theta: Positive = 1e6
    sliding_window: Size | None = None
    num_local_experts: ExpertCount = 16
    router_jitter_noise: Jitter = 0.01
    attention_bias: bool = False
    lm_head_bias: bool = False
    bos_token_id: Token | None = 1
    eos_token_id: Token | tuple[Token, ...] | None = 2
    pad_token_id: Token | None = None


@dataclass(frozen=True)
class PhiMoeRope(Rope):
    short_factor: tuple[Positive, ...] | None = None
    long_factor: tuple[Positive, ...] | None = None
    short_mscale: Positive | None = None
    long_mscale: Positive | None = None


@dataclass(frozen=True)
class Own:
    """What a Phi-MoE has and no other model: which of its projections have a bias."""

    attention_bias: bool
    head_bias: bool


def _read(settings: PhiMoeSettings, where: str, notices: list[str]) -> ModelConfig:
    rope, kind, at = read_rope(PhiMoeRope, settings, "Phi-MoE", ("longrope",), where, notices)
    if rope.partial_rotary_factor != 1:
        raise InputError(f"{at}: partial_rotary_factor is {rope.partial_rotary_factor}, expected 1 in a Phi-MoE")
    long_rope = _long_rope(rope, settings, at, notices) if kind != "default" else None
    return decoder_config(
        FORM,
        settings,
        Rotary(rope.rope_theta, settings.head_size, long_rope),
        settings.sliding_window,
        where,
        notices,
        # transformers compares with twice the noise of training (`sparsemixer`)
        experts=Experts(settings.num_local_experts, CHOSEN, 2 * settings.router_jitter_noise),
        own=Own(settings.attention_bias, settings.lm_head_bias),
    )


def _long_rope(rope: PhiMoeRope, settings: PhiMoeSettings, where: str, notices: list[str]) -> LongRope:
    original = one_original(rope.original_max_position_embeddings, settings.original_max_position_embeddings, where)
    short, long = rope.short_factor or (), rope.long_factor or ()
    check_factors(short, long, settings.head_size, where)
    for name in ("short_mscale", "long_mscale"):
        if getattr(rope, name) is None:
            raise InputError(f"{where}: {name} is missing, which a Phi-MoE's LongRoPE needs")
    if short != long:
        notices.append(
            f"{where}: in texts of more than {original} tokens long_factor applies, as in the model's own code; "
            "transformers 5.23 multiplies by long_mscale there, and keeps short_factor"
        )
    return LongRope(short, long, original, rope.long_mscale, rope.short_mscale)


def _write(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers 4 and 5 both read."""
    assert config.experts is not None
    rope, scaling = config.long_rope, None
    if rope:
        scaling = {
            "type": "longrope",
            "short_factor": list(rope.short),
            "long_factor": list(rope.long),
            "short_mscale": rope.short_attention_factor,
            "long_mscale": rope.attention_factor,
            "original_max_position_embeddings": rope.original_max_position,
        }
    data = {"original_max_position_embeddings": rope.original_max_position} if rope else {}
    if config.head_dim * config.heads != config.hidden_size:
        data["head_dim"] = config.head_dim
    return {
        "architectures": [FORM.architecture],
        "model_type": MODEL.model_type,
        **written_sizes(config),
        "num_local_experts": config.experts.count,
        "num_experts_per_tok": config.experts.chosen,
        "router_jitter_noise": config.experts.threshold / 2,
        "input_jitter_noise": 0.0,
        "attention_bias": config.own.attention_bias,
        "lm_head_bias": config.own.head_bias,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "sliding_window": config.sliding_window,
        **written_tokens(config),
        "attention_dropout": 0.0,
        "use_cache": True,
        **data,
    }


def _tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    assert config.experts is not None
    hidden, inner, count = config.hidden_size, config.intermediate_size, config.experts.count
    projections = {QKV: (config.qkv_size, hidden), "self_attn.o_proj.weight": (hidden, config.heads * config.head_dim)}
    experts = {_ROUTER: (count, hidden), _GATE_UP: (count * 2 * inner, hidden), _DOWN: (count * hidden, inner)}
    tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for layer in (f"model.layers.{number}" for number in range(config.layers)):
        tensors |= {f"{layer}.input_layernorm.{part}": (hidden,) for part in ("weight", "bias")}
        for name, shape in projections.items():
            tensors[f"{layer}.{name}"] = shape
            if config.own.attention_bias:
                tensors[f"{layer}.{name.replace('weight', 'bias')}"] = shape[:1]
        tensors |= {f"{layer}.post_attention_layernorm.{part}": (hidden,) for part in ("weight", "bias")}
        tensors |= {f"{layer}.{name}": shape for name, shape in experts.items()}
    tensors |= {f"model.norm.{part}": (hidden,) for part in ("weight", "bias")}
    if not config.tied_embeddings:
        tensors[HEAD] = (config.vocab_size, hidden)
    if config.own.head_bias:
        tensors[HEAD.replace("weight", "bias")] = (config.vocab_size,)
    return tensors


def _attention(config: ModelConfig) -> dict[str, Sequence[Piece]]:
    """q, k and v, which all files have apart."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        QKV.replace("weight", part): [
            Piece(f"self_attn.{kind}_proj.{part}", rows) for kind, rows in zip("qkv", (q, kv, kv))
        ]
        for part in ("weight", "bias")
    }


def _apart(config: ModelConfig) -> Stacks:
    assert config.experts is not None
    inner, hidden, count = config.intermediate_size, config.hidden_size, config.experts.count
    of = [f"block_sparse_moe.experts.{number}" for number in range(count)]
    return {
        **_attention(config),
        _ROUTER: [Piece("block_sparse_moe.gate.weight", count)],
        _GATE_UP: [Piece(f"{one}.{kind}.weight", inner) for one in of for kind in ("w1", "w3")],
        _DOWN: [Piece(f"{one}.w2.weight", hidden) for one in of],
    }


def _together(config: ModelConfig) -> Stacks:
    assert config.experts is not None
    inner, hidden, count = config.intermediate_size, config.hidden_size, config.experts.count
    return {
        **_attention(config),
        _GATE_UP: [Piece(_GATE_UP.removesuffix(".weight"), count * 2 * inner, blocks=count)],
        _DOWN: [Piece(_DOWN.removesuffix(".weight"), count * hidden, blocks=count)],
    }


def _build(config: ModelConfig) -> Any:
    from pocketphi.graph.models.phimoe_module import build

    return build(config)


FORM = Form(
    name="Phi-MoE",
    architecture="PhimoeForCausalLM",
    period=1,
    tensors=_tensors,
    settings=_write,
    folds=(),
    build=_build,
    in_float=(_ROUTER,),
    routed=(_GATE_UP, _DOWN),
)


def _published(**changes: Any) -> ModelConfig:
    biases = {"attention_bias": True, "lm_head_bias": True}
    made = PhiMoeSettings(**{"rope_theta": 10000.0, "eos_token_id": 32000, "pad_token_id": 32000, **biases, **changes})
    return _read(made, "a published shape", [])


def _ramp(stop: float) -> tuple[float, ...]:
    """Factors of the published magnitude: the true ones come with the checkpoint's own config."""
    return tuple(1 + (stop - 1) * i / 63 for i in range(64))


_LONG = {
    "type": "longrope",
    "short_factor": _ramp(1.03),
    "long_factor": _ramp(64.0),
    "short_mscale": 1.243163121016122,
    "long_mscale": 1.243163121016122,
    "original_max_position_embeddings": 4096,
}
_SHORT = {"max_position_embeddings": 4096, "sliding_window": 2047}

MODEL = Model(
    name="Phi-MoE",
    model_type="phimoe",
    architectures=("PhimoeForCausalLM", "PhimoeModel"),
    form=FORM,
    settings=PhiMoeSettings,
    read=_read,
    layer=_apart,
    other_layer=_together,
    only={
        "attention_bias": (True, False),
        "lm_head_bias": (True, False),
        "num_experts_per_tok": (CHOSEN,),
    },
    harmless=frozenset({"input_jitter_noise", "output_router_logits", "router_aux_loss_coef"}),
    published={
        "phi-tiny-moe": _published(
            **_SHORT, intermediate_size=448, num_attention_heads=16, num_key_value_heads=4, head_dim=128
        ),
        "phi-mini-moe": _published(**_SHORT, intermediate_size=960),
        "phi-3.5-moe": _published(rope_scaling=_LONG, sliding_window=131072),
        # small enough to compile in a second, with everything the family has
        "tiny-moe": _published(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            sliding_window=48,
            num_local_experts=6,
            eos_token_id=2,
            pad_token_id=0,
        ),
    },
)
