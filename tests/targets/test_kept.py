"""What `--recipe keep` takes over is in the files of every target: written, read back, and bit for bit what its file says.

TVM's library is left out here, as weights do not lie in it; `test_from_a_checkpoint_to_a_bundle` builds it.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from target_files import prepared

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.pipeline import fusions, run_passes
from pocketphi.compiler.precision import kept_policy, recorded_policy
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import weight_of
from pocketphi.graph.lazy_weights import FloatWeight, LazyWeight, materialize
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.program import Program
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.trace import trace
from pocketphi.passes.last_logits import LastLogits
from pocketphi.passes.policy import policy_of
from pocketphi.passes.quantize_weights import QuantizeWeights
from pocketphi.targets import find_target

pytest.importorskip("onnx")
pytest.importorskip("coremltools")
pytest.importorskip("tvm")

from pocketphi.targets.coreml.host import CoreMLHost
from pocketphi.targets.ort_mobile.host import read_weights as read_onnx
from pocketphi.targets.tvm_arm.description import DESCRIPTION, PARAMS_FILE, read_description
from pocketphi.targets.tvm_arm.package import describe
from pocketphi.targets.tvm_arm.params import ParamsFile
from pocketphi.targets.tvm_arm.params import read_weights as read_params

DATA = Path(__file__).parents[1] / "data/packed"
NAMES = [
    *("gptq-4-sym-llama", "gptq-4-asym-phi3", "gptq-8-asym-llama", "awq-gemm-llama", "awq-gemv-phi3"),
    *("auto-round-gptq-phi3", "auto-round-mixed-llama", "auto-round-asym-phi3"),
    *("ct-4-sym-llama", "ct-8-channel-llama", "ct-8-asym-phi3", "mlx-mixed-llama", "mlx-3-phi3"),
]


@functools.cache
def fused(config: ModelConfig) -> Program:
    program = trace(RandomWeights("random:traced", config))
    run_passes(program, fusions(None))
    return program


def kept(source: Checkpoint) -> Program:
    program = fused(source.config).copy()
    program.weights = {
        name: FloatWeight(source, name) if isinstance(weight, FloatWeight) else weight
        for name, weight in program.weights.items()
    }
    QuantizeWeights(kept_policy(policy_of("keep"), source))(program)
    LastLogits()(program)  # all that tvm-arm takes
    return program


def saved(target: str, program: Program, folder: Path, **more: Any) -> dict[str, LazyWeight]:
    """Written by a target, and read back by its own reader. more: options of the target."""
    options = find_target(target).options(**({"os": "host"} if target == "tvm-arm" else more))
    made: Any = prepared(program, options)
    folder.mkdir()
    if target != "tvm-arm":
        made.write(folder, lambda amount: None)
        (folder / "config.json").write_text(json.dumps(program.config.to_hf()))
        names = dict.fromkeys(program.weights_read(), "")
        return read_onnx(folder) if target == "ort-mobile" else CoreMLHost(folder, names).weights()
    params: ParamsFile = made._params
    written = params.write(folder / PARAMS_FILE, lambda amount: None)
    described = describe(program, made._platform, params, written.sha256, made._asked, made._cache)
    (folder / DESCRIPTION).write_text(json.dumps(described))
    return read_params(folder, read_description(folder))


TARGETS = ("ort-mobile", "coreml", "tvm-arm")


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_bit_equal_in_the_files_of_every_target(name: str, tmp_path: Path) -> None:
    source = open_checkpoint(DATA / name)
    program = kept(source)
    matrices = [weight for weight in source.config.tensors() if source.kept(weight)]
    assert len(matrices) >= 8 - (name == "auto-round-mixed-llama")  # which has one in float
    for target in TARGETS:
        weights = saved(target, program, tmp_path / target)
        for weight in matrices:
            held, rows = weight_of(materialize(weights[weight])), source.tensors[weight].rows
            assert torch.equal(held.dequantize(), source.read(weight, 0, rows).float()), (target, weight)
            original = source.read_kept(weight, 0, rows).tensors()
            parts = held.tensors()
            assert {part for part in original if not torch.equal(parts[part], original[part])} == set(), (
                target,
                weight,
            )


def test_two_bits_are_for_files_that_have_them(tmp_path: Path) -> None:
    source = open_checkpoint(DATA / "gptq-2-asym-llama")
    program = kept(source)
    for target in TARGETS:
        weights = saved(target, program, tmp_path / target, **({"ios": 26} if target == "coreml" else {}))
        name = "model.layers.1.mlp.down_proj.weight"
        assert torch.equal(weight_of(materialize(weights[name])).dequantize(), source.read(name, 0, 64))
    with pytest.raises(InputError, match=r"coreml: model.*.weight is int2, .*; add --ios 26 "):
        saved("coreml", program, tmp_path / "older")


def test_from_a_checkpoint_to_a_bundle(tmp_path: Path) -> None:
    """8 bits with float minimums beside 4 with them and a rounded head: what the saved files compute, and what is said."""
    out = tmp_path / "bundle"
    more = {"os": "host", "verify": "always", "head_bits": 8, "block": 64}
    bundle = compile_model(compile_options(str(DATA / "mlx-mixed-llama"), out, TARGETS, recipe="keep", **more))
    manifest = bundle.manifest
    assert manifest.verified
    measured = {check.name: check.measured for check in manifest.checks}
    assert {measured[f"{target}: weights equal, bit for bit"] for target in TARGETS} == {0}
    assert manifest.recipe.described() == "int4 and int8, as the file has them"
    policy = recorded_policy(manifest.recipe, tied=False)
    said = {name: one.describe() for name in manifest_weights(bundle) if (one := policy.quantizer(name))}
    assert said["model.layers.1.self_attn.qkv_proj.weight"] == "int8 keep block 32"
    assert said["model.layers.0.mlp.down_proj.weight"] == "int4 keep block 32 symmetric"
    assert said["lm_head.weight"] == "int8 keep block 64"
    (refused,) = {tuple(entry) for report in manifest.passes for entry in report.refused}
    assert refused[1] == "lm_head.weight: stored as fp16, which cannot be kept: rounded to nearest"


def manifest_weights(bundle: Bundle) -> list[str]:
    return list(bundle.manifest.targets["ort-mobile"].weights)
