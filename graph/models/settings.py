"""What the `config.json` of every decoder has: typed keys, and the part of a config that is read of them in one way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pydantic import Field

from pocketphi.graph.config import Form, LongRope, ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import show

Size = Annotated[int, Field(gt=0, le=1 << 31)]
Layers = Annotated[int, Field(gt=0, le=1 << 14)]  # each costs time and memory before a tensor is looked at
Positions = Annotated[int, Field(gt=0, le=1 << 20)]  # each is a row of the rotary tables
Token = Annotated[int, Field(ge=0, le=1 << 31)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A model's own class gives the defaults: transformers' values for what a file leaves out."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Positions
    original_max_position_embeddings: Size | None = None
    rms_norm_eps: Positive
    rope_theta: Positive = 10000.0
    partial_rotary_factor: Fraction = 1.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    layer_types: tuple[str, ...] | None = None
    tie_word_embeddings: bool = False
    bos_token_id: Token | None
    eos_token_id: Token | tuple[Token, ...] | None
    pad_token_id: Token | None
    model_type: str | None = None
    architectures: tuple[str, ...] | None = None
    transformers_weights: str | None = None

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


class Decoder(Protocol):
    """What is asked of the settings of any decoder, whatever its keys are called."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int | None: ...
    @property
    def head_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def rms_norm_eps(self) -> float: ...
    @property
    def layer_types(self) -> tuple[str, ...] | None: ...
    @property
    def tie_word_embeddings(self) -> bool: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_id(self) -> int | tuple[int, ...] | None: ...
    @property
    def pad_token_id(self) -> int | None: ...


@dataclass(frozen=True)
class Rotary:
    """dim: how many of a head's elements are turned; long_rope: what scales the frequencies."""

    theta: float
    dim: int
    long_rope: LongRope | None = None


def decoder_config(
    form: Form, settings: Decoder, rotary: Rotary, window: int | None, where: str, notices: list[str], **own: Any
) -> ModelConfig:
    """window: tokens that each one sees, None for all; own: fields of the config that few models have.

    Raises InputError for what does not fit together.
    """
    windowed = "full_attention" if window is None else "sliding_attention"
    if settings.layer_types is not None and settings.layer_types != (windowed,) * settings.num_hidden_layers:
        raise InputError(
            f"{where}: layer_types is {show(settings.layer_types)}, expected {windowed!r} for each of "
            f"{settings.num_hidden_layers} layers: {form.name} has one window for all of them, here {window}"
        )
    size = settings.vocab_size
    if (settings.pad_token_id or 0) >= size:  # transformers cannot load it
        raise InputError(f"{where}: pad_token_id is {settings.pad_token_id}, expected less than vocab_size, or null")
    bos = rows_only(settings.bos_token_id, size, where, notices)
    config = ModelConfig(
        vocab_size=size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        layers=settings.num_hidden_layers,
        heads=settings.num_attention_heads,
        kv_heads=settings.num_key_value_heads or settings.num_attention_heads,
        head_dim=settings.head_size,
        max_position=settings.max_position_embeddings,
        rms_norm_eps=settings.rms_norm_eps,
        rope_theta=rotary.theta,
        rotary_dim=rotary.dim,
        long_rope=rotary.long_rope,
        sliding_window=window,
        tied_embeddings=settings.tie_word_embeddings,
        bos=bos[0] if bos else None,
        eos=rows_only(settings.eos_token_id, size, where, notices),
        pad=settings.pad_token_id,
        form=form,
        where=where,
        **own,
    )
    check_heads_of_long_rope(config, where)
    return config


def check_heads_of_long_rope(config: ModelConfig, where: str) -> None:
    """Raises InputError for heads of another size than hidden_size gives, which transformers' LongRoPE cannot have."""
    if config.long_rope and config.hidden_size // config.heads != config.head_dim:
        raise InputError(
            f"{where}: scaled rotary frequencies need heads of hidden_size / num_attention_heads = "
            f"{config.hidden_size // config.heads}, but head_dim is {config.head_dim}; {config.form.name}, as which the model "
            "is compiled, has no others in transformers"
        )


def rows_only(given: int | tuple[int, ...] | None, size: int, where: str, notices: list[str]) -> tuple[int, ...]:
    """Those of some tokens that the vocabulary has; the model can neither get nor make the others."""
    tokens = given if isinstance(given, tuple) else () if given is None else (given,)
    if beyond := [token for token in tokens if token >= size]:
        notices.append(f"{where}: names token {beyond[0]}, but there are {size} tokens; it is left out")
    return tuple(token for token in tokens if token < size)


def written_sizes(config: ModelConfig) -> dict[str, Any]:
    """The keys for a model's sizes, as every decoder's `config.json` has them."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.rms_norm_eps,
    }


def written_tokens(config: ModelConfig) -> dict[str, Any]:
    """The keys for a model's tokens."""
    return {
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": config.bos,
        "eos_token_id": list(config.eos) if len(config.eos) != 1 else config.eos[0],
        "pad_token_id": config.pad,
    }
