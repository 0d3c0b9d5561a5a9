"""A format that the product does not know, from tests/helpers/toy_format.py: quantized, lowered, saved, read back, verified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime")
from tiny_phi3 import normal
from toy_format import Int2, TwoBits, register

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import verify_folder
from pocketphi.graph.config import EMBEDDING
from pocketphi.graph.errors import CheckFailed, InputError
from pocketphi.passes.policy import Policy, Rule
from pocketphi.passes.quantizers import RoundToNearest, make_quantizer, recipes
from pocketphi.targets.ort_mobile.host import read_weights

OPTIONS = CompileOptions("random:tiny", Path(), recipe="rtn", block=32, verify="always")
POLICIES = {
    "everything": Policy.of(TwoBits(32)),
    "a mix": Policy((Rule("model.layers.[02].mlp.*", TwoBits(32)), Rule("*", RoundToNearest(32)))),
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def made(folder: Path, policy: Policy | None) -> Bundle:
    options = CompileOptions(**{**vars(OPTIONS), "out": folder / "bundle", "contents": {}})
    return compile_model(options, policy=policy)


def test_by_its_definition() -> None:
    weight = TwoBits(16).quantize(normal(3, 64))
    for n in range(3):
        for k in range(64):
            value = int(weight.q2[n, k // 4]) >> 2 * (k % 4) & 3
            assert weight.dequantize()[n, k] == (value - 2) * weight.scale[n, k // 16]


@pytest.mark.parametrize("name", POLICIES)
def test_a_bundle(tmp_path: Path, name: str) -> None:
    """What ONNX Runtime makes of the files is what transformers' graph makes of the values that the weights stand for."""
    bundle = made(tmp_path, POLICIES[name])
    two = {weight for weight, saved in read_weights(bundle.path).items() if "q2" in saved.parts}
    assert len(two) == (14 if name == "everything" else 4)
    assert (EMBEDDING in two) == (name == "everything")
    assert bundle.manifest.operators["edge.matmul_int2"] == (13 if name == "everything" else 4)
    assert bundle.manifest.verification is not None
    assert bundle.manifest.verification.ok
    checked = {check.name: check.measured for check in bundle.manifest.verification.checks}
    assert checked["weights equal, bit for bit"] == 0
    assert checked["KL prefill, exact"] <= 1e-6
    again = verify_folder(bundle.path, Bundle.open(bundle.path).manifest, Ui(), reference="random:tiny")
    assert again.ok


def test_the_manifest_says_what_its_other_fields_cannot(tmp_path: Path) -> None:
    bundle = made(tmp_path, POLICIES["a mix"])
    recorded = json.loads((bundle.path / "manifest.json").read_bytes())["recipe"]["rules"]
    assert recorded[0] == {
        "pattern": "model.layers.[02].mlp.*",
        "format": "int2",
        "recipe": "rtn",
        "parameters": {"block": 32},
    }
    assert recorded[1]["parameters"] == {"block": 32, "symmetric": True}
    assert bundle.manifest.recipe.described() == "a mix of int2 and int4 by 2 rules"
    other = verify_without_rules(bundle)
    with pytest.raises(CheckFailed, match=r"mlp.*weight is saved as int2, its recipe makes it int4"):
        verify_folder(bundle.path, other, Ui())


def verify_without_rules(bundle: Bundle):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(bundle.manifest, recipe=replace(bundle.manifest.recipe, rules=()))


def test_a_target_that_cannot_hold_it(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    options = CompileOptions(**{**vars(OPTIONS), "out": tmp_path / "b", "targets": ("coreml",), "contents": {}})
    message = "coreml: model.embed_tokens.weight is int2, which the target cannot hold; choose another format"
    with pytest.raises(InputError, match=message):
        compile_model(options, policy=POLICIES["everything"])


def test_it_is_found_by_name() -> None:
    assert recipes("int2") == ["rtn"]
    assert isinstance(make_quantizer("rtn", "int2", {"block": 32}), TwoBits)
    with pytest.raises(InputError, match="--int2: --recipe keep keeps the file's blocks; choose rtn"):
        make_quantizer("keep", "int2", {})
    with pytest.raises(InputError, match=r"rtn of int2: symmetric is True, expected block only"):
        make_quantizer("rtn", "int2", {"symmetric": True})
    with pytest.raises(InputError, match=r"rtn of int2: block is 48, expected one of 0, 16, 32, 64, 128, 256"):
        make_quantizer("rtn", "int2", {"block": 48})


def test_what_it_takes() -> None:
    parts = TwoBits(32).quantize(torch.ones(8, 64)).tensors()
    assert sum(tensor.nbytes for tensor in parts.values()) == sum(v.bytes for v in Int2.layout((8, 64), 32).values())
