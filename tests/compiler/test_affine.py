"""Blocks with offsets, from options to the files of three targets: the same weights, verified, and changes are found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.rounding_check import rounding_check
from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.lazy_weights import Constant
from pocketphi.graph.opening import open_checkpoint
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantizers import make_quantizer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("coremltools")
pytest.importorskip("tvm")

from loaded_graph import graph_as_loaded  # noqa: E402 - only where onnx is installed

from pocketphi.targets.ort_mobile.host import read_weights  # noqa: E402 - only where onnx is installed
from pocketphi.targets.ort_mobile.lower import Emitter  # noqa: E402

TARGETS = ("ort-mobile", "coreml", "tvm-arm")
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module", params=[16, 8])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three targets, whose verification is part of the compile."""
    out = tmp_path_factory.mktemp("affine") / "bundle"
    said: dict[str, Any] = {"recipe": "rtn", "format": "affine4", "block": 32, "scale_bits": request.param}
    compile_model(compile_options("random:tiny", out, TARGETS, **said, os="host", verify="always"))
    return out


def test_three_targets_hold_the_same_weights(bundle: Path) -> None:
    manifest = Bundle.open(bundle, check=True).manifest
    assert manifest.verified
    assert manifest.recipe.described().startswith("affine4 rtn, block 32, with offsets")
    digests = [{n: d for n, d in one.weights.items() if "rope" not in n} for one in manifest.targets.values()]
    assert len(digests[0]) == 21
    assert digests == digests[:1] * 3  # rotary tables are as long as each target wants them


def test_onnx_runtime_makes_floats_of_offsets_when_it_loads_a_model(bundle: Path, tmp_path: Path) -> None:
    before = onnx.load(bundle / "model.onnx", load_external_data=False)
    bits = Bundle.open(bundle).manifest.recipe.scale_bits
    stored = {t.data_type for t in before.graph.initializer if t.name.endswith(".offset")}
    assert stored == {onnx.TensorProto.INT8 if bits == 8 else onnx.TensorProto.FLOAT}
    after = graph_as_loaded(bundle / "model.onnx", tmp_path)
    made = {name for node in after.node for name in node.output}
    products = [node for node in after.node if node.name.endswith("_offsets") and node.op_type != "Gather"]
    assert len(products) == 13  # all but the embedding
    assert [node.name for node in products if node.input[1] in made] == []


def test_a_changed_offset_is_found(bundle: Path, tmp_path: Path) -> None:
    """By comparison with the model's own values, which needs no digest."""
    source = open_checkpoint("random:tiny")
    bits = Bundle.open(bundle).manifest.recipe.scale_bits
    policy = Policy.of(make_quantizer("rtn", "affine4", {"block": 32, "scale_bits": bits}))
    weights = {name: one for name, one in read_weights(bundle).items() if not isinstance(one, Constant)}
    weights = {name: one for name, one in weights.items() if name in source.tensors}
    assert rounding_check(weights, source, policy).ok

    graph = onnx.load(bundle / "model.onnx", load_external_data=False)
    offset = next(t for t in graph.graph.initializer if t.name == f"{DOWN}.offset")
    where = int(next(entry.value for entry in offset.external_data if entry.key == "offset"))
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    if bits == 8:
        data[where] ^= 0x20
    else:
        value = np.frombuffer(data, np.float32, 1, where)[0]
        data[where : where + 4] = np.float32(value + 0.25).tobytes()
    (tmp_path / "model.onnx.data").write_bytes(data)
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    weights[DOWN] = read_weights(tmp_path)[DOWN]
    found = rounding_check(weights, source, policy)
    assert not found.ok
    assert DOWN in found.detail


def renamed(graph: Any, part: str) -> None:
    for tensor in graph.graph.initializer:
        tensor.name = tensor.name.replace(f"{DOWN}.{part}", f"{DOWN}.other")
    for node in graph.graph.node:
        names = [name.replace(f"{DOWN}.{part}", f"{DOWN}.other") for name in node.input]
        del node.input[:]
        node.input.extend(names)


def turned(graph: Any, part: str) -> None:
    tensor = next(t for t in graph.graph.initializer if t.name == f"{DOWN}.{part}")
    tensor.dims.reverse()


@pytest.mark.parametrize("change", [renamed, turned])
@pytest.mark.parametrize("part", ["scale", "offset", "row_scale", "row_offset"])
def test_parts_that_are_no_weight_are_refused(
    bundle: Path, part: str, change: Callable[[Any, str], None], tmp_path: Path
) -> None:
    graph = onnx.load(bundle / "model.onnx", load_external_data=False)
    if f"{DOWN}.{part}" not in {tensor.name for tensor in graph.graph.initializer}:
        pytest.skip("scales of 16 bits have no units")
    change(graph, part)
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    (tmp_path / "model.onnx.data").write_bytes((bundle / "model.onnx.data").read_bytes())
    with pytest.raises(InputError, match=r"down_proj.weight' has .*; copy or compile it again"):
        read_weights(tmp_path)


def test_an_embedding_with_offsets_beside_guesses(tmp_path: Path) -> None:
    """Both make values of their own in the graph, whose names must differ."""
    said: dict[str, Any] = {"recipe": "rtn", "format": "affine4", "block": 32, "drafts": True}
    made = compile_model(compile_options("random:tiny", tmp_path / "b", ("ort-mobile",), **said, verify="always"))
    assert made.manifest.verified


def test_two_values_of_one_name_are_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Emitter, "turned", lambda self, weight: self.emit("Transpose", [weight], ["same"], perm=[1, 0]))
    said: dict[str, Any] = {"recipe": "rtn", "format": "affine4", "block": 32, "verify": "never"}
    with pytest.raises(CompilerBug, match="two values of the graph are called same"):
        compile_model(compile_options("random:tiny", tmp_path / "b", ("ort-mobile",), **said))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("ios", [18, 26])
def test_search_for_both_releases_of_core_ml(ios: int, tmp_path: Path) -> None:
    said: dict[str, Any] = {"recipe": "search", "format": "affine4", "block": 16, "scale_bits": 8, "ios": ios}
    options = compile_options(
        "random:tiny", tmp_path / "b", ("coreml",), **said, verify="always", calibration_tokens=256
    )
    manifest = compile_model(options).manifest
    assert manifest.verified
    assert manifest.recipe.described() == "affine4 search, block 16, with offsets, scales of 8 bits"


def test_a_weight_on_a_grid_with_minimums_comes_back(tmp_path: Path) -> None:
    """As files of GGUF's Q4_1 or MLX have it: nothing is lost by rounding it once more."""
    q = torch.randint(0, 16, (8, 4, 32), generator=torch.Generator().manual_seed(0)).float()
    q[..., 0], q[..., 1] = 0, 15
    w = (q * 0.125 - 0.75).view(8, 128)
    made = make_quantizer("rtn", "affine4", {"block": 32}).quantize(w)
    assert torch.equal(made.dequantize(), w)
