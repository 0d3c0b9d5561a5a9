"""config.json key by key: defaults, what is told, and what is refused. tests/graph/test_hf_agreement.py compares the rest."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from tiny_phi3 import TINY, VARIANTS

from pocketphi.graph.config import LongRope
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_config import end_tokens, read_hf_config
from pocketphi.graph.hf_keys import HARMLESS

HF = TINY.to_hf()
LONG = VARIANTS["longrope"].to_hf()


@pytest.mark.parametrize("key", ["model_type", "architectures"])
def test_defaults_are_those_of_transformers(key: str) -> None:
    from transformers import Phi3Config

    read = read_hf_config({key: HF[key]}, "c.json")
    theirs = Phi3Config()
    assert read.notices == ()
    assert read.model.to_hf() == {**read.model.to_hf(), **{k: v for k, v in theirs.to_dict().items() if k in _SIZES}}
    assert read.model.rope_theta == theirs.rope_parameters["rope_theta"]


_SIZES = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads rms_norm_eps
max_position_embeddings sliding_window tie_word_embeddings bos_token_id eos_token_id pad_token_id""".split()  # noqa: SIM905


def test_the_harmless_keys_are_harmless() -> None:
    read = read_hf_config({**HF, **dict.fromkeys(HARMLESS, "x")}, "c.json")
    assert (read.model, read.notices) == (TINY, ())


def test_unknown_keys_are_told_unless_they_are_null() -> None:
    read = read_hf_config({**HF, "b": 1, "a": "x" * 5000, "c": None}, "c.json")
    (told,) = read.notices
    assert re.fullmatch(r"c.json: not used, as transformers' Phi-3 has no such setting: 'a' = 'x{59}…, 'b' = 1", told)
    (told,) = read_hf_config({**HF, **{f"k{i}": i for i in range(9)}}, "c.json").notices
    assert told.endswith("'k3' = 3 and 5 more")


@pytest.mark.parametrize(("factor", "expected"), [(None, None), (4.0, None), (0.5, 1.0), (16.0, (1 + 4 / 6) ** 0.5)])
def test_the_attention_factor_of_a_factor(factor: float | None, expected: float | None) -> None:
    """sqrt(1 + ln 16 / ln 64) for a switch at 64; a factor of 256 / 64 is what follows from the lengths."""
    rope = read_hf_config(
        {**LONG, "rope_scaling": {**LONG["rope_scaling"], "factor": factor}}, "c.json"
    ).model.long_rope
    assert isinstance(rope, LongRope)
    assert rope.attention_factor == pytest.approx(expected)


@pytest.mark.parametrize(
    ("more", "eos", "notices"),
    [
        (None, (2,), []),
        (7, (2, 7), []),
        ([7, 2, 255], (2, 7, 255), []),
        ([7, 256], (2, 7), ["g.json: names token 256, but there are 256 tokens; it is left out"]),
    ],
)
def test_end_tokens(more: Any, eos: tuple[int, ...], notices: list[str]) -> None:
    assert end_tokens({"eos_token_id": more, "temperature": 0.6}, TINY, "g.json") == (eos, notices)


def test_a_begin_beyond_the_vocabulary() -> None:
    read = read_hf_config({**HF, "bos_token_id": 256}, "c.json")
    assert (read.model, len(read.notices)) == (replace(TINY, bos=None), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": 5}, r"architectures: input should be a valid array, got 5"),
        ({"architectures": "Phi3ForCausalLM"}, r"architectures: input should be a valid array, got 'Phi3ForCausalLM'"),
        ({"architectures": [5]}, r"architectures.0: input should be a valid string, got 5"),
        ({"architectures": ["LlamaForCausalLM"]}, r"unknown architecture 'LlamaForCausalLM', expected Phi3ForCausalLM"),
        ({"architectures": ["Phi3ForCausalLM", "X"]}, r"unknown architecture 'X'"),
        ({"model_type": "phi"}, r"unknown architecture 'phi', expected Phi3ForCausalLM \(model_type phi3\)"),
        ({"model_type": None, "architectures": None}, r"neither architectures nor model_type, expected Phi3ForCausalLM"),
        ({"hidden_act": "gelu"}, r"hidden_act is 'gelu', expected 'silu'"),
        ({"hidden_act": None}, r"hidden_act is None, expected 'silu'"),
        ({"attention_bias": True}, r"attention_bias is True, expected False"),
        ({"mlp_bias": 1}, r"mlp_bias is 1, expected False"),
        ({"is_causal": False}, r"is_causal is False, expected True"),
        ({"per_layer_config": {"0": {"sliding_window": 4}}}, r"per_layer_config is \{'0': .*, expected None"),
        ({"configuration_files": ["config.4.0.0.json"]}, r"configuration_files is \['config.4.0.0.json'\], expected None"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantization_config: quant_method is .fp8., expected one of g"),
        ({"quantization_config": {}}, r"quantization_config: quant_method is None, expected one of gptq, awq"),
        ({"quantization": {"bits": 4}}, r"quantization: quant_method is None, expected one of gptq, awq"),
        ({"vocab_size": None}, r"vocab_size: input should be a valid integer, got None"),
        ({"hidden_size": "64"}, r"hidden_size: input should be a valid integer, got '64'"),
        ({"hidden_size": 64.0}, r"hidden_size: input should be a valid integer, got 64.0"),
        ({"intermediate_size": 1.5}, r"intermediate_size: input should be a valid integer, got 1.5"),
        ({"num_hidden_layers": True}, r"num_hidden_layers: input should be a valid integer, got True"),
        ({"num_hidden_layers": 10**4000}, r"num_hidden_layers: .* got a number of 13288 bits"),
        ({"num_hidden_layers": 1_000_000}, r"num_hidden_layers: input should be less than or equal to 16384, got 1000000"),
        ({"max_position_embeddings": 1 << 30}, r"max_position_embeddings: input should be less than or equal to 1048576"),
        ({"num_attention_heads": 0}, r"num_attention_heads: input should be greater than 0, got 0"),
        ({"num_key_value_heads": 0}, r"num_key_value_heads: input should be greater than 0, got 0"),
        ({"sliding_window": 0}, r"sliding_window: input should be greater than 0, got 0"),
        ({"rms_norm_eps": float("nan")}, r"rms_norm_eps: input should be .*, got nan"),
        ({"rms_norm_eps": "x" * 5000}, r"rms_norm_eps: input should be a valid number, got 'xxx"),
        ({"rope_theta": None}, r"rope_theta: input should be a valid number, got None"),
        ({"partial_rotary_factor": float("inf")}, r"partial_rotary_factor: input should be less than or equal to 1, got inf"),
        ({"partial_rotary_factor": 1.5}, r"partial_rotary_factor: input should be less than or equal to 1, got 1.5"),
        ({"partial_rotary_factor": float("nan")}, r"partial_rotary_factor: input should be .*, got nan"),
        ({"tie_word_embeddings": "false"}, r"tie_word_embeddings: input should be a valid boolean, got 'false'"),
        ({"tie_word_embeddings": None}, r"tie_word_embeddings: input should be a valid boolean, got None"),
        ({"bos_token_id": -1}, r"bos_token_id: input should be greater than or equal to 0, got -1"),
        ({"eos_token_id": True}, r"eos_token_id.*: input should be a valid integer, got True"),
        ({"eos_token_id": ["two"]}, r"eos_token_id.*got "),
        ({"pad_token_id": 256}, r"pad_token_id is 256, expected less than vocab_size, or null"),
        ({"layer_types": ["full_attention"] * 3}, r"layer_types is .*, expected 'sliding_attention' for each of 3 layers"),
        ({"layer_types": ["sliding_attention"] * 2}, r"layer_types is .*, expected 'sliding_attention' for each of 3 layers"),
        ({"rope_scaling": 3}, r"rope_scaling: input should be an object, got 3"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_scaling: unknown rope type 'linear', expected 'default'"),
        ({"rope_scaling": {"rope_type": None}}, r"rope_scaling: unknown rope type None"),
        ({"rope_parameters": {"type": 7}}, r"rope_parameters: type: input should be a valid string, got 7"),
        ({"rope_scaling": {"factor": 2.0}}, r"rope_scaling holds factor = 2.0, but its type is 'default'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, r"rope_scaling: short_factor of LongRoPE has 0 values, expected 8"),
        ({"rope_scaling": {"type": "yarn", "beta_fast": 2}}, r"rope_scaling holds 'beta_fast' = 2, which Phi-3's rotary"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, r"rope_parameters holds 'full_attention' = "),
    ],
)  # fmt: skip
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^c.json: {message}"):
        read_hf_config({**HF, **changes}, "c.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"short_factor": [1.0]}, r"short_factor of LongRoPE has 1 values, expected 8"),
        ({"long_factor": None}, r"long_factor of LongRoPE has 0 values, expected 8"),
        ({"long_factor": [0.0] * 8}, r"long_factor.0: input should be greater than 0, got 0.0"),
        ({"long_factor": [float("nan")] * 8}, r"long_factor.0: input should be .*, got nan"),
        ({"short_mscale": 1.2}, r"holds 'short_mscale' = 1.2, which Phi-3's rotary embedding does not have"),
        ({"attention_factor": -1.0}, r"attention_factor: input should be greater than 0, got -1.0"),
        ({"factor": "4"}, r"factor: input should be a valid number, got '4'"),
        ({"rope_type": "default"}, r"holds short_factor = \[.*\], but its type is 'default'"),
    ],
)
def test_refuses_long_rope(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^c.json: rope_scaling:? {message}"):
        read_hf_config({**LONG, "rope_scaling": {**LONG["rope_scaling"], **change}}, "c.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, r"c.json: 4 heads cannot share 3 key/value heads evenly"),
        ({"partial_rotary_factor": 0.7}, r"c.json: rotary dimension 11 must be even and at most 16"),
        ({"partial_rotary_factor": 0.01}, r"c.json: rotary dimension 0 must be even and at most 16, not 0"),
        ({"hidden_size": 3}, r"c.json: head_dim = 0, expected a positive number"),
    ],
)
def test_refuses_sizes_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_hf_config({**HF, **changes}, "c.json")
