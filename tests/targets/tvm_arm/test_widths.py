"""Bundles whose weights are of several widths: compiled and verified, planned to the byte, and damaged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm")

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import verify_folder
from pocketphi.graph.config import EMBEDDING, HEAD
from pocketphi.graph.errors import InputError
from pocketphi.passes.policy import Policy, Rule
from pocketphi.passes.quantizers import make_quantizer
from pocketphi.targets import find_target
from pocketphi.targets.tvm_arm.description import read_description
from pocketphi.targets.tvm_arm.host import TvmHost
from pocketphi.targets.tvm_arm.options import TvmArm
from pocketphi.targets.tvm_arm.process import RuntimeProcess

WIDTHS = {EMBEDDING: 8, HEAD: 8, "*down_proj*": 5, "*gate_up*": 3, "*": 4}
GATE_UP = "model.layers.0.mlp.gate_up_proj.weight"


def chosen() -> Policy:
    return Policy(
        tuple(Rule(name, make_quantizer("rtn", f"int{bits}", {"block": 32})) for name, bits in WIDTHS.items())
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("widths") / "bundle"
    options = compile_options("random:tiny", out, ("tvm-arm",), recipe="rtn", os="host", verify="never")
    compile_model(options, policy=chosen())
    return out


def test_a_mixed_bundle_passes_every_check(bundle: Path) -> None:
    result = verify_folder(bundle, Bundle.open(bundle, check=False).manifest, Ui())
    assert [check.name for check in result.checks if not check.ok] == []
    assert "bit for bit" in " ".join(check.name for check in result.checks)


def test_the_format_is_named_where_it_is_not_int4(bundle: Path) -> None:
    matrices = json.loads((bundle / "model.json").read_text())["matrices"]
    policy = chosen()
    for name, matrix in matrices.items():
        quantizer = policy.quantizer(name)
        assert quantizer
        assert matrix.get("format", "int4") == quantizer.format.name
        assert ("format" in matrix) == (quantizer.format.name != "int4")


def test_every_weight_takes_the_bytes_that_were_planned(bundle: Path) -> None:
    """In the file: from where its parts begin to where the next ones do, but for what aligns them to 64 bytes."""
    rows = json.loads((bundle / "model.json").read_text())["params"]
    ends = [*(row["offset"] for row in rows[1:]), (bundle / "model.params").stat().st_size]
    taken: dict[str, int] = {}
    for row, end in zip(rows, ends):
        weight = row["name"].partition(":")[0]
        taken[weight] = taken.get(weight, 0) + end - row["offset"]
    policy, target = chosen(), find_target("tvm-arm")
    for name, matrix in read_description(bundle).matrices.items():
        quantizer = policy.quantizer(name)
        assert quantizer
        layout = quantizer.layout((matrix.rows, matrix.columns))
        planned = target.weight_bytes(quantizer.format.name, layout, TvmArm(os="host"))
        assert 0 <= taken[name] - planned < 2 * 64


def other_format(name: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data["matrices"][GATE_UP]["format"] = name

    return change


def no_format(data: dict[str, Any]) -> None:
    del data["matrices"][GATE_UP]["format"]


def other_columns(data: dict[str, Any]) -> None:
    data["matrices"][GATE_UP]["columns"] += 32


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (other_format("int9"), "is of format 'int9', expected one of int2, int3, int4, int5, int6, int8"),
        (other_format("palette"), "is of format 'palette', expected one of"),
        (other_format("int5"), r"has the parts \['q3', 'scale'\], expected q5 and scale"),
        (other_format("int8"), r"has the parts \['q3', 'scale'\], expected q8 and scale"),
        (no_format, r"has the parts \['q3', 'scale'\], expected q and scale"),
        (other_columns, r"has \(6144,\) values of uint8 in its part q3"),
    ],
)
def test_a_damaged_description(bundle: Path, tmp_path: Path, change: Callable[..., None], problem: str) -> None:
    data = json.loads((bundle / "model.json").read_text())
    change(data)
    (tmp_path / "model.json").write_text(json.dumps(data))
    os.link(bundle / "model.params", tmp_path / "model.params")
    with pytest.raises(InputError, match=f"matrices: '{GATE_UP}' {problem}"):
        read_description(tmp_path)


def test_the_runtime_refuses_parameters_that_its_kernels_were_not_built_for(bundle: Path, tmp_path: Path) -> None:
    """The C runtime reads no formats: the library holds the table of parameters, with their names and sizes."""
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace(f"{GATE_UP}:q3", f"{GATE_UP}:q4"))
    with pytest.raises(InputError, match="the library was built for"):
        RuntimeProcess(TvmHost(bundle)._command(), folder)
