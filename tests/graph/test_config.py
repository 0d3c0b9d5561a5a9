"""ModelConfig: from and to Hugging Face's config.json, and what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from tiny_phi3 import TINY, VARIANTS

from pocketphi.graph.config import ModelConfig, layer_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.random_weights import PUBLISHED

HF = TINY.to_hf()
LONG = VARIANTS["longrope"].to_hf()


@pytest.mark.parametrize("config", [*PUBLISHED.values(), *VARIANTS.values()], ids=[*PUBLISHED, *VARIANTS])
def test_round_trip(config: ModelConfig) -> None:
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize("eos", [(), (2,), (2, 5)])
def test_end_tokens_round_trip(eos: tuple[int, ...]) -> None:
    config = replace(TINY, eos=eos, bos=None, pad=None)
    assert ModelConfig.from_hf(config.to_hf()) == config


def test_every_partial_rotary_dimension_round_trips() -> None:
    """The file holds a fraction, which is rounded: the even number of dimensions must come back."""
    pairs = [(dim, rotary) for dim in range(2, 258) for rotary in range(2, dim + 1, 2)]
    configs = [replace(TINY, head_dim=dim, rotary_dim=rotary) for dim, rotary in pairs]
    assert [c.rotary_dim for c in configs if ModelConfig.from_hf(c.to_hf()) != c] == []


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_transformers_reads_and_writes_the_same(config: ModelConfig) -> None:
    from transformers import Phi3Config

    hugging = Phi3Config(**config.to_hf())
    assert (hugging.num_key_value_heads, hugging.sliding_window) == (config.kv_heads, config.sliding_window)
    assert ModelConfig.from_hf(json.loads(hugging.to_json_string())) == config


def test_what_older_files_leave_out() -> None:
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    short = {key: HF[key] for key in (*keys, "max_position_embeddings")}
    made = ModelConfig.from_hf(short)
    assert (made.kv_heads, made.head_dim, made.rotary_dim) == (4, 16, 16)
    assert (made.rope_theta, made.rms_norm_eps, made.long_rope, made.sliding_window) == (10000.0, 1e-5, None, None)
    assert (made.tied_embeddings, made.bos, made.eos, made.pad) == (False, None, (), None)
    assert ModelConfig.from_hf({**LONG, "rope_scaling": {**LONG["rope_scaling"], "type": "su"}}) == VARIANTS["longrope"]


def test_counts() -> None:
    config = PUBLISHED["phi-3-mini-4k"]
    assert config.parameters == 3_821_079_552  # as the model card says
    assert config.qkv_size == 9216
    assert config.kv_cache_bytes(1) == 2 * 32 * 32 * 96 * 4
    assert config.kv_cache_bytes(10, 2) == 2 * 32 * 32 * 96 * 10 * 2
    assert config.kv_cache_bytes(10, 1, 4) == 2 * 32 * 32 * (96 + 4) * 10
    assert len(TINY.tensors()) == 3 + 6 * 3
    assert len(VARIANTS["tied"].tensors()) == 2 + 6 * 3


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.13.mlp.down_proj.weight", 13),
        ("past_key_values.2.key", 2),
        ("present.0.value", 0),
        ("lm_head", None),
    ],
)
def test_layer_of(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["LlamaForCausalLM"]},
            r"c.json: unknown architecture 'LlamaForCausalLM', expected Phi3ForCausalLM",
        ),
        ({"model_type": "phi"}, r"c.json: unknown architecture 'phi', expected Phi3ForCausalLM \(model_type phi3\)"),
        ({"hidden_act": "gelu"}, r"c.json: hidden_act 'gelu', expected 'silu'"),
        ({"vocab_size": None}, r"c.json: vocab_size is None, expected a positive whole number"),
        ({"hidden_size": "64"}, r"c.json: hidden_size is '64', expected a positive whole number"),
        ({"intermediate_size": 1.5}, r"c.json: intermediate_size is 1.5, expected a positive whole number"),
        ({"num_attention_heads": 0}, r"c.json: num_attention_heads is 0, expected a positive whole number"),
        ({"num_hidden_layers": 0}, r"c.json: num_hidden_layers is 0, expected a positive whole number"),
        ({"num_key_value_heads": 3}, r"config: 4 heads cannot share 3 key/value heads evenly"),
        ({"partial_rotary_factor": 0.7}, r"config: rotary dimension 11 must be even and at most 16"),
        ({"partial_rotary_factor": 1.5}, r"config: rotary dimension 24 must be even and at most 16"),
        ({"rope_scaling": {"type": "yarn"}}, r"c.json: unknown rope type 'yarn', expected 'default' or 'longrope'"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelConfig.from_hf({**HF, **changes}, "c.json")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num_key_value_heads", "2", "a positive whole number"),
        ("head_dim", "16", "a positive whole number"),
        ("max_position_embeddings", 0, "a positive whole number"),
        ("sliding_window", "48", "a positive whole number"),
        ("sliding_window", 0, "a positive whole number"),
        ("rms_norm_eps", "small", "a positive number"),
        ("rope_theta", [], "a positive number"),
        ("partial_rotary_factor", float("inf"), "a positive number"),
        ("bos_token_id", -1, "a whole number"),
        ("pad_token_id", "none", "a whole number"),
        ("eos_token_id", ["two"], "token numbers"),
        ("rope_scaling", 3, "an object"),
    ],
)
def test_refuses_odd_values(key: str, value: Any, expected: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"c.json: {key} is {value!r}, expected {expected}")):
        ModelConfig.from_hf({**HF, key: value}, "c.json")


def test_refuses_a_size_of_nothing() -> None:
    with pytest.raises(InputError, match=r"config: layers = 0, expected a positive number"):
        replace(TINY, layers=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"original_max_position_embeddings": None},
            r"c.json: longrope needs original_max_position_embeddings, got None",
        ),
        (
            {"rope_scaling": {**LONG["rope_scaling"], "short_factor": [1.0]}},
            r"c.json: rope short_factor has 1 values, expected 8",
        ),
        (
            {"rope_scaling": {**LONG["rope_scaling"], "long_factor": None}},
            r"c.json: rope long_factor has None values, expected 8",
        ),
    ],
)
def test_refuses_long_rope(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelConfig.from_hf({**LONG, **changes}, "c.json")


@pytest.mark.parametrize("key", ["attention_factor", "short_mscale", "long_mscale"])
def test_refuses_rope_settings_that_it_would_ignore(key: str) -> None:
    rope = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, key: 1.2}
    with pytest.raises(InputError, match=rf"rope {key} = 1\.2 is not supported"):
        ModelConfig.from_hf(TINY.to_hf() | {"rope_scaling": rope, "original_max_position_embeddings": 64})
