"""Weights that no runtime can hold are named as what they are; options that a target does not have are refused first."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import MANIFEST
from pocketphi.compiler.cli import main
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.files_check import asked_of
from pocketphi.compiler.hosts import open_host
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.rebuild import rebuild
from pocketphi.compiler.verify import _lowered
from pocketphi.graph.errors import CheckFailed, InputError
from pocketphi.graph.lora.named import Lora
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.random_weights import PUBLISHED, RandomWeights
from pocketphi.graph.write_checkpoint import write_checkpoint
from pocketphi.passes.expected import _comparable
from tests.compiler.test_resealed import resealed

NORM, DOWN, HEAD = "model.layers.0.input_layernorm.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    write_checkpoint(RandomWeights("random:tiny", PUBLISHED["tiny"]), made)
    return made


def changed(folder: Path, to: Path, name: str, factor: float) -> Path:
    """The checkpoint with one tensor multiplied."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    tensors[name] = tensors[name].float() * factor
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize(
    ("name", "factor", "said"),
    [
        (
            NORM,
            1e30,
            r"the model's own graph cannot hold in float32: 1 exceeds 0 \(first the input of model.layers.0.self",
        ),
        (DOWN, 1e-9, f"first {DOWN} is lost in float16, in which its scales are kept: its values are "),
        (HEAD, 1e-8, f"first {HEAD} is lost in float16, in which its scales are kept: its values are "),
    ],
)
def test_what_is_too_large_or_too_small(name: str, factor: float, said: str, folder: Path, tmp_path: Path) -> None:
    model = changed(folder, tmp_path / "m", name, factor)
    with pytest.raises(CheckFailed, match=said):
        compile_model(compile_options(str(model), tmp_path / "b", recipe="rtn", verify="always"))
    assert not (tmp_path / "b").exists()


def test_an_embedding_whose_unused_rows_are_nearly_zero(folder: Path, tmp_path: Path) -> None:
    """As published models have them: such rows may be lost."""
    model = shutil.copytree(folder, tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    for name in ("model.embed_tokens.weight", HEAD):
        tensors[name][-40:] = torch.randn(40, tensors[name].shape[1]) * 1e-12
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    compile_model(compile_options(str(model), tmp_path / "b", recipe="rtn", verify="always"))
    assert Bundle.open(tmp_path / "b").manifest.verified


@pytest.mark.parametrize("verify", ["auto", "never"])
def test_a_library_has_no_logits_of_every_token(verify: str, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    with pytest.raises(
        InputError, match=r"tvm-arm: its library gives the logits of the last token, .* leave out --all-log"
    ):
        compile_model(
            compile_options(
                "random:tiny", tmp_path / "b", ("tvm-arm",), recipe="rtn", all_logits=True, verify=verify, os="host"
            )
        )


def test_scales_of_rows_that_the_recipe_does_not_name(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    compile_model(compile_options("random:tiny", folder, recipe="rtn", verify="never", scale_bits=8))
    said = Bundle.open(folder).manifest
    saved = open_host(folder, said).weights()
    rebuild(folder, said.recipe, saved)
    with pytest.raises(
        CheckFailed, match="is saved in other blocks, or with other zero points or scales, than its recipe"
    ):
        rebuild(folder, replace(said.recipe, scale_bits=16), saved)


def test_inputs_too_large_to_be_measured(folder: Path, tmp_path: Path) -> None:
    """Finite in the model itself; their squares are not."""
    model = changed(folder, tmp_path / "m", "model.norm.weight", 1e25)
    with pytest.raises(
        InputError, match=f"^{HEAD}: the calibration text makes its inputs too large to be measured; choose"
    ):
        compile_model(compile_options(str(model), tmp_path / "b", calibration_tokens=256))
    with pytest.raises(InputError, match=f"^{HEAD}: what rounding it costs is no finite number: it, its inputs or the"):
        compile_model(compile_options(str(model), tmp_path / "b", calibration_tokens=256, bits=5.0))


def test_a_form_that_cannot_hold_a_weight_is_not_chosen() -> None:
    assert _comparable("w", [0.5, float("nan"), float("inf")]) == [0.5, 1e30, 1e30]
    with pytest.raises(InputError, match=r"^w: what rounding it costs is no finite number"):
        _comparable("w", [float("nan"), float("inf")])


def check_graph(folder: Path) -> None:
    """As verification compares files, without a run."""
    said = Bundle.open(folder).manifest
    host = open_host(folder, said)
    program, _ = _lowered(rebuild(folder, said.recipe, host.weights()), said)
    host.graph_checks(program, asked_of(said))


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "required_operators.config", "genai_config.json"])
def test_a_bundle_without_one_of_its_files(
    name: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose manifest was made to fit."""
    made = shutil.copytree(tiny_bundle, tmp_path / "b")
    (made / name).unlink()
    manifest = json.loads((made / MANIFEST).read_text())
    del manifest["files"][name]
    (made / MANIFEST).write_text(json.dumps(manifest))
    resealed(made)
    if name != "genai_config.json":  # which belongs to the runs
        with pytest.raises(InputError, match=rf"{re.escape(name)}: no such file"):
            check_graph(made)
    if name != "required_operators.config":  # which no runtime reads
        assert main(["eval", str(made), "--tokens", "16", "--window", "8"]) == 2
        assert f"{name}: no such file" in capsys.readouterr().err


def test_an_adapter_beyond_float32(folder: Path, tmp_path: Path) -> None:
    """Each of its values is finite; their products are not."""
    config = RandomWeights("random:tiny", PUBLISHED["tiny"]).config
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 2, "target_modules": ["down_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    sides = {
        "lora_A": torch.full((2, config.intermediate_size), 1e30),
        "lora_B": torch.zeros(config.hidden_size, 2).index_fill_(0, torch.tensor([21]), 1e30),
    }
    names = [f"base_model.model.model.layers.{i}.mlp.down_proj" for i in range(config.layers)]
    tensors = {f"{name}.{side}.weight": value.clone() for name in names for side, value in sides.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    merged = open_checkpoint(folder, [Lora(tmp_path)])
    assert merged.read(DOWN, 0, 16).isfinite().all()
    with pytest.raises(InputError, match=f"^{DOWN}: row 21 is beyond float32 once the adapters are added"):
        merged.read(DOWN, 16, 32)
