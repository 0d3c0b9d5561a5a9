"""Scales of eight bits and levels, from the command line to the files: verified, smaller, and refused where they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.cli import main
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.graph.errors import InputError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("coremltools")
pytest.importorskip("tvm")

from loaded_graph import graph_as_loaded  # noqa: E402 - only where onnx is installed

from pocketphi.targets.ort_mobile.host import read_weights  # noqa: E402 - only where onnx is installed

TARGETS = ("ort-mobile", "coreml", "tvm-arm")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three targets, whose verification is part of the compile."""
    out = tmp_path_factory.mktemp("row") / "bundle"
    options = compile_options(
        "random:tiny", out, TARGETS, recipe="rtn", block=32, scale_bits=8, os="host", verify="always"
    )
    compile_model(options)
    return out


def test_three_targets_hold_the_same_weights(bundle: Path) -> None:
    manifest = Bundle.open(bundle, check=True).manifest
    assert manifest.verified
    assert manifest.recipe.scale_bits == 8
    assert manifest.recipe.described() == "int4 rtn, block 32, symmetric, scales of 8 bits"
    digests = [target.weights for target in manifest.targets.values()]
    assert [one["model.layers.0.mlp.down_proj.weight"] for one in digests[1:]] == [
        digests[0]["model.layers.0.mlp.down_proj.weight"]
    ] * 2


def test_onnx_runtime_multiplies_scales_when_it_loads_a_model(bundle: Path, tmp_path: Path) -> None:
    before = onnx.load(bundle / "model.onnx", load_external_data=False)
    stored = {t.name: t.data_type for t in before.graph.initializer if t.name.endswith(".scale")}
    assert len(stored) == 14
    assert set(stored.values()) == {onnx.TensorProto.INT8}
    after = graph_as_loaded(bundle / "model.onnx", tmp_path)
    made = {name for node in after.node for name in node.output}
    products = [node for node in after.node if node.op_type in ("MatMulNBits", "GatherBlockQuantized")]
    assert len(products) == 14
    assert [node.name for node in products if node.input[2] in made] == []


def test_scales_of_another_type_are_refused(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("0.mlp.down_proj.weight.scale"):
            tensor.data_type = onnx.TensorProto.UINT8
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "model.onnx.data").write_bytes((bundle / "model.onnx.data").read_bytes())
    with pytest.raises(InputError, match=r"model.onnx: '.*down_proj.weight' has scales of another type; copy or"):
        read_weights(tmp_path)


def test_levels_on_the_target_that_has_them(tmp_path: Path) -> None:
    options = compile_options(
        *("random:tiny", tmp_path / "a", ("tvm-arm",)),
        **{"recipe": "search", "format": "nl4", "block": 32, "scale_bits": 8, "os": "host", "verify": "always"},
        calibration_tokens=256,
    )
    manifest = compile_model(options).manifest
    assert manifest.verified
    assert manifest.recipe.described() == "nl4 search, block 32, symmetric, scales of 8 bits"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("--format", "nl4"),
            "ort-mobile: model.embed_tokens.weight is nl4, which the target cannot hold; choose another",
        ),
        (("--format", "nl9"), "--format nl9: expected one of int4, int2, int3, int5, int6, int8, nl3, nl4"),
        (("--format", "int5", "--recipe", "keep"), "--format int5: --recipe keep keeps the file's blocks; choose"),
        (
            ("--format", "nl4", "--asymmetric"),
            "--asymmetric: --recipe search of nl4 leaves no such choice; leave it out",
        ),
        (("--format", "affine4", "--asymmetric"), "--asymmetric: --recipe search of affine4 leaves no such choice"),
        (("--format", "int8", "--palette"), "--palette: tables are in place of blocks; leave out --format"),
        (("--scale-bits", "8", "--palette"), "--palette: tables are in place of blocks; leave out --scale-bits"),
        (("--scale-bits", "4"), "--scale-bits 4: expected 8 or 16"),
        (
            ("--scale-bits", "8", "--recipe", "keep"),
            "--scale-bits: --recipe keep of int4 leaves no such choice; leave it out",
        ),
        (("--scale-bits", "8", "--bits", "5"), "--bits and --scale-bits: each decides the formats of weights"),
    ],
)
def test_what_cannot_be(
    given: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["compile", "random:tiny", "-o", str(tmp_path / "x"), "--target", "ort-mobile", *given])
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert not (tmp_path / "x").exists()
