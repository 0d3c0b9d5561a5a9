"""Good files of models that tools have changed: adapters, packed weights, vocabularies of tiktoken, GGUF in parts, policies."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz import seeds

_DATA = Path(__file__).parents[1] / "data" / "packed"


@functools.cache
def adapters() -> Path:
    """A base, and two adapters that PEFT has saved for it: of every kind of change, between them."""
    from peft_adapters import save_adapter

    folder = seeds.place("adapters")
    shutil.copytree(seeds.checkpoint(), folder / "base")
    whole: dict[str, Any] = {"modules_to_save": ["lm_head"], "trainable_token_indices": [3, 77, 255]}
    kinds: dict[str, dict[str, Any]] = {
        "low": {"target_modules": "all-linear", "use_dora": True, "rank_pattern": {"o_proj": 2}},
        "some": {"target_modules": ["qkv_proj"], "alpha_pattern": {"qkv_proj": 3}, "use_rslora": True, **whole},
    }
    for name, settings in kinds.items():
        save_adapter(folder / "base", folder / name, **settings)
        (folder / name / "README.md").unlink(missing_ok=True)
    return folder


def packed(name: str) -> Callable[[], Path]:
    """A checkpoint that a tool has packed, with a tokenizer of ours."""

    @functools.cache
    def made() -> Path:
        folder = seeds.place(name)
        for file in ("config.json", "model.safetensors"):
            shutil.copyfile(_DATA / name / file, folder / file)
        return folder

    return made


@functools.cache
def tiktoken() -> Path:
    """A Phi-3-small with a small vocabulary: 160 tokens beside the 96 special ones."""
    from small_folders import save
    from tiktoken_files import SPECIAL, add_tiktoken, trained

    folder = seeds.place("tiktoken")
    ranks = trained(["the cat in the hat, and the other cat " * 5], 300)
    save(folder, vocab_size=len(ranks) + SPECIAL)
    return add_tiktoken(folder, ranks)


@functools.cache
def parts() -> Path:
    """The GGUF file of `seeds.gguf_file` in three parts, as the gguf library splits it."""
    import gguf

    folder, reader = seeds.place("parts"), gguf.GGUFReader(seeds.gguf_file() / "model.gguf")
    writer = gguf.GGUFWriter(folder / "m.gguf", "phi3", split_max_tensors=-(-len(reader.tensors) // 3))
    for key, held in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            of = held.types[-1] if held.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, held.contents(), held.types[0], sub_type=of)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file(folder / "m.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


POLICY = """smooth = false
[[rules]]
pattern = "model.layers.*.mlp.down_proj.weight"
format = "int8"
recipe = "rtn"
block = 64
[[rules]]
pattern = "model.layers.[01].*"
format = "int4"
recipe = "search"
block = 16
scale_bits = 8
symmetric = false
[[rules]]
pattern = "*"
format = "int4"
recipe = "search"
block = 32
"""


@functools.cache
def policies() -> Path:
    """The same rules in TOML and in JSON."""
    import tomllib

    folder = seeds.place("policies")
    (folder / "policy.toml").write_text(POLICY, "utf-8")
    (folder / "policy.json").write_text(json.dumps(tomllib.loads(POLICY)), "utf-8")
    return folder


@functools.cache
def ruled() -> Path:
    """The bundle of `seeds.stub` with such rules in its manifest."""
    import tomllib

    from manifests import MODEL, a_manifest

    from pocketphi.artifacts.bundle import write_manifest

    folder = seeds.place("ruled")
    for path in seeds.stub().iterdir():
        if path.suffix == ".json" and path.name != "manifest.json":
            shutil.copyfile(path, folder / path.name)
    rules = [
        {key: rule.pop(key) for key in ("pattern", "format", "recipe")} | {"parameters": rule}
        for rule in tomllib.loads(POLICY)["rules"]
    ]
    write_manifest(folder, a_manifest({"ort-mobile": {}}, model={**MODEL, "layers": 3}, recipe={"rules": rules}))
    return folder


SWITCHED = ("model.layers.0.self_attn.qkv_proj.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight")
"""Weights that may have an adapter. The middle one has none."""
DIGEST = "ab" * 32


@functools.cache
def switched(target: str) -> Path:
    """Files of an adapter that is switched at run time, for random:tiny."""
    import torch

    from pocketphi.graph.adapters import shape_of
    from pocketphi.graph.published import PUBLISHED
    from pocketphi.targets.ort_mobile import adapter_file as of_ort
    from pocketphi.targets.tvm_arm import adapter_file as of_tvm

    class Some:
        @property
        def ranks(self) -> dict[str, int]:
            return {SWITCHED[0]: 3, SWITCHED[2]: 8}

        def read(self, weight: str) -> tuple[torch.Tensor, torch.Tensor]:
            rows, columns = shape_of(PUBLISHED["tiny"], weight)
            return torch.ones(columns, self.ranks[weight]), torch.ones(self.ranks[weight], rows)

    folder = seeds.place(f"switched-{target}")
    if target == "tvm-arm":
        of_tvm.write_adapter(folder / "fr.tvm_adapter", Some(), SWITCHED, DIGEST)
    else:
        of_ort.write_adapter(folder / "fr.onnx_adapter", Some())
    return folder
