"""Budgets, policies and adapters on a GGUF file choose and round as on a folder of the values that gguf reads in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Type
from peft_adapters import save_adapter

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from tests.graph.test_gguf_file import write
from tests.graph.test_gguf_logits import reference, tensors

RULES = """
smooth = true
[[rules]]
pattern = "*down_proj*"
format = "int8"
recipe = "search"
block = 32
[[rules]]
pattern = "*"
format = "int4"
recipe = "search"
block = 16
"""


@pytest.mark.parametrize(
    ("arch", "kind", "given"),
    [
        ("phi3", Type.Q8_0, {"bits": 5.0, "lora": True}),
        ("phi3", Type.F16, {"max_bytes": 300_000}),
        ("llama", Type.Q4_1, {"policy": True}),
    ],
)
def test_the_same_weights_as_of_a_folder(arch: str, kind: Type, given: dict[str, Any], tmp_path: Path) -> None:
    file, folder, asked = write(tmp_path / "m.gguf", arch, tensors(arch), kind), tmp_path / "folder", dict(given)
    reference(file).save_pretrained(folder)
    if "lora" in asked:
        asked["lora"] = [str(save_adapter(folder, tmp_path / "adapter", target_modules="all-linear"))]
    if "policy" in asked:
        asked["policy"] = tmp_path / "rules.toml"
        asked["policy"].write_text(RULES, "utf-8")
    made = []
    for model in (file, folder):
        out = tmp_path / f"bundle-{model.name}"
        options = compile_options(str(model), out, cache=tmp_path / "cache", context=64, verify="never", **asked)
        compile_model(options)
        manifest = Bundle.open(out).manifest
        made.append((manifest.targets["ort-mobile"].weights, manifest.recipe.rules, manifest.recipe.expected))
    assert made[0] == made[1]
    assert len(made[0][0]) >= 11
