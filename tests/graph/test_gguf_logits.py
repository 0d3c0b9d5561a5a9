"""The traced program of a GGUF file against transformers' own models, whose weights the gguf library reads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.program import Program, Weights
from pocketphi.graph.trace import trace
from tests.graph.test_gguf_file import (
    DIM,
    FIELDS,
    HEADS,
    HIDDEN,
    INNER,
    KV,
    VOCAB,
    Array,
    random_tensors,
    unpermute,
    write,
)
from tests.graph.test_gguf_parts import write_parts
from tests.helpers.tiny_phi3 import hf_run, inputs, rounding

CASES = [(7, 0, 1), (5, 9, 2), (1, 40, 1)]  # new tokens, tokens in the cache, batch
CONTEXT = 128


def tensors(arch: str, layers: int = 2, times: int = 1) -> dict[str, Array]:
    """Random weights of such a size that attention matters, in GGUF's names and row order.

    times: how much wider the model and its heads are than FIELDS say
    """
    rng = np.random.default_rng(5)
    made = {}
    for name, value in random_tensors(arch).items():
        shape = tuple(size if size in (VOCAB, INNER, 2 * INNER) else times * size for size in value.shape)
        made[name] = rng.standard_normal(shape, np.float32) * np.float32(0.2) + np.float32(len(shape) == 1)
    for i in range(2, layers):
        made |= {
            name.replace("blk.1.", f"blk.{i}."): value for name, value in made.items() if name.startswith("blk.1.")
        }
    return made


def fused(weights: Mapping[str, Array]) -> dict[str, Array]:
    """q, k and v as one tensor."""
    made = {
        name: value for name, value in weights.items() if not name.endswith(("_q.weight", "_k.weight", "_v.weight"))
    }
    for i in range(2):
        made[f"blk.{i}.attn_qkv.weight"] = np.concatenate([weights[f"blk.{i}.attn_{kind}.weight"] for kind in "qkv"])
    return made


def apart(weights: Mapping[str, Array]) -> dict[str, Array]:
    """A phi3's packed projections as several tensors."""
    made = dict(weights)
    for i in range(2):
        qkv, both = made.pop(f"blk.{i}.attn_qkv.weight"), made[f"blk.{i}.ffn_up.weight"]
        rows = np.split(qkv, [HEADS * DIM, (HEADS + KV) * DIM])
        made |= {f"blk.{i}.attn_{kind}.weight": part for kind, part in zip("qkv", rows)}
        made[f"blk.{i}.ffn_gate.weight"], made[f"blk.{i}.ffn_up.weight"] = np.split(both, 2)
    return made


def reference(*paths: Path, **config: Any) -> Any:
    """transformers' own model with the weights of these files."""
    readers = [gguf.GGUFReader(path) for path in paths]
    raw = {t.name.removesuffix(".weight"): gguf.dequantize(t.data, t.tensor_type) for r in readers for t in r.tensors}
    llama = readers[0].fields["general.architecture"].contents() == "llama"
    common = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 2}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV, "max_position_embeddings": CONTEXT}
    given = {**common, **heads, "rms_norm_eps": 1e-5, "pad_token_id": None, **config}
    model = LlamaForCausalLM(LlamaConfig(**given)) if llama else Phi3ForCausalLM(Phi3Config(**given))
    state = {"model.embed_tokens": raw["token_embd"], "model.norm": raw["output_norm"], "lm_head": raw["output"]}
    for i in range(given["num_hidden_layers"]):
        layer, block = f"model.layers.{i}", f"blk.{i}"
        state[f"{layer}.input_layernorm"] = raw[f"{block}.attn_norm"]
        state[f"{layer}.post_attention_layernorm"] = raw[f"{block}.ffn_norm"]
        state[f"{layer}.self_attn.o_proj"] = raw[f"{block}.attn_output"]
        state[f"{layer}.mlp.down_proj"] = raw[f"{block}.ffn_down"]
        qkv = [raw[f"{block}.attn_{kind}"] for kind in "qkv"] if f"{block}.attn_q" in raw else None
        up = [raw[f"{block}.ffn_{kind}"] for kind in ("gate", "up")] if f"{block}.ffn_gate" in raw else None
        if llama:
            assert up
            q, k, v = qkv or np.split(raw[f"{block}.attn_qkv"], [HEADS * DIM, (HEADS + KV) * DIM])
            state |= {f"{layer}.self_attn.q_proj": unpermute(q, HEADS), f"{layer}.self_attn.k_proj": unpermute(k, KV)}
            state |= {f"{layer}.self_attn.v_proj": v, f"{layer}.mlp.gate_proj": up[0], f"{layer}.mlp.up_proj": up[1]}
        else:
            state[f"{layer}.self_attn.qkv_proj"] = np.concatenate(qkv) if qkv else raw[f"{block}.attn_qkv"]
            state[f"{layer}.mlp.gate_up_proj"] = np.concatenate(up) if up else raw[f"{block}.ffn_up"]
    model.load_state_dict({f"{name}.weight": torch.tensor(value) for name, value in state.items()})
    return model.eval()


def differing(program: Program, model: Any, cases: list[tuple[int, int, int]] | None = None) -> list[str]:
    """The logits and caches of a program that are not the model's, up to the rounding of float32."""
    weights, wrong = Weights(program.weights, keep=True), []
    for case in cases or CASES:
        feeds = inputs(program.config, *case)
        ours, theirs = program.run(feeds, weights), hf_run(model, feeds)
        for name, want in theirs.items():
            bound = rounding(program.config, float(want.abs().max()), case[0] + case[1])
            if not float((ours[name] - want).abs().max()) <= bound:
                wrong.append(f"{name} of {case}")
    return wrong


@pytest.mark.parametrize(("arch", "made"), [("llama", fused), ("phi3", dict)], ids=["llama", "phi3"])
def test_fused_projections(tmp_path: Path, arch: str, made: Any) -> None:
    path = write(tmp_path / "m.gguf", arch, made(tensors(arch)), Type.F16)
    assert differing(trace(open_checkpoint(path)), reference(path)) == []


def raw_blocks(kind: Type, shape: tuple[int, int]) -> Any:
    """Random blocks of a type that the library reads and cannot write: any bytes, and scales that are small floats."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(int(kind))
    data = rng.integers(0, 256, (shape[0], shape[1] // block, size), np.uint8)
    scales = {Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,), Type.Q2_K: (80, 82), Type.Q3_K: (108,)}[kind]
    for at in scales:
        small = rng.uniform(0.0002, 0.0005, data.shape[:2]).astype(np.float16)
        data[:, :, at : at + 2] = small[..., None].view(np.uint8)
    return data.reshape(shape[0], -1)


def test_every_common_type(tmp_path: Path) -> None:
    """One model whose projections lie apart, with tensors of each type. K-quants have blocks of 256, so it is as wide."""
    simple = [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]
    large = [Type.Q4_K, Type.Q6_K, Type.Q5_K, Type.Q3_K, Type.Q2_K]
    wide, narrow = itertools.cycle([*large, *simple]), itertools.cycle(simple)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key, value in {**FIELDS, "embedding_length": 4 * HIDDEN, "rope.dimension_count": 4 * DIM}.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"llama.{key}", value)  # type: ignore[operator]
    used = set()
    for name, array in tensors("llama", times=4).items():
        if array.ndim == 1:
            writer.add_tensor(name, array)
            continue
        kind = next(wide if array.shape[1] % 256 == 0 else narrow)
        used.add(kind)
        made = raw_blocks(kind, array.shape) if kind in large else gguf.quants.quantize(array, kind)
        writer.add_tensor(name, made, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert used == {*simple, *large}
    path = tmp_path / "m.gguf"
    assert differing(trace(open_checkpoint(path)), reference(path, hidden_size=4 * HIDDEN)) == []


def test_several_files_of_projections_that_lie_apart(tmp_path: Path) -> None:
    whole = apart(tensors("phi3"))
    paths = write_parts(tmp_path, "phi3", whole, parts=3)
    checkpoint = open_checkpoint(paths[0])
    assert list(checkpoint.files) == paths
    assert differing(trace(checkpoint), reference(*paths)) == []


def test_the_window_of_early_phi3_files(tmp_path: Path) -> None:
    """Phi-3-mini-4k has 32 layers, 4,096 positions and a window of 2,047, which its first GGUF files do not mention."""
    fields = {"context_length": 4096, "block_count": 32}
    path = write(tmp_path / "m.gguf", "phi3", tensors("phi3", layers=32), Type.F16, fields)
    program = trace(open_checkpoint(path))
    sizes = {"num_hidden_layers": 32, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
    cases = [(7, 0, 1), (2, 2046, 1), (1, 2060, 1)]
    assert differing(program, reference(path, **sizes, sliding_window=2047), cases) == []
    assert "logits of (1, 2060, 1)" in differing(program, reference(path, **sizes, sliding_window=None), cases[2:])


ORIGINAL = 32
SHORT, LONG = (np.linspace(1, top, DIM // 2, dtype=np.float32) for top in (1.5, 40))
LONG_FIELDS = {
    "rope.scaling.original_context_length": ORIGINAL,
    "rope.scaling.attn_factor": math.sqrt(1 + math.log(CONTEXT / ORIGINAL) / math.log(ORIGINAL)),
}


def test_longrope(tmp_path: Path) -> None:
    factors = {"rope_factors_short.weight": SHORT, "rope_factors_long.weight": LONG}
    path = write(tmp_path / "m.gguf", "phi3", tensors("phi3") | factors, fields=LONG_FIELDS)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": SHORT.tolist(),
        "long_factor": LONG.tolist(),
    }
    rope["original_max_position_embeddings"] = ORIGINAL
    model = reference(path, rope_parameters=rope, original_max_position_embeddings=ORIGINAL)
    checkpoint = open_checkpoint(path)
    assert differing(trace(checkpoint), model, [(7, 0, 1), (5, 20, 1), (3, 50, 1), (1, 40, 2)]) == []
    # a llama's factors are read with the type alone
    fields = {**LONG_FIELDS, "rope.scaling.type": "longrope"}
    llama = open_checkpoint(write(tmp_path / "llama.gguf", "llama", tensors("llama") | factors, fields=fields))
    assert llama.config == checkpoint.config


def test_linear_scaling(tmp_path: Path) -> None:
    fields: dict[str, object] = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}
    path = write(tmp_path / "m.gguf", "llama", tensors("llama"), fields=fields)
    program = trace(open_checkpoint(path))
    rope = {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}
    assert differing(program, reference(path, rope_parameters=rope), [*CASES, (3, 125, 1)]) == []
    assert differing(program, reference(path)) != []


def test_rope_freqs_of_llama_3(tmp_path: Path) -> None:
    """Its factors are what transformers' own frequencies differ by from the plain ones."""
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, **numbers}
    config = LlamaConfig(hidden_size=HIDDEN, num_attention_heads=HEADS, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    freqs = (10000.0 ** -(torch.arange(0, DIM, 2) / DIM) / scaled).numpy()
    assert freqs.min() == 1.0
    assert 7.9 < freqs.max() < 8.1
    assert len(set(freqs.round(3))) > 2
    path = write(tmp_path / "m.gguf", "llama", tensors("llama") | {"rope_freqs.weight": freqs})
    assert differing(trace(open_checkpoint(path)), reference(path, rope_parameters=rope), [*CASES, (4, 120, 1)]) == []
