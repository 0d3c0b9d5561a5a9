"""`pocketphi run-mlpackage` on small packages: what it shows, writes, and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools")

from mil_programs import mb, program, save

from pocketphi.compiler.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["run-mlpackage", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """y = table[n] · x², with n int32 [1] and x fp16 [1, 3]."""
    table = np.float16([[1, 2, 3], [10, 20, 30]])

    def build(n: object, x: object) -> object:
        return mb.mul(x=mb.gather(x=table, indices=n, axis=0, validate_indices=False), y=mb.square(x=x), name="y")

    made = program(build, n=("int32", (1,)), x=("fp16", (1, 3)))
    return str(save(made, tmp_path_factory.mktemp("cli") / "p.mlpackage"))


def test_given_inputs(capsys: pytest.CaptureFixture[str], tmp_path: Path, package: str) -> None:
    np.save(tmp_path / "x.npy", np.float32([[1, 2, 50.1]]))
    inputs = ("--input", "n=[1]", "--input", f"x={tmp_path}/x.npy")
    code, out, _ = run(capsys, package, *inputs, "--compare", "--json", "--output", str(tmp_path / "out.npz"))
    assert code == 0
    ran = json.loads(out)
    assert ran["function"] == "main"
    assert ran["inputs"]["n"]["first"] == [1]
    assert ran["outputs"]["y"]["type"] == "fp16[1, 3]"
    half = np.float16(np.float16(np.float32(np.float16(50.1)) ** 2) * 30.0)
    assert ran["outputs"]["y"]["first"] == [10, 80, float("inf")]
    assert half == np.inf
    assert ran["outputs"]["y"]["not_finite"] == 1
    assert ran["tight"]["main/y"] == pytest.approx(65504 / 75300, rel=1e-3)
    assert np.load(tmp_path / "out.npz")["y"].tolist() == [[10, 80, np.inf]]


def test_inputs_that_are_not_given(capsys: pytest.CaptureFixture[str], tmp_path: Path, package: str) -> None:
    first, again, other = (
        json.loads(run(capsys, package, "--json", "--seed", seed, "--mode", "fp32")[1])["outputs"] for seed in "001"
    )
    assert first == again != other
    code, out, _ = run(capsys, package, "--compare", "--output", str(tmp_path / "folder"))
    assert code == 0
    assert "random, seed 0" in out
    assert "fp16 and fp32 differ in y by up to" in out
    assert np.load(tmp_path / "folder" / "y.npy").shape == (1, 3)


def test_how_near_float16_ends_is_shown(capsys: pytest.CaptureFixture[str], package: str) -> None:
    code, out, _ = run(capsys, package, "--input", "x=[[1, 2, 200]]")
    assert code == 0
    assert "largest: 1.2e+05 in main/y" in out
    assert "main/y comes within 0.55 times of the largest value" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--function", "other"), "no function 'other'; there are main"),
        (("--input", "z=[1]"), "expected NAME=VALUE with a NAME of n, x"),
        (("--input", "n"), "expected NAME=VALUE"),
        (("--input", "n=[1"), "expected a .npy file, JSON numbers, random or zeros"),
        (("--input", "n=[0.5]"), "expected integers"),
        (("--input", "n=[7]"), "index 7 is outside 0 … 1 (not given, x: random, seed 0)"),
        (("--input", "x=[1]"), r"input 'x' is fp16[1, 3], got [1]"),
        (("--input", "x=missing.npy"), "missing.npy"),
        (("--threads", "-1"), "--threads -1: expected 0 to 1,024"),
        (("--seed", "-1"), "--seed -1: expected 0 to"),
        (("--seed", str(1 << 64)), "expected 0 to 9,223,372,036,854,775,807"),
        (("--output", "/proc/none/out.npz"), "--output /proc/none/out.npz: cannot be written"),
    ],
)
def test_bad_arguments(
    capsys: pytest.CaptureFixture[str], package: str, arguments: tuple[str, ...], message: str
) -> None:
    code, _, error = run(capsys, package, *arguments)
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1


def test_what_is_no_package_or_cannot_be_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, str(tmp_path))[0] == 2
    path = save(program(lambda x: mb.random_normal(shape=mb.shape(x=x)), x=("fp16", (3,))), tmp_path / "p.mlpackage")
    code, _, error = run(capsys, str(path))
    assert code == 2
    assert "function main uses operators that cannot be run: random_normal (1×)" in error
