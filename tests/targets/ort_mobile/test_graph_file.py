"""Damaged graphs of a bundle: one line that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from target_files import package
from tiny_phi3 import quantized

from pocketphi.graph.errors import InputError
from pocketphi.passes.last_logits import LastLogits

pytest.importorskip("onnxruntime")

from pocketphi.targets.ort_mobile.graph_file import read_graph
from pocketphi.targets.ort_mobile.host import OrtHost
from pocketphi.targets.ort_mobile.options import OrtMobile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    program = quantized()
    LastLogits()(program)
    package(program, OrtMobile(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(program.config.to_hf()))
    return tmp_path


@pytest.mark.parametrize(
    "name", ["lm_head.weight.q", "past_key_values.0.key", "input_ids", "MatMulNBits", "model.onnx.data"]
)
def test_a_name_that_is_no_text(name: str, folder: Path) -> None:
    """Of a weight, a cache, an input, an operator, a file: protobuf gives some of them as bytes, and raises for others."""
    assert len(read_graph(folder).graph.node) > 10
    path = folder / "model.onnx"
    content = path.read_bytes()
    assert name.encode() in content
    path.write_bytes(content.replace(name.encode(), b"\xff" + name.encode()[1:]))
    for read in (
        lambda: OrtHost(folder).weights(),
        lambda: OrtHost(folder).runner(8, exact=True),
        lambda: read_graph(folder),
    ):
        with pytest.raises(
            InputError, match=r"model.onnx: damaged \(a name that is not UTF-8\); copy or compile it again"
        ):
            read()
