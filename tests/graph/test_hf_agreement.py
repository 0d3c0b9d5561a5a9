"""A folder's logits against those of transformers' `from_pretrained`, for every kind of folder; and what may not differ."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import DTYPES, EMBEDDING, HEAD, NORM, Tensors, configure, our_logits, save, tensors, transformers_logits
from tiny_phi3 import SWITCH, VARIANTS, inputs, rounding

from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_agreement import check_agreement
from pocketphi.graph.opening import open_checkpoint

LONG = VARIANTS["longrope"].to_hf()["rope_scaling"]
FACTORS = {"short_factor": LONG["short_factor"], "long_factor": LONG["long_factor"]}
TOKENS = inputs(VARIANTS["tiny"], SWITCH + 20)["input_ids"]


def same(folder: Path, reference: Path | None = None) -> tuple[str, ...]:
    """Compare the logits beyond window and switch. Returns the notices. reference: a folder that transformers can load."""
    want = transformers_logits(reference or folder, TOKENS)
    got, source = our_logits(folder, TOKENS)
    assert float((want - got).abs().max()) <= rounding(source.config, float(want.abs().max()), TOKENS.shape[1])
    return tuple(notice.removeprefix(f"{folder}").lstrip("/") for notice in source.notices)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_variant_and_dtype(tmp_path: Path, variant: str, dtype: str) -> None:
    assert same(save(tmp_path, tensors(variant, DTYPES[dtype]), variant, shards=1 + (dtype == "fp16"))) == ()


SETTINGS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "theta in rope_parameters": (
        "tiny",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        ("rope_theta",),
    ),
    "theta at both places": ("tiny", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, ()),
    "theta in rope_scaling": ("longrope", {"rope_scaling": {**LONG, "rope_theta": 700.0}}, ()),
    "a whole number as theta": ("tiny", {"rope_theta": 500}, ()),
    "partial at the top": ("tiny", {"partial_rotary_factor": 0.5}, ()),
    "partial inside": ("tiny", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ()),
    "longrope by rope_type": ("longrope", {"rope_scaling": {"rope_type": "longrope", **FACTORS}}, ()),
    "longrope in rope_parameters": ("longrope", {"rope_scaling": None, "rope_parameters": LONG}, ()),
    "yarn with factors": ("longrope", {"rope_scaling": {"type": "yarn", **FACTORS}}, ()),
    "factor": ("longrope", {"rope_scaling": {**LONG, "factor": 16.0}}, ()),
    "factor below one": ("longrope", {"rope_scaling": {**LONG, "factor": 0.5}}, ()),
    "attention_factor": ("longrope", {"rope_scaling": {**LONG, "attention_factor": 1.5}}, ()),
    "switch by default": ("longrope", {}, ("original_max_position_embeddings",)),
    "switch beyond the context": ("longrope", {"max_position_embeddings": SWITCH // 2}, ()),
    "no rope at all": ("tiny", {"rope_scaling": None}, ("rope_theta", "partial_rotary_factor", "rope_scaling")),
    "no context": ("tiny", {}, ("max_position_embeddings",)),
    "no heads for keys": ("full", {"num_key_value_heads": None}, ()),
    "window": ("full", {"sliding_window": 9}, ()),
    "window and layer types": ("tiny", {"layer_types": ["sliding_attention"] * 3}, ()),
    "swish": ("tiny", {"hidden_act": "swish"}, ()),
    "epsilon": ("tiny", {"rms_norm_eps": 0.25}, ()),
    "base model": ("tiny", {"architectures": ["Phi3Model"]}, ()),
    "no architectures": ("tiny", {}, ("architectures",)),
    "published extras": (
        "tied",
        {"lm_head_bias": False, "full_attn_mod": 1, "interpolate_factor": 1, "auto_map": {}},
        (),
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(tmp_path: Path, case: str) -> None:
    variant, changes, left_out = SETTINGS[case]
    assert same(configure(save(tmp_path, tensors(variant), variant), *left_out, **changes)) == ()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_spelling_of_transformers_5(tmp_path: Path, variant: str) -> None:
    from transformers import Phi3Config

    folder = save(tmp_path, tensors(variant), variant)
    Phi3Config(**VARIANTS[variant].to_hf()).save_pretrained(folder)
    assert "rope_parameters" in json.loads((folder / "config.json").read_text())
    assert same(folder) == ()


@pytest.mark.parametrize(
    ("variant", "changes", "notice"),
    [
        (
            "longrope",
            {"rope_scaling": {**LONG, "original_max_position_embeddings": 16}},
            r"rope_scaling: original_max_position_embeddings is 16; transformers' Phi-3 uses 64, from beside rope_scaling",
        ),
        (
            "longrope",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
            r"rope_scaling and rope_parameters differ; the first is used, as in transformers",
        ),
        (
            "tiny",
            {"use_sliding_window": False, "final_logit_softcapping": 30.0},
            r"not used, as transformers' Phi-3 has no such setting: 'final_logit_softcapping' = 30.0, 'use_sliding_window' = F",
        ),
        ("tiny", {"eos_token_id": [2, 300]}, r"names token 300, but there are 256 tokens; it is left out"),
    ],
)
def test_settings_with_a_notice(tmp_path: Path, variant: str, changes: dict[str, Any], notice: str) -> None:
    (told,) = same(configure(save(tmp_path, tensors(variant), variant), **changes))
    assert told.startswith(f"config.json: {notice}")


@pytest.mark.parametrize(
    ("variant", "changes", "readable"),
    [
        ("longrope", {"rope_scaling": {**LONG, "type": "su"}}, {"rope_scaling": LONG}),
        ("tiny", {"head_dim": None}, {"head_dim": 16}),
    ],
)
def test_spellings_that_transformers_5_23_stumbles_over(
    tmp_path: Path, variant: str, changes: dict[str, Any], readable: dict[str, Any]
) -> None:
    folder = configure(save(tmp_path, tensors(variant), variant), **changes)
    with pytest.raises((KeyError, TypeError)):
        transformers_logits(folder, TOKENS)
    (tmp_path / "readable").mkdir()
    assert same(folder, configure(save(tmp_path / "readable", tensors(variant), variant), **readable)) == ()


def without(values: Tensors, name: str) -> Tensors:
    return {n: v for n, v in values.items() if n != name}


OTHER_HEAD = {HEAD: tensors()[HEAD]}
FILES: dict[str, tuple[str, Callable[[], Tensors], int]] = {
    "shards": ("tiny", tensors, 3),
    "names of the base model": ("tiny", lambda: {n.removeprefix("model."): v for n, v in tensors().items()}, 2),
    "names of a wrapped model": ("tiny", lambda: {f"model.{n}": v for n, v in tensors().items()}, 1),
    "a tied head that is stored too": ("tied", lambda: {**(t := tensors("tied")), HEAD: t[EMBEDDING].clone()}, 2),
    "a tied head of another dtype": ("tied", lambda: {**(t := tensors("tied")), HEAD: t[EMBEDDING].float()}, 1),
    "a tied head and no embedding": ("tied", lambda: without({**tensors("tied"), **OTHER_HEAD}, EMBEDDING), 1),
    "old frequencies": (
        "tiny",
        lambda: {**tensors(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)},
        1,
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files(tmp_path: Path, case: str) -> None:
    variant, values, shards = FILES[case]
    assert same(save(tmp_path, values(), variant, shards)) == ()


def test_a_tied_head_that_differs(tmp_path: Path) -> None:
    """One value in the last row decides."""
    head = tensors("tied")[EMBEDDING].clone()
    head[-1, -1] += 1
    (told,) = same(save(tmp_path, {**tensors("tied"), HEAD: head}, "tied"))
    assert (
        told
        == "config.json: tie_word_embeddings is true, but lm_head.weight is another matrix than the embedding; both are used"
    )
    opened = open_checkpoint(tmp_path)
    assert not opened.config.tied_embeddings
    assert torch.equal(opened.read(HEAD, 0, 256), head)


@pytest.mark.parametrize("old", ["whole", "index", "shards"])
def test_a_newer_file_beside_old_shards(tmp_path: Path, old: str) -> None:
    """What a merge leaves behind: transformers takes model.safetensors first."""
    save(tmp_path, tensors(seed=1), shards=2)
    save(tmp_path, tensors(seed=2))
    if old == "shards":
        (tmp_path / "model.safetensors.index.json").unlink()
    for path in tmp_path.glob("model-*") if old == "index" else ():
        path.unlink()
    (told,) = same(tmp_path)
    assert re.match(r": read model.safetensors, as transformers does; not read: model(-0000|.safetensors.index)", told)
    assert torch.equal(open_checkpoint(tmp_path).read(NORM, 0, 64), tensors(seed=2)[NORM])


def test_a_file_that_the_config_names(tmp_path: Path) -> None:
    save(tmp_path, tensors(seed=1))
    (tmp_path / "model.safetensors").rename(tmp_path / "mine.safetensors")
    configure(save(tmp_path, tensors(seed=2)), transformers_weights="mine.safetensors")
    config = (tmp_path / "config.json").read_text()
    assert same(tmp_path) == (": read mine.safetensors, as config.json says; not read: model.safetensors",)
    (tmp_path / "config.json").write_text(config)
    assert torch.equal(open_checkpoint(tmp_path).read(NORM, 0, 64), tensors(seed=1)[NORM])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rms_norm_eps": 1}, r"transformers cannot make a Phi-3 of it \(.*expected float, got int"),
        (
            {"text_config": {"vocab_size": 3}},
            r"transformers cannot make a Phi-3 of it|text_config is \{'vocab_size': 3\}",
        ),
        ({"to_dict": 5}, r"transformers cannot make a Phi-3 of it|to_dict is 5 to transformers"),
        ({"is_causal": False}, r"is_causal is False to transformers, which changes the model; expected None"),
        ({"sliding_window": 11}, r"sliding_window is 11 to transformers, which changes the model; expected 48"),
        ({"rms_norm_eps": 0.5}, r"rms_norm_eps is 0.5 to transformers, which changes the model; expected 1e-05"),
        ({"rope_theta": 9.0}, r"the frequencies of the rotary embedding differ"),
        ({"rope_scaling": {**LONG, "attention_factor": 2.0}}, r"the scale of the rotary embedding differ"),
        ({"original_max_position_embeddings": 65}, r"the (scale|switch) of the rotary embedding differ"),
    ],
)
def test_a_setting_that_was_read_otherwise_is_seen(changes: dict[str, Any], message: str) -> None:
    """Settings that the reader honours or refuses, as if it had not."""
    variant = "longrope" if {"rope_scaling", "original_max_position_embeddings"} & set(changes) else "tiny"
    config = VARIANTS[variant]
    check_agreement(config.to_hf(), config, "c.json")
    with pytest.raises(InputError, match=f"^c.json: .*{message}"):
        check_agreement({**config.to_hf(), **changes}, config, "c.json")
