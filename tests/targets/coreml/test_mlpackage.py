"""Opening packages: what is found, constants as they are stored, and one clear line for each way a package can be broken."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ct = pytest.importorskip("coremltools")

from mil_programs import cached_attention, int4, mb, merge, program, save  # noqa: E402 - only where coremltools is

from pocketphi.graph.errors import InputError  # noqa: E402
from pocketphi.targets.coreml import proto as proto_module  # noqa: E402
from pocketphi.targets.coreml.interpreter import Interpreter  # noqa: E402
from pocketphi.targets.coreml.mlpackage import MLPackage, find_model  # noqa: E402
from pocketphi.targets.coreml.proto import mil_pb2, model_pb2  # noqa: E402
from pocketphi.targets.coreml.typecheck import typecheck  # noqa: E402

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    parts = {n: save(cached_attention(1, 1, 8, 32, s), folder / f"{n}.mlpackage") for n, s in (("a", 1), ("b", 2))}
    return merge(folder / "both.mlpackage", **parts)


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "p.mlpackage")
    return tmp_path / "p.mlpackage"


def edit(package: Path, change: Callable[[Any], None]) -> None:
    """Change the model file through its protobuf classes."""
    spec = model_pb2().Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    change(spec)
    (package / MODEL).write_bytes(spec.SerializeToString())


def operations(spec: Any, function: str = "a") -> Any:
    (block,) = spec.mlProgram.functions[function].block_specializations.values()
    return block.operations


def test_what_a_package_holds(saved: Path) -> None:
    package = MLPackage.open(saved)
    assert (package.specification, package.default, set(package.functions)) == (9, "a", {"a", "b"})
    assert {n: str(t) for n, t in package.states.items()} == dict.fromkeys(
        ("keys", "values"), "state fp16[1, 1, 1, 8, 32]"
    )
    function = package.function("b")
    assert {n: str(t) for n, t in function.inputs.items()} == {
        "ids": "int32[1, 2]",
        "position": "int32[1]",
        "last": "int32[1]",
    }
    assert {n: str(t) for n, t in function.outputs.items()} == {"logits": "fp16[1, 1, 48]"}
    assert package.operators()["slice_update"] == 4
    assert package.operators()["constexpr_blockwise_shift_scale"] == 6


def test_constants_as_they_are_stored(saved: Path) -> None:
    parts = MLPackage.open(saved).parts("a", "weight_10")
    values, scale = int4(96, 32, 16, 10)
    assert (parts["data"].dtype, parts["data"].shape, parts["data"].nbytes) == ("int4", (96, 32), 96 * 16)
    assert torch.equal(parts["data"].tensor(), torch.from_numpy(np.array(values, np.int8)))
    assert torch.equal(parts["scale"].tensor(), torch.from_numpy(scale))
    low, high = (int(v) & 15 for v in values[0, :2])
    assert int(parts["data"].data[0]) == low + 16 * high
    with pytest.raises(InputError, match="function a has no constant 'weight_99'"):
        MLPackage.open(saved).parts("a", "weight_99")


def test_functions_share_weights(saved: Path) -> None:
    package = MLPackage.open(saved)
    places = {package.parts(name, "weight_1")["data"].data.data_ptr() for name in ("a", "b")}
    assert len(places) == 1


def plan(path: Path) -> None:
    """Everything up to the run, for all functions."""
    package = MLPackage.open(path)
    interpreter = Interpreter(package)
    for function in package.functions.values():
        interpreter.plan(function)


def damage_record(package: Path, position: int, value: int) -> None:
    """Overwrite a 64-bit field of the first blob's record."""
    data = bytearray((package / WEIGHTS).read_bytes())
    struct.pack_into("<Q", data, 64 + position, value)
    (package / WEIGHTS).write_bytes(bytes(data))


def newer(spec: Any) -> None:
    spec.specificationVersion = 11


def unknown_operator(spec: Any) -> None:
    next(op for op in operations(spec) if op.type == "linear").type = "quantum_linear"


def bad_offset(spec: Any) -> None:
    op = next(op for op in operations(spec) if op.type.startswith("constexpr"))
    op.inputs["data"].arguments[0].value.blobFileValue.offset = 1 << 40


def record_within_data(spec: Any) -> None:
    op = next(op for op in operations(spec) if op.type.startswith("constexpr"))
    op.inputs["data"].arguments[0].value.blobFileValue.offset += 64


def wrong_type(spec: Any) -> None:
    op = next(op for op in operations(spec) if op.type.startswith("constexpr"))
    op.inputs["data"].arguments[0].value.type.tensorType.dataType = mil_pb2().INT8


def other_state(spec: Any) -> None:
    state = next(v for v in spec.mlProgram.functions["b"].inputs if v.name == "keys")
    state.type.stateType.wrappedType.tensorType.dimensions[3].constant.size = 9


def missing_value(spec: Any) -> None:
    op = next(op for op in operations(spec) if op.type == "linear")
    op.inputs["x"].arguments[0].name = "nothing"


def read_no_state(spec: Any) -> None:
    next(op for op in operations(spec) if op.type == "read_state").inputs["input"].arguments[0].name = "ids"


def state_as_tensor(spec: Any) -> None:
    next(op for op in operations(spec) if op.type == "linear").inputs["x"].arguments[0].name = "keys"


def neural_network(spec: Any) -> None:
    spec.neuralNetwork.SetInParent()


def outside(spec: Any) -> None:
    op = next(op for op in operations(spec) if op.type.startswith("constexpr"))
    op.inputs["data"].arguments[0].value.blobFileValue.fileName = "@model_path/../../../secret"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (newer, r"specification version 11 is newer than 10 \(iOS 26\), the newest that is understood"),
        (unknown_operator, r"function a uses operators that cannot be run: quantum_linear \(1×\)"),
        (
            bad_offset,
            r"function a: weight_1 \(constexpr_blockwise_shift_scale\): weight.bin has \d+ bytes, no record at offset",
        ),
        (record_within_data, "must start with 0xDEADBEEF"),
        (wrong_type, r"holds 1536 values of int4, declared is int8\[48, 32\]"),
        (
            other_state,
            r"state 'keys' is state fp16\[1, 1, 1, 9, 32\] in function b, state fp16\[1, 1, 1, 8, 32\] in function a",
        ),
        (read_no_state, r"\(read_state\) needs a state as its input"),
        (state_as_tensor, r"\(linear\) takes a state for a tensor"),
        (missing_value, r"\(linear\) reads 'nothing', which nothing makes before it"),
        (neural_network, "holds a neuralNetwork, not an ML program"),
        (outside, "lies outside"),
        (lambda spec: spec.Clear(), "holds a model without a type"),
    ],
)
def test_a_model_that_is_not_right(copy: Path, change: Callable[[Any], None], message: str) -> None:
    edit(copy, change)
    with pytest.raises(InputError, match=message):
        plan(copy)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, 0xBADBADBA, "must start with 0xDEADBEEF, not 0xbadbadba"),
        (8, 1 << 33, "declared is"),
        (16, 1 << 33, r"the data ends at byte \d+, the file at \d+"),
        (4, 99, "blob data type 99 is unknown"),
    ],
)
def test_a_record_that_is_not_right(copy: Path, position: int, value: int, message: str) -> None:
    damage_record(copy, position, value)
    with pytest.raises(InputError, match=message):
        MLPackage.open(copy)


def test_files_that_are_missing_or_cut_short(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected an ML package, a folder with a Manifest.json"):
        MLPackage.open(tmp_path)
    whole = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(whole[:2000])
    with pytest.raises(InputError, match=r"weight.bin"):
        MLPackage.open(copy)
    (copy / WEIGHTS).write_bytes(b"")
    with pytest.raises(InputError, match="0 bytes are too few for a blob file"):
        MLPackage.open(copy)
    (copy / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"the weight file 'weights/weight.bin' is missing"):
        MLPackage.open(copy)
    model = (copy / MODEL).read_bytes()
    (copy / MODEL).write_bytes(model[: len(model) // 2])
    with pytest.raises(InputError, match=r"model.mlmodel: cut short or damaged"):
        MLPackage.open(copy)
    (copy / MODEL).unlink()
    with pytest.raises(InputError, match="the model that the manifest names is missing"):
        MLPackage.open(copy)


@pytest.mark.parametrize("path", ["../../x", "/etc/passwd"])
def test_a_manifest_that_leaves_the_package(copy: Path, path: str) -> None:
    manifest = json.loads((copy / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = path
    (copy / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="lies outside"):
        find_model(copy)
    (copy / "Manifest.json").write_text("{}")
    with pytest.raises(InputError, match="not a manifest of an ML package"):
        find_model(copy)


def test_flipped_bits_never_end_in_anything_but_an_input_error(copy: Path) -> None:
    """Three hundred packages with one bit of the model file flipped: each is opened, or refused with a message."""
    model = (copy / MODEL).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(model)
        damaged[int(rng.integers(len(model)))] ^= 1 << int(rng.integers(8))
        (copy / MODEL).write_bytes(bytes(damaged))
        try:
            plan(copy)
        except InputError:
            refused += 1
    assert refused > 30


# type check


def test_coremltools_accepts_what_it_wrote(saved: Path) -> None:
    assert typecheck(saved) == sum(MLPackage.open(saved).operators().values())


def test_coremltools_reason_is_given(copy: Path) -> None:
    def wrong_shape(spec: Any) -> None:
        op = next(op for op in operations(spec) if op.type == "linear")
        op.outputs[0].type.tensorType.dimensions[2].constant.size += 1

    edit(copy, wrong_shape)
    with pytest.raises(InputError, match=r"coremltools does not accept it: .*Mismatch between var types"):
        typecheck(copy)


# the protobuf classes


def test_opening_does_not_import_coremltools(saved: Path) -> None:
    code = (
        "import sys\n"
        "from pocketphi.targets.coreml.mlpackage import MLPackage\n"
        f"MLPackage.open({str(saved)!r})\n"
        "assert not [m for m in sys.modules if m == 'coremltools' or m.startswith('coremltools.')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_coremltools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    proto_module.model_pb2.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"install it with: pip install 'pocketphi\[coreml\]'"):
        MLPackage.open(saved)
    monkeypatch.undo()
    assert MLPackage.open(saved).functions


def test_a_parameter_that_is_not_known_is_named(tmp_path: Path) -> None:
    path = save(program(lambda x: mb.relu(x=x, name="out"), x=("fp16", (2,))), tmp_path / "p.mlpackage")

    def extra(spec: Any) -> None:
        operations(spec, "main")[-1].inputs["slope"].arguments.add().name = "x"

    edit(path, extra)
    package = MLPackage.open(path)
    with pytest.raises(
        InputError, match=r"function main: out \(relu\) has a parameter 'slope', which is not understood"
    ):
        Interpreter(package).run(None, {"x": torch.zeros(2)})


@pytest.mark.parametrize("inner", ["Manifest.json", MODEL, WEIGHTS, str(Path(WEIGHTS).parent)])
def test_links_that_lead_out_of_a_package_are_refused(copy: Path, tmp_path: Path, inner: str) -> None:
    inside, outside = copy / inner, tmp_path / "outside"
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(InputError, match="a link that leads out of"):
        MLPackage.open(copy)
    inside.unlink()
    outside.rename(inside.with_name("moved"))
    inside.symlink_to("moved")  # one that stays inside is followed
    MLPackage.open(copy)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"[" * 100_000, b"{" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe"),
        *(b'{"rootModelIdentifier": 3, "itemInfoEntries": {}}', b'{"rootModelIdentifier": "a", "itemInfoEntries": []}'),
        *(b'{"rootModelIdentifier": "a", "itemInfoEntries": {}}', b'{"rootModelIdentifier": "a"}'),
        b'{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": 1}}}',
        b'{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "' + b"x" * 5000 + b'"}}}',
        b'{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "\\u0000"}}}',
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
)
def test_manifests_of_every_kind_are_our_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "Manifest.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        MLPackage.open(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)
