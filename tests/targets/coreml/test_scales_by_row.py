"""Scales that are whole numbers times the scale of their row: bytes in a package for iOS 26, floats in one for iOS 18."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_package import functions, package, spec
from tiny_phi3 import quantized_by

pytest.importorskip("coremltools")

from coremltools.converters.mil.frontend.milproto import load as loader

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import verify_folder
from pocketphi.graph.formats import format_of, weight_of
from pocketphi.graph.lazy_weights import materialize
from pocketphi.graph.program import Program
from pocketphi.passes.last_logits import LastLogits
from pocketphi.passes.quantizers import make_quantizer
from pocketphi.targets import find_target
from pocketphi.targets.coreml.host import CoreMLHost
from pocketphi.targets.coreml.mlpackage import find_model
from pocketphi.targets.coreml.options import CoreML
from pocketphi.targets.coreml.proto import model_pb2
from pocketphi.targets.coreml.weightfile import PACKAGE, identifier

WAYS = [("int4", True), ("int4", False), ("int8", True), ("int3", True), ("int3", False), ("nl4", True)]
"""Formats, with zero points where the second is false."""
MATRIX = "model.layers.1.self_attn.o_proj.weight"
OPERATOR = "constexpr_blockwise_shift_scale"


def program(form: str, symmetric: bool = True) -> Program:
    zeros = {} if symmetric else {"symmetric": False}
    made = quantized_by(make_quantizer("rtn", form, {"block": 16, "scale_bits": 8, **zeros}), "tiny")
    LastLogits()(made)
    return made


@pytest.mark.parametrize(("form", "symmetric"), WAYS)
def test_the_values_that_coremltools_decodes(tmp_path: Path, form: str, symmetric: bool) -> None:
    """Its own numpy version of the operators, one behind the other, makes the values of the canonical form, rounded once."""
    made = program(form, symmetric)
    package(made, tmp_path, ios=26)
    model = spec(tmp_path)
    read = loader.load(model, model.specificationVersion, str(tmp_path / PACKAGE / "Data/com.apple.CoreML/weights"))
    found = {op.outputs[0].name: op for op in read.functions["decode"].operations if op.op_type == OPERATOR}
    quantized = {name: recipe for name, recipe in made.weights.items() if format_of(recipe.parts)}
    assert len(found) == 2 * len(quantized)
    for name, recipe in quantized.items():
        weight, scales = weight_of(materialize(recipe)), found[f"{identifier(name)}_scales"]
        assert scales.data.val.dtype == np.int8
        assert scales.scale.val.shape == (weight.scale.shape[0], 1)
        values = [torch.from_numpy(found[end].materialized_val_inference()) for end in (identifier(name), scales.name)]
        assert torch.equal(values[0], weight.dequantize().half())
        assert torch.equal(values[1].float(), weight.scale)  # float16 has every product


@pytest.mark.parametrize(("form", "symmetric"), WAYS)
def test_weights_are_read_back_as_they_were(tmp_path: Path, form: str, symmetric: bool) -> None:
    made = program(form, symmetric)
    packaged = package(made, tmp_path, ios=26)
    (tmp_path / "config.json").write_text(json.dumps(made.config.to_hf()))
    saved = CoreMLHost(tmp_path, packaged.weights).weights()
    for name, recipe in made.weights.items():
        if format_of(recipe.parts):
            expected, came = materialize(recipe), materialize(saved[name])
            assert expected.keys() == came.keys()
            assert "row_scale" in came
            assert all(torch.equal(came[part], expected[part]) for part in expected)


def test_they_take_a_byte_where_the_release_has_them() -> None:
    layout = make_quantizer("rtn", "int4", {"block": 16, "scale_bits": 8}).layout((64, 128))
    taken = {ios: find_target("coreml").weight_bytes("int4", layout, CoreML(ios=ios)) for ios in (18, 26)}
    assert taken == {18: 64 * 64 + 2 * 64 * 8, 26: 64 * 64 + 64 * 8 + 2 * 64}


def test_a_package_for_ios_18_has_floats(tmp_path: Path) -> None:
    made = program("int4")
    package(made, tmp_path, ios=18)
    found = {op.outputs[0].name: op for op in functions(spec(tmp_path))["decode"] if op.type == OPERATOR}
    assert identifier(MATRIX) in found
    assert [name for name in found if name.endswith("_scales")] == []


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a matrix format with zero points, verified."""
    folder = tmp_path_factory.mktemp("rows") / "bundle"
    given: dict[str, Any] = {"recipe": "rtn", "block": 16, "scale_bits": 8, "symmetric": False, "ios": 26, "chunk": 16}
    compile_model(compile_options("random:tiny", folder, ("coreml",), **given, verify="always", context=64))
    return folder


def failed(folder: Path) -> list[str]:
    result = verify_folder(folder, Bundle.open(folder, check=False).manifest, Ui())
    return [check.name for check in result.checks if not check.ok]


@pytest.mark.parametrize("parameter", ["data", "scale"])
def test_a_changed_byte_is_seen(bundle: Path, tmp_path: Path, parameter: str) -> None:
    """Of a block's number, or of a row's scale."""
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    raw = CoreMLHost(folder, {}).package.parts("decode", f"{identifier(MATRIX)}_scales")[parameter]
    data = raw.data.numpy().tobytes()
    path = next((folder / PACKAGE).rglob("weight.bin"))
    content = path.read_bytes()
    assert content.count(data) == 1
    path.write_bytes(content.replace(data, bytes([data[0] ^ 1]) + data[1:]))
    assert failed(folder)[0] == "weights equal, bit for bit"


def test_an_offset_of_scales_is_no_weight_of_ours(bundle: Path, tmp_path: Path) -> None:
    """An operator that adds something to every scale: the weight is missing then."""
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    path = find_model(folder / PACKAGE)
    model = model_pb2().Model()
    model.ParseFromString(path.read_bytes())
    for operations in functions(model).values():
        scales = next(op for op in operations if op.outputs and op.outputs[0].name == f"{identifier(MATRIX)}_scales")
        scales.inputs["offset"].CopyFrom(scales.inputs["data"])
    path.write_bytes(model.SerializeToString())
    names = Bundle.open(bundle).manifest.targets["coreml"].weights
    assert CoreMLHost(bundle, names).weights().keys() - CoreMLHost(folder, names).weights().keys() == {MATRIX}
