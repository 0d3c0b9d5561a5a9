"""What the compiler needs of transformers' insides, piece by piece: the first thing to look at after an upgrade."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from tiny_phi3 import TINY, VARIANTS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AttentionInterface, DynamicCache

from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.models import models
from pocketphi.graph.trace import hf_config
from pocketphi.graph.transformers_inside import (
    FlatCache,
    make_config,
    make_model,
    probe,
    rotary_of,
    use_real_frequencies,
)

ROOT = Path(__file__).parents[2]
KNOWN = [model.architecture for model in models() if model.form.build is None]
"""All but those whose module is ours."""
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}
SMALL |= {"pad_token_id": 0, "head_dim": 16}


@pytest.mark.parametrize("architecture", KNOWN)
def test_a_class_has_its_config(architecture: str) -> None:
    made = make_config(architecture, SMALL)
    assert made._attn_implementation == "sdpa"
    assert "sdpa" in AttentionInterface()


@pytest.mark.parametrize("architecture", KNOWN)
def test_a_probe_sees_what_the_model_looks_at(architecture: str) -> None:
    found = probe(architecture, {**SMALL, "num_hidden_layers": 5}, layers=2)
    assert {"rms_norm_eps", "hidden_size", "num_attention_heads", "vocab_size"} <= found.read
    assert len({name.split(".")[2] for name in found.shapes if ".layers." in name}) == 2
    assert found.shapes["model.embed_tokens.weight"] == (50, 64)
    assert type(found.config).__name__ == type(make_config(architecture, SMALL)).__name__
    assert found.rotary["frequencies"].tolist() == pytest.approx([10000 ** -(i / 8) for i in range(8)])


def test_frequencies_are_real_where_the_rest_is_not() -> None:
    config = hf_config(TINY, 1)
    with FakeTensorMode():
        model = make_model(TINY.form.architecture, config)
    assert isinstance(model.model.rotary_emb.inv_freq, FakeTensor)
    use_real_frequencies(model, config)
    assert not isinstance(model.model.rotary_emb.inv_freq, FakeTensor)
    assert isinstance(model.model.embed_tokens.weight, FakeTensor)


def test_long_rope_has_frequencies_on_both_sides_of_its_switch() -> None:
    config = VARIANTS["longrope"]
    assert config.long_rope is not None
    hf = hf_config(config, 1)
    with torch.device("meta"):
        model = make_model(config.form.architecture, hf)
    found = rotary_of(model, hf)
    plain = torch.tensor([10000 ** -(i / 8) for i in range(8)])
    assert int(found["switch"]) == config.long_rope.original_max_position
    assert torch.allclose(found["frequencies"] * torch.tensor(config.long_rope.short), plain)
    assert torch.allclose(found["long frequencies"] * torch.tensor(config.long_rope.long), plain)


def test_a_flat_cache_is_to_a_model_as_transformers_own() -> None:
    config = hf_config(TINY, 2)
    torch.manual_seed(0)
    model = make_model(TINY.form.architecture, config)
    past = [torch.randn(1, 2, 9, 16) for _ in range(4)]
    own, flat = DynamicCache(), FlatCache(list(past))
    for layer in range(2):
        own.update(past[2 * layer], past[2 * layer + 1], layer)
    tokens = torch.tensor([[3, 5, 8]])
    with torch.no_grad():
        want, got = (model(tokens, past_key_values=cache, use_cache=True).logits for cache in (own, flat))
    assert torch.equal(want, got)
    for layer in range(2):
        assert torch.equal(flat.keys[layer], own.layers[layer].keys)
        assert torch.equal(flat.values[layer], own.layers[layer].values)


def test_what_broke_is_named() -> None:
    with pytest.raises(
        CompilerBug, match=r"^transformers 5\.\S+ is not as .*: it has no model class FooForCausalLM with a config"
    ):
        make_config("FooForCausalLM", {})
    config = hf_config(TINY, 1)
    with torch.device("meta"):
        model = make_model(TINY.form.architecture, config)
    model.model.rotary_emb = torch.nn.Identity()
    with pytest.raises(CompilerBug, match=r"Identity has no inv_freq"):
        rotary_of(model, config)
    del model.model.rotary_emb
    with pytest.raises(CompilerBug, match=r"Phi3ForCausalLM has no model.rotary_emb"):
        use_real_frequencies(model, config)


def test_nothing_else_reaches_inside() -> None:
    """Elsewhere transformers is imported by the names at its top, but where its chat templates' environment is compared."""
    inside = {}
    for path in (
        path
        for stage in ("graph", "passes", "artifacts", "targets", "compiler")
        for path in (ROOT / stage).rglob("*.py")
    ):
        names = [
            n.module for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.ImportFrom) and n.module
        ]
        if deep := [name for name in names if name.startswith("transformers.")]:
            inside[str(path.relative_to(ROOT))] = deep
    assert inside == {
        "graph/transformers_inside.py": ["transformers.modeling_rope_utils"],
        "compiler/text_probes.py": ["transformers.utils"],
    }


def test_every_model_is_of_a_class_that_transformers_has() -> None:
    theirs = [model for model in models() if model.form.build is None]
    assert [make_config(model.architecture, {}).model_type for model in theirs] == [m.model_type for m in theirs]
