"""Verification passes what is right and catches what was broken on purpose."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import Manifest
from pocketphi.compiler import show
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.evaluate import evaluate_model
from pocketphi.compiler.numerics import generate
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.text import random_tokens
from pocketphi.compiler.ui import Advance, Ui
from pocketphi.compiler.verify import Check, Verification, verify_folder
from pocketphi.graph import random_weights
from pocketphi.graph.config import LongRope
from pocketphi.graph.errors import CheckFailed, InputError
from pocketphi.graph.program import Program
from pocketphi.graph.random_weights import PUBLISHED
from pocketphi.passes.base import PassReport
from pocketphi.passes.fuse_residual_norm import FuseResidualNorm
from pocketphi.targets.ort_mobile.host import OrtHost, OrtRunner
from pocketphi.targets.ort_mobile.names import DATA_FILE, GRAPH_FILE

pytestmark = pytest.mark.usefixtures("whole_decode")


def manifest_of(folder: Path) -> Manifest:
    return Bundle.open(folder, check=False).manifest


def failed(result: Verification) -> list[str]:
    return [check.name for check in result.checks if not check.ok]


@pytest.fixture
def tiny_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """random:tiny-long: LongRoPE from 140 tokens on, no window."""
    rope = LongRope(tuple([1.0] * 8), tuple(1.0 + i for i in range(8)), 140)
    monkeypatch.setitem(
        random_weights.PUBLISHED, "tiny-long", replace(PUBLISHED["tiny"], sliding_window=None, long_rope=rope)
    )


def test_a_good_bundle_passes_every_check(tiny_bundle: Path) -> None:
    result = verify_folder(tiny_bundle, manifest_of(tiny_bundle), Ui())
    assert failed(result) == []
    names = " ".join(check.name for check in result.checks)
    for part in ("bit for bit", "prefill, exact", "decode, as saved", "greedy", "decode past the window of 48"):
        assert part in names
    assert "onnxruntime-genai, past the window" in names  # onnxruntime-genai sees the same window


@pytest.mark.parametrize(("model", "context"), [("random:tiny", None), ("random:tiny", 40), ("random:tiny-long", None)])
def test_progress_ends_where_it_was_said_to(model: str, context: int | None, tmp_path: Path, tiny_long: None) -> None:
    bundle = compile_model(compile_options(model, tmp_path / "b", recipe="rtn", verify="never", context=context))
    ui = Counting()
    verify_folder(bundle.path, bundle.manifest, ui)
    assert ui.done == ui.total > 150


class Counting(Ui):
    """Adds up one task."""

    @contextlib.contextmanager
    def task(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        self.total, self.done = total, 0

        def advance(amount: int) -> None:
            self.done += amount

        yield advance


def test_the_reference_measures_quantization_apart(tiny_bundle: Path) -> None:
    result = verify_folder(tiny_bundle, manifest_of(tiny_bundle), Ui(), reference="random:tiny")
    assert result.reference is not None
    assert 1e-5 < result.reference["kl"] < 1
    exact = next(check for check in result.checks if check.name == "KL prefill, exact")
    assert exact.measured < result.reference["kl"] / 1000  # the lowering adds nothing to it


def _edit_graph(folder: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(str(folder / GRAPH_FILE), load_external_data=False)
    edit(model)
    (folder / GRAPH_FILE).write_bytes(model.SerializeToString())


def flip_one_scale(folder: Path) -> None:
    model = onnx.load(str(folder / GRAPH_FILE), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "model.layers.1.self_attn.o_proj.weight.scale")
    offset = int(next(e.value for e in tensor.external_data if e.key == "offset"))
    with (folder / DATA_FILE).open("r+b") as file:
        file.seek(offset)
        value = np.frombuffer(file.read(4), np.float32)
        file.seek(offset)
        file.write((-value).tobytes())


def flip_rotary_sign(folder: Path) -> None:
    """One layer turns the other way."""

    def edit(model: onnx.ModelProto) -> None:
        node = [n for n in model.graph.node if n.op_type == "GroupQueryAttention"][1]
        turned = onnx.helper.make_node("Neg", [node.input[8]], ["turned"])
        node.input[8] = "turned"
        model.graph.node.insert(0, turned)

    _edit_graph(folder, edit)


def shift_window(by: int) -> Callable[[Path], None]:
    """One layer's mask bound is off by one."""

    def edit(model: onnx.ModelProto) -> None:
        node = [n for n in model.graph.node if n.op_type == "GroupQueryAttention"][1]
        next(a for a in node.attribute if a.name == "local_window_size").i += by

    return lambda folder: _edit_graph(folder, edit)


def another_epsilon(folder: Path) -> None:
    """Random weights make large hidden values: no logit moves."""

    def edit(model: onnx.ModelProto) -> None:
        norm = [n for n in model.graph.node if n.op_type == "SkipSimplifiedLayerNormalization"][1]
        next(a for a in norm.attribute if a.name == "epsilon").f *= 1.3

    _edit_graph(folder, edit)


def swap_gate_and_up(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        split = next(n for n in model.graph.node if n.op_type == "Split")
        split.output[0], split.output[1] = split.output[1], split.output[0]

    _edit_graph(folder, edit)


def read_the_wrong_token(folder: Path) -> None:
    """Logits of the first token instead of the last."""

    def edit(model: onnx.ModelProto) -> None:
        next(n for n in model.graph.node if n.op_type == "Max").op_type = "Min"

    _edit_graph(folder, edit)


def wrong_in_long_texts(folder: Path) -> None:
    """Another logit beyond any length that is run."""

    def edit(model: onnx.ModelProto) -> None:
        (last,) = (n for n in model.graph.node if "logits" in n.output)
        last.output[0] = "right"
        limit = onnx.helper.make_tensor("limit", onnx.TensorProto.INT64, [1], [200])
        model.graph.initializer.append(limit)
        make = onnx.helper.make_node
        model.graph.node.extend(
            [
                make("Shape", ["attention_mask"], ["total"], start=1),
                make("Greater", ["total", "limit"], ["long"]),
                make("Cast", ["long"], ["added"], to=onnx.TensorProto.FLOAT),
                make("Add", ["right", "added"], ["logits"]),
            ]
        )

    _edit_graph(folder, edit)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (wrong_in_long_texts, "operations that are not the model's"),
        (flip_one_scale, "weights equal, bit for bit"),
        (flip_rotary_sign, "KL prefill, exact"),
        (shift_window(+1), "KL prefill past the window of 48"),
        (shift_window(-1), "KL decode past the window of 48"),
        (swap_gate_and_up, "KL decode, exact"),
        (read_the_wrong_token, "KL decode, as saved"),
        (another_epsilon, "norms with another epsilon"),
    ],
)
def test_a_broken_lowering_is_caught(
    tiny_bundle: Path, tmp_path: Path, damage: Callable[[Path], None], expected: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bundle, broken)
    damage(broken)
    result = verify_folder(broken, manifest_of(tiny_bundle), Ui())
    assert not result.ok
    assert expected in failed(result)


def test_long_rope_is_verified_on_both_sides_of_its_switch(
    tmp_path: Path, tiny_long: None, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = compile_model(compile_options("random:tiny-long", tmp_path / "b", recipe="rtn", verify="always"))
    checks = {check.name: check for check in bundle.manifest.checks}
    assert checks["KL LongRoPE at 140 tokens"].ok
    assert checks["KL LongRoPE at 141 tokens"].ok
    assert checks["KL onnxruntime-genai, a prompt of 141 tokens"].ok
    assert bundle.manifest.verification
    assert bundle.manifest.verification.ok
    grows = "onnxruntime-genai keeps LongRoPE's short factors where a text grows past 140 tokens"
    assert (bundle.manifest.verification.reason or "").startswith(grows)
    show.bundle(bundle, checked=True)
    assert f"but {grows}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("switch", "right"), [(140, False), (4096, True)])
def test_what_is_said_of_onnxruntime_genai_and_longrope_is_so(
    switch: int, right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own loop, as an app that knows nothing of the switch runs it, across it: greedy tokens of both runtimes."""
    genai = pytest.importorskip("onnxruntime_genai")
    rope = LongRope(tuple([1.0] * 8), tuple(1.0 + i for i in range(8)), switch)
    config = replace(PUBLISHED["tiny"], layers=1, sliding_window=None, long_rope=rope, max_position=switch + 99)
    monkeypatch.setitem(random_weights.PUBLISHED, "tiny-grows", config)
    options = compile_options("random:tiny-grows", tmp_path / "b", recipe="rtn", accuracy_level=0, verify="never")
    folder = compile_model(options).path
    assert (OrtHost(folder).caveats(config.max_position) == []) is right
    assert OrtHost(folder).caveats(switch) == []
    prompt = torch.tensor([random_tokens(config, switch - 3)])
    ours = generate(OrtRunner(folder, switch + 40), prompt, 20)[0][0].tolist()
    parameters = genai.GeneratorParams(model := genai.Model(str(folder)))
    parameters.set_search_options(max_length=switch + 40)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt.numpy().astype(np.int32))
    for _ in ours:
        generator.generate_next_token()
    theirs = generator.get_sequence(0)[prompt.shape[1] :].tolist()
    assert theirs[:4] == ours[:4]
    assert (theirs == ours) is right


def test_chunks_that_longrope_does_not_allow_are_caught(tmp_path: Path, tiny_long: None) -> None:
    bundle = compile_model(compile_options("random:tiny-long", tmp_path / "b", recipe="rtn", verify="never"))
    path = bundle.path / "genai_config.json"
    config = json.loads(path.read_text())
    assert "chunk_size" not in config["search"]
    config["search"]["chunk_size"] = 64
    path.write_text(json.dumps(config))
    assert "KL LongRoPE at 141 tokens" in failed(verify_folder(bundle.path, bundle.manifest, Ui()))


@pytest.mark.parametrize("target", ["ort-mobile", "coreml"])
@pytest.mark.parametrize("context", [2, 3])
def test_the_shortest_contexts_are_verified(tmp_path: Path, target: str, context: int) -> None:
    options = compile_options(
        "random:tiny", tmp_path / "b", targets=(target,), recipe="rtn", verify="always", context=context
    )
    assert compile_model(options).manifest.verified


def lose_a_residual(program: Program) -> None:
    """A rewrite that gives one layer's norm the same operand twice."""
    node = [n for n in program.graph.nodes if n.target is torch.ops.edge.add_rms_norm.default][2]
    node.args = (node.args[1], *node.args[1:])


def test_a_wrong_rewrite_is_refused_before_a_byte_is_written(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETPHI_CACHE", str(tmp_path_factory.mktemp("wrong")))  # where the wrong graph may be kept
    right = FuseResidualNorm.rewrite

    def wrong(self: FuseResidualNorm, program: Program, report: PassReport) -> None:
        right(self, program, report)
        lose_a_residual(program)

    monkeypatch.setattr(FuseResidualNorm, "rewrite", wrong)
    options = compile_options("random:tiny", tmp_path / "b", recipe="rtn")
    with pytest.raises(CheckFailed, match=r"rewrites that change a bit: .*the input of model\.layers\..* differs in "):
        compile_model(options)
    assert not list(tmp_path.iterdir())

    bundle = compile_model(replace(options, verify="never"))
    result = verify_folder(bundle.path, bundle.manifest, Ui(), reference="random:tiny")
    assert {"rewrites that change a bit", "KL prefill, exact", "KL decode, exact"} <= set(failed(result))
    # what the rewrites do to a graph is on neither side of this comparison
    apart = evaluate_model(str(bundle.path), None, 512, 128, "random:tiny", Ui())
    assert apart.kl is not None
    assert apart.kl > 0.1


def test_a_reference_that_runs_otherwise_is_named(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = replace(PUBLISHED["tiny"], rope_theta=20000.0)
    monkeypatch.setitem(random_weights.PUBLISHED, "tiny-theta", other)
    result = verify_folder(tiny_bundle, manifest_of(tiny_bundle), Ui(), reference="random:tiny-theta")
    wrong = next(check for check in result.checks if not check.ok)
    assert wrong.name == "settings that the reference has otherwise"
    assert wrong.detail == "rope_theta is 10000.0 in the bundle, 20000.0 in the reference"
    assert result.reference is None


def test_a_reference_with_other_norms_is_said_not_to_be_compared(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Ui, "say", lambda self, text: said.append(text))
    monkeypatch.setattr("pocketphi.compiler.verify.same_norms", lambda weights, source: False)
    result = verify_folder(tiny_bundle, manifest_of(tiny_bundle), Ui(), reference="random:tiny")
    assert "weights that are not the model's, rounded" not in [check.name for check in result.checks]
    assert any("its norms are not the bundle's" in line for line in said)


def test_rotary_dimensions_that_onnxruntime_has_not_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = replace(PUBLISHED["tiny"], head_dim=32, rotary_dim=24)
    monkeypatch.setitem(random_weights.PUBLISHED, "tiny-odd", config)
    options = compile_options("random:tiny-odd", tmp_path / "b", recipe="rtn", verify="never")
    with pytest.raises(InputError, match=r"ort-mobile: 24 rotary dimensions, .* a multiple of 16; compile for coreml"):
        compile_model(options)
    assert not list(tmp_path.iterdir())


def test_a_check_with_nan_fails() -> None:
    assert not Check("KL", float("nan"), 1.0).ok


def test_recorded_numbers_are_json(tiny_bundle: Path) -> None:
    recorded = verify_folder(tiny_bundle, manifest_of(tiny_bundle), Ui()).recorded()
    assert json.loads(json.dumps(recorded.as_json()))["ok"] is True


@pytest.mark.parametrize("context", [100, 40])
def test_a_shorter_context_is_verified_within_it(tmp_path: Path, context: int) -> None:
    options = compile_options("random:tiny", tmp_path / "b", recipe="rtn", verify="always", context=context)
    manifest = compile_model(options).manifest
    assert manifest.verification
    assert manifest.verification.ok
    names = " ".join(check.name for check in manifest.checks)
    assert ("past the window" in names) == (context == 100)
