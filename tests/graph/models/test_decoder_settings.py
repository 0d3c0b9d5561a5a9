"""What the `config.json` of a Llama or a Mistral may say: transformers' defaults, and what is refused by name."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import transformers

from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_agreement import check_agreement
from pocketphi.graph.hf_config import read_hf_config
from pocketphi.graph.models import MODELS, models
from pocketphi.graph.models.base import Piece, cut
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.published import PUBLISHED

SIZES = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads rms_norm_eps
max_position_embeddings tie_word_embeddings bos_token_id eos_token_id pad_token_id""".split()  # noqa: SIM905


KNOWN = [architecture for architecture in MODELS if hasattr(transformers, architecture)]
"""All but those whose code lies beside their checkpoints; their own tests say what their defaults are."""


@pytest.mark.parametrize("architecture", KNOWN)
def test_defaults_are_those_of_transformers(architecture: str) -> None:
    read = read_hf_config({"architectures": [architecture]}, "c.json")
    theirs = getattr(transformers, architecture).config_class()
    written = read.family.written(read.model)
    expected = {
        **{key: getattr(theirs, key) for key in SIZES},
        "sliding_window": getattr(theirs, "sliding_window", None),
    }
    assert read.notices == ()
    assert {"sliding_window": None, **written} == {**written, **expected}
    assert read.model.rope_theta == theirs.rope_parameters["rope_theta"]
    check_agreement({"architectures": [architecture]}, read.model, "c.json")


def test_every_model_is_where_its_line_says() -> None:
    assert [model.architecture for model in models()] == list(MODELS)
    assert set(MODELS) - set(KNOWN) == {"Phi3SmallForCausalLM"}
    types = {model.architecture: model.model_type for model in models()}
    assert {one: types[one] for one in KNOWN} == {
        one: getattr(transformers, one).config_class.model_type for one in KNOWN
    }


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MistralForCausalLM"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, r"attention_bias is True, expected False: nothing else is known of a (Llama|Mistral)"),
        ({"mlp_bias": True}, r"mlp_bias is True, expected False"),
        ({"hidden_act": "relu2"}, r"hidden_act is 'relu2', expected 'silu'"),
        ({"partial_rotary_factor": 0.5}, r"rope_parameters: partial_rotary_factor is 0.5, expected 1 in a (Llama|Mistral)"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            r"rope_scaling: unknown rope type 'dynamic', expected 'default', 'linear' or 'llama3'",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "beta_fast": 8}}, r"rope_parameters: unknown rope type 'yarn'"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, r"rope_scaling: unknown rope type 'longrope'"),
        ({"rope_scaling": {**LLAMA3, "attention_factor": 1.2}}, r"rope_scaling holds 'attention_factor' = 1.2, which "),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling: factor is missing, which its type needs"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": None}}, r"rope_scaling: high_freq_factor is missing"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1}}, r"rope_scaling: high_freq_factor is 1.0, expected more than "),
        ({"rope_scaling": LLAMA3, "head_dim": 1 << 30}, r"rope_scaling: heads have 1073741824 elements, expected at most"),
        ({"rope_scaling": {"factor": 2.0}}, r"rope_scaling holds factor = 2.0, but its type is 'default'"),
        ({"rope_scaling": LLAMA3, "head_dim": 64}, r"scaled rotary frequencies need heads of .* = 128, but head_dim is 64"),
        ({"layer_types": ["full_attention", "sliding_attention"] * 16}, r"layer_types is .*, expected '\w+' for each of 32"),
        ({"model_type": "phi3"}, r"unknown architecture '\w+ForCausalLM', expected Phi3ForCausalLM \(model_type phi3\)"),
    ],
)  # fmt: skip
def test_refuses(architecture: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^c.json: {message}"):
        read_hf_config({"architectures": [architecture], **changes}, "c.json")


def test_unknown_architectures_are_told_which_there_are() -> None:
    with pytest.raises(
        InputError,
        match=r"'Qwen2ForCausalLM', expected Phi3ForCausalLM, LlamaForCausalLM, MistralForCausalLM, .* or Phimoe",
    ):
        read_hf_config({"architectures": ["Qwen2ForCausalLM"]}, "c.json")


LLAMA = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 131072, "head_dim": 128}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rms_norm_eps": 0.5}, "rms_norm_eps is 0.5 to transformers, which changes the model; expected 1e-06"),
        ({"head_dim": 64}, "head_dim is 64 to transformers, which changes the model; expected 128"),
        ({"attention_bias": True}, "attention_bias is True to transformers, which changes the model; expected False"),
        ({"rope_theta": 9.0}, "the frequencies of the rotary embedding differ"),
        ({"rope_scaling": LLAMA3}, "the frequencies of the rotary embedding differ"),
        ({"rope_scaling": {"type": "linear", "factor": 1.000001}}, "the frequencies of the rotary embedding differ"),
        ({"num_attention_heads": 30}, "transformers cannot make a Llama of it"),
    ],
)
def test_a_setting_that_was_read_otherwise_is_seen(changes: dict[str, Any], message: str) -> None:
    config = read_hf_config(LLAMA, "c.json").model
    check_agreement(LLAMA, config, "c.json")
    with pytest.raises(InputError, match=f"^c.json: .*{re.escape(message)}"):
        check_agreement({**LLAMA, **changes}, config, "c.json")


def test_a_tensor_that_is_not_taken_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's file that forgets a tensor of transformers' class, or makes one up."""
    from pocketphi.graph.models import llama

    config = read_hf_config(LLAMA, "c.json").model
    wrong = lambda config: {"mlp.gate_up_proj.weight": [Piece("mlp.gate_proj.weight", 2 * config.intermediate_size)]}  # noqa: E731
    monkeypatch.setattr(llama, "MODEL", type(llama.MODEL)(**{**vars(llama.MODEL), "layer": wrong}))
    with pytest.raises(
        InputError, match=r"'model.layers.0.mlp.gate_proj.weight' is \[11008, 4096\] in transformers' model, and \[220"
    ):
        check_agreement(LLAMA, config, "c.json")


@pytest.mark.parametrize(("start", "stop"), [(0, 24), (3, 3), (2, 9), (7, 15), (10, 24), (23, 24)])
def test_cut(start: int, stop: int) -> None:
    """Against all rows at once: halves of heads from pairs, by numpy's own transposition."""
    pieces = [Piece("a", 8, head_dim=4), Piece("b", 10, first=5), Piece("c", 6, first=2, head_dim=6)]
    pairs = {
        4: np.arange(8).reshape(2, 2, 2).swapaxes(1, 2).ravel(),
        6: 2 + np.arange(6).reshape(1, 3, 2).swapaxes(1, 2).ravel(),
    }
    whole = [*(("a", int(i)) for i in pairs[4]), *(("b", i) for i in range(5, 15)), *(("c", int(i)) for i in pairs[6])]
    found = [(piece.name, int(row)) for piece, *rows in cut(pieces, start, stop) for row in piece.stored_rows(*rows)]
    assert found == whole[start:stop]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smollm2-135m", 134_515_008),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("mistral-7b", 7_241_732_096),
    ],
)
def test_published_shapes_have_their_published_size(name: str, parameters: int) -> None:
    assert PUBLISHED[name].parameters == parameters


def test_the_sample_has_its_published_shape() -> None:
    """Read from a GGUF file on one side, from the keys of config.json on the other."""
    config = open_checkpoint("sample").config
    assert 2 in config.eos
    assert replace(config, eos=(2,)) == PUBLISHED["smollm2-135m"]
