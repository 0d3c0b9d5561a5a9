"""Phi-3-small, 8k and 128k: `Phi3SmallForCausalLM`, whose code lies beside its checkpoints and not in transformers.

Its own module is in `phi3_small_module.py`. The published files interleave what we keep apart: the rows of a key/value head's
queries, its key and its value (`query_key_value`), and those of the gate and of the linear part (`up_proj`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from pocketphi.graph.config import EMBEDDING, HEAD, BlockSparse, Form, LongRope, ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.models.apart import GATE_UP, QKV
from pocketphi.graph.models.base import Model, Piece, Stacks, Tiktoken
from pocketphi.graph.models.rope import check_factors, one_original
from pocketphi.graph.models.settings import Layers, Positions, Positive, Rotary, Size, Token, decoder_config, rows_only
from pocketphi.graph.reading import show, typed

Multiplier = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Period = Annotated[int, Field(ge=0, le=16)]  # two of them are traced

VOCABULARY = 100352

_FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
_NAMED = {
    **{1: "<|endoftext|>", 2: _FIM[0], 3: _FIM[1], 4: _FIM[2], 5: "<|system|>", 6: "<|user|>", 7: "<|assistant|>"},
    **{8: "<|dummy_id_0|>", 9: "<|dummy_id_1|>", 10: "<|end|>", 0: "<|dummy_id_2|>", 20: "<|endofprompt|>"},
}
_SPECIAL = 96
"""Tokens behind those of cl100k_base, place → name; the places between and behind them have the next dummy's
(`tokenization_phi3_small.py`, SPECIAL_TOKENS)."""


def special_tokens(rows: int) -> dict[str, int]:
    """The special tokens of a vocabulary, name → id: the last of it, behind those of its `cl100k_base.tiktoken`. rows: of the
    embedding, which may have some that no token is for, behind those of the published vocabulary."""
    first, dummies = min(rows, VOCABULARY) - _SPECIAL, itertools.count(3)
    return {_NAMED.get(place) or f"<|dummy_id_{next(dummies)}|>": first + place for place in range(_SPECIAL)}


_UNUSED = tuple(
    number
    for name, number in special_tokens(VOCABULARY).items()
    if name.startswith("<|dummy") or name in (*_FIM, "<|endofprompt|>")
)
"""What the tokenizer's own code calls dummy tokens: names without a meaning, and four of cl100k_base that no text has
(`tokenization_phi3_small.py`, dummy_token_indices)."""

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s+\z|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What tiktoken 0.14 makes of it, which the tokenizer's own code asks for: space at the end of a text is one piece. Spelled as
it was before tiktoken did so, for onnxruntime-genai, which knows no other spelling of the rest."""


@dataclass(frozen=True, kw_only=True)
class Phi3SmallSettings:
    """The keys and defaults of `configuration_phi3_small.py`."""

    vocab_size: Size = VOCABULARY
    max_position_embeddings: Positions = 8192
    original_max_position_embeddings: Size | None = None
    rope_embedding_base: Positive = 1e6
    rope_scaling: dict[str, Any] | None = None
    hidden_size: Size = 4096
    num_hidden_layers: Layers = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size = 8
    gegelu_limit: Positive | None = 20.0
    gegelu_pad_to_256: bool = True
    ff_dim_multiplier: Size | None = None
    ff_intermediate_size: Size | None = 14336
    blocksparse_homo_head_pattern: bool = False
    blocksparse_block_size: Size = 64
    blocksparse_num_local_blocks: Size = 16
    blocksparse_vert_stride: Size = 8
    dense_attention_every_n_layers: Period | None = 2
    layer_norm_epsilon: Positive = 1e-5
    mup_use_scaling: bool = True
    mup_width_multiplier: Multiplier | None = 8.0
    mup_embedding_multiplier: Multiplier | None = 10.0
    mup_attn_multiplier: Positive = 1.0
    dummy_token_indices: tuple[Token, ...] | None = None
    tie_word_embeddings: bool = True
    bos_token_id: Token | None = 100257
    eos_token_id: Token | tuple[Token, ...] | None = 100257
    pad_token_id: Token | None = None
    model_type: str | None = None
    architectures: tuple[str, ...] | None = None
    transformers_weights: str | None = None

    # what every decoder's settings are asked for, under the names of the others

    @property
    def layer_types(self) -> None:
        return None

    @property
    def rms_norm_eps(self) -> float:
        return self.layer_norm_epsilon

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def intermediate_size(self) -> int:
        """Of two keys that say it; `_check` sees to it that there is one."""
        if self.ff_intermediate_size is not None:
            return self.ff_intermediate_size
        size = (self.ff_dim_multiplier or 0) * (self.hidden_size // 3) * 2
        return -(-size // 256) * 256 if self.gegelu_pad_to_256 else size


@dataclass(frozen=True)
class Su:
    """`rope_scaling`: LongRoPE, called `su` as it first was."""

    short_factor: tuple[Positive, ...]
    long_factor: tuple[Positive, ...]
    short_mscale: Positive | None = None
    long_mscale: Positive | None = None
    original_max_position_embeddings: Size | None = None
    type: str | None = None
    rope_type: str | None = None


@dataclass(frozen=True)
class Own:
    """What a Phi-3-small has and no other model: see Phi3SmallSettings. dense_every: 0 where all layers are sparse."""

    gegelu_limit: float | None
    use_scaling: bool
    attention_multiplier: float
    embedding_multiplier: float
    width_multiplier: float
    dense_every: int
    dummy_tokens: tuple[int, ...]

    def scale(self, dim: int) -> float:
        """What scores are multiplied with."""
        return self.attention_multiplier / dim if self.use_scaling else float(dim**-0.5)


def _read(settings: Phi3SmallSettings, where: str, notices: list[str]) -> ModelConfig:
    _check(settings, where)
    every = settings.dense_attention_every_n_layers or 0
    stride, heads = settings.blocksparse_vert_stride, settings.num_attention_heads
    sparse = BlockSparse(
        settings.blocksparse_block_size,
        settings.blocksparse_num_local_blocks,
        stride,
        0 if settings.blocksparse_homo_head_pattern else max(1, stride // heads),
    )
    rotary = Rotary(settings.rope_embedding_base, settings.head_size, _long_rope(settings, where))
    known = _UNUSED if settings.vocab_size == VOCABULARY else ()
    dummies = known if settings.dummy_token_indices is None else settings.dummy_token_indices
    own = Own(
        settings.gegelu_limit,
        settings.mup_use_scaling,
        settings.mup_attn_multiplier,
        settings.mup_embedding_multiplier or 0.0,
        settings.mup_width_multiplier or 0.0,
        every,
        tuple(sorted(set(rows_only(dummies, settings.vocab_size, where, notices)))),
    )
    form = form_of(max(every, 1))
    return decoder_config(form, settings, rotary, None, where, notices, sparse=None if every == 1 else sparse, own=own)


def _check(settings: Phi3SmallSettings, where: str) -> None:
    both = settings.ff_dim_multiplier, settings.ff_intermediate_size
    if (both[0] is None) == (both[1] is None):
        raise InputError(
            f"{where}: ff_dim_multiplier is {both[0]} and ff_intermediate_size {both[1]}, expected one of them"
        )
    if settings.hidden_size % settings.num_attention_heads:
        raise InputError(
            f"{where}: {settings.num_attention_heads} heads do not divide hidden_size, {settings.hidden_size}"
        )


def _long_rope(settings: Phi3SmallSettings, where: str) -> LongRope | None:
    if settings.rope_scaling is None:
        return None
    where = f"{where}: rope_scaling"
    odd = sorted(settings.rope_scaling.keys() - Su.__dataclass_fields__.keys())
    if odd:
        raise InputError(f"{where} holds {show(odd[0])}, which Phi-3-small's rotary embedding does not have")
    su = typed(Su, settings.rope_scaling, where)
    kind = su.rope_type or su.type
    if kind not in ("su", "longrope"):
        raise InputError(f"{where}: unknown rope type {show(kind)}, expected 'su' or 'longrope'")
    original = one_original(su.original_max_position_embeddings, settings.original_max_position_embeddings, where)
    check_factors(su.short_factor, su.long_factor, settings.head_size, where)
    return LongRope(su.short_factor, su.long_factor, original, su.long_mscale, su.short_mscale)


def _write(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that the published code reads."""
    own, sparse, rope = config.own, config.sparse, config.long_rope
    scaling = None
    if rope:
        scales = {"short_mscale": rope.short_attention_factor, "long_mscale": rope.attention_factor}
        scaling = {
            "type": "su",
            "short_factor": list(rope.short),
            "long_factor": list(rope.long),
            "original_max_position_embeddings": rope.original_max_position,
            **{name: value for name, value in scales.items() if value is not None},
        }
    pattern = sparse or BlockSparse(64, 16, 8, 1)
    return {
        "architectures": [config.form.architecture],
        "model_type": MODEL.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "ff_intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_act": "gegelu",
        "gegelu_limit": own.gegelu_limit,
        "max_position_embeddings": config.max_position,
        "layer_norm_epsilon": config.rms_norm_eps,
        "rope_embedding_base": config.rope_theta,
        "rope_position_scale": 1.0,
        "rope_scaling": scaling,
        "mup_use_scaling": own.use_scaling,
        "mup_attn_multiplier": own.attention_multiplier,
        "mup_embedding_multiplier": own.embedding_multiplier,
        "mup_width_multiplier": own.width_multiplier,
        "dense_attention_every_n_layers": own.dense_every,
        "blocksparse_block_size": pattern.block,
        "blocksparse_triton_kernel_block_size": pattern.block,
        "blocksparse_num_local_blocks": pattern.local,
        "blocksparse_vert_stride": pattern.stride,
        "blocksparse_homo_head_pattern": pattern.step == 0,
        "dummy_token_indices": list(own.dummy_tokens),
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": config.bos,
        "eos_token_id": list(config.eos) if len(config.eos) != 1 else config.eos[0],
        "pad_token_id": config.pad,
        "use_cache": True,
    }


_NORMS = ("input_layernorm", "post_attention_layernorm")


def _tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    matrices = {
        "self_attn.qkv_proj": (config.qkv_size, hidden),
        "self_attn.o_proj": (hidden, config.heads * config.head_dim),
        "mlp.gate_up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for layer in range(config.layers):
        for name, shape in {**dict.fromkeys(_NORMS, (hidden,)), **matrices}.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = shape
            tensors[f"model.layers.{layer}.{name}.bias"] = shape[:1]
    tensors |= {f"model.norm.{part}": (hidden,) for part in ("weight", "bias")}
    if not config.tied_embeddings:
        tensors[HEAD] = (config.vocab_size, hidden)
    return tensors


def _layer(config: ModelConfig) -> Stacks:
    """Stored: for each key/value head the rows of its queries, its key and its value; and rows of gate and linear part in
    turn."""
    stacks: dict[str, Sequence[Piece]] = {}
    dim, group, inner = config.head_dim, config.heads // config.kv_heads, config.intermediate_size
    for part in ("weight", "bias"):
        stored = f"self_attn.query_key_value.{part}"
        stacks[QKV.replace("weight", part)] = [
            Piece(stored, count * dim, (head * (group + 2) + first) * dim)
            for first, count in ((0, group), (group, 1), (group + 1, 1))
            for head in range(config.kv_heads)
        ]
        rows = config.hidden_size
        stacks[f"self_attn.o_proj.{part}"] = [Piece(f"self_attn.dense.{part}", rows)]
        stacks[GATE_UP.replace("weight", part)] = [Piece(f"mlp.up_proj.{part}", inner, turn, step=2) for turn in (0, 1)]
    return stacks


def _build(config: ModelConfig) -> Any:
    from pocketphi.graph.models.phi3_small_module import build

    return build(config)


@functools.cache
def form_of(period: int) -> Form:
    """period: layers from one dense one to the next."""
    return Form(
        name="Phi-3-small",
        architecture="Phi3SmallForCausalLM",
        period=period,
        tensors=_tensors,
        settings=_write,
        folds=(),
        build=_build,
    )


def _published(**changes: Any) -> ModelConfig:
    return _read(Phi3SmallSettings(**changes), "a published shape", [])


def _ramp(stop: float) -> tuple[float, ...]:
    """Factors of the published magnitude: the true ones come with the checkpoint's own config."""
    return tuple(1 + (stop - 1) * i / 63 for i in range(64))


_SU = {
    "type": "su",
    "short_factor": _ramp(1.05),
    "long_factor": _ramp(64.0),
    "short_mscale": 1.0,
    "long_mscale": 1.1902380714238083,
    "original_max_position_embeddings": 8192,
}

MODEL = Model(
    name="Phi-3-small",
    model_type="phi3small",
    architectures=("Phi3SmallForCausalLM", "Phi3SmallModel"),
    form=form_of(2),
    settings=Phi3SmallSettings,
    read=_read,
    layer=_layer,
    outside={"model.norm.weight": "model.final_layernorm.weight", "model.norm.bias": "model.final_layernorm.bias"},
    tiktoken=Tiktoken(
        "cl100k_base.tiktoken",
        _CL100K,
        special_tokens,
        "<|endoftext|>",
        shown=("<|dummy_id_2|>",),  # decoding leaves out what lies at or behind the end token
    ),
    only={"hidden_act": ("gegelu",), "rope_position_scale": (1, None)},
    harmless=frozenset(
        """
        embedding_dropout_prob attention_dropout_prob ffn_dropout_prob reorder_and_upcast_attn
        pad_sequence_to_multiple_of_64 blocksparse_triton_kernel_block_size
        """.split()  # noqa: SIM905 - a list would take a line for each
    ),
    published={
        "phi-3-small-8k": _published(),
        "phi-3-small-128k": _published(max_position_embeddings=131072, rope_scaling=_SU),
        # small enough to compile in a second: several blocks in a short text, a limit that values reach, unused tokens
        "phi-3-small-tiny": _published(
            vocab_size=256,
            hidden_size=64,
            ff_intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            gegelu_limit=1.5,
            blocksparse_block_size=16,
            blocksparse_num_local_blocks=2,
            blocksparse_vert_stride=4,
            dummy_token_indices=(3, 250, 255),
            bos_token_id=1,
            eos_token_id=2,
        ),
    },
)
