"""Loops, conditions and classifiers: what their operations give, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

ct = pytest.importorskip("coremltools")

from mil_programs import mb, program, save  # noqa: E402 - only where coremltools is

from pocketphi.graph.errors import InputError  # noqa: E402
from pocketphi.targets.coreml import interpreter as interpreting  # noqa: E402
from pocketphi.targets.coreml.interpreter import Interpreter  # noqa: E402
from pocketphi.targets.coreml.mlpackage import MLPackage  # noqa: E402
from pocketphi.targets.coreml.run_package import run_mlpackage  # noqa: E402


def opened(build: Any, path: Path, **inputs: Any) -> Interpreter:
    return Interpreter(MLPackage.open(save(program(build, **inputs), path)), "fp32")


def test_a_loop_runs_until_its_condition_is_false(tmp_path: Path) -> None:
    """Doubles x until its sum reaches limit; the body reads a value and a constant from outside."""

    def build(x: Any, limit: Any) -> Any:
        step = mb.add(x=limit, y=np.float32(0))
        table = mb.const(val=np.float32([2, 2, 2]))

        def grown(i: Any, x: Any) -> Any:
            return mb.add(x=i, y=np.int32(1)), mb.mul(x=x, y=table)

        def small(i: Any, x: Any) -> Any:
            return mb.less(x=mb.reduce_sum(x=x, axes=[0], keep_dims=False), y=mb.squeeze(x=step))

        rounds, made = mb.while_loop(_cond=small, _body=grown, loop_vars=(np.int32(0), x))
        return mb.identity(x=rounds, name="rounds"), mb.identity(x=made, name="made")

    loop = opened(build, tmp_path / "p.mlpackage", x=("fp32", (3,)), limit=("fp32", (1,)))
    for limit, rounds in ((24.0, 2), (25.0, 3), (1.0, 0)):
        came = loop.run(None, {"x": torch.tensor([1.0, 2, 3]), "limit": torch.tensor([limit])})
        assert int(came["rounds"]) == rounds
        assert came["made"].tolist() == [2.0**rounds * v for v in (1, 2, 3)]
    assert loop.package.operators()["while_loop"] == 1
    assert loop.package.operators()["mul"] == 1


def test_loops_in_loops(tmp_path: Path) -> None:
    """Counts to 3 · 4, adding x each time."""

    def build(x: Any) -> Any:
        def below(most: int) -> Any:
            return lambda i, total: mb.less(x=i, y=np.int32(most))

        def inner(i: Any, total: Any) -> Any:
            return mb.add(x=i, y=np.int32(1)), mb.add(x=total, y=x)

        def outer(i: Any, total: Any) -> Any:
            _, total = mb.while_loop(_cond=below(4), _body=inner, loop_vars=(np.int32(0), total))
            return mb.add(x=i, y=np.int32(1)), total

        _, total = mb.while_loop(_cond=below(3), _body=outer, loop_vars=(np.int32(0), mb.mul(x=x, y=np.float32(0))))
        return mb.identity(x=total, name="y")

    loop = opened(build, tmp_path / "p.mlpackage", x=("fp32", (2,)))
    assert loop.run(None, {"x": torch.tensor([1.0, -2.5])})["y"].tolist() == [12, -30]


def test_a_loop_without_end_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(x: Any) -> Any:
        y = mb.while_loop(
            _cond=lambda x: mb.greater(x=mb.reduce_sum(x=x, axes=[0], keep_dims=False), y=np.float32(-1)),
            _body=lambda x: mb.abs(x=x),
            loop_vars=(x,),
        )
        return mb.identity(x=y, name="y")

    monkeypatch.setattr(interpreting, "MOST_ROUNDS", 50)
    loop = opened(build, tmp_path / "p.mlpackage", x=("fp32", (2,)))
    with pytest.raises(InputError, match="loops 50 times in a run"):
        loop.run(None, {"x": torch.ones(2)})
    assert loop.run(None, {"x": -torch.ones(2)})["y"].tolist() == [-1, -1]  # what is left is counted anew


def test_one_of_two_blocks(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        y = mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=x, axes=[0], keep_dims=False), y=np.float32(0)),
            _true_fn=lambda: mb.mul(x=x, y=np.float32(2)),
            _false_fn=lambda: mb.sub(x=x, y=np.float32(1)),
        )
        return mb.identity(x=y, name="y")

    branch = opened(build, tmp_path / "p.mlpackage", x=("fp32", (2,)))
    assert branch.run(None, {"x": torch.tensor([1.0, 2])})["y"].tolist() == [2, 4]
    assert branch.run(None, {"x": torch.tensor([1.0, -2])})["y"].tolist() == [0, -3]


def test_a_state_in_a_block_is_refused(tmp_path: Path) -> None:
    def build(x: Any, kept: Any) -> Any:
        y = mb.cond(
            pred=mb.greater(x=mb.squeeze(x=x), y=np.float16(0)),
            _true_fn=lambda: mb.mul(x=mb.read_state(input=kept), y=np.float16(2)),
            _false_fn=lambda: mb.identity(x=x),
        )
        return mb.identity(x=y, name="y")

    branch = opened(build, tmp_path / "p.mlpackage", x=("fp16", (1,)), kept=("state", (1,)))
    with pytest.raises(InputError, match="inside of a block"):
        branch.run(None, {"x": torch.ones(1)}, branch.make_states())


def test_two_classes_of_one_name(tmp_path: Path) -> None:
    traced = torch.jit.trace(nn.Softmax(-1).eval(), torch.zeros(1, 3))
    labels = ct.ClassifierConfig(["cat", "dog", "cat"])
    path = save(traced, tmp_path / "p.mlpackage", inputs=[ct.TensorType("x", (1, 3))], classifier_config=labels)
    with pytest.raises(InputError, match="two classes have the name 'cat'"):
        Interpreter(MLPackage.open(path), "fp32").run(None, {"x": torch.zeros(1, 3)})


@pytest.mark.parametrize("labels", [["cat", "dog", "é"], [7, -5, 900]])
def test_a_classifier_gives_its_class_and_probabilities(tmp_path: Path, labels: list[Any]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)).eval()
    x = torch.randn(1, 4)
    traced = torch.jit.trace(module, x)
    path = save(
        traced,
        tmp_path / "p.mlpackage",
        inputs=[ct.TensorType("x", (1, 4))],
        classifier_config=ct.ClassifierConfig(labels),
        compute_precision=ct.precision.FLOAT32,
    )
    expected = module(x)[0].tolist()
    best = labels[expected.index(max(expected))]
    came = Interpreter(MLPackage.open(path), "fp32").run(None, {"x": x})
    assert (came["classLabel"] if isinstance(best, str) else int(came["classLabel"])) == best
    assert list(came["classLabel_probs"]) == labels
    assert list(came["classLabel_probs"].values()) == pytest.approx(expected)
    np.save(tmp_path / "x.npy", x.numpy())
    ran = run_mlpackage(path, inputs=[f"x={tmp_path}/x.npy"], mode="fp32", compare=True, output=tmp_path / "o.npz")
    assert ran.outputs["classLabel"].first == [best]
    assert ran.outputs["classLabel_probs"].classes == pytest.approx(dict(zip(map(str, labels), expected)))
    with np.load(tmp_path / "o.npz") as written:
        assert written["classLabel_probs"].tolist() == pytest.approx(expected)
        assert written["classLabel_probs.classes"].tolist() == labels
        assert written["classLabel"] == best
