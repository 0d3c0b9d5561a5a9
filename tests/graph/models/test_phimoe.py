"""Phi-MoE: its logits against transformers' own class, its routing against loops, and what its config.json may say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import _traced as traced
from hf_folders import configure, our_logits
from moe_folders import LONG, LONG_CHANGES, save, with_long_factors
from safetensors.torch import load_file, save_file
from tiny_phi3 import inputs, rounding

from pocketphi.compiler.footprint import footprint
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.pipeline import fusions, run_passes
from pocketphi.graph.as_stored import as_stored
from pocketphi.graph.edge_ops import combine, experts, route
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_config import config_of_hf, read_hf_config
from pocketphi.graph.lazy_weights import FloatWeight
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.program import Weights
from pocketphi.graph.published import PUBLISHED
from pocketphi.graph.second_reading import second_reading
from pocketphi.graph.write_checkpoint import write_checkpoint

TINY = PUBLISHED["tiny-moe"]
VARIANTS: dict[str, dict[str, Any]] = {
    "biases, a window": {},
    "no bias, other heads, tied, two experts, all near": {
        **{"attention_bias": False, "lm_head_bias": False, "head_dim": 24, "tie_word_embeddings": True},
        **{"num_local_experts": 2, "router_jitter_noise": 0.9, "sliding_window": None},
    },
    "LongRoPE": {**LONG_CHANGES, "sliding_window": 256},
}


@pytest.mark.parametrize(("variant", "together"), zip(VARIANTS, (True, False, False)))
def test_logits_are_those_of_transformers(variant: str, together: bool, tmp_path: Path) -> None:
    """Of a text within the short factors' range, and of one beyond it and beyond the window; as either layout is stored."""
    model = with_long_factors(save(tmp_path, together, **VARIANTS[variant]))
    held = load_file(tmp_path / "model.safetensors")
    assert ("model.layers.0.mlp.experts.down_proj" in held) is together
    for length in (40, 90):
        tokens = inputs(TINY, length)["input_ids"]
        with torch.no_grad():
            want = model(tokens).logits
        came, source = our_logits(tmp_path, tokens)
        assert [("long_factor applies" in one) for one in source.notices] == [True] * (variant == "LongRoPE")
        bound = rounding(source.config, float(want.abs().max()), length)
        assert float((want - came).abs().max()) <= bound < 0.05


def test_decode_goes_on_as_transformers_does(tmp_path: Path) -> None:
    """A prompt, then single tokens past the window, with each one's own cache."""
    model = save(tmp_path)
    source = open_checkpoint(tmp_path)
    program = traced(source.config)
    weights = Weights(
        {n: FloatWeight(source, n) if isinstance(w, FloatWeight) else w for n, w in program.weights.items()}, keep=True
    )
    tokens, caches, cache = inputs(TINY, 60)["input_ids"], {}, None
    for start, stop in [(0, 45), *((at, at + 1) for at in range(45, 60))]:
        feeds = {**program.prefill_inputs(tokens[:, start:stop], start), **caches}
        out = program.run(feeds, weights)
        caches = {n.replace("present", "past_key_values"): v for n, v in out.items() if n != "logits"}
        with torch.no_grad():
            theirs = model(tokens[:, start:stop], past_key_values=cache, use_cache=True)
        cache = theirs.past_key_values
        bound = rounding(source.config, float(theirs.logits.abs().max()), stop)
        assert float((out["logits"] - theirs.logits).abs().max()) <= bound < 0.05


def test_transformers_leaves_long_factors_out(tmp_path: Path) -> None:
    """What the notice says of it: below the switch both are the same, above it only the patched one follows its factors."""
    model = save(tmp_path, **VARIANTS["LongRoPE"])
    tokens = inputs(TINY, 90)["input_ids"]
    with torch.no_grad():
        plain = model(tokens).logits
        short = model(tokens[:, :60]).logits
        patched = with_long_factors(model)(tokens).logits
        assert torch.equal(with_long_factors(model)(tokens[:, :60]).logits, short)
    assert float((plain - patched).abs().max()) > 0.05


def test_rewrites_change_no_bit() -> None:
    for config in (TINY, config_of_hf({**TINY.to_hf(), **VARIANTS["LongRoPE"]})):
        program = traced(config)
        fused = program.copy()
        reports = run_passes(fused, fusions(None))
        assert [report.refused for report in reports] == [[]] * len(reports)
        found = fused.operators()
        assert (found["edge.attention"], found["edge.gated_silu"], found["edge.experts"], found["edge.route"]) == (
            3,
            3,
            6,
            3,
        )
        for case in [(7, 0, 1), (60, 0, 2), (5, 9, 2), (1, 70, 1), (9, 58, 1), (40, 130, 1)]:
            feeds = inputs(program.config, *case)
            a, b = program.run(feeds), fused.run(feeds)
            assert [name for name in a if not torch.equal(a[name], b[name])] == []


def mixed(scores: list[float], threshold: float) -> tuple[list[int], list[float]]:
    """Sparse mixing in plain Python, after arXiv:2409.12136: expert by expert."""
    left, chosen, shares = dict(enumerate(scores)), [], []
    for _ in range(2):
        best = max(left, key=lambda number: left[number])
        top = left[best]
        near = [s for s in left.values() if (top - s) / max(abs(s), top) <= threshold]
        chosen.append(best)
        shares.append(1 / sum(math.exp(s - top) for s in near))
        del left[best]
    return chosen, shares


@pytest.mark.parametrize("threshold", [0.02, 0.5])
def test_route_is_the_definition(threshold: float) -> None:
    """Scores near each other, all below zero, and far apart; for as many tokens."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(40, 6, generator=generator)
    scores[10:20] = 1 + 0.01 * scores[10:20]
    scores[20:30] = -5 + 0.05 * scores[20:30]
    shares, chosen = route(scores[None], torch.eye(6), threshold)
    for token in range(40):
        numbers, want = mixed(scores[token].tolist(), threshold)
        assert chosen[0, token].tolist() == numbers
        assert torch.allclose(shares[0, token], torch.tensor(want), rtol=1e-5)
    assert len({tuple(pair) for pair in chosen[0].tolist()}) > 5
    assert float(shares.min()) < 0.5 < float(shares.max()) == 1.0


def test_experts_are_products_with_the_chosen_rows() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, x = torch.randn(4 * 3, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    chosen = torch.randint(4, (2, 5, 2), generator=generator)
    out = experts(x, chosen, weight, 4)
    apart = experts(torch.stack([x, 2 * x], 2), chosen, weight, 4)
    for b in range(2):
        for s in range(5):
            for t in range(2):
                rows = weight[3 * int(chosen[b, s, t]) :][:3]
                assert torch.allclose(out[b, s, t], rows @ x[b, s], atol=1e-6)
                assert torch.allclose(apart[b, s, t], rows @ x[b, s] * (t + 1), atol=1e-6)
    shares = torch.rand(2, 5, 2, generator=generator)
    assert torch.allclose(combine(out, shares), torch.einsum("bstn,bst->bsn", out, shares), atol=1e-6)


@pytest.mark.parametrize("together", [False, True])
def test_rows_are_those_of_the_other_reading(together: bool, tmp_path: Path) -> None:
    save(tmp_path, together)
    source = open_checkpoint(tmp_path)
    other = second_reading(source.label, source.files, source.config)
    assert other is not None
    assert other.off({}) == []
    for name, info in source.tensors.items():
        numbers = sorted({0, 1, info.rows // 3, info.rows // 2, info.rows - 1})
        ours = torch.cat([source.read(name, row, row + 1) for row in numbers])
        assert torch.equal(ours.float(), other.rows(name, numbers)), name


def test_write_checkpoint_gives_the_published_layout(tmp_path: Path) -> None:
    """transformers reads the same model from a folder that we wrote."""
    from transformers import PhimoeForCausalLM

    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    model = save(tmp_path / "theirs", together=True, dtype=torch.bfloat16)
    write_checkpoint(open_checkpoint(tmp_path / "theirs"), tmp_path / "ours")
    held = load_file(tmp_path / "ours" / "model.safetensors")
    assert held["model.layers.1.block_sparse_moe.experts.5.w2.weight"].shape == (64, 32)
    again = PhimoeForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    names = set(as_stored(open_checkpoint(tmp_path / "ours")).tensors)
    assert names == set(held)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "three experts of a token": ({"num_experts_per_tok": 3}, "num_experts_per_tok is 3, expected 2"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
    "one expert": ({"num_local_experts": 1}, "num_local_experts"),
    "another rope": ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "unknown rope type 'yarn'"),
    "no mscale": (
        {"rope_scaling": {k: v for k, v in LONG.items() if k != "long_mscale"}},
        "long_mscale is missing, which a Phi-MoE's LongRoPE needs",
    ),
    "short list": (
        {"rope_scaling": {**LONG, "long_factor": [1.0] * 7}},
        "long_factor of LongRoPE has 7 values, expected 8",
    ),
    "two switches": (
        {"rope_scaling": LONG, "original_max_position_embeddings": 32},
        "original_max_position_embeddings is there twice, and differs",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_honoured_is_refused(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(InputError, match=message):
        config_of_hf({**TINY.to_hf(), **changes})


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    held = load_file(path)
    save_file({n: v for n, v in held.items() if "experts.3.w3" not in n}, path)
    with pytest.raises(InputError, match=r"experts\.3\.w3\.weight' is missing"):
        open_checkpoint(tmp_path)
    save_file({**held, "model.layers.0.block_sparse_moe.experts.6.w1.weight": torch.ones(32, 64)}, path)
    with pytest.raises(InputError, match=r"experts\.6\.w1\.weight', which has no place in Phi-MoE"):
        open_checkpoint(tmp_path)


def test_settings_are_compared_with_transformers(tmp_path: Path) -> None:
    """transformers' class is asked what it makes of the file; a bias that the settings leave out is in no place."""
    save(tmp_path, **{**VARIANTS["LongRoPE"], "attention_bias": False})
    configure(tmp_path, "attention_bias")
    source = open_checkpoint(tmp_path)
    source.check_settings()
    source.settings = {**(source.settings or {}), "attention_bias": True}
    with pytest.raises(
        InputError, match="attention_bias is True to transformers, which changes the model; expected False"
    ):
        source.check_settings()
    configure(tmp_path, lm_head_bias=False)
    with pytest.raises(InputError, match=r"'lm_head\.bias', which has no place in Phi-MoE"):
        open_checkpoint(tmp_path)


def test_written_settings_are_read_back() -> None:
    for name in ("phi-tiny-moe", "phi-mini-moe", "phi-3.5-moe", "tiny-moe"):
        data = json.loads(json.dumps(PUBLISHED[name].to_hf()))
        assert read_hf_config(data, "config.json").model == PUBLISHED[name]


def test_published_sizes() -> None:
    """Parameters as published, in all and of a token."""
    for name, total, active in (("phi-tiny-moe", 3.8, 1.1), ("phi-mini-moe", 7.6, 2.4), ("phi-3.5-moe", 41.9, 6.6)):
        config = PUBLISHED[name]
        experts_of = sum(r * c for n, (r, c) in config.matrices().items() if config.experts_of(n) > 1)
        assert config.parameters / 1e9 == pytest.approx(total, abs=0.1)
        assert (config.parameters - experts_of * 14 / 16) / 1e9 == pytest.approx(active, abs=0.2)


def test_a_token_reads_the_chosen_experts() -> None:
    """What is planned to be read of a token, against the tensors by hand: two experts of sixteen."""
    config = PUBLISHED["phi-tiny-moe"]
    found = footprint(config, "tvm-arm", compile_options("random:phi-tiny-moe", Path("out"), recipe="rtn", block=32))
    every = {name: rows * columns * (4 + 16 / 32) / 8 for name, (rows, columns) in config.matrices().items()}
    shares = {name: 1 / 8 if config.experts_of(name) > 1 else 1.0 for name in every}
    read = sum(size * shares[name] for name, size in every.items() if "embed" not in name)
    assert found.read_per_token == pytest.approx(read, rel=0.01)
    assert found.files == pytest.approx(sum(every.values()), rel=0.02)
