"""`import pocketphi`: what it gives, with which arguments, and what it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pocketphi
from pocketphi.compiler.options import CompileOptions


def test_six_lines(tmp_path: Path) -> None:
    bundle = pocketphi.compile(
        "random:tiny", tmp_path / "made", [pocketphi.OrtMobile(accuracy_level=0)], recipe="rtn", verify="never"
    )
    assert bundle.path == tmp_path / "made"
    opened = pocketphi.open_bundle(tmp_path / "made")
    assert opened.manifest.recipe.described() == "int4 rtn, block 64, symmetric"
    assert pocketphi.verify(opened).ok
    assert pocketphi.open_checkpoint("random:tiny").config.layers == opened.manifest.model.layers


def test_a_plan() -> None:
    pytest.importorskip("coremltools")
    made = pocketphi.plan("random:tiny", "x", ["ort-mobile", pocketphi.CoreML(chunk=32)], recipe="rtn", context=64)
    assert set(made.run) == {"ort-mobile", "coreml"}
    assert made.run["coreml"].kv_multiple == 32


@pytest.mark.parametrize("call", [pocketphi.compile, pocketphi.plan])
def test_the_arguments_are_those_of_the_options(call: object) -> None:
    assert inspect.signature(call) == inspect.signature(CompileOptions)  # type: ignore[arg-type]
    assert (inspect.getdoc(call) or "") != ""


def test_errors_are_ours(tmp_path: Path) -> None:
    with pytest.raises(pocketphi.InputError, match="--block 5: expected one of"):
        pocketphi.compile("random:tiny", tmp_path / "x", block=5)
    with pytest.raises(pocketphi.InputError, match="not a bundle"):
        pocketphi.open_bundle(tmp_path)
    empty: list[Callable[[], object]] = [
        lambda: pocketphi.open_bundle(""),
        lambda: pocketphi.open_checkpoint(""),
        lambda: pocketphi.compile("random:tiny", ""),  # type: ignore[arg-type]
        lambda: pocketphi.compile("", tmp_path / "x"),
    ]
    for call in empty:
        with pytest.raises(pocketphi.InputError, match="an empty name: expected a file or a folder"):
            call()
    with pytest.raises(AttributeError, match="has no attribute 'compose'"):
        pocketphi.compose  # type: ignore[attr-defined]  # noqa: B018


def test_importing_costs_nothing() -> None:
    code = (
        "import sys, pocketphi; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pydantic', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert sorted(pocketphi.__all__) == pocketphi.__all__
    assert all(hasattr(pocketphi, name) for name in pocketphi.__all__)
