"""A Hugging Face `config.json` of a Phi-3, key by key: honoured, known to change nothing, told in a notice, or refused.

The rules and defaults are those of transformers 5 (`models/phi3/configuration_phi3.py`, `modeling_rope_utils.py`).
`graph/hf_agreement.py` compares the result with what transformers makes of the same file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from pocketphi.graph.config import ARCHITECTURE, LongRope, ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_keys import check_keys
from pocketphi.graph.reading import show, typed

_Size = Annotated[int, Field(gt=0, le=1 << 31)]
_Layers = Annotated[int, Field(gt=0, le=1 << 14)]  # each costs time and memory before a tensor is looked at
_Positions = Annotated[int, Field(gt=0, le=1 << 20)]  # each is a row of the rotary tables
_Token = Annotated[int, Field(ge=0, le=1 << 31)]
_Fraction = Annotated[float, Field(gt=0, le=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_ARCHITECTURES = (ARCHITECTURE, "Phi3Model")
_LONG_ROPE = ("longrope", "su", "yarn")
"""All of them are LongRoPE to transformers' Phi-3: it was first called `su`, and `yarn` before there was one."""


@dataclass(frozen=True)
class _Config:
    """What is honoured, with transformers' value for what a file leaves out."""

    vocab_size: _Size = 32064
    hidden_size: _Size = 3072
    intermediate_size: _Size = 8192
    num_hidden_layers: _Layers = 32
    num_attention_heads: _Size = 32
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    max_position_embeddings: _Positions = 4096
    original_max_position_embeddings: _Size = 4096
    rms_norm_eps: _Positive = 1e-5
    rope_theta: _Positive = 10000.0
    partial_rotary_factor: _Fraction = 1.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    sliding_window: _Size | None = None
    layer_types: tuple[str, ...] | None = None
    tie_word_embeddings: bool = False
    bos_token_id: _Token | None = 1
    eos_token_id: _Token | tuple[_Token, ...] | None = 32000
    pad_token_id: _Token | None = 32000
    model_type: str | None = None
    architectures: tuple[str, ...] | None = None
    transformers_weights: str | None = None


@dataclass(frozen=True)
class _Rope:
    """`rope_scaling` of transformers 4, `rope_parameters` of transformers 5."""

    rope_theta: _Positive
    partial_rotary_factor: _Fraction
    rope_type: str | None = None
    type: str | None = None
    short_factor: tuple[_Positive, ...] | None = None
    long_factor: tuple[_Positive, ...] | None = None
    factor: _Positive | None = None
    attention_factor: _Positive | None = None
    original_max_position_embeddings: _Size | None = None


@dataclass(frozen=True)
class _Generation:
    """What of `generation_config.json` is used; the rest is how to sample."""

    eos_token_id: _Token | tuple[_Token, ...] | None = None


@dataclass(frozen=True)
class HfConfig:
    """weights: the file that `transformers_weights` names; notices: one line each on what was left out."""

    model: ModelConfig
    weights: str | None
    notices: tuple[str, ...]


def read_hf_config(data: Mapping[str, Any], where: str) -> HfConfig:
    """Raises InputError for another architecture, a value of another type, or a setting that cannot be honoured."""
    config = typed(_Config, data, where)
    _check_architecture(config, where)
    notices = check_keys(data, _Config.__dataclass_fields__, where)
    windowed = "full_attention" if config.sliding_window is None else "sliding_attention"
    if config.layer_types is not None and config.layer_types != (windowed,) * config.num_hidden_layers:
        raise InputError(
            f"{where}: layer_types is {show(config.layer_types)}, expected {windowed!r} for each of "
            f"{config.num_hidden_layers} layers: Phi-3 has one window for all of them, here {config.sliding_window}"
        )
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    rope, long_rope = _read_rope(config, head_dim, where, notices)
    if (config.pad_token_id or 0) >= config.vocab_size:  # transformers cannot load it
        raise InputError(f"{where}: pad_token_id is {config.pad_token_id}, expected less than vocab_size, or null")
    ends = config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)
    bos = _rows_only((config.bos_token_id,), config.vocab_size, where, notices)
    model = ModelConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=head_dim,
        max_position=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=rope.rope_theta,
        rotary_dim=int(head_dim * rope.partial_rotary_factor),
        long_rope=long_rope,
        sliding_window=config.sliding_window,
        tied_embeddings=config.tie_word_embeddings,
        bos=bos[0] if bos else None,
        eos=_rows_only(ends, config.vocab_size, where, notices),
        pad=config.pad_token_id,
    )
    return HfConfig(model, config.transformers_weights, tuple(notices))


def _check_architecture(config: _Config, where: str) -> None:
    odd = [name for name in config.architectures or () if name not in _ARCHITECTURES]
    if config.model_type not in (None, "phi3"):
        odd.append(config.model_type)
    if odd or not (config.architectures or config.model_type):
        came = f"unknown architecture {show(odd[0])}" if odd else "neither architectures nor model_type"
        raise InputError(f"{where}: {came}, expected {ARCHITECTURE} (model_type phi3)")


def end_tokens(data: Mapping[str, Any], model: ModelConfig, where: str) -> tuple[tuple[int, ...], list[str]]:
    """The end tokens of a model with those of its `generation_config.json`, where Phi-3's `<|end|>` stands; and notices."""
    more = typed(_Generation, data, where).eos_token_id
    notices: list[str] = []
    more = _rows_only(more if isinstance(more, tuple) else (more,), model.vocab_size, where, notices)
    return tuple(dict.fromkeys([*model.eos, *more])), notices


def _rows_only(tokens: tuple[int | None, ...], size: int, where: str, notices: list[str]) -> tuple[int, ...]:
    """Those of some tokens that the vocabulary has; the model can neither get nor make the others."""
    given = [token for token in tokens if token is not None]
    if beyond := [token for token in given if token >= size]:
        notices.append(f"{where}: names token {beyond[0]}, but there are {size} tokens; it is left out")
    return tuple(token for token in given if token < size)


def _read_rope(config: _Config, head_dim: int, where: str, notices: list[str]) -> tuple[_Rope, LongRope | None]:
    """What transformers reads: rope_scaling where there is one, else rope_parameters; keys in it before those beside it."""
    key = "rope_scaling" if config.rope_scaling else "rope_parameters"
    given: dict[str, Any] = getattr(config, key) or {}
    if config.rope_scaling and config.rope_parameters and config.rope_scaling != config.rope_parameters:
        notices.append(f"{where}: rope_scaling and rope_parameters differ; the first is used, as in transformers")
    where = f"{where}: {key}"
    odd = [name for name in given if given[name] is not None and name not in _Rope.__dataclass_fields__]
    if odd:
        raise InputError(
            f"{where} holds {show(odd[0])} = {show(given[odd[0]])}, which Phi-3's rotary embedding does not have"
        )
    beside = {"rope_theta": config.rope_theta, "partial_rotary_factor": config.partial_rotary_factor}
    rope = typed(_Rope, {**beside, **given}, where)
    kind = rope.rope_type if "rope_type" in given else given.get("type", "default")
    if kind in _LONG_ROPE:
        return rope, _long_rope(rope, config, int(head_dim * rope.partial_rotary_factor), where, notices)
    if kind != "default":
        raise InputError(f"{where}: unknown rope type {show(kind)}, expected 'default' or 'longrope'")
    scaled = [n for n in ("short_factor", "long_factor", "attention_factor", "factor") if getattr(rope, n) is not None]
    if scaled and not (scaled == ["factor"] and rope.factor == 1):
        raise InputError(
            f"{where} holds {scaled[0]} = {show(given[scaled[0]])}, but its type is 'default', which does not scale; "
            "set rope_type, or remove it"
        )
    return rope, None


def _long_rope(rope: _Rope, config: _Config, rotary_dim: int, where: str, notices: list[str]) -> LongRope:
    """The switch is the key beside rope_scaling, whatever the one in it says."""
    original = config.original_max_position_embeddings
    if rope.original_max_position_embeddings not in (None, original):
        notices.append(
            f"{where}: original_max_position_embeddings is {rope.original_max_position_embeddings}; transformers' Phi-3 uses "
            f"{original}, from beside {where.rsplit(' ', 1)[-1]} or its default"
        )
    short, long = rope.short_factor or (), rope.long_factor or ()
    for name, values in (("short_factor", short), ("long_factor", long)):
        if len(values) != rotary_dim // 2:
            raise InputError(f"{where}: {name} of LongRoPE has {len(values)} values, expected {rotary_dim // 2}")
    attention = rope.attention_factor
    if attention is None and rope.factor is not None and rope.factor != config.max_position_embeddings / original:
        attention = 1.0
        if rope.factor > 1:
            attention = math.sqrt(1 + math.log(rope.factor) / math.log(max(original, 2)))
    return LongRope(short, long, original, attention)
