"""Adapters beside their base: the graph with their factors gives the logits of PEFT's own model, or one line says why not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_adapters import TOKENS, load, peft_logits, save_adapter, save_bases, traced
from safetensors.torch import load_file, save_file
from tiny_phi3 import inputs

from pocketphi.compiler.source_check import factors_check
from pocketphi.graph.adapters import Turned, factors_digest, feeds, input_names, weight_of_input
from pocketphi.graph.channel_scales import ChannelScales
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.decoder import ProgramRunner
from pocketphi.graph.errors import InputError
from pocketphi.graph.lazy_weights import FloatWeight
from pocketphi.graph.lora.beside import Beside, open_beside
from pocketphi.graph.lora.named import WEIGHTS, NamedLora, parse_named
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.program import Program, Weights
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.passes.carry_adapters import CarryAdapters, projections

CASES: list[tuple[str, float, dict[str, Any]]] = [
    ("llama", 1.0, {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}}),
    (
        "llama",
        -0.5,
        {
            "target_modules": "all-linear",
            "use_rslora": True,
            "rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\.up_proj": 2},
            "alpha_pattern": {"down_proj": 3},
        },
    ),
    ("llama", 1.0, {"target_modules": ["lm_head", "o_proj"]}),
    ("tied", 1.0, {"target_modules": ["lm_head", "k_proj"]}),
    ("phi3", 2.0, {"target_modules": ["qkv_proj", "gate_up_proj"], "layers_to_transform": [0, 2]}),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_bases(tmp_path_factory.mktemp("bases"))


def carrying(source: Checkpoint, *named: str) -> Program:
    """The traced graph of a checkpoint, with places for these adapters."""
    program = traced(source.config).copy()
    program.weights = {
        n: FloatWeight(source, n) if isinstance(w, FloatWeight) else w for n, w in program.weights.items()
    }
    program.adapters.update(open_beside([parse_named(one) for one in named], source, list(projections(program))))
    CarryAdapters()(program)
    return program


def logits(program: Program, adapter: str | None) -> torch.Tensor:
    given = {**program.prefill_inputs(TOKENS), **inputs(program.config, TOKENS.shape[1], 0, 2), "input_ids": TOKENS}
    given |= feeds(program.adapters[adapter]) if adapter else {}
    return program.run(given, Weights(program.weights, keep=False))["logits"]


def bound(source: Checkpoint, expected: torch.Tensor) -> float:
    """By how much float32 may move a logit: ε of the largest for each of the sums of a layer, √ of as many."""
    config = source.config
    widest = max(config.hidden_size, config.intermediate_size)
    return float(2.0**-23 * widest * config.layers) * float(expected.abs().max())


@pytest.mark.parametrize(("base", "weight", "settings"), CASES)
def test_logits_are_pefts(
    bases: dict[str, Path], tmp_path: Path, base: str, weight: float, settings: dict[str, Any]
) -> None:
    adapter = save_adapter(bases[base], tmp_path / "adapter", **settings)
    source = open_checkpoint(bases[base])
    program = carrying(source, f"one={adapter}={weight}")
    expected = peft_logits(bases[base], (adapter, weight), merge=False)
    assert float((logits(program, "one") - expected).abs().max()) <= bound(source, expected)
    with torch.no_grad():
        plain = load(bases[base])(TOKENS).logits
    without = logits(program, None)
    assert float((without - plain).abs().max()) <= bound(source, plain)
    assert float((plain - expected).abs().max()) > 0.5  # the adapter matters
    carried = program.copy()
    assert CarryAdapters()(carried).applied == {}  # a second time
    beside: Any = program.adapters
    assert factors_check(beside, source).ok


def test_without_an_adapter_it_is_the_graph_that_it_was(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = save_adapter(bases["phi3"], tmp_path / "adapter", target_modules="all-linear")
    source = open_checkpoint(bases["phi3"])
    program, plain = carrying(source, f"one={adapter}"), carrying(source)
    assert "edge.add_low_rank" not in plain.operators()
    assert torch.equal(logits(program, None), logits(plain, None))
    runner = ProgramRunner(program)
    first = runner.step(TOKENS)
    runner.switch("one")
    assert float((runner.step(TOKENS) - first).abs().max()) > 0.5
    runner.switch(None)
    assert torch.equal(runner.step(TOKENS), first)


def test_split_modules_lie_in_blocks_of_their_own(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = save_adapter(
        bases["llama"], tmp_path / "a", target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 2}
    )
    source = open_checkpoint(bases["llama"])
    one = open_beside([parse_named(f"one={adapter}")], source, list(source.config.tensors()))["one"]
    name, config = "model.layers.1.self_attn.qkv_proj.weight", source.config
    a, b = one.read(name)
    stored = load_file(adapter / WEIGHTS)
    layer = "base_model.model.model.layers.1.self_attn"
    q, v, heads = f"{layer}.q_proj", f"{layer}.v_proj", config.heads * config.head_dim
    assert one.ranks[name] == 6
    assert torch.equal(a, torch.cat([stored[f"{q}.lora_A.weight"], stored[f"{v}.lora_A.weight"]]).T)
    assert torch.allclose(b[:2, :heads].T, stored[f"{q}.lora_B.weight"] * 3)  # alpha 6, of ranks 2 and 4
    kept = config.kv_heads * config.head_dim
    assert torch.allclose(b[2:, -kept:].T, stored[f"{v}.lora_B.weight"] * 1.5)
    assert not b[:2, heads:].any()
    assert not b[2:, :-kept].any()


def test_a_norm_that_gives_off_powers_of_two_changes_no_bit(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = save_adapter(bases["phi3"], tmp_path / "adapter", target_modules=["qkv_proj", "down_proj"])
    source = open_checkpoint(bases["phi3"])
    exponents = {
        name: torch.arange(shape[0], dtype=torch.int32) % 7 - 3
        for name, shape in source.config.tensors().items()
        if name.endswith("input_layernorm.weight")
    }
    scaled = ChannelScales(source, exponents)
    program, turned = carrying(source, f"one={adapter}"), carrying(source, f"one={adapter}")
    turned.weights = {n: FloatWeight(scaled, n) if isinstance(w, FloatWeight) else w for n, w in turned.weights.items()}
    turned.adapters["one"] = Turned(program.adapters["one"], scaled.given_to)
    assert torch.equal(logits(turned, "one"), logits(program, "one"))
    assert factors_digest(turned.adapters["one"]) != factors_digest(program.adapters["one"])


def test_names_of_inputs() -> None:
    assert input_names("model.a.weight") == ("model.a.lora_A", "model.a.lora_B")
    assert {weight_of_input(name) for name in input_names("model.a.weight")} == {"model.a.weight"}
    assert weight_of_input("past_key_values.0.key") is None


REFUSED = [
    ("llama", {"target_modules": ["q_proj"], "use_dora": True}, "has the magnitudes of DoRA (use_dora) of"),
    ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "replaces weights (modules_to_save or"),
    (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7]},
        "replaces weights (modules_to_save or",
    ),
    ("llama", {"target_modules": ["embed_tokens"]}, "changes rows of the embedding of model.embed_tokens"),
]


@pytest.mark.parametrize(("base", "settings", "said"), REFUSED)
def test_refused_by_name(
    bases: dict[str, Path], tmp_path: Path, base: str, settings: dict[str, Any], said: str
) -> None:
    adapter = save_adapter(bases[base], tmp_path / "adapter", **settings)
    with pytest.raises(InputError, match=re.escape(said)) as error:
        carrying(open_checkpoint(bases[base]), f"one={adapter}")
    assert str(error.value).endswith("an app cannot switch that; merge the adapter with --lora")


def test_a_head_that_came_with_other_weights(bases: dict[str, Path], tmp_path: Path) -> None:
    """PEFT saves the base's head beside an adapter of it, which is no other head as long as it is the base's."""
    adapter = save_adapter(bases["llama"], tmp_path / "adapter", target_modules=["lm_head"])
    held = load_file(adapter / WEIGHTS)
    held["base_model.model.lm_head.base_layer.weight"][5, 7] += 1
    save_file(held, adapter / WEIGHTS)
    with pytest.raises(InputError, match=r"--adapter one .*adapter: brings other weights of lm_head; an app cannot"):
        carrying(open_checkpoint(bases["llama"]), f"one={adapter}")


def test_what_is_no_projection_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = save_adapter(bases["llama"], tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(
        InputError, match=r"changes model\.layers\.0\.self_attn\.qkv_proj\.weight and 2 more, which is no"
    ):
        open_beside([parse_named(f"one={adapter}")], open_checkpoint(bases["llama"]), [])


def test_two_of_one_name(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = save_adapter(bases["llama"], tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"--adapter FR=.*: there are two adapters FR; give one of them another name"):
        carrying(open_checkpoint(bases["llama"]), f"fr={adapter}", f"FR={adapter}")


def test_how_a_user_names_one(tmp_path: Path) -> None:
    assert parse_named("fr=a") == NamedLora("fr", parse_named("x=a").lora)
    assert parse_named("fr=a=b=0.5").lora.folder == Path("a=b")
    assert str(parse_named("fr=a=0.5")) == "fr=a=0.5"
    for text, said in {
        "a": "--adapter 'a': expected NAME=DIR, with the name that an app switches it by",
        "fr=": "--adapter 'fr=': expected NAME=DIR",
        "../x=a": "'../x' is no name of a file; expected letters",
        "a.=b": "'a.' is no name of a file",
        "fr=a=b": "--adapter fr 'a=b': expected DIR or DIR=WEIGHT",
        "fr=a=0": "--adapter fr a=0: expected a weight that is a finite number and not 0",
    }.items():
        with pytest.raises(InputError, match=re.escape(said)):
            parse_named(text)
    with pytest.raises(InputError, match=r"--adapter fr .*nothing: no such folder"):
        open_beside([parse_named(f"fr={tmp_path / 'nothing'}")], RandomWeights("random:tiny"), [])


def test_kept_in_one_place(bases: dict[str, Path], tmp_path: Path) -> None:
    """Factors are the same whenever they are read, and another adapter's are others."""
    made = [
        save_adapter(bases["llama"], tmp_path / name, seed=seed, target_modules=["q_proj"])
        for seed, name in enumerate("ab")
    ]
    source = open_checkpoint(bases["llama"])
    found: list[Beside] = list(
        open_beside(
            [parse_named(f"{path.name}={path}") for path in made], source, list(source.config.tensors())
        ).values()
    )
    assert factors_digest(found[0]) == factors_digest(found[0]) != factors_digest(found[1])
