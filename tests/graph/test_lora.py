"""Adapters that PEFT made: our merged model gives PEFT's logits, or one line says why there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_folders import save_model
from peft_adapters import TOKENS, load, peft_logits, save_adapter, save_bases, traced
from safetensors.torch import load_file, save_file
from tiny_phi3 import inputs

from pocketphi.compiler.source_check import adapters_check
from pocketphi.graph.errors import InputError
from pocketphi.graph.lazy_weights import FloatWeight
from pocketphi.graph.lora.named import CONFIG, WEIGHTS, Lora, parse_lora
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.program import Weights

CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    (
        "llama",
        {
            "target_modules": "all-linear",
            "use_rslora": True,
            "rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\.up_proj": 2},
            "alpha_pattern": {"down_proj": 3},
        },
    ),
    ("llama", {"target_modules": "all-linear", "use_dora": True}),
    ("llama", {"target_modules": ["embed_tokens", "lm_head", "k_proj"], "use_dora": True}),
    ("llama", {"target_modules": ["gate_proj"], "modules_to_save": ["lm_head", "embed_tokens", "input_layernorm"]}),
    ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 77, 255]}),
    ("phi3", {"target_modules": "all-linear", "use_dora": True}),
    ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "layers_to_transform": [0, 2], "fan_in_fan_out": True}),
    ("phi3", {"target_modules": r".*\.(o_proj|down_proj)", "exclude_modules": r".*\.1\..*", "bias": "all"}),
    ("tied", {"target_modules": ["embed_tokens"]}),
    ("tied", {"target_modules": ["lm_head"], "use_dora": True}),
    ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ("tied", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 77, 255]}),
    ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_bases(tmp_path_factory.mktemp("bases"))


def logits(base: Path, *adapters: tuple[Path, float]) -> torch.Tensor:
    source = open_checkpoint(base, [Lora(*adapter) for adapter in adapters])
    program = traced(source.config)
    weights = {n: FloatWeight(source, n) if isinstance(w, FloatWeight) else w for n, w in program.weights.items()}
    feeds = {**inputs(source.config, TOKENS.shape[1], 0, 2), "input_ids": TOKENS}
    assert adapters_check(source, open_checkpoint(base)).ok
    return program.run(feeds, Weights(weights, keep=False))["logits"]


def rounding(base: Path) -> float:
    """By how much float32 may move a logit, as a part of the largest: ε for each of the sums of a layer, √ of as many."""
    config = open_checkpoint(base).config
    widest = max(config.hidden_size, config.intermediate_size)
    return float(2.0**-23 * widest * config.layers)


@pytest.mark.parametrize(("base", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_logits_are_pefts(bases: dict[str, Path], tmp_path: Path, base: str, settings: dict[str, Any]) -> None:
    """Of the model with the adapter beside its weights, and of the merged one where PEFT's merge is the same function: it
    changes both places of a tied embedding."""
    adapter = save_adapter(bases[base], tmp_path / "adapter", **settings)
    came = logits(bases[base], (adapter, 1.0))
    tied_apart = base == "tied" and {"embed_tokens", "lm_head"} & set(settings["target_modules"])
    for merge in (False,) if tied_apart else (False, True):
        expected = peft_logits(bases[base], (adapter, 1.0), merge=merge)
        assert float((came - expected).abs().max()) <= rounding(bases[base]) * float(expected.abs().max())
    with torch.no_grad():
        plain = load(bases[base])(TOKENS).logits
    assert float((plain - expected).abs().max()) > 1  # the adapter matters


def test_several_in_order_with_weights(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["llama"]
    made: list[tuple[Path, float]] = [
        (save_adapter(base, tmp_path / "a", seed=1, target_modules=["q_proj", "up_proj"], use_dora=True), 0.5),
        (save_adapter(base, tmp_path / "b", seed=2, target_modules=["q_proj", "down_proj"]), -2.0),
        (save_adapter(base, tmp_path / "c", seed=3, target_modules=["q_proj", "v_proj"], use_dora=True), 1.0),
    ]
    expected = peft_logits(base, *made)
    bound = rounding(base) * float(expected.abs().max())
    assert float((logits(base, *made) - expected).abs().max()) <= bound
    assert float((logits(base, *reversed(made)) - expected).abs().max()) > 100 * bound


def test_an_adapter_for_split_projections_fits_a_packed_base(bases: dict[str, Path], tmp_path: Path) -> None:
    """The same matrices, saved by transformers as a Llama and as a Phi-3."""
    from pocketphi.graph.write_checkpoint import write_checkpoint

    adapter = save_adapter(bases["llama"], tmp_path / "adapter", target_modules=["q_proj", "v_proj", "up_proj"])
    (tmp_path / "packed").mkdir()
    write_checkpoint(open_checkpoint(bases["llama"]), tmp_path / "packed", "fp32")
    split, packed = (open_checkpoint(base, [Lora(adapter)]) for base in (bases["llama"], tmp_path / "packed"))
    for name, info in split.tensors.items():
        assert torch.equal(split.read(name, 0, info.rows), packed.read(name, 0, info.rows))


def test_a_row_is_the_same_whatever_is_read_with_it(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = save_adapter(bases["llama"], tmp_path / "a", target_modules="all-linear", use_dora=True)
    source = open_checkpoint(bases["llama"], [Lora(adapter)])
    for name in ("model.layers.1.self_attn.qkv_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        whole = source.read(name, 0, source.tensors[name].rows)
        assert source.tensors[name].dtype == "fp32"
        for start, stop in ((0, 1), (5, 37), (16, 32), (63, 64), (3, 3)):
            assert torch.equal(source.read(name, start, stop), whole[start:stop])
    assert source.read("model.norm.weight", 0, 64).equal(
        open_checkpoint(bases["llama"]).read("model.norm.weight", 0, 64)
    )


def test_half_precision_of_base_and_adapter(tmp_path: Path) -> None:
    """Sums are rounded once: the merged weights are not in bf16, though all that they are made of is."""
    base = save_model(tmp_path / "base", "LlamaForCausalLM", torch.bfloat16, vocab_size=256, pad_token_id=0)
    adapter = save_adapter(base, tmp_path / "a", torch.bfloat16, target_modules=["o_proj"])
    name = "model.layers.0.self_attn.o_proj.weight"
    came = open_checkpoint(base, [Lora(adapter)]).read(name, 0, 64)
    held = load_file(adapter / WEIGHTS)
    a, b = (held[f"base_model.model.model.layers.0.self_attn.o_proj.lora_{x}.weight"] for x in "AB")
    assert a.dtype == torch.bfloat16
    expected = (load_file(base / "model.safetensors")[name].double() + 1.5 * (b.double() @ a.double())).float()
    assert float((came - expected).abs().max()) <= 2.0**-24
    assert not torch.equal(came, came.bfloat16().float())


@pytest.fixture(scope="module")
def good(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save_adapter(bases["llama"], tmp_path_factory.mktemp("good"), target_modules=["q_proj"])
    open_checkpoint(bases["llama"], [Lora(made)])
    return made


Spoil = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]
Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def setting(**changes: Any) -> Spoil:
    return lambda config, tensors: config.update(changes)


def tensor(name: str, value: torch.Tensor | None) -> Spoil:
    return lambda config, tensors: tensors.update({name: value}) if value is not None else void(tensors.pop(name))


def void(_: object) -> None:
    return None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (setting(peft_type="IA3"), "peft_type is 'IA3', expected 'LORA'; merge it with PEFT, and compile the result"),
        (setting(use_qalora=True), "use_qalora is True: it adds up groups of inputs"),
        (setting(alora_invocation_tokens=[1]), "alora_invocation_tokens is [1]: it works from a certain token on"),
        (setting(lora_bias=True), "lora_bias is True: it adds a bias to layers that have none"),
        (
            setting(init_lora_weights="pissa"),
            "init_lora_weights is 'pissa': it is for a base whose weights were changed",
        ),
        (setting(new_thing=2), "unknown key 'new_thing' = 2: what it does is not known"),
        (setting(task_type="SEQ_CLS"), "task_type is 'SEQ_CLS', expected 'CAUSAL_LM'"),
        (setting(r="4"), "r: input should be a valid integer, got '4'"),
        (setting(r=8), "has shape [4, 64], expected [8, 64]: the adapter is for another model than"),
        (setting(lora_alpha=float("nan")), "lora_alpha: input should be a finite number"),
        (setting(use_dora=True), "holds no magnitude of model.layers.0.self_attn.q_proj, but use_dora is True"),
        (
            setting(target_modules=["q_proj", "v_proj"]),
            "lacks the changes of model.layers.0.self_attn.v_proj and 2 more, wh",
        ),
        (
            setting(target_modules=["v_proj"]),
            "holds changes of model.layers.0.self_attn.q_proj and 2 more, which target_mod",
        ),
        (
            setting(modules_to_save=["lm_head"]),
            "lacks the changes of lm_head, which modules_to_save in adapter_config.json",
        ),
        (
            setting(layers_to_transform=[0]),
            "holds changes of model.layers.1.self_attn.q_proj and 1 more, which target_mod",
        ),
        (setting(target_modules="(a"), "'(a' is no regular expression"),
        (setting(target_modules="(.*.*)*x"), "the pattern '(.*.*)*x' repeats too much"),
        (tensor(Q_A, torch.full((4, 64), float("nan"))), "holds a value that is not finite (NaN or infinity)"),
        (tensor(Q_A, torch.ones(4, 65)), "has shape [4, 65], expected [4, 64]: the adapter is for another model"),
        (tensor(Q_A, torch.ones(4, 64, dtype=torch.float64)), "has dtype F64, expected one of BF16, F16, F32"),
        (tensor(Q_A, None), "of model.layers.0.self_attn.q_proj it holds only one of lora_A and lora_B"),
        (tensor("x.lora_B.weight", torch.ones(2, 2)), "holds 'x.lora_B.weight', which is of no module of"),
        (tensor("model.norm.bias", torch.ones(64)), "holds 'model.norm.bias', a bias, which no model here has"),
        (tensor("prompt_embeddings", torch.ones(2, 2)), "'prompt_embeddings', which is of no adapter that is known"),
        (
            tensor(Q_A.replace("layers.0", "layers.7"), torch.ones(4, 64)),
            "layers.7.self_attn.q_proj.lora_A.weight', which is of no module of",
        ),
        (
            tensor(Q_A.replace("q_proj", "qkv_proj"), torch.ones(4, 64)),
            "which are the same weights; it cannot be for one model",
        ),
        (
            tensor("base_model.model.lm_head.weight", torch.ones(256, 64)),
            "holds changes of lm_head, which modules_to_save",
        ),
    ],
)
def test_what_cannot_be_added(bases: dict[str, Path], good: Path, tmp_path: Path, spoil: Spoil, message: str) -> None:
    config, tensors = json.loads((good / CONFIG).read_text()), load_file(good / WEIGHTS)
    adapter = tmp_path / "a"
    adapter.mkdir()
    spoil(config, tensors)
    (adapter / CONFIG).write_text(json.dumps(config))
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        open_checkpoint(bases["llama"], [Lora(adapter)])
    assert "\n" not in str(caught.value)


def test_what_is_no_adapter(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = save_adapter(bases["llama"], tmp_path / "all" / "fr", target_modules=["q_proj"])
    for folder, message in (
        (tmp_path / "none", "no such folder; expected one that holds adapter_config.json"),
        (bases["llama"], "holds no adapter_config.json: it is a model, not an adapter"),
        (tmp_path / "all", "holds no adapter_config.json; its folder 'fr' holds one"),
    ):
        with pytest.raises(InputError, match=message):
            open_checkpoint(bases["llama"], [Lora(folder)])
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"but a pickled adapter_model.bin, which may run code: load it with PEFT"):
        open_checkpoint(bases["llama"], [Lora(adapter)])


def test_two_that_undo_each_other_and_half_of_a_whole(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["llama"]
    whole = save_adapter(base, tmp_path / "whole", target_modules=["q_proj"], modules_to_save=["lm_head"])
    low = save_adapter(base, tmp_path / "low", target_modules=["lm_head"])
    with pytest.raises(InputError, match=r"whole: replaces lm_head.weight, which .*low changes too; leave out one"):
        open_checkpoint(base, [Lora(low), Lora(whole)])
    with pytest.raises(
        InputError, match=r"whole=0.5: holds lm_head as a whole, of which there is no part; leave out =0.5"
    ):
        open_checkpoint(base, [Lora(whole, 0.5)])


def test_names_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "x=2").mkdir()
    assert parse_lora("a/b") == Lora(Path("a/b"))
    assert parse_lora("a=b=-0.5") == Lora(Path("a=b"), -0.5)
    assert parse_lora(str(tmp_path / "x=2")) == Lora(tmp_path / "x=2")
    assert str(Lora(Path("a"), 0.25)) == "a=0.25"
    with pytest.raises(InputError, match=r"--lora 'a=much': expected DIR or DIR=WEIGHT, with a number such as 0.5"):
        parse_lora("a=much")
    with pytest.raises(InputError, match=r"--lora a=0: expected a weight that is a finite number and not 0"):
        parse_lora("a=0")


def test_what_a_user_is_told(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = save_adapter(bases["tied"], tmp_path / "a", target_modules=["embed_tokens"])
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "someone/other"}))
    source = open_checkpoint(bases["tied"], [Lora(adapter)])
    first, second = source.notices
    assert first.endswith("a: was made for someone/other; it is added to tied, whose shapes it fits")
    assert "the embedding is no longer the head" in second
    assert not source.config.tied_embeddings
