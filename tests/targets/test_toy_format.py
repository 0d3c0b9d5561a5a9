"""A format that the product does not know, from tests/helpers/toy_format.py: quantized, lowered, saved, read back, verified."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime")
from tiny_phi3 import normal
from toy_format import Toy2, TwoBits, register

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.precision import recorded_policy
from pocketphi.compiler.rebuild import rebuild
from pocketphi.graph.config import EMBEDDING
from pocketphi.graph.errors import CheckFailed, InputError
from pocketphi.passes.policy import Policy, Rule
from pocketphi.passes.quantizers import RoundToNearest, make_quantizer, recipes
from pocketphi.targets.ort_mobile.host import read_weights

OPTIONS = compile_options("random:tiny", Path(), recipe="rtn", block=32, verify="always")
RULES = [("model.layers.[02].mlp.*", TwoBits(32)), ("model.embed*", TwoBits(16)), ("*", RoundToNearest(32))]
POLICY = Policy(tuple(Rule(pattern, quantizer) for pattern, quantizer in RULES))


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return compile_model(replace(OPTIONS, out=tmp_path_factory.mktemp("toy") / "bundle", contents={}), policy=POLICY)


def test_by_its_definition() -> None:
    weight = TwoBits(16).quantize(normal(3, 64))
    for n in range(3):
        for k in range(64):
            value = int(weight.t2[n, k // 4]) >> 2 * (k % 4) & 3
            assert weight.dequantize()[n, k] == (value - 2) * weight.scale[n, k // 16]


def test_a_bundle(bundle: Bundle) -> None:
    """What ONNX Runtime makes of the files is what transformers' graph makes of the values that the weights stand for."""
    two = {weight for weight, saved in read_weights(bundle.path).items() if "t2" in saved.parts}
    mlps = {f"model.layers.{layer}.mlp.{name}_proj.weight" for layer in (0, 2) for name in ("gate_up", "down")}
    assert two == {EMBEDDING, *mlps}
    counts = {name: count for name, count in bundle.manifest.operators.items() if name.endswith(("toy2", "nbits"))}
    assert counts == {"edge.matmul_toy2": 4, "edge.embedding_toy2": 1, "edge.matmul_nbits": 9}
    verified = bundle.manifest.verification
    assert verified is not None
    assert verified.ok
    checked = {check.name: check.measured for check in verified.checks}
    assert checked["weights equal, bit for bit"] == 0
    assert checked["KL prefill, exact"] <= 1e-6


def test_the_manifest_says_what_its_other_fields_cannot(bundle: Bundle) -> None:
    recorded = json.loads((bundle.path / "manifest.json").read_bytes())["recipe"]["rules"]
    assert recorded[:2] == [
        {"pattern": "model.layers.[02].mlp.*", "format": "toy2", "recipe": "rtn", "parameters": {"block": 32}},
        {"pattern": "model.embed*", "format": "toy2", "recipe": "rtn", "parameters": {"block": 16}},
    ]
    assert recorded[2]["parameters"] == {"block": 32, "symmetric": True, "scale_bits": 16}
    again = recorded_policy(bundle.manifest.recipe, tied=False)
    assert [rule.quantizer.describe() for rule in again.rules] == [q.describe() for _, q in RULES]
    assert bundle.manifest.recipe.described() == "a mix of toy2 and int4 by 3 rules"
    with pytest.raises(CheckFailed, match=r"embed_tokens.weight is saved as toy2, its recipe makes it int4"):
        rebuild(bundle.path, replace(bundle.manifest.recipe, rules=()), read_weights(bundle.path))


def test_a_target_that_cannot_hold_it(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    message = "coreml: model.embed_tokens.weight is toy2, which the target cannot hold; choose another format"
    with pytest.raises(InputError, match=message):
        compile_model(replace(OPTIONS, out=tmp_path / "b", targets=("coreml",), contents={}), policy=POLICY)


def test_it_is_found_by_name() -> None:
    assert recipes("toy2") == ["rtn"]
    assert isinstance(make_quantizer("rtn", "toy2", {"block": 32}), TwoBits)
    with pytest.raises(InputError, match="--format toy2: --recipe keep keeps the file's blocks; choose rtn"):
        make_quantizer("keep", "toy2", {})
    with pytest.raises(InputError, match=r"rtn of toy2: symmetric is True, expected block only"):
        make_quantizer("rtn", "toy2", {"symmetric": True})
    with pytest.raises(InputError, match=r"rtn of toy2: block is 48, expected one of 0, 16, 32, 64, 128, 256"):
        make_quantizer("rtn", "toy2", {"block": 48})


def test_what_it_takes() -> None:
    parts = TwoBits(32).quantize(torch.ones(8, 64)).tensors()
    assert sum(tensor.nbytes for tensor in parts.values()) == sum(v.bytes for v in Toy2.layout((8, 64), 32).values())
