"""What a GGUF file's metadata is read as: llama.cpp's rules and defaults, and nothing ignored that would change the result."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from pocketphi.graph.config import LongRope, ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_config import config_of
from pocketphi.graph.gguf_file import GgufFile
from pocketphi.graph.gguf_header import GgufHeader, StoredTensor
from pocketphi.graph.hf_config import config_of_hf
from tests.graph.test_gguf_file import DIM, FIELDS, HEADS, VOCAB, random_tensors, write

HALF = DIM // 2
ONES, TWOS = (1.0,) * HALF, (2.0,) * HALF


def read(arch: str, rope: dict[str, tuple[float, ...]] | None = None, **changes: Any) -> tuple[ModelConfig, list[str]]:
    """The config of FIELDS with changes: `attention__causal` for `ARCH.attention.causal`, full keys in `fields`."""
    fields: dict[str, Any] = {f"{arch}.{key}": value for key, value in FIELDS.items()}
    fields |= changes.pop("fields", {})
    for name, value in changes.items():
        fields[f"{arch}.{name.replace('__', '.')}"] = value
    fields = {key: value for key, value in fields.items() if value is not None}
    names = ["token_embd.weight", "output.weight", *(f"blk.{i}.attn_norm.weight" for i in range(50))]
    tensors = {name: StoredTensor(name, 0, (VOCAB, 64), GGMLQuantizationType.F32) for name in names}
    return config_of(GgufHeader((Path("m.gguf"),), {"general.architecture": arch, **fields}, tensors), rope or {})


@pytest.mark.parametrize(
    ("layers", "kv_heads", "context", "window"),
    [
        (32, 32, 4096, 2047),  # Phi-3-mini-4k
        (40, 8, 4096, 2047),  # Phi-3-medium-4k
        (32, 32, 131072, 262144),  # Phi-3-mini-128k
        (40, 8, 131072, 131072),  # Phi-3-medium-128k
        (32, 8, 131072, None),  # Phi-4-mini
        (32, 32, 8192, None),
        (24, 32, 4096, None),
    ],
)
def test_the_window_of_files_without_the_key(layers: int, kv_heads: int, context: int, window: int | None) -> None:
    sizes = {"block_count": layers, "context_length": context, "embedding_length": 512, "rope__dimension_count": None}
    heads = {"attention__head_count": 32, "attention__head_count_kv": kv_heads}
    config, notices = read("phi3", **sizes, **heads)
    assert config.sliding_window == window
    assumed = f"{window} is assumed, as llama.cpp does for Phi-3" if window else "no sliding window"
    assert [assumed in notice for notice in notices] == [True]
    stated, notices = read("phi3", **sizes, **heads, attention__sliding_window=0)
    assert (stated.sliding_window, notices) == (None, [])
    assert read("llama", **sizes, **heads)[0].sliding_window is None


def test_a_window_is_honoured_in_a_llama_too() -> None:
    config, notices = read("llama", attention__sliding_window=48)
    assert config.sliding_window == 48
    assert notices == ["llama.attention.sliding_window = 48 is honoured; llama.cpp does not read it"]
    assert read("llama", attention__sliding_window=4096)[1] == []  # longer than the context: the same


@pytest.mark.parametrize("arch", ["llama", "phi3"])
@pytest.mark.parametrize(
    ("changes", "factors"),
    [
        ({"rope__scaling__factor": 2.0}, TWOS),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 2.0}, TWOS),
        ({"rope__scale_linear": 2.0}, TWOS),
        ({"rope__scale_linear": 3.0, "rope__scaling__factor": 2.0}, TWOS),
        ({"rope__scale_linear": 1.0}, None),
        ({"rope__scaling__factor": 0.0}, None),  # llama.cpp takes it for 1
        ({"rope__scaling__type": "none"}, None),
        ({"rope__scaling__finetuned": True, "rope__scaling__original_context_length": 64}, None),
        ({"rope__scaling__attn_factor": 1.0}, None),
    ],
)
def test_linear_scaling(arch: str, changes: dict[str, Any], factors: tuple[float, ...] | None) -> None:
    """Positions divided by a factor are LongRoPE with that factor everywhere, whose attention factor is 1."""
    config, _ = read(arch, **changes)
    assert config.long_rope == (LongRope(factors, factors, config.max_position) if factors else None)
    assert config_of_hf(config.to_hf()) == config


def test_of_two_scales_the_one_that_llama_cpp_reads_counts_and_the_other_is_named() -> None:
    """llama.cpp asks for `rope.scaling.factor`, and for the older key only where that is missing."""
    notice = "llama.rope.scale_linear = {} is not read: llama.rope.scaling.factor is {}, which counts in llama.cpp"
    for old, factor, factors in ((3.0, 2.0, TWOS), (2.0, 0.0, None)):
        config, notices = read("llama", rope__scale_linear=old, rope__scaling__factor=factor)
        assert config.long_rope == (LongRope(factors, factors, config.max_position) if factors else None)
        assert notices == [notice.format(old, factor or 1.0)]
    assert read("llama", rope__scale_linear=2.0, rope__scaling__factor=2.0)[1] == []


def test_rope_type_none_turns_scaling_off() -> None:
    config, notices = read("llama", rope__scaling__type="none", rope__scaling__factor=2.0)
    assert config.long_rope is None
    assert "llama.rope.scaling.factor = 2.0 is not applied: the rope type is none, as in llama.cpp" in notices


def test_rope_freqs_and_linear_scaling_multiply() -> None:
    freqs = tuple(1.0 + i for i in range(HALF))
    config, _ = read("llama", {"rope_freqs.weight": freqs}, rope__scaling__factor=2.0)
    doubled = tuple(2 * factor for factor in freqs)
    assert config.long_rope == LongRope(doubled, doubled, 128)
    assert read("llama", {"rope_freqs.weight": ONES})[0].long_rope is None


BOTH = {"rope_factors_short.weight": ONES, "rope_factors_long.weight": TWOS}


def test_longrope_without_its_lengths() -> None:
    """llama.cpp's defaults: the original length is the whole one, and the attention factor 1."""
    assert read("phi3", BOTH)[0].long_rope == LongRope(ONES, TWOS, 128)


@pytest.mark.parametrize(
    ("arch", "rope", "changes", "message"),
    [
        (
            "llama",
            {},
            {"rope__scaling__type": "yarn"},
            r"unknown rope type 'yarn' \(llama.rope.scaling.type\), expected none",
        ),
        ("phi3", {}, {"rope__scaling__type": 3}, "unknown rope type 3"),
        ("phi3", {}, {"rope__scaling__attn_factor": 1.19}, "attn_factor is 1.1900, Phi-3 uses 1.0000 here"),
        ("phi3", {}, {"rope__scaling__attn_factor": math.nan}, "attn_factor is nan, expected a positive number"),
        (
            "phi3",
            BOTH,
            {"rope__scaling__original_context_length": 32},
            "attn_factor is missing, which llama.cpp reads as 1.0000, Phi-3 uses 1.1832 here",
        ),
        (
            "phi3",
            BOTH,
            {"rope__scaling__factor": 2.0},
            "phi3.rope.scaling.factor is 2.0, expected none beside rope factors",
        ),
        (
            "phi3",
            {"rope_factors_long.weight": ONES},
            {},
            "'rope_factors_short.weight' is missing, expected 8 rope factors",
        ),
        ("phi3", {}, {"rope__scaling__type": "longrope"}, "'rope_factors_short.weight' is missing"),
        ("llama", BOTH, {}, "'rope_factors_short.weight', which llama with rope type linear does not have"),
        (
            "phi3",
            {"rope_freqs.weight": ONES},
            {},
            "'rope_freqs.weight', which phi3 with rope type linear does not have",
        ),
        (
            "llama",
            {**BOTH, "rope_freqs.weight": ONES},
            {"rope__scaling__type": "longrope"},
            "'rope_freqs.weight', which llama with rope type longrope does not have",
        ),
        ("llama", {"rope_freqs.weight": ONES[1:]}, {}, "'rope_freqs.weight' has 7 values, expected 8"),
        (
            "llama",
            {"rope_freqs.weight": (*ONES[1:], 0.0)},
            {},
            "'rope_freqs.weight' holds a value that is not a positive",
        ),
        ("llama", {}, {"rope__scaling__factor": -2.0}, "llama.rope.scaling.factor is -2.0, expected a positive number"),
        ("llama", {}, {"rope__scale_linear": math.inf}, "llama.rope.scale_linear is inf, expected a positive number"),
        ("llama", {}, {"rope__freq_base": math.nan}, "llama.rope.freq_base is nan, expected a positive number"),
        ("llama", {}, {"rope__freq_base": 1e300}, r"llama.rope.freq_base is 1e\+300, expected a positive number"),
        ("llama", {}, {"rope__freq_base": 1e-300}, "llama.rope.freq_base is 1e-300, expected a positive number"),
        ("llama", {}, {"rope__freq_base": 0.0}, "llama.rope.freq_base is 0.0, expected a positive number"),
        ("llama", {}, {"rope__dimension_count": 8}, "llama.rope.dimension_count is 8, expected the whole head, 16"),
        (
            "phi3",
            {},
            {"rope__dimension_count": 7},
            "phi3.rope.dimension_count is 7, expected an even number, at most 16",
        ),
        (
            "phi3",
            {},
            {"rope__dimension_count": 32},
            "phi3.rope.dimension_count is 32, expected an even number, at most 16",
        ),
        (
            "llama",
            {},
            {"rope__dimension_sections": np.array([1, 2])},
            r"'llama.rope.dimension_sections' is \[1, 2\]: it may",
        ),
    ],
)
def test_refuses_rope(arch: str, rope: dict[str, tuple[float, ...]], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(arch, rope, **changes)


@pytest.mark.parametrize(
    ("key", "neutral", "other"),
    [
        ("attention__causal", True, False),
        ("attention__clamp_kqv", 0.0, 8.0),
        ("attention__max_alibi_bias", 0.0, 8.0),
        ("attention__scale", 0.0, 0.1),
        ("attention__temperature_scale", 0.0, 0.1),
        ("logit_scale", 1.0, 0.5),
        ("residual_scale", 0.0, 0.5),
        ("embedding_scale", 1.0, 12.0),
        ("expert_count", 0, 8),
        ("final_logit_softcapping", 0.0, 30.0),
        ("attn_logit_softcapping", 0.0, math.nan),
        ("use_parallel_residual", False, True),
        ("pooling_type", 0, 1),
        ("rope__scaling__yarn_ext_factor", 0.0, 1.0),
        ("rope__scaling__yarn_log_multiplier", 0.0, 0.1),
    ],
)
def test_a_key_that_changes_the_result(key: str, neutral: object, other: object) -> None:
    plain, notices = read("llama")
    assert read("llama", **{key: neutral}) == (plain, notices)
    with pytest.raises(
        InputError, match=rf"'llama.{key.replace('__', '.')}' is {other}, expected .*: it may change the result"
    ):
        read("llama", **{key: other})


def test_keys_that_nobody_knows() -> None:
    with pytest.raises(
        InputError, match=r"'phi3.attention.new_thing' is 1: it may change the result, and is not supported"
    ):
        read("phi3", attention__new_thing=1)
    others = {"mistral.block_count": 3, "general.name": "x", "quantize.imatrix.file": "y", "maker.note": "z"}
    assert "keys that are not read: mistral.block_count, maker.note" in read("llama", fields=others)[1]
    with pytest.raises(InputError, match=r"general.type is 'adapter', expected a model"):
        read("llama", fields={"general.type": "adapter"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention__layer_norm_rms_epsilon": None},
            "llama.attention.layer_norm_rms_epsilon is missing, expected a number",
        ),
        ({"attention__layer_norm_rms_epsilon": -1e-5}, "layer_norm_rms_epsilon is -1e-05, expected a positive number"),
        ({"attention__layer_norm_rms_epsilon": math.nan}, "layer_norm_rms_epsilon is nan, expected a positive number"),
        ({"attention__layer_norm_rms_epsilon": True}, "layer_norm_rms_epsilon is True, expected a number"),
        ({"context_length": None}, "llama.context_length is missing, expected a whole number"),
        ({"context_length": True}, "llama.context_length is True, expected a whole number"),
        ({"context_length": 1 << 40}, "llama.context_length is 1099511627776, expected a number from 1 to 2147483647"),
        ({"embedding_length": -64}, "llama.embedding_length is -64, expected a number from 1"),
        ({"attention__head_count": 0}, "llama.attention.head_count is 0, expected a number from 1"),
        ({"attention__head_count": 65}, "llama.attention.key_length is 0, expected a number from 1 to 65536"),
        ({"attention__head_count_kv": 3}, "m.gguf: 4 heads cannot share 3 key/value heads evenly"),
        (
            {"attention__head_count_kv": np.array([2, 4])},
            r"head_count_kv is \[2, 4\], expected one number, or the same for all 2",
        ),
        (
            {"attention__head_count_kv": np.array([2])},
            r"head_count_kv is \[2\], expected one number, or the same for all 2",
        ),
        ({"feed_forward_length": np.array([1.5, 1.5])}, "llama.feed_forward_length is 1.5, expected a whole number"),
        ({"attention__key_length": 32}, "llama.attention.key_length is 32 and value_length 16, expected the same"),
        ({"attention__value_length": 8}, "llama.attention.key_length is 16 and value_length 8, expected the same"),
        (
            {"attention__key_length": 1 << 31},
            "llama.attention.key_length is 2147483648, expected a number from 1 to 65536",
        ),
        ({"attention__sliding_window": -1}, "llama.attention.sliding_window is -1, expected a number from 0"),
        (
            {"attention__sliding_window": np.array([1, 0])},
            r"llama.attention.sliding_window is \[1, 0\], expected a whole number",
        ),
        ({"vocab_size": 41}, "llama.vocab_size is 41, but 'token_embd.weight' has 40 rows; convert"),
        ({"vocab_size": 39}, "llama.vocab_size is 39, but 'token_embd.weight' has 40 rows; convert"),
    ],
)
def test_refuses_numbers(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read("llama", **changes)


def test_numbers_given_for_each_layer() -> None:
    alike = {
        key: np.array([FIELDS[key.replace("__", ".")]] * 2)
        for key in ("attention__head_count_kv", "feed_forward_length")
    }
    assert read("llama", **alike, attention__head_count=np.array([HEADS, HEADS])) == read("llama")


def words(count: int) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(count)],
    }


def test_tokens_and_rows() -> None:
    types = {"tokenizer.ggml.token_type": np.ones(VOCAB, np.int32)}
    assert read("llama", fields={**words(VOCAB), **types}, vocab_size=VOCAB)[1] == []
    with pytest.raises(InputError, match=r"41 tokens, but 'token_embd.weight' has 40 rows; convert the model again"):
        read("llama", fields=words(VOCAB + 1))
    _, notices = read("llama", fields=words(30), vocab_size=30)
    assert "10 of the 40 rows of token_embd.weight have no token" in notices


def test_a_file_without_a_tokenizer() -> None:
    for model in ("none", "no_vocab"):
        assert read("llama", fields={"tokenizer.ggml.model": model}, vocab_size=VOCAB) == read("llama")
    with pytest.raises(InputError, match=r"llama.vocab_size is 41, but 'token_embd.weight' has 40 rows"):
        read("llama", fields={"tokenizer.ggml.model": "no_vocab"}, vocab_size=VOCAB + 1)


def test_special_tokens_have_llama_cpps_defaults() -> None:
    level, _ = read("llama", fields=words(VOCAB))
    assert (level.bos, level.eos, level.pad) == (None, (), None)
    piece, _ = read("llama", fields=words(VOCAB) | {"tokenizer.ggml.model": "llama"})
    assert (piece.bos, piece.eos, piece.pad) == (1, (2,), None)
    ids = {"tokenizer.ggml.eos_token_id": 7, "tokenizer.ggml.eot_token_id": 8, "tokenizer.ggml.eom_token_id": 9}
    assert read("llama", fields=words(VOCAB) | ids)[0].eos == (7, 8, 9)


@pytest.mark.parametrize("arch", ["llama", "phi3"])
def test_a_checkpoint_passes_the_notices_on(tmp_path: Path, arch: str) -> None:
    path = write(tmp_path / "m.gguf", arch, random_tensors(arch), fields=words(VOCAB))
    notices = GgufFile(path).notices
    assert [n for n in notices if "token_type is missing" in n]
    assert bool([n for n in notices if "no sliding window" in n]) == (arch == "phi3")
