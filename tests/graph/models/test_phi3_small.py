"""Phi-3-small: its parts and its logits against plain loops over the published layout, and what its config.json may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_reference as reference
import torch
from hf_folders import _traced as traced
from hf_folders import our_logits
from safetensors.torch import load_file
from small_folders import SU, published_tensors, save
from tiny_phi3 import inputs, rounding

from pocketphi.compiler.pipeline import fusions, run_passes
from pocketphi.graph.as_stored import as_stored
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.edge_ops import block_sparse, gegelu
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_config import config_of_hf, read_hf_config
from pocketphi.graph.lazy_weights import Dequantized
from pocketphi.graph.models.modules import attention_factors
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.published import PUBLISHED
from pocketphi.graph.second_reading import second_reading
from pocketphi.graph.write_checkpoint import write_checkpoint
from pocketphi.passes.last_logits import LastLogits
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantize_weights import QuantizeWeights
from pocketphi.passes.quantizers import RoundToNearest

TINY = PUBLISHED["phi-3-small-tiny"]
VARIANTS: dict[str, dict[str, Any]] = {
    "8k": {},
    "su": {"rope_scaling": SU},
    "one pattern, all sparse": {"blocksparse_homo_head_pattern": True, "dense_attention_every_n_layers": None},
    "every third dense, no limit": {
        "dense_attention_every_n_layers": 3,
        "gegelu_limit": None,
        "blocksparse_vert_stride": 9,
    },
    "all dense, untied, no muP": {
        **{"dense_attention_every_n_layers": 1, "tie_word_embeddings": False, "mup_use_scaling": False},
        **{"mup_embedding_multiplier": None, "mup_width_multiplier": 3.0, "dummy_token_indices": []},
    },
}

# of microsoft/Phi-3-small-8k-instruct, every key
PUBLISHED_8K = {
    "architectures": ["Phi3SmallForCausalLM"],
    "attention_dropout_prob": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi3_small.Phi3SmallConfig",
        "AutoTokenizer": ["t.Phi3SmallTokenizer", None],
    },
    "blocksparse_block_size": 64,
    "blocksparse_homo_head_pattern": False,
    "blocksparse_num_local_blocks": 16,
    "blocksparse_triton_kernel_block_size": 64,
    "blocksparse_vert_stride": 8,
    "bos_token_id": 100257,
    "dense_attention_every_n_layers": 2,
    "embedding_dropout_prob": 0.1,
    "eos_token_id": 100257,
    "ff_dim_multiplier": None,
    "ff_intermediate_size": 14336,
    "ffn_dropout_prob": 0.1,
    "gegelu_limit": 20.0,
    "gegelu_pad_to_256": True,
    "hidden_act": "gegelu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 8192,
    "model_type": "phi3small",
    "mup_attn_multiplier": 1.0,
    "mup_embedding_multiplier": 10.0,
    "mup_use_scaling": True,
    "mup_width_multiplier": 8.0,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pad_sequence_to_multiple_of_64": True,
    "reorder_and_upcast_attn": False,
    "rope_embedding_base": 1000000,
    "rope_position_scale": 1.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.1",
    "use_cache": True,
    "vocab_size": 100352,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_reference(variant: str, tmp_path: Path) -> None:
    """Of a text within the short factors' range, and of one beyond."""
    tensors, data = save(tmp_path, **VARIANTS[variant])
    stored = {name: tensor.numpy() for name, tensor in tensors.items()}
    for length in (40, 90):
        tokens = inputs(config_of_hf(data), length)["input_ids"]
        want = reference.logits(stored, data, tokens[0].tolist())
        came, source = our_logits(tmp_path, tokens)
        assert source.notices == ()
        logits, real = came[0].double().numpy(), np.isfinite(want)
        bound = rounding(source.config, float(np.abs(want[real]).max()), length)
        assert np.abs(want - logits)[real].max() <= bound < 0.05
        assert (np.exp(logits[~real] - logits.min(initial=0, where=real)) == 0).all()
        assert (~real).sum() == length * len(data["dummy_token_indices"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_rewrites_change_no_bit(variant: str) -> None:
    program = traced(config_of_hf({**TINY.to_hf(), **VARIANTS[variant]}))
    fused = program.copy()
    reports = run_passes(fused, fusions(None))
    assert [report.refused for report in reports] == [[]] * len(reports)
    found = fused.operators()
    every = fused.config.own.dense_every
    sparse = sum(not every or (layer + 1) % every != 0 for layer in range(3))
    assert (found["edge.sparse_attention"], found["edge.attention"], found["edge.gegelu"]) == (sparse, 3 - sparse, 3)
    for case in [(7, 0, 1), (60, 0, 2), (5, 9, 2), (1, 70, 1), (9, 58, 1), (40, 130, 1)]:
        feeds = inputs(program.config, *case)
        a, b = program.run(feeds), fused.run(feeds)
        assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_quantized_projections_keep_their_biases() -> None:
    """Every matrix is quantized, none is refused for its bias, and what is computed is x · Wᵀ + b of the rounded W."""
    program = traced(TINY).copy()
    run_passes(program, fusions(None))
    rounded = program.copy()
    (report,) = run_passes(rounded, [QuantizeWeights(Policy.of(RoundToNearest(32)))])
    assert (report.refused, dict(report.applied)) == ([], {"matmul_nbits": 13, "embedding_nbits": 1})
    for name, weight in rounded.weights.items():
        if "q" in weight.parts:
            program.weights[name] = Dequantized(weight)
    run_passes(rounded, [LastLogits()])
    feeds = inputs(TINY, 30)
    want, came = program.run(feeds)["logits"][:, -1], rounded.run(feeds)["logits"][:, 0]
    real = want.abs() < 1000
    assert (want - came)[real].abs().max() <= rounding(TINY, float(want[real].abs().max()), 30)


def test_the_sparse_pattern_is_the_definition() -> None:
    """Against an explicit mask, token by token: 64-token blocks, heads with other columns, and the published numbers."""
    data = {**PUBLISHED_8K, "num_attention_heads": 5, "blocksparse_num_local_blocks": 3}
    queries = torch.tensor([[0, 63, 64, 191, 192, 255, 256, 700, 1023]])
    keys = torch.arange(1024)
    came = block_sparse(queries, keys, 5, 64, 3, 8, 1)[0]
    for head in range(5):
        for i, query in enumerate(queries[0].tolist()):
            past = came[head, i, : query + 1].tolist()
            assert past == [reference.sees(query, key, head, data) for key in range(query + 1)]
    assert came.shape == (5, 9, 1024)
    assert not bool(came[:, -1].all())


@pytest.mark.parametrize("limit", [0.0, 0.5, 20.0])
def test_gegelu_is_the_definition(limit: float) -> None:
    halves = 4 * torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(1))
    stored = torch.stack(halves.chunk(2, -1), -1).flatten(-2).double().numpy()  # gate and linear part in turn
    want = np.stack([[reference.gegelu(row, limit or None) for row in rows] for rows in stored])
    assert (
        np.abs(gegelu(halves, limit).double().numpy() - want).max()
        <= 8 * torch.finfo(torch.float32).eps * np.abs(want).max()
    )


def test_rows_are_taken_apart(tmp_path: Path) -> None:
    """By our reader and by the second one: a tensor of row numbers, in the published order."""
    save(tmp_path)
    source = open_checkpoint(tmp_path)
    config = source.config
    second = second_reading(str(tmp_path), source.files, config)
    assert second is not None
    tensors = published_tensors(json.loads((tmp_path / "config.json").read_text()))
    stored = tensors["model.layers.1.self_attn.query_key_value.weight"].numpy()
    parts = [
        reference.split_heads(
            column, PUBLISHED_8K | {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        )
        for column in stored.T
    ]
    want = np.stack([np.concatenate([np.concatenate(kind) for kind in part]) for part in parts], 1)
    name = "model.layers.1.self_attn.qkv_proj.weight"
    assert np.array_equal(source.read(name, 0, config.qkv_size).numpy(), want)
    assert np.array_equal(source.read(name, 30, 101).numpy(), want[30:101])
    assert np.array_equal(second.rows(name, range(config.qkv_size)).numpy(), want)
    up = tensors["model.layers.2.mlp.up_proj.bias"].numpy()
    both = np.concatenate([up[0::2], up[1::2]])
    assert np.array_equal(source.read("model.layers.2.mlp.gate_up_proj.bias", 0, 256).numpy(), both)
    assert np.array_equal(source.read("model.layers.2.mlp.gate_up_proj.bias", 100, 190).numpy(), both[100:190])
    assert np.array_equal(second.rows("model.layers.2.mlp.gate_up_proj.bias", range(256)).numpy(), both)
    assert second.off({}) == []


def test_a_written_checkpoint_has_the_published_layout(tmp_path: Path) -> None:
    """A folder that is read and written again holds the same tensors, in whatever chunks they are read."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tensors, _ = save(tmp_path / "a")
    source = open_checkpoint(tmp_path / "a")
    write_checkpoint(source, tmp_path / "b", "fp32")
    written = load_file(tmp_path / "b" / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert [name for name in tensors if not torch.equal(written[name], tensors[name])] == []
    assert open_checkpoint(tmp_path / "b").config == source.config
    stored = as_stored(source)
    for name in ("self_attn.query_key_value.weight", "mlp.up_proj.weight", "mlp.up_proj.bias"):
        whole = tensors[f"model.layers.0.{name}"]
        for start, stop in ((0, 1), (15, 17), (31, 100), (127, 128), (5, 5)):
            assert torch.equal(stored.read(f"model.layers.0.{name}", start, stop), whole[start:stop])


def test_the_published_config_is_read() -> None:
    read = read_hf_config(PUBLISHED_8K, "config.json")
    assert read.notices == ()
    assert read.model == PUBLISHED["phi-3-small-8k"]
    assert (read.model.sparse, read.model.form.period) == (TINY.sparse.__class__(64, 16, 8, 1), 2)
    assert len(read.model.own.dummy_tokens) == 100352 - 100256 - 5  # endoftext, system, user, assistant, end
    assert read.model.own.scale(128) == 1 / 128
    assert read.model.parameters == 7_392_272_384


@pytest.mark.parametrize("name", ["phi-3-small-8k", "phi-3-small-128k", "phi-3-small-tiny"])
def test_what_is_written_reads_back(name: str) -> None:
    config = PUBLISHED[name]
    assert config_of_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_attention_factors() -> None:
    """Of the 128k model's file, and what follows where a file leaves them out."""
    config: ModelConfig = PUBLISHED["phi-3-small-128k"]
    assert config.long_rope is not None
    assert attention_factors(config.long_rope, 131072) == (1.0, 1.1902380714238083)
    bare = config_of_hf({**TINY.to_hf(), "rope_scaling": {k: v for k, v in SU.items() if "mscale" not in k}})
    assert bare.long_rope is not None
    follows = (1 + np.log(4) / np.log(64)) ** 0.5
    assert attention_factors(bare.long_rope, 256) == pytest.approx((follows, follows))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act is 'silu', expected 'gegelu'"),
        ({"rope_position_scale": 2.0}, "rope_position_scale is 2.0, expected 1"),
        ({"ff_dim_multiplier": 4}, "ff_dim_multiplier is 4 and ff_intermediate_size 128, expected one of them"),
        ({"num_attention_heads": 6}, "6 heads do not divide hidden_size, 64"),
        ({"blocksparse_block_size": 0}, "blocksparse_block_size"),
        ({"dense_attention_every_n_layers": 99}, "dense_attention_every_n_layers"),
        ({"rope_scaling": {**SU, "type": "yarn"}}, "unknown rope type 'yarn', expected 'su' or 'longrope'"),
        (
            {"rope_scaling": {**SU, "beta_fast": 1}},
            "holds 'beta_fast', which Phi-3-small's rotary embedding does not have",
        ),
        ({"rope_scaling": {**SU, "long_factor": [1.0]}}, "long_factor of LongRoPE has 1 values, expected 8"),
        (
            {"rope_scaling": {**SU, "original_max_position_embeddings": None}},
            "original_max_position_embeddings is missing",
        ),
        ({"rope_scaling": SU, "original_max_position_embeddings": 32}, "is there twice, and differs"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of_hf({**TINY.to_hf(), **changes})


def test_what_is_told() -> None:
    read = read_hf_config({**PUBLISHED_8K, "dummy_token_indices": [7, 200000], "surprise": 1}, "config.json")
    assert read.model.own.dummy_tokens == (7,)
    assert any("names token 200000" in notice for notice in read.notices)
    assert any("'surprise' = 1" in notice for notice in read.notices)
