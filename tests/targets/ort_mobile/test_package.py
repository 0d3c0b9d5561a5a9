"""The files of an ONNX Runtime bundle: same bytes each time, and what ONNX Runtime makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from target_files import package, prepared
from tiny_phi3 import TINY, VARIANTS, fused, inputs, quantized

from pocketphi.artifacts.stream import plan_layout
from pocketphi.graph.errors import InputError
from pocketphi.graph.lazy_weights import digest, materialize
from pocketphi.graph.program import Program
from pocketphi.passes.last_logits import LastLogits

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from loaded_graph import graph_as_loaded  # noqa: E402 - only where onnx is installed

from pocketphi.targets.ort_mobile import package as module  # noqa: E402
from pocketphi.targets.ort_mobile.lower import lower  # noqa: E402
from pocketphi.targets.ort_mobile.options import OrtMobile  # noqa: E402
from pocketphi.targets.ort_mobile.package import genai_config  # noqa: E402

FILES = {"model.onnx", "model.onnx.data", "genai_config.json", "required_operators.config"}


def finished(variant: str = "tiny") -> Program:
    program = quantized(variant)
    LastLogits()(program)
    return program


def test_two_packagings_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in "ab":
        (tmp_path / name).mkdir()
        package(finished(), OrtMobile(), tmp_path / name)
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert set(made[0]) == FILES
    assert made[0] == made[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_required_operators_hold_all_that_onnx_runtime_will_run(tmp_path: Path, variant: str) -> None:
    package(finished(variant), OrtMobile(), tmp_path)
    level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    nodes = graph_as_loaded(tmp_path / "model.onnx", tmp_path, graph_optimization_level=level).node
    allowed = set()
    for line in (tmp_path / "required_operators.config").read_text().splitlines():
        domain, opset, names = line.split(";")
        assert (domain, opset) in {("ai.onnx", "21"), ("com.microsoft", "1")}
        allowed |= {(domain, name) for name in names.split(",")}
    assert {(node.domain or "ai.onnx", node.op_type) for node in nodes} - allowed == set()
    assert ("com.microsoft", "GroupQueryAttention") in allowed


def test_what_is_reported(tmp_path: Path) -> None:
    program = finished()
    written: list[int] = []
    packaged = package(program, OrtMobile(), tmp_path, written.append)
    assert packaged.operators["com.microsoft.MatMulNBits"] == 13
    assert packaged.weights == {n: digest(materialize(r)) for n, r in program.weights.items()}
    assert sum(written) == sum(spec.bytes for r in program.weights.values() for spec in r.parts.values())
    assert packaged.notes == ["a single-file model.ort of 0.00 GB would fit: add --ort-file"]
    assert packaged.notes == prepared(program, OrtMobile()).notes


@pytest.mark.parametrize("variant", ["tiny", "tied"])
def test_planned_size(tmp_path: Path, variant: str) -> None:
    """Of the data to the byte; a tiny model's graph weighs more than its one per cent."""
    program = finished(variant)
    package(program, OrtMobile(), tmp_path)
    assert prepared(program, OrtMobile()).bytes == (tmp_path / "model.onnx.data").stat().st_size


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_single_file_gives_the_same_logits(tmp_path: Path, variant: str) -> None:
    program = finished(variant)
    package(program, OrtMobile(ort_file=True), tmp_path)
    sessions = [
        ort.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        for name in ("model.onnx", "model.ort")
    ]
    wanted = {value.name for value in sessions[0].get_inputs()}
    feeds = {n: v.numpy() for n, v in inputs(program.config, 9, 5).items() if n in wanted}
    whole, single = (session.run(["logits"], feeds)[0] for session in sessions)
    assert np.array_equal(whole, single)


def test_a_single_file_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = finished("tied")
    size = plan_layout(program.weights).size + program.weights["model.embed_tokens.weight"].parts["q"].bytes
    monkeypatch.setattr(module, "ORT_LIMIT", size + 1)
    assert prepared(program, OrtMobile(ort_file=True)).notes == []
    monkeypatch.setattr(module, "ORT_LIMIT", size)
    with pytest.raises(
        InputError, match=r"--ort-file: no single-file model.ort: it would take 0.000 GB and the format ends"
    ):
        package(program, OrtMobile(ort_file=True), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert [note[:24] for note in prepared(program, OrtMobile()).notes] == ["no single-file model.ort"]


def test_strict_makes_a_slow_path_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"ort-mobile: slow path: a float MatMul.*without --strict this is only reported"
    ):
        package(fused(), OrtMobile(), tmp_path, strict=True)
    assert list(tmp_path.iterdir()) == []
    package(finished(), OrtMobile(), tmp_path, strict=True)
    assert {path.name for path in tmp_path.iterdir()} == FILES


@pytest.mark.parametrize(
    ("variant", "context", "kind"),
    [("tiny", None, "phi3"), ("full", 128, "phi3"), ("longrope", None, "phi3"), ("tied", 10_000, "phi3")],
)
def test_genai_config(variant: str, context: int | None, kind: str) -> None:
    program = finished(variant)
    model = genai_config(program, lower(program), context)["model"]
    length = min(context or 256, 256)
    assert (model["type"], model["context_length"], model["vocab_size"]) == (kind, length, 256)
    assert ("position_ids" in model["decoder"]["inputs"]) == (variant == "longrope")
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, 2, 0)


@pytest.mark.parametrize(("positions", "kind"), [(4096, "phi3"), (4097, "llama"), (131072, "llama")])
def test_the_runtime_rewinds_only_where_longrope_needs_it(positions: int, kind: str) -> None:
    program = finished()
    lowered = lower(program)
    program.config = replace(TINY, max_position=positions)
    assert genai_config(program, lowered, None)["model"]["type"] == kind
    program.config = replace(VARIANTS["longrope"], max_position=positions)
    assert genai_config(program, lowered, None)["model"]["type"] == "phi3"
    assert json.dumps(genai_config(program, lowered, 100)).count("100") == 2  # context and search length


@pytest.mark.parametrize(("context", "chunk"), [(None, None), (101, None), (100, 128), (40, 128)])
def test_prompts_go_in_chunks_where_longrope_changes_nothing_in_them(context: int | None, chunk: int | None) -> None:
    program = finished("longrope")
    program.config = replace(
        program.config, long_rope=replace(program.config.long_rope, original_max_position=100), max_position=256
    )
    search = genai_config(program, lower(program), context)["search"]
    assert search.get("chunk_size") == chunk
    assert genai_config(finished(), lower(finished()), context)["search"]["chunk_size"] == 128


@pytest.mark.parametrize(
    ("bos", "eos", "pad", "ids"),
    [
        (1, (2, 5), 0, (1, [2, 5], 0)),
        (None, (2, 5), None, (2, [2, 5], 2)),
        (None, (), None, (0, [], 0)),
    ],
)
def test_token_numbers(bos: int | None, eos: tuple[int, ...], pad: int | None, ids: tuple[object, ...]) -> None:
    program = finished()
    program.config = replace(TINY, bos=bos, eos=eos, pad=pad)
    model = genai_config(program, lower(program), None)["model"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == ids
