"""Blocks of int2, int3, int6, nl3 and nl4, as packages for iOS 26 hold them: a table of whole numbers, then scales."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_package import Blobs, functions, package, spec
from target_files import prepared
from tiny_phi3 import quantized_by

pytest.importorskip("coremltools")

from coremltools.converters.mil.frontend.milproto import load as loader

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.kits.fill import fill
from pocketphi.artifacts.manifest import TargetRecord
from pocketphi.compiler.build_key import SourceDigests, bundle_key
from pocketphi.compiler.candidates import bytes_by_target, candidates_of
from pocketphi.compiler.cli import main
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import CompileOptions, compile_options
from pocketphi.compiler.policy_file import check_policy, read_policy
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import Verification, verify_folder
from pocketphi.graph.config import EMBEDDING
from pocketphi.graph.errors import CheckFailed, InputError
from pocketphi.graph.formats import FORMATS, Blocks, Int2, Levels, format_of, weight_of
from pocketphi.graph.lazy_weights import digest, materialize
from pocketphi.graph.program import Program
from pocketphi.graph.random_weights import PUBLISHED
from pocketphi.passes.last_logits import LastLogits
from pocketphi.passes.policy import Policy, Rule
from pocketphi.passes.quantizers import make_quantizer
from pocketphi.targets import find_target
from pocketphi.targets.coreml.codecs import CODECS, TableCodec
from pocketphi.targets.coreml.host import CoreMLHost
from pocketphi.targets.coreml.mlpackage import find_model
from pocketphi.targets.coreml.options import CoreML
from pocketphi.targets.coreml.proto import model_pb2
from pocketphi.targets.coreml.weightfile import PACKAGE, identifier
from pocketphi.targets.tvm_arm.options import TvmArm

TINY = PUBLISHED["tiny"]
NAMES = ("int2", "int3", "int6", "nl3", "nl4")
WAYS = [(name, True) for name in NAMES] + [(name, False) for name in NAMES if name.startswith("int")]
"""Formats, with zero points where the second is false."""
MATRIX = "model.layers.1.self_attn.o_proj.weight"


def program(form: str, symmetric: bool = True, block: int = 32, variant: str = "tiny") -> Program:
    zeros = {} if issubclass(FORMATS[form], Levels) else {"symmetric": symmetric}
    made = quantized_by(make_quantizer("rtn", form, {"block": block, **zeros}), variant)
    LastLogits()(made)
    return made


def decoded_by_coremltools(folder: Path) -> dict[str, np.ndarray]:
    """Values of all weights that scales are behind, read and decoded by coremltools alone: float16."""
    model = spec(folder)
    made = loader.load(model, model.specificationVersion, str(folder / PACKAGE / "Data/com.apple.CoreML/weights"))
    operations = made.functions["decode"].operations
    blocks = [op for op in operations if op.op_type == "constexpr_blockwise_shift_scale"]
    assert {op.data.op.op_type for op in blocks} == {"constexpr_lut_to_dense"}
    return {op.outputs[0].name: op.materialized_val_inference() for op in blocks}


@pytest.mark.parametrize(("form", "symmetric"), WAYS)
def test_the_values_that_coremltools_decodes(tmp_path: Path, form: str, symmetric: bool) -> None:
    """Apple's reader reads the numbers, scales and zero points of the format, and coremltools' own numpy version of the two
    operators makes the same values of them: whole numbers times scales, rounded to float16 once."""
    made = program(form, symmetric)
    package(made, tmp_path, ios=26)
    model = spec(tmp_path)
    assert model.specificationVersion == 10
    assert {next(iter(f.block_specializations)) for f in model.mlProgram.functions.values()} == {"CoreML9"}
    found = decoded_by_coremltools(tmp_path)
    for name, recipe in made.weights.items():
        if format_of(recipe.parts):
            assert (form, symmetric) == (format_of(recipe.parts).name, "zero" not in recipe.parts)  # type: ignore[union-attr]
            expected = weight_of(materialize(recipe)).dequantize().half()
            assert torch.equal(torch.from_numpy(found.pop(identifier(name))), expected)
    assert found == {}
    check_blobs(tmp_path, made, symmetric)


@pytest.mark.parametrize("form", ["palette", "palette2", "palette3", "palette6"])
def test_tables_of_blocks_of_columns_as_coremltools_decodes_them(tmp_path: Path, form: str) -> None:
    """Of a package for iOS 18: one operator, to the bit."""
    made = quantized_by(make_quantizer("rtn", form, {"group": 8, "block": 32}))
    LastLogits()(made)
    package(made, tmp_path)
    model = spec(tmp_path)
    assert model.specificationVersion == 9
    weights = loader.load(model, 9, str(tmp_path / PACKAGE / "Data/com.apple.CoreML/weights"))
    tables = [op for op in weights.functions["decode"].operations if op.op_type == "constexpr_lut_to_dense"]
    found = {op.outputs[0].name: op.materialized_val_inference() for op in tables}
    for name, recipe in made.weights.items():
        if format_of(recipe.parts):
            expected = weight_of(materialize(recipe)).dequantize().half()
            assert torch.equal(torch.from_numpy(found.pop(identifier(name))), expected)
    assert found == {}


def check_blobs(folder: Path, made: Program, symmetric: bool) -> None:
    weight = weight_of(materialize(made.weights[MATRIX]))
    assert isinstance(weight, Blocks)
    blobs, found = Blobs(folder), {op.outputs[0].name: op for op in functions(spec(folder))["decode"] if op.outputs}
    outer, inner = found[identifier(MATRIX)], found[f"{identifier(MATRIX)}_levels"]
    assert outer.inputs["data"].arguments[0].name == inner.outputs[0].name
    indices = blobs.read(inner.inputs["indices"].arguments[0].value)
    assert np.array_equal(indices, weight.values().numpy())
    assert np.array_equal(blobs.read(outer.inputs["scale"].arguments[0].value), weight.scale.half().numpy())
    assert ("offset" in outer.inputs) is not symmetric
    if not symmetric:
        zeros = weight.zeros()
        assert zeros is not None
        offset = blobs.read(outer.inputs["offset"].arguments[0].value)
        assert offset.dtype == np.int8
        assert np.array_equal(offset, zeros.numpy().astype(int) - weight.middle())


@pytest.mark.parametrize(("form", "symmetric"), WAYS)
def test_weights_are_read_back_as_they_were(tmp_path: Path, form: str, symmetric: bool) -> None:
    """With zero points in whole rows, where a row has one: no whole byte in the canonical form."""
    block, zeros = (16, {}) if symmetric else (0, {"symmetric": False})
    made = program(form, symmetric, block, "tied")
    packaged = package(made, tmp_path, ios=26)
    (tmp_path / "config.json").write_text(json.dumps(made.config.to_hf()))
    saved = CoreMLHost(tmp_path, packaged.weights).weights()
    assert saved.keys() == packaged.weights.keys()
    size = 0
    for name, recipe in made.weights.items():
        if format_of(recipe.parts):
            expected, came = materialize(recipe), materialize(saved[name])
            assert expected.keys() == came.keys()
            assert all(torch.equal(came[part], expected[part]) for part in expected)
            quantizer = make_quantizer("rtn", form, {"block": block, **zeros})
            size += CODECS[form].bytes_of(quantizer.layout(FORMATS[form].shape_of(expected)))
    blobs = [
        argument.arguments[0].value.blobFileValue.offset
        for op in functions(spec(tmp_path))["decode"]
        if op.type.startswith("constexpr")
        for key, argument in op.inputs.items()
        if key != "lut" and argument.arguments[0].WhichOneof("binding") == "value"
    ]
    records = (tmp_path / PACKAGE / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()
    assert size == sum(int.from_bytes(records[at + 8 : at + 16], "little") for at in blobs)


def test_a_table_lies_in_the_package_once(tmp_path: Path) -> None:
    package(program("nl4"), tmp_path, ios=26)
    tables = tables_of(spec(tmp_path))
    assert len(tables) == 28
    assert len({table.blobFileValue.offset for table in tables}) == 1


def tables_of(model: Any) -> list[Any]:
    """The tables of all operators that read one, as values of the model."""
    found = [op for operations in functions(model).values() for op in operations if op.type == "constexpr_lut_to_dense"]
    return [op.inputs["lut"].arguments[0].value for op in found]


def test_levels_are_whole_numbers_of_int8() -> None:
    codecs = [codec for codec in CODECS.values() if isinstance(codec, TableCodec)]
    assert sorted(codec.format.name for codec in codecs) == sorted(NAMES)
    for codec in codecs:
        steps = codec.format.pack(torch.arange(2**codec.format.bits)[None], torch.ones(1, 1)).dequantize()
        (table,) = codec.constants().values()
        assert (table.dtype, table.shape) == (np.int8, (1, 1, 2**codec.format.bits, 1))
        assert table.flatten().tolist() == steps[0].tolist()


# compiled, verified, broken


def options(folder: Path, form: str = "nl4", targets: tuple[str, ...] = ("coreml",), **given: Any) -> CompileOptions:
    asked = {"recipe": "rtn", "block": 32, "format": form, "ios": 26, "chunk": 16, "verify": "never", "context": 64}
    return compile_options("random:tiny", folder, targets, **{**asked, **given})


RULES = {"*embed*": "nl3", "*qkv*": "int2", "*o_proj*": "nl4", "*gate*": "int3", "*": "int6"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every format, with zero points where it may have them."""
    folder = tmp_path_factory.mktemp("tables") / "bundle"
    made = {form: make_quantizer("rtn", form, {} if "nl" in form else {"symmetric": False}) for form in NAMES}
    policy = Policy(tuple(Rule(pattern, made[form]) for pattern, form in RULES.items()))
    compile_model(options(folder, "int4", block=64), policy=policy)
    return folder


def verify(folder: Path) -> Verification:
    return verify_folder(folder, Bundle.open(folder, check=False).manifest, Ui())


def failed(result: Verification) -> list[str]:
    return [check.name for check in result.checks if not check.ok]


def test_a_good_bundle_passes(bundle: Path) -> None:
    assert failed(verify(bundle)) == []


def edited(folder: Path, name: str, parameter: str, edit: Callable[[Any], None]) -> None:
    """Changes a blob of weight.bin in place."""
    host = CoreMLHost(folder, {})
    data = host.package.parts("decode", name)[parameter].data.numpy().tobytes()
    path = next((folder / PACKAGE).rglob("weight.bin"))
    content = path.read_bytes()
    assert content.count(data) == 1
    changed = np.frombuffer(data, np.uint8).copy()
    edit(changed)
    path.write_bytes(content.replace(data, changed.tobytes()))


def flip(data: Any) -> None:
    data[77] ^= 0x10


@pytest.mark.parametrize(("end", "parameter"), [("_levels", "indices"), ("", "scale")])
def test_a_changed_byte_is_seen(bundle: Path, tmp_path: Path, end: str, parameter: str) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    edited(folder, identifier(MATRIX) + end, parameter, flip)
    result = verify(folder)
    assert failed(result)[0] == "weights equal, bit for bit"
    assert (result.checks[0].measured, result.checks[0].detail) == (1, f"first {MATRIX}")


def test_another_table_in_one_function_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = TableCodec.decoded

    def in_prefill(self: TableCodec, e: Any, name: str, held: Any) -> Any:
        """Its table turned round, without a record of its own."""
        with pytest.MonkeyPatch.context() as patch:
            if e.length > 1:
                values = {f"{key}_": value[..., ::-1, :].copy() for key, value in self.constants().items()}
                patch.setattr(self, "table", f"{self.table}_")
                patch.setattr(self, "constants", lambda: values)
            return decoded(self, e, name, held)

    monkeypatch.setattr(TableCodec, "decoded", in_prefill)
    compile_model(options(tmp_path / "bundle", "nl3"))
    assert "constants with other values" in failed(verify(tmp_path / "bundle"))


def test_a_zero_point_that_no_number_is(tmp_path: Path) -> None:
    made = program("int2", symmetric=False)
    packaged = package(made, tmp_path, ios=26)
    (tmp_path / "config.json").write_text(json.dumps(made.config.to_hf()))
    edited(tmp_path, identifier(MATRIX), "offset", lambda data: data.__setitem__(5, 2))
    saved = CoreMLHost(tmp_path, packaged.weights).weights()[MATRIX]
    with pytest.raises(InputError, match="a zero point of int2 is 4; compile it again"):
        saved.read(0, saved.parts["scale"].shape[0])


@pytest.mark.parametrize("form", ["nl3", "nl4"])
def test_another_table_is_no_weight_of_ours(bundle: Path, tmp_path: Path, form: str) -> None:
    """One level of it: in the model for a table that is small, or in the file. Its weights are missing then."""
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    names = Bundle.open(bundle).manifest.targets["coreml"].weights
    before = CoreMLHost(bundle, names).weights().keys()
    path = find_model(folder / PACKAGE)
    model = model_pb2().Model()
    model.ParseFromString(path.read_bytes())
    tables = [
        table for table in tables_of(model) if table.type.tensorType.dimensions[2].constant.size == 2 ** int(form[2])
    ]
    tables = [table for table in tables if levels(folder, table) == [*FORMATS[form].levels]]  # type: ignore[attr-defined]
    if form == "nl3":
        for table in tables:
            values = bytearray(table.immediateValue.tensor.bytes.values)
            values[1] ^= 1
            table.immediateValue.tensor.bytes.values = bytes(values)
        path.write_bytes(model.SerializeToString())
    else:
        file = next((folder / PACKAGE).rglob("weight.bin"))
        content = bytearray(file.read_bytes())
        content[int.from_bytes(content[(at := tables[0].blobFileValue.offset) + 16 : at + 24], "little") + 1] ^= 1
        file.write_bytes(bytes(content))
    lost = before - CoreMLHost(folder, names).weights().keys()
    assert lost == ({EMBEDDING} if form == "nl3" else {name for name in names if "o_proj" in name})
    if form == "nl4":
        with pytest.raises(CheckFailed, match=r"not those of the program: .* is on one side only"):
            verify(folder)


def levels(folder: Path, table: Any) -> list[int]:
    if table.WhichOneof("value") == "immediateValue":
        return np.frombuffer(table.immediateValue.tensor.bytes.values, np.int8).tolist()
    return [int(value) for value in Blobs(folder).read(table).flatten()]


# what is refused, and what is chosen


@pytest.mark.parametrize("form", NAMES)
def test_ios_18_refuses_and_says_what_would_do(tmp_path: Path, form: str) -> None:
    with pytest.raises(InputError, match=rf"^coreml: .* is {form}, .*; add --ios 26 \(it holds affine4, int4, int8, "):
        compile_model(options(tmp_path / "b", form, ios=18))
    assert list(tmp_path.iterdir()) == []


def test_no_release_holds_five_bits(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^coreml: .* is int5, which the target cannot hold; choose another format \("
    ):
        compile_model(options(tmp_path / "b", "int5"))


def test_a_release_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--ios 19: expected 18 or 26$"):
        options(tmp_path, ios=19)


def test_a_policy_is_refused_in_the_same_way(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('[[rules]]\npattern = "*"\nformat = "nl3"\nrecipe = "rtn"\n')
    for ios in (18, 26):
        asked = compile_options("random:tiny", tmp_path / "b", ("coreml",), policy=file, ios=ios)
        policy = read_policy(asked)
        if ios == 26:
            check_policy(policy, TINY, asked)
            continue
        with pytest.raises(InputError, match=r"is to be nl3, which coreml cannot hold; add --ios 26 \(it holds int4, "):
            check_policy(policy, TINY, asked)


@pytest.mark.parametrize("targets", [("coreml",), ("coreml", "tvm-arm")])
def test_a_budget_chooses_what_the_release_holds(targets: tuple[str, ...]) -> None:
    """Levels take the place of even steps of their width; two bits have zero points."""
    kinds = {}
    for ios in (18, 26):
        asked = compile_options("random:tiny", Path("b"), targets, bits=4.0, ios=ios)
        found = candidates_of(TINY, asked)[MATRIX]
        kinds[ios] = {one.format.name for one in found}
        assert all(len(bytes_by_target(one, (64, 64), asked.of_targets)) == len(targets) for one in found)
    assert kinds[18] & {*NAMES} == set()
    assert kinds[26] & {*NAMES} == {"int2", "nl3", "nl4", "int6"}


def test_a_zero_point_takes_a_byte() -> None:
    layout = make_quantizer("rtn", "int2", {"block": 16, "symmetric": False}).layout((64, 128))
    asked = CoreML(ios=26)
    assert find_target("coreml").weight_bytes("int2", layout, asked) == 64 * 128 // 4 + (2 + 1) * 64 * 8
    assert layout == Int2.layout((64, 128), 16, symmetric=False)


def test_the_release_is_in_the_key_of_a_build() -> None:
    keys = {
        bundle_key(compile_options("random:tiny", Path("b"), ("coreml",), ios=ios), SourceDigests()) for ios in (18, 26)
    }
    assert len(keys) == 2


def test_two_targets_share_their_weights(tmp_path: Path) -> None:
    """Both plan files for one program. What Core ML wrote is in canonical form what the program has."""
    pytest.importorskip("tvm")
    made = program("nl4")
    assert prepared(made, TvmArm(os="host"), context=64).bytes > 0
    written = package(made, tmp_path, ios=26).weights
    quantized = {name: recipe for name, recipe in made.weights.items() if format_of(recipe.parts)}
    assert {name: written[name] for name in quantized} == {n: digest(materialize(r)) for n, r in quantized.items()}


# around it


@pytest.mark.parametrize(
    ("ios", "tools", "platforms"),
    [(18, "6.0", "[.iOS(.v18), .macOS(.v15)]"), (26, "6.2", "[.iOS(.v26), .macOS(.v26)]")],
)
def test_the_kit_is_for_the_release(ios: int, tools: str, platforms: str) -> None:
    record = TargetRecord(operators={}, weights={}, notes=(), details={"chunk": 16, "cache_rows": 64, "ios": ios})
    values = find_target("coreml").kit_values(record)
    text = dict(fill(("ios-coreml",), {"name": "Phi", "package": "x", "stops": [], **values}))["Package.swift"]
    assert text.startswith(f"// swift-tools-version: {tools}\n")
    assert f"platforms: {platforms}," in text


def test_a_manifest_of_another_release_is_refused() -> None:
    record = TargetRecord(operators={}, weights={}, notes=(), details={"ios": 99})
    with pytest.raises(InputError, match=r"^manifest.json: targets.coreml: ios is 99, expected one of 18, 26$"):
        find_target("coreml").kit_values(record)


def test_it_runs_as_any_package(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = ["--function", "decode", "--input", "inputIds=[[5]]", "--input", "position=[0]"]
    assert main(["run-mlpackage", str(bundle / PACKAGE), *states, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["specification"] == 10


def test_the_script_for_a_mac_knows_the_release(bundle: Path, tmp_path: Path) -> None:
    script: dict[str, Any] = {"__name__": "verify_on_mac"}
    exec((bundle / "verify_on_mac.py").read_text("utf-8"), script)
    assert script["needed_macos"](bundle / "manifest.json") == 26
    assert script["needed_macos"](tmp_path / "none.json") == 15
