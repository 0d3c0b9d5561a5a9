"""Llama's and Mistral's folders, compiled as a Phi-3, against the logits of transformers' own `from_pretrained`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_folders import WINDOW, differing, ours, save_model, theirs
from hf_folders import configure

from pocketphi.compiler.source_check import reading_checks
from pocketphi.graph.errors import InputError
from pocketphi.graph.opening import open_checkpoint

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.5}
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2": ("LlamaForCausalLM", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama 2": ("LlamaForCausalLM", {}),
    "llama 3.2": ("LlamaForCausalLM", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "linear": ("LlamaForCausalLM", {"rope_parameters": LINEAR}),
    "a head of its own": ("LlamaForCausalLM", {"head_dim": 32}),
    "mistral": ("MistralForCausalLM", {"sliding_window": WINDOW, "head_dim": 32}),
    "mistral without a window": ("MistralForCausalLM", {"sliding_window": None}),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_same_logits(tmp_path: Path, case: str) -> None:
    architecture, settings = FOLDERS[case]
    source = open_checkpoint(save_model(tmp_path, architecture, **settings))
    assert source.notices == ()
    assert differing(ours(source), theirs(tmp_path, source.config), source.config) == []
    assert [check.name for check in reading_checks(source) if not check.ok] == []


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("llama 3.2", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 96}}),
        ("linear", {"rope_parameters": {**LINEAR, "factor": 2.4}}),
        ("mistral", {"sliding_window": WINDOW + 1}),
        ("smollm2", {"rms_norm_eps": 1e-3}),
    ],
)
def test_every_setting_matters(tmp_path: Path, case: str, change: dict[str, Any]) -> None:
    """What the comparison above would not see if its cases never met the setting."""
    architecture, settings = FOLDERS[case]
    one = save_model(tmp_path / "one", architecture, **settings)
    other = save_model(tmp_path / "other", architecture, **{**settings, **change})
    config = open_checkpoint(one).config
    assert differing(theirs(other, config), theirs(one, config), config) != []


def test_llama_3_in_the_spelling_of_transformers_4(tmp_path: Path) -> None:
    """As published: the scaling in `rope_scaling`, theta beside it; bf16; and several files."""
    architecture, settings = FOLDERS["llama 3.2"]
    folder = save_model(tmp_path, architecture, torch.bfloat16, **settings)
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    new = open_checkpoint(folder).config
    configure(folder, "rope_parameters", "dtype", rope_scaling=scaling, rope_theta=10000.0, torch_dtype="bfloat16")
    source = open_checkpoint(folder)
    assert source.config == new
    assert differing(ours(source), theirs(folder, new), new) == []


def test_a_layer_of_two_types_is_read_as_float32(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model(tmp_path, "LlamaForCausalLM", torch.bfloat16)
    path = folder / "model.safetensors"
    stored = load_file(path)
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file({**stored, name: stored[name].float() + 1e-4}, path, {"format": "pt"})
    source = open_checkpoint(folder)
    packed = "model.layers.1.self_attn.qkv_proj.weight"
    assert source.tensors[packed].dtype == "bf16+fp32"
    assert {source.read(packed, *rows).dtype for rows in ((0, 8), (60, 70), (0, 128))} == {torch.float32}
    assert differing(ours(source), theirs(folder, source.config), source.config) == []


def test_what_is_missing_is_named_as_the_file_names_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = save_model(tmp_path, "LlamaForCausalLM") / "model.safetensors"
    stored = load_file(path)
    gate = "model.layers.2.mlp.gate_proj.weight"
    save_file({name: value for name, value in stored.items() if name != gate}, path)
    with pytest.raises(InputError, match=rf"tensor '{gate}' is missing \(the config asks for \[128, 64\]\)"):
        open_checkpoint(tmp_path)
    save_file({**stored, gate: stored[gate][:64].clone()}, path)
    with pytest.raises(InputError, match=rf"'{gate}' has shape \[64, 64\], the config asks for \[128, 64\]"):
        open_checkpoint(tmp_path)
    save_file({**stored, "model.layers.0.self_attn.q_norm.weight": torch.ones(16)}, path)
    with pytest.raises(
        InputError, match=r"holds the tensor 'model.layers.0.self_attn.q_norm.weight', which has no place"
    ):
        open_checkpoint(tmp_path)


def test_end_tokens_of_a_chat(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "LlamaForCausalLM", eos_token_id=[5, 6])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 9]}))
    source = open_checkpoint(folder)
    assert (source.config.bos, source.config.eos, source.config.pad) == (1, (5, 6, 9), None)
    assert [check.name for check in reading_checks(source) if not check.ok] == []
