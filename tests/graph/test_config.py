"""ModelConfig: to Hugging Face's config.json and back, and what it says of a model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tiny_phi3 import TINY, VARIANTS

from pocketphi.graph.config import LongRope, ModelConfig, layer_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_config import config_of_hf
from pocketphi.graph.random_weights import PUBLISHED

HF = TINY.to_hf()


@pytest.mark.parametrize("config", [*PUBLISHED.values(), *VARIANTS.values()], ids=[*PUBLISHED, *VARIANTS])
def test_round_trip(config: ModelConfig) -> None:
    assert config_of_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_an_attention_factor_round_trips() -> None:
    long_rope = LongRope((1.0,) * 8, (2.0,) * 8, 64, attention_factor=1.25)
    config = replace(VARIANTS["longrope"], long_rope=long_rope)
    assert config.to_hf()["rope_scaling"]["attention_factor"] == 1.25
    assert config_of_hf(config.to_hf()) == config


@pytest.mark.parametrize("eos", [(), (2,), (2, 5)])
def test_end_tokens_round_trip(eos: tuple[int, ...]) -> None:
    config = replace(TINY, eos=eos, bos=None, pad=None)
    assert config_of_hf(config.to_hf()) == config


def test_every_partial_rotary_dimension_round_trips() -> None:
    """The file holds a fraction, which is rounded: the even number of dimensions must come back."""
    pairs = [(dim, rotary) for dim in range(2, 258) for rotary in range(2, dim + 1, 2)]
    configs = [replace(TINY, head_dim=dim, rotary_dim=rotary) for dim, rotary in pairs]
    assert [c.rotary_dim for c in configs if config_of_hf(c.to_hf()) != c] == []


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_transformers_reads_and_writes_the_same(config: ModelConfig) -> None:
    from transformers import Phi3Config

    hugging = Phi3Config(**config.to_hf())
    assert (hugging.num_key_value_heads, hugging.sliding_window) == (config.kv_heads, config.sliding_window)
    assert config_of_hf(json.loads(hugging.to_json_string())) == config


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


def test_refuses_a_size_of_nothing() -> None:
    with pytest.raises(InputError, match=r"config: layers = 0, expected a positive number"):
        replace(TINY, layers=0)
