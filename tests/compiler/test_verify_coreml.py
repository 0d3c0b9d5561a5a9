"""Verification of a saved Core ML package: passes what is right, catches what was broken in the files on purpose."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.text import random_tokens
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import Verification, verify_folder
from pocketphi.graph.random_weights import PUBLISHED, RandomWeights
from pocketphi.graph.write_checkpoint import write_checkpoint
from pocketphi.targets.coreml.interpreter import Interpreter
from pocketphi.targets.coreml.mlpackage import MLPackage, find_model
from pocketphi.targets.coreml.proto import model_pb2
from pocketphi.targets.coreml.weightfile import PACKAGE

HEAD = 20
"""Logits are so many times larger: still within the bound in float32, but not in float16."""
MATRIX = "model_layers_1_self_attn_o_proj_weight"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bundle with both targets, not verified."""
    folder = tmp_path_factory.mktemp("coreml") / "bundle"
    targets = ("coreml", "ort-mobile")
    compile_model(compile_options("random:tiny", folder, targets, recipe="rtn", chunk=16, verify="never"))
    return folder


@pytest.fixture(scope="module")
def palettes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of palettes with an int8 embedding, not verified."""
    folder = tmp_path_factory.mktemp("palettes") / "bundle"
    options = compile_options(
        "random:tiny", folder, ("coreml",), recipe="rtn", palette=16, embedding_bits=8, chunk=16, verify="never"
    )
    compile_model(options)
    return folder


def verify(folder: Path, only: str | None = "coreml") -> Verification:
    return verify_folder(folder, Bundle.open(folder, check=False).manifest, Ui(), only=only)


def failed(result: Verification) -> list[str]:
    return [check.name for check in result.checks if not check.ok]


def test_a_good_bundle_passes_every_check(both: Path, whole_decode: None) -> None:
    result = verify(both, only=None)
    assert failed(result) == []
    names = [check.name for check in result.checks]
    for part in (
        "coreml: weights equal, bit for bit",
        "coreml: KL prefill, exact",
        "coreml: KL decode, as saved",
        "coreml: KL decode past the window of 48",
        "coreml: operations that coremltools does not accept",
        "coreml: operations within a factor of 2 of float16's range",
        "ort-mobile: KL prefill, exact",
        "int4 weights that differ between targets",
    ):
        assert part in names
    bounds = {check.name: check.bound for check in result.checks}
    assert (bounds["coreml: KL prefill, exact"], bounds["coreml: KL prefill, as saved"]) == (5e-6, 1e-4)


def edit_weights(folder: Path, part: str, edit: Callable[[Any], Any], weight: str = MATRIX) -> None:
    """Change the bytes of one stored part of a weight in the file."""
    package = MLPackage.open(folder / PACKAGE)
    old = package.parts("decode", weight)[part].data.numpy().tobytes()
    path = next((folder / PACKAGE).rglob("weight.bin"))
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, bytes(edit(np.frombuffer(old, np.uint8).copy()))))


def swap_nibbles(folder: Path) -> None:
    edit_weights(folder, "data", lambda data: (data >> 4 | data << 4).astype(np.uint8))


def flip_one_value(folder: Path) -> None:
    def flip(data: Any) -> Any:
        data[77] ^= 0x10
        return data

    edit_weights(folder, "data", flip)


def grow_one_scale(folder: Path) -> None:
    def grow(data: Any) -> Any:
        scales = data.view(np.float16)
        scales[5] *= np.float16(1.01)
        return scales.view(np.uint8)

    edit_weights(folder, "scale", grow)


@pytest.mark.parametrize("damage", [swap_nibbles, flip_one_value, grow_one_scale])
def test_a_changed_weight_is_caught(both: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = shutil.copytree(both, tmp_path / "bundle")
    damage(folder)
    result = verify(folder)
    assert failed(result)[0].endswith("weights equal, bit for bit")
    assert result.checks[0].measured == 1
    assert "model.layers.1.self_attn.o_proj.weight" in result.checks[0].detail


def flip_one_index(folder: Path) -> None:
    def flip(data: Any) -> Any:
        data[77] ^= 0x10
        return data

    edit_weights(folder, "indices", flip)


def change_one_entry(folder: Path) -> None:
    """The last bit of one value of one table."""

    def change(data: Any) -> Any:
        data[2 * 21] ^= 1
        return data

    edit_weights(folder, "lut", change)


def test_a_good_bundle_of_palettes_passes(palettes: Path) -> None:
    assert failed(verify(palettes)) == []


@pytest.mark.parametrize("damage", [flip_one_index, change_one_entry])
def test_a_changed_palette_is_caught(palettes: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = shutil.copytree(palettes, tmp_path / "bundle")
    damage(folder)
    result = verify(folder)
    assert failed(result)[0].endswith("weights equal, bit for bit")
    assert (result.checks[0].measured, result.checks[0].detail) == (1, "first model.layers.1.self_attn.o_proj.weight")


def test_a_changed_byte_of_the_int8_embedding_is_caught(palettes: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(palettes, tmp_path / "bundle")
    edit_weights(folder, "data", lambda data: data ^ (np.arange(data.size) == 5), "model_embed_tokens_weight")
    assert verify(folder).checks[0].detail == "first model.embed_tokens.weight"


def edit_model(folder: Path, edit: Callable[[Any], int]) -> None:
    """Change the operations of every function; `edit` says how many it changed."""
    path = find_model(folder / PACKAGE)
    model = model_pb2().Model()
    model.ParseFromString(path.read_bytes())
    for function in model.mlProgram.functions.values():
        (block,) = function.block_specializations.values()
        assert edit(block.operations) > 0
    path.write_bytes(model.SerializeToString())


def write_to_the_layer_before(folder: Path) -> None:
    """Layer 1's keys go where layer 0's are."""

    def edit(operations: Any) -> int:
        found = {op.outputs[0].name: op for op in operations if op.outputs}
        update = next(op for name, op in found.items() if name.endswith("attention_default_1_keyCache_changed"))
        changed = 0
        for parameter, layer in (("begin", 0), ("end", 1)):
            concat = found[update.inputs[parameter].arguments[0].name]
            number = found[concat.inputs["values"].arguments[0].name].attributes["val"].immediateValue.tensor.ints
            assert list(number.values) == [layer + 1]
            number.values[0] = layer
            changed += 1
        return changed

    edit_model(folder, edit)


def see_one_key_less(folder: Path) -> None:
    def edit(operations: Any) -> int:
        found = [op for op in operations if op.type == "less_equal"]
        for op in found:
            op.type = "less"
        return len(found)

    edit_model(folder, edit)


def widen_the_window(folder: Path) -> None:
    def edit(operations: Any) -> int:
        found = [op for op in operations if op.type == "greater"]
        for op in found:
            op.type = "greater_equal"
        return len(found)

    edit_model(folder, edit)


def forget_the_window(folder: Path) -> None:
    def edit(operations: Any) -> int:
        found = [op for op in operations if op.type == "logical_and"]
        for op in found:
            op.inputs["y"].CopyFrom(op.inputs["x"])
        return len(found)

    edit_model(folder, edit)


@pytest.mark.parametrize(
    ("damage", "seen_by"),
    [
        (write_to_the_layer_before, "KL prefill, exact"),
        (see_one_key_less, "KL prefill, exact"),
        (widen_the_window, "KL prefill past the window of 48"),
        (forget_the_window, "KL decode past the window of 48"),
    ],
)
def test_a_wrong_lowering_is_caught(both: Path, tmp_path: Path, damage: Callable[[Path], None], seen_by: str) -> None:
    folder = shutil.copytree(both, tmp_path / "bundle")
    damage(folder)
    names = [name.removeprefix("coreml: ") for name in failed(verify(folder))]
    assert seen_by in names


def packaged(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A package of random:tiny with other weights."""
    (tmp_path / "model").mkdir()
    write_checkpoint(RandomWeights("random:tiny", PUBLISHED["tiny"]), tmp_path / "model", "fp32", lambda done: None)
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    options = {"recipe": "rtn", "chunk": 16, "verify": "never", "context": 64}
    return compile_model(compile_options(str(tmp_path / "model"), tmp_path / "bundle", ("coreml",), **options)).path


def test_first_tokens_that_float16_cannot_hold_are_seen(tmp_path: Path) -> None:
    """Rows of the embedding that the text of the other checks does not read are beyond half of float16's range."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        table = tensors["model.embed_tokens.weight"]
        rows = torch.ones(len(table), dtype=torch.bool)
        rows[random_tokens(PUBLISHED["tiny"], 200)] = False
        table[rows] *= 40_000 / table[rows].abs().max()

    (check,) = [check for check in verify(packaged(tmp_path, change)).checks if not check.ok]
    assert check.name == "operations within a factor of 2 of float16's range"
    assert "decode/" in check.detail


def loud_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] *= HEAD


def test_a_model_that_rounding_moves_further_has_a_bound_of_its_own(tmp_path: Path, whole_decode: None) -> None:
    result = verify(packaged(tmp_path, loud_head))
    assert failed(result) == []
    found = {check.name: check for check in result.checks}["KL prefill, as saved"]
    assert 1e-4 < found.measured < found.bound < 1e-2
    assert "rounding alone" in found.detail


def test_the_script_for_a_mac(tmp_path: Path) -> None:
    """Its comparison, with the interpreter in the place of Core ML: good calls pass, another state or token does not."""
    folder = tmp_path / "bundle"
    compile_model(compile_options("random:tiny", folder, ("coreml",), recipe="rtn", chunk=16))
    script: dict[str, Any] = {"__name__": "verify_on_mac"}
    exec((folder / "verify_on_mac.py").read_text("utf-8"), script)
    vectors = np.load(folder / "test_vectors.npz")

    def run(change: Callable[[str, dict[str, Any]], None]) -> list[dict[str, Any]]:
        interpreter = Interpreter(MLPackage.open(folder / PACKAGE), "fp16")
        states = interpreter.make_states()

        def call(function: str, inputs: dict[str, Any]) -> Any:
            change(function, inputs)
            tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
            return interpreter.run(function, tensors, states)["logits"].numpy()

        results: list[dict[str, Any]] = script["compare"](vectors, call)
        return results

    good = run(lambda function, inputs: None)
    assert {r["function"] for r in good} == {"prefill", "decode"}
    assert [(r["ok"], r["same"]) for r in good] == [(True, True)] * len(good)
    assert max(r["kl"] for r in good) < 1e-9

    def another_position(function: str, inputs: dict[str, Any]) -> None:
        if function == "decode":
            inputs["position"] = inputs["position"] + 1

    assert not all(r["ok"] for r in run(another_position))
    done = subprocess.run([sys.executable, folder / "verify_on_mac.py"], capture_output=True, text=True, check=False)
    if sys.platform != "darwin":
        assert (done.returncode, done.stdout) == (2, "")
        assert "Core ML runs on a Mac only" in done.stderr
