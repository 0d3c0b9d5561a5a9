"""Experts in real ONNX Runtime: its QMoE with shares of sparse mixing, and the order of rows that it wants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import target_files
import torch
from hf_folders import _traced as traced
from tiny_phi3 import inputs

from pocketphi.compiler.pipeline import fusions, run_passes
from pocketphi.graph.errors import InputError
from pocketphi.graph.lazy_weights import digest, materialize
from pocketphi.graph.program import Program
from pocketphi.graph.published import PUBLISHED
from pocketphi.passes.policy import Policy, Rule
from pocketphi.passes.quantize_weights import QuantizeWeights
from pocketphi.passes.quantizers import EightBits, Quantizer, RoundToNearest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from pocketphi.targets.ort_mobile.host import OrtRunner, read_weights  # noqa: E402 - only where onnx is installed
from pocketphi.targets.ort_mobile.options import OrtMobile  # noqa: E402
from pocketphi.targets.ort_mobile.pairs import in_turns, places  # noqa: E402

TINY = PUBLISHED["tiny-moe"]
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj.weight"


def quantized(*rules: Rule, quantizer: Quantizer | None = None) -> Program:
    program = traced(TINY).copy()
    policy = Policy((*rules, Rule("*", quantizer or RoundToNearest(32))))
    run_passes(program, [*fusions(None), QuantizeWeights(policy)])
    return program


def package(program: Program, folder: Path) -> Any:
    """Saved with float32 arithmetic, so that only the order of sums differs."""
    (folder / "config.json").write_text(json.dumps(TINY.to_hf()))
    return target_files.package(program, OrtMobile(accuracy_level=0), folder)


@pytest.mark.parametrize("symmetric", [True, False])
def test_logits_and_weights_are_the_programs(symmetric: bool, tmp_path: Path) -> None:
    """A prompt, and then tokens past the window."""
    program = quantized(quantizer=RoundToNearest(32, symmetric))
    packaged = package(program, tmp_path)
    assert packaged.operators["com.microsoft.QMoE"] == 3
    tokens = inputs(TINY, 60)["input_ids"]
    want = program.run(inputs(TINY, 60) | {"input_ids": tokens})["logits"]
    runner = OrtRunner(tmp_path, 60)
    came = torch.cat([runner.step(tokens[:, :50]), *(runner.step(tokens[:, i : i + 1]) for i in range(50, 60))], 1)
    assert float((want - came).abs().max()) < 1e-4
    saved = read_weights(tmp_path)
    for name, weight in program.weights_read().items():
        if name.startswith("model.layers.1.mlp"):
            assert digest(materialize(saved[name])) == packaged.weights[name] == digest(materialize(weight))
    rows = saved[GATE_UP].read(30, 70)["scale"]  # the other half of one expert, and the gate of the next
    assert torch.equal(rows, materialize(program.weights[GATE_UP])["scale"][30:70])


def test_rows_in_turns() -> None:
    rows = in_turns({"": torch.arange(12)[:, None]}, 6)[""].flatten()
    assert rows.tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    for start, stop in ((0, 12), (2, 5), (4, 9), (7, 7)):
        assert rows[torch.from_numpy(places(start, stop, 6))].tolist() == list(range(start, stop))


def test_no_other_expert_is_read(tmp_path: Path) -> None:
    """Scales of NaN in the rows of experts that a token does not go through are met nowhere."""
    program = quantized()
    package(program, tmp_path)
    tokens = torch.tensor([[7]])
    chosen: dict[int, set[int]] = {}

    def observe(node: torch.fx.Node, args: tuple[object, ...]) -> None:
        if node.target is torch.ops.edge.experts_nbits.default:
            layer = int(str(node.args[3].target).split(".")[2])  # type: ignore[union-attr]
            chosen[layer] = set(args[1].flatten().tolist())  # type: ignore[attr-defined]

    program.run(program.prefill_inputs(tokens), observe=observe)
    before = OrtRunner(tmp_path, 4).step(tokens)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    data = bytearray((tmp_path / "model.onnx.data").read_bytes())
    spoiled = 0
    for tensor in model.graph.initializer:
        if ".experts." in tensor.name and tensor.name.endswith(".scale"):
            said = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
            size = said["length"] // 6
            for number in set(range(6)) - chosen[int(tensor.name.split(".")[2])]:
                at = said["offset"] + number * size
                data[at : at + size] = b"\xff" * size
                spoiled += 1
    assert spoiled == 3 * 2 * 4
    (tmp_path / "model.onnx.data").write_bytes(data)
    assert torch.equal(OrtRunner(tmp_path, 4).step(tokens), before)


def test_what_its_operator_does_not_run_exactly_is_refused(tmp_path: Path) -> None:
    cases = {
        "is in int8, and its QMoE runs experts in int4": quantized(Rule(GATE_UP, EightBits(32))),
        "in int4 with scales of 8 bits": quantized(quantizer=RoundToNearest(32, scale_bits=8)),
        "takes experts in blocks of one size": quantized(Rule(GATE_UP, RoundToNearest(64))),
    }
    for message, program in cases.items():
        with pytest.raises(InputError, match=message):
            target_files.package(program, OrtMobile(), tmp_path)
