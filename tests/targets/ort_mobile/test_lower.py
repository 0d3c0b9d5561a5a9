"""The lowered graph in real ONNX Runtime, from the saved files, against the quantized program."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import target_files
import torch
from target_files import prepared
from tiny_phi3 import (
    SWITCH,
    TINY,
    VARIANTS,
    before,
    copied,
    fused,
    inputs,
    normal,
    quantized,
    quantized_by,
    rounding,
    runs,
    small,
    traced,
)

from pocketphi.graph.config import EMBEDDING, HEAD, ModelConfig
from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.formats import Int8, format_of
from pocketphi.graph.lazy_weights import FloatWeight, digest, materialize
from pocketphi.graph.program import Program
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.passes.fuse_gated_mlp import FuseGatedMlp
from pocketphi.passes.fuse_residual_norm import FuseResidualNorm
from pocketphi.passes.last_logits import LastLogits
from pocketphi.passes.quantize_weights import QuantizedWeight
from pocketphi.passes.quantizers import EightBits, KMeans, RoundToNearest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from pocketphi.targets.ort_mobile.host import read_weights  # noqa: E402
from pocketphi.targets.ort_mobile.lower import lower  # noqa: E402 - only where onnx is installed
from pocketphi.targets.ort_mobile.options import OrtMobile  # noqa: E402

Outputs = dict[str, torch.Tensor]
# GroupQueryAttention takes several new tokens after a cache for one row only
CASES = [(7, 0, 1), (60, 0, 2), (5, 9, 1), (1, 70, 2), (9, 58, 1)]


def package(program: Program, folder: Path, **options: Any) -> Any:
    """Saved with float32 arithmetic, so that only the order of sums differs."""
    packaged = target_files.package(program, OrtMobile(**{"accuracy_level": 0, **options}), folder)
    return packaged, ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def run(session: Any, feeds: Outputs) -> Outputs:
    wanted = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    results = session.run(None, {name: value.numpy() for name, value in feeds.items() if name in wanted})
    return {name: torch.from_numpy(value) for name, value in zip(names, results)}


def apart(a: Outputs, b: Outputs) -> float:
    assert list(a) == list(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def bound(config: ModelConfig, outputs: list[Outputs], tokens: int) -> float:
    return rounding(config, max(float(v.abs().max()) for o in outputs for v in o.values()), tokens)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_equals_the_quantized_program(tmp_path: Path, variant: str, symmetric: bool, block: int) -> None:
    program = quantized(variant, block, symmetric)
    _, session = package(program, tmp_path)
    want = runs(program, CASES)
    got = [run(session, inputs(program.config, *case)) for case in CASES]
    limit = bound(program.config, want, tokens=72)
    assert [a for w, g in zip(want, got) if (a := apart(w, g)) > limit] == []
    # and it is not met by chance: float weights are further away
    assert apart(runs(fused(variant), CASES)[1], got[1]) > limit


@pytest.mark.parametrize("variant", ["tiny", "tied"])
def test_an_int8_embedding_and_head(tmp_path: Path, variant: str) -> None:
    """Tied, both operators read the same bytes under two shapes."""
    eight = EightBits(32)
    program = quantized_by(RoundToNearest(32), variant, {EMBEDDING: eight, HEAD: eight})
    packaged, session = package(program, tmp_path)
    want = runs(program, CASES)
    got = [run(session, inputs(program.config, *case)) for case in CASES]
    limit = bound(program.config, want, tokens=72)
    assert [a for w, g in zip(want, got) if (a := apart(w, g)) > limit] == []
    saved = read_weights(tmp_path)
    assert {name: digest(materialize(weight)) for name, weight in saved.items()} == packaged.weights
    assert [name for name, weight in saved.items() if format_of(weight.parts) is Int8] == sorted(
        {EMBEDDING, EMBEDDING if variant == "tied" else HEAD}, reverse=True
    )


def test_what_the_operators_cannot_hold_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^ort-mobile: .* is a palette, which the target cannot hold; leave out --pal"
    ):
        prepared(quantized_by(KMeans(16)), OrtMobile())
    message = r"^ort-mobile: model.*gate_up.* has blocks of 320, MatMulNBits takes 16, 32, 64, 128, 256; choose such a"
    odd = replace(TINY, hidden_size=320)
    source = FloatWeight(RandomWeights("random:odd", odd), "model.layers.0.mlp.gate_up_proj.weight")
    program = quantized()
    program.weights = {source.tensor: QuantizedWeight(source, RoundToNearest(0))}
    with pytest.raises(InputError, match=message):
        prepared(program, OrtMobile())
    prepared(quantized_by(RoundToNearest(0)), OrtMobile())  # rows that are blocks of a size that it takes


@pytest.mark.parametrize("variant", VARIANTS)
def test_last_logits_of_right_padded_rows_and_what_follows(tmp_path: Path, variant: str) -> None:
    """A prompt of 60 and one of 23 tokens, then tokens at each row's own place."""
    program = quantized(variant)
    LastLogits()(program)
    _, session = package(program, tmp_path)
    lengths = torch.tensor([60, 23])
    feeds = inputs(program.config, 60, 0, 2)
    feeds["attention_mask"] = (torch.arange(60) < lengths[:, None]).long()
    ours, theirs = run(session, feeds), program.run(feeds)
    limit = bound(program.config, [theirs], tokens=63)
    real = torch.arange(60) < lengths[:, None]
    found = [float((ours["logits"] - theirs["logits"]).abs().max())]
    for step in range(3):
        for name in [n for n in ours if n != "logits"]:
            found.append(float((ours[name] - theirs[name]).transpose(1, 2)[real].abs().max()))
        mask = (torch.arange(61 + step) < lengths[:, None] + step + 1).long()
        ids = {"input_ids": torch.tensor([[5], [9]]), "position_ids": lengths[:, None] + step, "attention_mask": mask}
        ours = run(session, {**ids, **as_past(ours)})
        theirs = program.run({**ids, **as_past(theirs)})
        found.append(float((ours["logits"] - theirs["logits"]).abs().max()))
        real = mask.bool()
    assert ours["logits"].shape == (2, 1, program.config.vocab_size)
    assert max(found) <= limit


def as_past(outputs: Outputs) -> Outputs:
    return {name.replace("present", "past_key_values"): v for name, v in outputs.items() if name != "logits"}


def test_longrope_switches_where_the_program_does(tmp_path: Path) -> None:
    program = quantized("longrope")
    _, session = package(program, tmp_path)
    cases = [(SWITCH, 0, 1), (SWITCH + 1, 0, 1), (1, SWITCH - 1, 2), (1, SWITCH, 2)]
    want = runs(program, cases)
    limit = bound(program.config, want, tokens=SWITCH + 1)
    assert [a for w, c in zip(want, cases) if (a := apart(w, run(session, inputs(program.config, *c)))) > limit] == []


@pytest.mark.parametrize("variant", ["tiny", "tied"])
def test_float_weights(tmp_path: Path, variant: str) -> None:
    program = fused(variant)
    packaged, session = package(program, tmp_path)
    feeds = inputs(program.config, 9, 5)
    want = program.run(feeds)
    assert apart(want, run(session, feeds)) <= bound(program.config, [want], tokens=14)
    assert packaged.operators["MatMul"] == 13
    assert packaged.operators["Transpose"] == 13
    assert packaged.operators["Gather"] == 1


def test_without_the_residual_fusion(tmp_path: Path) -> None:
    """`edge.rms_norm` and `add` on their own."""
    program = before(FuseResidualNorm)
    FuseGatedMlp()(program)
    packaged, session = package(program, tmp_path)
    feeds = inputs(TINY, 9, 5)
    want = program.run(feeds)
    assert apart(want, run(session, feeds)) <= bound(TINY, [want], tokens=14)
    assert (packaged.operators["SimplifiedLayerNormalization"], packaged.operators["Add"]) == (7, 6)


def test_operators() -> None:
    program = quantized()
    LastLogits()(program)
    lowered = lower(program)
    assert Counter(node.op_type for node in lowered.nodes) == {
        "GatherBlockQuantized": 1,
        "SimplifiedLayerNormalization": 1,
        "SkipSimplifiedLayerNormalization": 6,
        "GroupQueryAttention": 3,
        "MatMulNBits": 13,
        "Split": 3,
        "QuickGelu": 3,
        "Mul": 3,
        # once: tokens in each row and columns of the mask; then the index of the last real token
        "ReduceSum": 1,
        "Sub": 1 + 2,
        "Cast": 2 + 1,
        "Shape": 1 + 1,
        "Squeeze": 1,
        "Max": 1,
        "Unsqueeze": 1 + 2,
        "GatherND": 2,
    }
    assert len({node.name for node in lowered.nodes}) == len(lowered.nodes)
    assert {value.name for value in lowered.inputs} == {str(n.target) for n in program.inputs} - {"position_ids"}
    assert [value.name for value in lowered.outputs] == list(program.outputs)


def test_attributes() -> None:
    levels = {level: lower(quantized(block=16), level) for level in (0, 4)}
    matmuls = {k: [attributes(n) for n in low.nodes if n.op_type == "MatMulNBits"] for k, low in levels.items()}
    assert {(a["bits"], a["block_size"], a["accuracy_level"]) for a in matmuls[4]} == {(4, 16, 4)}
    assert {a["accuracy_level"] for a in matmuls[0]} == {0}
    attention = {v: lower(quantized(v)) for v in ("tiny", "full", "longrope")}
    first = {v: next(n for n in low.nodes if n.op_type == "GroupQueryAttention") for v, low in attention.items()}
    assert attributes(first["tiny"])["local_window_size"] == 48
    assert "local_window_size" not in attributes(first["full"])
    assert (attributes(first["tiny"])["num_heads"], attributes(first["tiny"])["kv_num_heads"]) == (4, 2)
    assert [len(n.input) for n in first.values()] == [9, 9, 10]
    assert "position_ids" in {value.name for value in attention["longrope"].inputs}


def attributes(node: Any) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def test_a_tied_weight_lies_once_under_two_shapes(tmp_path: Path) -> None:
    program = quantized("tied")
    placed = [w for w in lower(program).weights if w.target == "model.embed_tokens.weight:q"]
    assert sorted((w.name, w.shape) for w in placed) == [
        ("model.embed_tokens.weight.q", (256, 32)),
        ("model.embed_tokens.weight.q.3d", (256, 2, 16)),
    ]
    package(program, tmp_path)
    entries = {
        t.name: t.external_data for t in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
    }
    assert entries[placed[0].name] == entries[placed[1].name]


def test_saved_bytes_are_the_canonical_ones(tmp_path: Path) -> None:
    """An independent reader: onnx's own external data."""
    program = quantized(symmetric=False)
    package(program, tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    saved = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    wrong = []
    for name, weight in program.weights.items():
        for part, tensor in materialize(weight).items():
            array = saved[f"{name}.{part}" if part else name]
            if not np.array_equal(array.reshape(tensor.shape), tensor.numpy()) or array.dtype != tensor.numpy().dtype:
                wrong.append((name, part))
    assert wrong == []


def test_an_operator_without_a_rule_is_our_bug() -> None:
    with pytest.raises(CompilerBug, match=r"no ONNX rule for sym_size \(sym_size_int_\d+\)"):
        lower(traced())
    program = small(lambda call, x: {"y": call(torch.ops.aten.tanh.default, x)}, {"x": normal(2, 3)})
    with pytest.raises(CompilerBug, match=r"no ONNX rule for tanh \(tanh\w*\)"):
        lower(program)


def test_lowering_leaves_the_program_alone() -> None:
    program = quantized()
    text = program.dump()
    one, two = lower(program), lower(copied(program))
    assert program.dump() == text
    assert [n.SerializeToString() for n in one.nodes] == [n.SerializeToString() for n in two.nodes]


def test_dimensions_are_named() -> None:
    program = quantized()
    lowered = lower(program)
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*lowered.inputs, *lowered.outputs)
    }
    assert shapes["input_ids"] == ["batch", "sequence"]
    assert shapes["attention_mask"] == ["batch", "total"]
    assert shapes["past_key_values.2.value"] == ["batch", 2, "past", 16]
    assert shapes["present.2.value"] == ["batch", 2, "total", 16]
    assert shapes["logits"] == ["batch", "sequence", 256]
    LastLogits()(program)
    last = lower(program).outputs[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in last] == ["batch", 1, 256]
