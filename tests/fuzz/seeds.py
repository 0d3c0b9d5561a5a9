"""Good files to begin with, made when they are first asked for: tiny random models of every form."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketphi.graph.program import Program

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_SPECIAL = ["<unk>", "<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word")


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="pocketphi-fuzz-")


def place(name: str) -> Path:
    """A folder of this run."""
    path = Path(_root().name) / name
    path.mkdir(exist_ok=True)
    return path


@functools.cache
def checkpoint() -> Path:
    """A Hugging Face folder with a byte-level tokenizer of 256 tokens."""
    from pocketphi.graph.random_weights import PUBLISHED, RandomWeights
    from pocketphi.graph.write_checkpoint import write_checkpoint

    folder = place("checkpoint")
    write_checkpoint(RandomWeights("random:tiny", PUBLISHED["tiny"]), folder)
    for name, content in tokenizer_files().items():
        (folder / name).write_bytes(content)
    return folder


@functools.cache
def shards() -> Path:
    """The same weights in two files with an index."""
    from safetensors.torch import load_file, save_file

    folder = place("shards")
    for path in checkpoint().iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(checkpoint() / "model.safetensors")
    names = sorted(weights)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for name, held in parts.items():
        save_file({key: weights[key].contiguous() for key in held}, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": {key: name for name, held in parts.items() for key in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tokenizer_files() -> dict[str, bytes]:
    """As transformers writes them: every byte is a token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = sorted(bytes_to_unicode().values())[: 256 - len(_SPECIAL)]
    vocab = {token: i for i, token in enumerate([*_SPECIAL, *letters])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|end|>",
        "unk_token": {"__type": "AddedToken", "content": "<unk>"} | dict.fromkeys(_FLAGS, False),
        "chat_template": TEMPLATE,
    }
    files: dict[str, Any] = {
        "tokenizer_config.json": config,
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "<|end|>"},
        "generation_config.json": {"eos_token_id": [2, 0]},
    }
    return {"tokenizer.json": made.to_str().encode()} | {
        name: json.dumps(data).encode() for name, data in files.items()
    }


@functools.cache
def gguf_file() -> Path:
    """A folder with model.gguf: architecture phi3, one layer, a SentencePiece vocabulary."""
    import gguf
    import numpy as np

    folder, rng = place("gguf"), np.random.default_rng(0)
    tokens = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{i:02X}>", 6) for i in range(256)), ("<|end|>", 3)]
    tokens += [("<|user|>", 3), ("<|assistant|>", 3), ("▁a", 1), ("b", 1), ("▁", 1), ("a", 1)]
    writer = gguf.GGUFWriter(folder / "model.gguf", "phi3")
    fields = {"context_length": 128, "embedding_length": 64, "block_count": 1, "feed_forward_length": 96}
    fields |= {"rope.dimension_count": 16, "attention.head_count": 4, "attention.head_count_kv": 2}
    fields |= {"attention.sliding_window": 48}
    for key, value in fields.items():
        writer.add_uint32(f"phi3.{key}", value)
    writer.add_float32("phi3.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("phi3.rope.freq_base", 10000.0)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(tokens), 64), "output": (len(tokens), 64), "output_norm": (64,)}
    shapes |= {"blk.0.attn_norm": (64,), "blk.0.ffn_norm": (64,), "blk.0.attn_qkv": (128, 64)}
    shapes |= {"blk.0.attn_output": (64, 64), "blk.0.ffn_up": (192, 64), "blk.0.ffn_down": (64, 96)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


@functools.cache
def bundle() -> Path:
    """A bundle of the checkpoint for ONNX Runtime."""
    return _compiled("ort-mobile")


@functools.cache
def package() -> Path:
    """The same for Core ML."""
    return _compiled("coreml", chunk=16)


@functools.cache
def offsets() -> Path:
    """The first of these with a scale and an offset for each block, in units of rows."""
    return _compiled("ort-mobile", "-offsets", format="affine4", block=32, scale_bits=8)


def _compiled(target: str, kind: str = "", **options: Any) -> Path:
    from pocketphi.compiler.compile import compile_model
    from pocketphi.compiler.options import compile_options

    folder = Path(_root().name) / f"bundle-{target}{kind}"
    compile_model(compile_options(str(checkpoint()), folder, (target,), recipe="rtn", verify="never", **options))
    return folder


@functools.cache
def parameters() -> Path:
    """A bundle for TVM without its library, which takes long to build: model.json and the parameters that it names."""
    from tiny_phi3 import quantized

    return _described("parameters", quantized(symmetric=False))


@functools.cache
def parameters_with_offsets() -> Path:
    """The same in another format."""
    from tiny_phi3 import quantized_by

    from pocketphi.passes.quantizers import make_quantizer

    return _described("parameters-offsets", quantized_by(make_quantizer("rtn", "affine4", {"block": 32})))


def _described(name: str, program: Program) -> Path:
    from manifests import a_manifest

    from pocketphi.artifacts.bundle import write_manifest
    from pocketphi.targets.target import Asked
    from pocketphi.targets.tvm_arm.description import DESCRIPTION, PARAMS_FILE
    from pocketphi.targets.tvm_arm.kv_cache import KV_CACHES
    from pocketphi.targets.tvm_arm.package import describe
    from pocketphi.targets.tvm_arm.params import ParamsFile
    from pocketphi.targets.tvm_arm.platform import Platform

    folder, platform = place(name), Platform.of("linux", "dotprod")
    plan = ParamsFile.plan(program, platform.isa)
    written = plan.write(folder / PARAMS_FILE, lambda count: None)
    described = describe(program, platform, plan, written.sha256, Asked(), KV_CACHES["fp16"])
    (folder / DESCRIPTION).write_text(json.dumps(described))
    (folder / "config.json").write_text(json.dumps(program.config.to_hf()))
    write_manifest(folder, a_manifest({"tvm-arm": {"context": 128, "weights": written.digests}}))
    return folder


@functools.cache
def stub() -> Path:
    """A bundle with everything but a model: what `inspect`, `diff`, `sbom` and `integrate` read."""
    from manifests import MODEL, a_manifest

    from pocketphi.artifacts.bundle import write_manifest

    folder = place("stub")
    for name, content in {**tokenizer_files(), "config.json": (checkpoint() / "config.json").read_bytes()}.items():
        (folder / name).write_bytes(content)
    for name in ("model.onnx", "model.onnx.data", "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(1000))
    checks = [{"name": "KL prefill", "measured": 1e-9, "bound": 1e-6, "ok": True, "detail": "65 positions"}]
    verified = {"ok": True, "checks": checks, "quantization_error": {"kl": 0.1, "top1": 0.9, "tokens": 100.0}}
    targets = {
        "ort-mobile": {"accuracy_level": 4},
        "coreml": {"context": 128, "chunk": 16, "cache_rows": 128, "flavor": "functions"},
    }
    model = {**MODEL, "parameters": 143808, "layers": 3}
    write_manifest(folder, a_manifest(targets, model=model, verification=verified))
    return folder


BUILD_FILE = """[build]
out = "out"
cache = "c"
device = "pixel-8"
[models]
tiny = "random:tiny"
own = "../checkpoint"
[targets.ort-mobile]
context = 128
ort_file = false
max_bytes = "5MB"
verify = "auto"
[targets.coreml]
chunk = 16
attention = "sdpa"
[recipes.search]
block = 32
calibration_tokens = 64
[recipes.rtn]
recipe = "rtn"
symmetric = false
[gates]
max_bytes = "10MB"
kl = 0.5
[gates.coreml]
lowering = 1e-3
[measure]
tokens = 100
window = 50
"""

DEVICES = """[defaults.ios]
sources = ["ram: x"]
[phone]
title = "Phone"
platform = "ios"
ram = "8GB"
app = 4000000000
bandwidth = 5e10
features = ["dotprod"]
sources = ["ram: y"]
estimates = ["app: z"]
"""


@functools.cache
def build_file() -> Path:
    return _text("pocketphi.toml", BUILD_FILE)


@functools.cache
def devices() -> Path:
    return _text("devices.toml", DEVICES)


def _text(name: str, content: str) -> Path:
    """A folder with one file."""
    folder = place(name.replace(".", "-"))
    (folder / name).write_text(content, "utf-8")
    return folder


@functools.cache
def rows() -> Path:
    """Some rows of the shared tuning database."""
    from pocketphi.targets.tvm_arm.tune import database

    return _text("rows.jsonl", "".join(database.SHARED.read_text("utf-8").splitlines(keepends=True)[:12]))


@functools.cache
def signed() -> Path:
    """A signed stub, and its keys beside it."""
    import shutil

    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from pocketphi.artifacts.signature import sign_bundle

    folder = place("signed")
    shutil.copytree(stub(), folder / "bundle")
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    pem = private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    (folder / "private.pem").write_bytes(pem)
    public = private.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)
    sign_bundle(folder / "bundle", pem, "private.pem")
    return folder


@functools.cache
def cache() -> Path:
    """The int4 cache after a calibrated compile: weights, and the list of a run."""
    from pocketphi.compiler.compile import compile_model
    from pocketphi.compiler.options import compile_options

    folder = place("cache")
    out = Path(_root().name) / "searched"
    compile_model(
        compile_options("random:tiny", out, recipe="search", calibration_tokens=64, verify="never", cache=folder)
    )
    return folder


@functools.cache
def graphs() -> Path:
    """The cache after the plan of a compile: the traced graph and the fused one."""
    from pocketphi.compiler.known_graphs import KnownGraphs
    from pocketphi.graph.opening import open_checkpoint

    folder = place("graphs")
    KnownGraphs(open_checkpoint("random:tiny"), folder).fused(None)
    return folder


@functools.cache
def index() -> Path:
    """An index of a few documents."""
    from pocketphi.artifacts.retrieval.index import write_index
    from pocketphi.artifacts.retrieval.passages import passages_of

    folder = place("index")
    texts = [f"# Boats {i}\n\nThe price of a small boat is {i},000. 東京都 {i}.\n" for i in range(20)]
    write_index(
        folder / "documents", (one for i, text in enumerate(texts) for one in passages_of(f"{i}.md", text)), "0"
    )
    return folder
