"""Every reader of a file that somebody else may have written, with what is tried on it."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import kept, seeds
from tests.fuzz import model_seeds as models
from tests.fuzz import mutate as m
from tests.fuzz.harness import Files, Reader

MANIFEST = "manifest.json"
TEXT = "Hello, you. " * 3


def command(*arguments: object) -> None:
    """A command of ours, whose exceptions come through."""
    parsed = _parser().parse_args([str(argument) for argument in arguments])
    parsed.run(parsed)


@functools.cache
def _parser() -> argparse.ArgumentParser:
    from pocketphi.compiler.cli import parser

    return parser()


def one_of(**files: m.Mutator) -> Callable[[Random, Files], Files]:
    """One of these files, spoiled. files: name, with `__` for a dot and `___` for a slash → how."""
    named = {name.replace("___", "/").replace("__", "."): way for name, way in files.items()}

    def spoil(rng: Random, base: Files) -> Files:
        name = rng.choice(list(named))
        return {name: named[name](rng, base[name])}

    return spoil


def resealed(spoil: Callable[[Random, Files], Files], folder: str = "") -> Callable[[Random, Files], Files]:
    """The manifest names the spoiled file with its new size and digest, and is sealed again."""

    def sealed(rng: Random, base: Files) -> Files:
        changed = spoil(rng, base)
        manifest = json.loads(base[folder + MANIFEST])
        for name, content in changed.items():
            digest = hashlib.sha256(content).hexdigest()
            manifest["files"][name.removeprefix(folder)] = {"bytes": len(content), "sha256": digest}
        return {**changed, folder + MANIFEST: _sealed(manifest)}

    return sealed


def manifests(rng: Random, base: Files) -> Files:
    """The manifest itself: its entries, mostly sealed again, or its bytes."""
    if rng.random() < 0.12:
        return {MANIFEST: m.anything(rng, base[MANIFEST])}
    manifest = m.json_value(rng, {k: v for k, v in json.loads(base[MANIFEST]).items() if k != "sha256"})
    return {MANIFEST: _sealed(manifest) if rng.random() < 0.9 else m.dumped(manifest)}


def _sealed(manifest: Any) -> bytes:
    from pocketphi.artifacts.bundle import seal

    return seal(m.dumped(manifest).removesuffix(b"}"))


def _diff(folder: Path) -> None:
    command("diff", seeds.stub(), folder)
    command("diff", folder, seeds.stub(), "--json")


def _sbom(folder: Path) -> None:
    """Without a look at the files, at which most spoiled manifests would end."""
    from pocketphi.artifacts.bundle import Bundle
    from pocketphi.artifacts.sbom import sbom

    sbom(Bundle.open(folder, check=False))


def _integrate(folder: Path) -> None:
    """A kit for each platform, but for its test vectors, which do not depend on the manifest and take most of the time."""
    from pocketphi.artifacts.bundle import Bundle
    from pocketphi.artifacts.kits.chat_format import read_chat_format
    from pocketphi.artifacts.kits.fill import fill
    from pocketphi.compiler import integrate as kits
    from pocketphi.graph.tokenizer import Tokenizer

    bundle = Bundle.open(folder)
    tokenizer = Tokenizer.load(folder)
    chat = read_chat_format(lambda messages: kits._render(tokenizer, messages))
    name = kits._module_name(bundle.manifest.source.model)
    kits._check_names(name, f"com.example.{name.lower()}")
    for platform in ("ios", "android"):
        target, kit = kits._choose(bundle, platform, None)
        values = kits._values(bundle, target, kit, chat, tokenizer, None)
        fill(kit.folders, values | {"name": name, "package": f"com.example.{name.lower()}"})


def _chat(folder: Path) -> None:
    command("chat", folder, "--prompt", "hi", "--max-tokens", "24", "--threads", "1")


def _eval(folder: Path) -> None:
    from pocketphi.compiler.evaluate import evaluate_model
    from pocketphi.compiler.ui import Ui

    evaluate_model(str(folder), TEXT, 24, 12, None, Ui())


def _weights(target: str) -> Callable[[Path], None]:
    """Open a bundle's files as a host does, and read every weight as verification does."""

    def read(folder: Path) -> None:
        from pocketphi.artifacts.bundle import Bundle
        from pocketphi.compiler.hosts import open_host
        from pocketphi.graph.lazy_weights import digest, materialize

        for weight in open_host(folder, Bundle.open(folder).manifest, target).weights().values():
            digest(materialize(weight))

    return read


def _tune(folder: Path) -> None:
    """model.json as tuning reads it too."""
    from pocketphi.targets.tvm_arm.tune.search import forms_of
    from pocketphi.targets.tvm_arm.tune.tune import _host

    _weights("tvm-arm")(folder)
    host = _host(folder)
    assert host.kv_cache
    forms_of(host.described)


def _rows(folder: Path) -> None:
    from pocketphi.targets.tvm_arm.platform import Platform
    from pocketphi.targets.tvm_arm.tune.database import Tuning, read, write

    path = folder / "rows.jsonl"
    tuning = Tuning(Platform.of("linux", "dotprod"), path)
    tuning.used(tuning.schedules)
    tuning.notes([])
    write(folder / "again", read(path))


def _devices(folder: Path) -> None:
    command("devices", "--devices", folder / "devices.toml")
    command("devices", "random:tiny", "--devices", folder / "devices.toml", "--device", "phone")


_signature = one_of(bundle___manifest__sig=m.anything, private__pem=m.anything, public__pem=m.anything)
_tokenizers = one_of(
    tokenizer__json=m.json_file, tokenizer_config__json=m.json_file, special_tokens_map__json=m.json_file
)


def _build(folder: Path) -> None:
    command("build", folder / "pocketphi.toml", "--list")


def _signatures(folder: Path) -> None:
    from pocketphi.artifacts.signature import check_signature, private_key

    private_key((folder / "private.pem").read_bytes(), "private.pem")
    check_signature(folder / "bundle", folder / "public.pem")
    command("verify", folder / "bundle", "--files-only", "--key", folder / "public.pem")


def _checkpoint(folder: Path) -> None:
    """Open a model, read every tensor, and build its tokenizer."""
    from pocketphi.graph.opening import open_checkpoint
    from pocketphi.graph.tokenizer import Tokenizer

    source = open_checkpoint(str(folder))
    for name, info in source.tensors.items():
        source.read(name, 0, min(info.rows, 4))
    _speak(Tokenizer.from_files(source.tokenizer_files()))


def _checked(folder: Path) -> None:
    """What a compile asks of a model before its work: the libraries of other people read the same files."""
    from pocketphi.compiler.source_check import reading_checks
    from pocketphi.compiler.text_check import check_text
    from pocketphi.graph.opening import open_checkpoint

    source = open_checkpoint(str(folder))
    check_text(source, ["ort-mobile"])
    reading_checks(source)


def _tokenizer(folder: Path) -> None:
    from pocketphi.graph.tokenizer import Tokenizer

    _speak(Tokenizer.load(folder))


def _speak(tokenizer: Any) -> None:
    ids = tokenizer.encode("Hello, é 12  x\n")
    stream = tokenizer.stream()
    for token in ids:
        stream.step(token)
    stream.finish()
    tokenizer.encode_chat([{"role": "system", "content": "s"}, {"role": "user", "content": " hi "}])


def _template(rng: Random, base: Files) -> Files:
    config = json.loads(base["tokenizer_config.json"])
    config["chat_template"] = m.template(rng, config["chat_template"].encode()).decode(errors="replace")
    return {"tokenizer_config.json": json.dumps(config).encode()}


def _package(folder: Path) -> None:
    command("run-mlpackage", folder / "model.mlpackage", "--function", "decode", "--threads", "1")


def _packages(rng: Random, base: Files) -> Files:
    root = "model.mlpackage/"
    ways = {
        f"{root}Manifest.json": m.json_file,
        f"{root}Data/com.apple.CoreML/model.mlmodel": m.protobuf,
        f"{root}Data/com.apple.CoreML/weights/weight.bin": m.header(4000),
    }
    name = rng.choice(list(ways))
    return {name: ways[name](rng, base[name])}


def _cached(rng: Random, base: Files) -> Files:
    """Of a run's list of its weights, or of a weight."""
    kind = rng.choice([".run", ".safetensors"])
    name = rng.choice([name for name in base if name.endswith(kind)])
    return {name: (m.header(4000) if kind == ".run" else m.safetensors)(rng, base[name])}


def _cache(folder: Path) -> None:
    """The part of a calibrated compile that reads its weights from the cache. What is damaged is made again, which counts as
    refused here; the weights are the right ones in any case."""
    from pocketphi.compiler.compile import calibrate
    from pocketphi.compiler.precision import asked_policy
    from pocketphi.compiler.ui import Ui
    from pocketphi.graph.errors import InputError
    from pocketphi.graph.lazy_weights import digest, materialize

    class Said(Ui):
        def say(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    program, source, options = _traced()
    options = dataclasses.replace(options, cache=folder)
    policy = asked_policy(options, source.config.tied_embeddings)
    made = calibrate(program, source, policy, lambda: lambda name: None, options, Said())
    digests = {name: digest(materialize(weight)) for name, weight in made.items()}
    assert _GOOD.setdefault("int4", digests) == digests
    if not any(line.startswith("int4 weights: 0 computed") for line in said):
        raise InputError("some weights were computed again")


_GOOD: dict[str, dict[str, str]] = {}
"""The digests of the weights that the good cache gives, which is read first."""


@functools.cache
def _traced() -> Any:
    """What comes before the cache: it does not depend on it, and takes most of the time."""
    from pocketphi.compiler.compile import build_program
    from pocketphi.compiler.known_graphs import KnownGraphs
    from pocketphi.compiler.options import compile_options
    from pocketphi.compiler.ui import Ui
    from pocketphi.graph.hashed import HashedCheckpoint
    from pocketphi.graph.opening import open_checkpoint

    options = compile_options("random:tiny", Path("-"), recipe="search", calibration_tokens=64)
    source = HashedCheckpoint(open_checkpoint(options.model))
    return build_program(source, KnownGraphs(source, None), options, Ui())[0], source, options


def _graph(folder: Path) -> None:
    """Both graphs of a model from the cache. What is not there would be traced, which counts as refused here."""
    from unittest.mock import patch

    from pocketphi.compiler import known_graphs
    from pocketphi.graph.errors import InputError
    from pocketphi.graph.opening import open_checkpoint

    with patch.object(known_graphs, "trace_apart", side_effect=InputError("it would be traced again")):
        graphs = known_graphs.KnownGraphs(open_checkpoint("random:tiny"), folder)
        graphs.fused(None)
        graphs.traced.dump()


def _adapted(folder: Path) -> None:
    """Both adapters, one and a half times the second; every row is merged a second time by numpy."""
    from pocketphi.compiler.source_check import reading_checks, require
    from pocketphi.graph.lora.named import parse_lora
    from pocketphi.graph.opening import open_checkpoint

    source = open_checkpoint(str(folder / "base"), [parse_lora(str(folder / name)) for name in ("low", "some")])
    for name, info in source.tensors.items():
        source.read(name, 0, min(info.rows, 4))
    require(reading_checks(source))


def _packed(folder: Path) -> None:
    """Blocks that are taken over have the values that are read, to the bit where nothing says otherwise."""
    from pocketphi.compiler.source_check import reading_checks, require
    from pocketphi.graph.opening import open_checkpoint

    source = open_checkpoint(str(folder))
    for name, info in source.tensors.items():
        rows = source.read(name, 0, min(info.rows, 4)).float()
        if source.kept(name) and not source.check_kept(name):
            assert source.read_kept(name, 0, min(info.rows, 4)).dequantize().equal(rows), name
    require(reading_checks(source))


def _quantization(rng: Random, base: Files) -> Files:
    """The settings of the quantization, the whole config, or the tensors."""
    way = rng.random()
    if way < 0.3:
        return {"model.safetensors": m.safetensors(rng, base["model.safetensors"])}
    config = json.loads(base["config.json"])
    if way < 0.9:
        for key in config.keys() & {"quantization", "quantization_config"}:
            config[key] = m.json_value(rng, config[key])
        return {"config.json": m.dumped(config)}
    return {"config.json": m.json_file(rng, base["config.json"])}


def _policy(folder: Path) -> None:
    from pocketphi.compiler.options import compile_options
    from pocketphi.compiler.policy_file import check_policy, read_policy
    from pocketphi.graph.opening import open_checkpoint

    for name in ("policy.toml", "policy.json"):
        options = compile_options("random:tiny", Path("-"), policy=folder / name)
        check_policy(read_policy(options), open_checkpoint("random:tiny").config, options)


def _searched(folder: Path) -> None:
    command("search", folder / "documents", "the price of a small boat, 東京")


def _switched_ort(folder: Path) -> None:
    from pocketphi.graph.published import PUBLISHED
    from pocketphi.targets.ort_mobile.adapter_file import read_adapter

    held = read_adapter(folder / "fr.onnx_adapter", PUBLISHED["tiny"])
    for weight in held.ranks:
        held.read(weight)


def _switched_tvm(folder: Path) -> None:
    from pocketphi.graph.published import PUBLISHED
    from pocketphi.targets.tvm_arm.adapter_file import read_adapter

    held = read_adapter(folder / "fr.tvm_adapter", PUBLISHED["tiny"], models.SWITCHED, models.DIGEST)
    for weight in held.ranks:
        held.read(weight)


_adapters = one_of(
    **{f"{name}___adapter_config__json": m.json_file for name in ("low", "some")},
    **{f"{name}___adapter_model__safetensors": m.safetensors for name in ("low", "some")},
)
_parts = one_of(**{f"m-0000{i}-of-00003__gguf": m.header(4000) for i in (1, 2, 3)})
_TOOLS = {"GPTQ": "gptq-4-desc_act-llama", "AWQ": "awq-gemm-llama", "compressed-tensors": "ct-4-asym-phi3"}
_TOOLS |= {"MLX": "mlx-mixed-llama", "auto-round": "auto-round-mixed-llama"}
_ORT, _TVM, _COREML = ("onnxruntime",), ("tvm",), ("coremltools",)
READERS = [
    Reader("manifest, inspect", seeds.stub, manifests, lambda folder: command("inspect", folder)),
    Reader("manifest, verify", seeds.stub, manifests, lambda folder: command("verify", folder, "--files-only")),
    Reader("manifest, diff", seeds.stub, manifests, _diff),
    Reader("manifest, sbom", seeds.stub, manifests, _sbom, needs=("cyclonedx",)),
    Reader("manifest, integrate", seeds.stub, manifests, _integrate),
    Reader("genai_config.json", seeds.bundle, resealed(one_of(genai_config__json=m.json_file)), _chat, needs=_ORT),
    Reader("model.onnx, chat", seeds.bundle, resealed(one_of(model__onnx=m.protobuf)), _chat, needs=_ORT),
    Reader("model.onnx, eval", seeds.bundle, resealed(one_of(model__onnx=m.protobuf)), _eval, needs=_ORT),
    Reader(
        "model.onnx, weights",
        seeds.bundle,
        resealed(one_of(model__onnx=m.protobuf)),
        _weights("ort-mobile"),
        needs=_ORT,
    ),
    Reader(
        "model.onnx, offsets",
        seeds.offsets,
        resealed(one_of(model__onnx=m.protobuf)),
        _weights("ort-mobile"),
        needs=_ORT,
    ),
    Reader(
        "model.json, offsets",
        seeds.parameters_with_offsets,
        resealed(one_of(model__json=m.json_file)),
        _weights("tvm-arm"),
        needs=_TVM,
    ),
    Reader("model.json", seeds.parameters, resealed(one_of(model__json=m.json_file)), _tune, needs=_TVM),
    Reader("pocketphi.toml", seeds.build_file, one_of(pocketphi__toml=m.toml_file), _build),
    Reader("devices.toml", seeds.devices, one_of(devices__toml=m.toml_file), _devices),
    Reader("tuning rows", seeds.rows, one_of(rows__jsonl=m.json_lines), _rows, needs=_TVM),
    Reader("signatures and keys", seeds.signed, _signature, _signatures, needs=("cryptography",)),
    Reader("config.json", seeds.checkpoint, one_of(config__json=m.json_file), _checkpoint),
    Reader("config.json of a bundle", seeds.bundle, resealed(one_of(config__json=m.json_file)), _chat, needs=_ORT),
    Reader("generation_config.json", seeds.checkpoint, one_of(generation_config__json=m.json_file), _checkpoint),
    Reader("index", seeds.shards, one_of(model__safetensors__index__json=m.json_file), _checkpoint),
    Reader("safetensors", seeds.checkpoint, one_of(model__safetensors=m.safetensors), _checkpoint),
    Reader("tokenizer files", seeds.checkpoint, _tokenizers, _tokenizer),
    Reader("chat template", seeds.checkpoint, _template, _tokenizer),
    Reader("GGUF", seeds.gguf_file, one_of(model__gguf=m.header(8000)), lambda f: _checkpoint(f / "model.gguf")),
    Reader("GGUF, checked", seeds.gguf_file, one_of(model__gguf=m.header(8000)), lambda f: _checked(f / "model.gguf")),
    Reader("safetensors, checked", seeds.checkpoint, one_of(model__safetensors=m.safetensors), _checked),
    Reader("tokenizer files, checked", seeds.checkpoint, _tokenizers, _checked),
    Reader("mlpackage", seeds.package, _packages, _package, True, _COREML),
    Reader("mlpackage, weights", seeds.package, resealed(_packages), _weights("coreml"), True, _COREML),
    Reader("int4 cache", seeds.cache, _cached, _cache),
    Reader("graph cache", seeds.graphs, kept.sealed(), _graph),
    Reader("adapters", models.adapters, _adapters, _adapted, needs=("peft",)),
    *(Reader(tool, models.packed(name), _quantization, _packed) for tool, name in _TOOLS.items()),
    Reader("tiktoken", models.tiktoken, one_of(cl100k_base__tiktoken=m.tiktoken), _checked),
    Reader(
        "adapter of ONNX Runtime",
        functools.partial(models.switched, "ort-mobile"),
        one_of(fr__onnx_adapter=m.header(2000)),
        _switched_ort,
        needs=_ORT,
    ),
    Reader(
        "adapter of TVM",
        functools.partial(models.switched, "tvm-arm"),
        one_of(fr__tvm_adapter=m.header(400)),
        _switched_tvm,
    ),
    Reader("GGUF in parts", models.parts, _parts, lambda f: _checked(f / "m-00001-of-00003.gguf")),
    Reader("policies", models.policies, one_of(policy__toml=m.toml_file, policy__json=m.json_file), _policy),
    Reader("index of documents", seeds.index, one_of(documents=m.anything), _searched),
    Reader("policy of a manifest", models.ruled, manifests, lambda folder: command("inspect", folder, "--policy")),
    Reader("kept sensitivities", kept.answers, kept.sealed("sensitivity-"), kept.sensitivities),
    Reader("kept channels", kept.answers, kept.sealed("smoothing-"), kept.channels),
    Reader("kept texts", kept.answers, kept.sealed("text-"), kept.texts),
    Reader("stopped calibration", kept.stopped, kept.streams, kept.read_stopped),
]
"""The suite asks for those that are `required`; the others are tried by hand until their readers keep the rules."""
