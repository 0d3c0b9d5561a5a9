"""Weights of other widths than four bits, from a policy to a verified bundle, and where a target lacks one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.graph.config import EMBEDDING
from pocketphi.graph.errors import InputError
from pocketphi.passes.policy import Policy, Rule
from pocketphi.passes.quantizers import make_quantizer

OPTIONS = compile_options("random:tiny", Path(), recipe="rtn", block=32, verify="always", context=64)
Wanted = tuple[str, dict[str, Any]]
INT4: Wanted = ("int4", {"block": 32})


def compiled(folder: Path, target: str, wanted: dict[str, Wanted]) -> Bundle:
    """wanted: by pattern of names, a format and its quantizer's parameters; first match counts."""
    rules = tuple(Rule(pattern, make_quantizer("rtn", *how)) for pattern, how in wanted.items())
    return compile_model(replace(OPTIONS, out=folder / "b", targets=(target,), contents={}), policy=Policy(rules))


def check(bundle: Bundle) -> None:
    verified = bundle.manifest.verification
    assert verified is not None
    assert [one for one in verified.checks if not one.ok] == []
    assert {one.name: one.measured for one in verified.checks}["weights equal, bit for bit"] == 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_onnx_runtime(tmp_path: Path, symmetric: bool) -> None:
    """ONNX Runtime's own operators against transformers' graph with the values that the weights stand for."""
    pytest.importorskip("onnxruntime")
    made = {"block": 32, "symmetric": symmetric}
    wanted = {
        "*layers.0.*": ("int2", made),
        "*layers.1.*": ("int8", {"block": 32}),
        EMBEDDING: ("int2", made),
        "*": INT4,
    }
    check(compiled(tmp_path, "ort-mobile", wanted))


def test_core_ml(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    widths = {"*layers.0.*": "palette2", "*layers.1.*": "palette3", "*layers.2.*": "palette", "*": "palette6"}
    wanted: dict[str, Wanted] = {pattern: (form, {"group": 16}) for pattern, form in widths.items()}
    check(compiled(tmp_path, "coreml", wanted))


@pytest.mark.parametrize(
    ("target", "how", "message"),
    [
        (
            "ort-mobile",
            ("int3", {"block": 32}),
            r"is int3, .*; choose another format \(it holds affine4, int2, int4, int8\)$",
        ),
        ("ort-mobile", ("palette3", {"group": 16}), "is a palette of 3 bits, .*, or compile it for coreml alone"),
        (
            "coreml",
            ("int2", {"block": 32}),
            r"is int2, .*; add --ios 26 \(it holds affine4, int4, int8, palette, palette2, palette3, palette6\)$",
        ),
    ],
)
def test_a_width_that_a_target_lacks(tmp_path: Path, target: str, how: Wanted, message: str) -> None:
    pytest.importorskip({"coreml": "coremltools"}.get(target, "onnx"))
    with pytest.raises(InputError, match=rf"^{target}: .* {message}"):
        compiled(tmp_path, target, {"*": how})
    assert list(tmp_path.iterdir()) == []
