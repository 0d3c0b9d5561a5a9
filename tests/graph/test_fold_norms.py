"""FoldedNorms: other weights, the same function."""

from __future__ import annotations

import pytest
import torch
from tiny_phi3 import checkpoint, hf_model, inputs, rounding

from pocketphi.graph.fold_norms import FoldedNorms


@pytest.mark.parametrize("variant", ["tiny", "tied", "partial"])
def test_same_logits(variant: str) -> None:
    source = checkpoint(variant)
    folded = FoldedNorms(source)
    tokens = inputs(source.config, 20, 0, 2)["input_ids"]
    with torch.no_grad():
        want, got = (hf_model(c)(tokens).logits for c in (source, folded))
    assert not torch.equal(want, got)
    assert float((want - got).abs().max()) <= rounding(source.config, float(want.abs().max()))


@pytest.mark.parametrize("variant", ["tiny", "tied"])
def test_which_tensors_change(variant: str) -> None:
    source = checkpoint(variant)
    folded = FoldedNorms(source)
    whole = {n: (source.read(n, 0, i.rows).float(), folded.read(n, 0, i.rows)) for n, i in source.tensors.items()}
    ones = {n for n, (_, new) in whole.items() if torch.equal(new, torch.ones_like(new))}
    same = {n for n, (old, new) in whole.items() if torch.equal(old, new)}
    norms = {n for n in whole if n.endswith("layernorm.weight")}
    assert ones == (norms if variant == "tied" else norms | {"model.norm.weight"})
    kept = {n for n in whole if n.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight"))}
    assert same == (kept | {"model.norm.weight"} if variant == "tied" else kept)
    name = "model.layers.2.mlp.gate_up_proj.weight"
    gain = source.read("model.layers.2.post_attention_layernorm.weight", 0, 64).float()
    assert torch.equal(folded.read(name, 3, 9), source.read(name, 3, 9).float() * gain)
    assert {i.dtype for i in folded.tensors.values()} == {"fp32"}
    assert folded.read("model.layers.0.input_layernorm.weight", 2, 5).tolist() == [1.0] * 3
