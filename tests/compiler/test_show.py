"""What a newcomer reads: no name of an operator where there is a word for it, and nothing left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocketphi.artifacts.manifest import CheckRecord, VerificationRecord
from pocketphi.compiler.cli import main
from pocketphi.compiler.graph_words import graph_rows
from pocketphi.compiler.show import verification

COMPILED = {
    "edge.add_rms_norm": 60,
    "edge.attention": 30,
    "edge.embedding_nbits": 1,
    "edge.gated_silu": 30,
    "edge.last_token": 2,
    "edge.matmul_nbits": 121,
    "edge.rms_norm": 1,
    "getitem": 209,
}


def test_a_graph_in_words() -> None:
    assert graph_rows(COMPILED) == [
        ("quantized", "121 matrices and 1 embedding in int4"),
        ("fused", "30 attention blocks; 30 gated MLPs; 60 norms, each with the sum before it; 1 norm alone"),
        ("head", "computes the last token only"),
    ]


def test_several_formats() -> None:
    mixed = {"edge.matmul_nbits": 5, "edge.matmul_int8": 1, "edge.embedding_int8": 1, "edge.matmul_int2": 2}
    assert graph_rows(mixed) == [
        ("quantized", "5 matrices in int4; 1 matrix and 1 embedding in int8; 2 matrices in int2")
    ]


def test_what_was_not_fused_or_quantized_is_said_by_its_name() -> None:
    assert graph_rows({"linear": 2, "embedding": 1, "silu": 3, "edge.new": 1}) == [
        ("in float", "2 matrices; 1 embedding"),
        ("not fused", "3 × silu; 1 × new"),
    ]


def test_every_operator_is_counted_once() -> None:
    """Whatever a graph holds, the counts that are printed add up to it, but for tuples taken apart and the last token."""
    graph = {**COMPILED, "linear": 7, "mul": 11}
    words = " ".join(text for _, text in graph_rows(graph)).replace("int4", "")
    said = sum(int(word) for word in words.split() if word.isdigit())
    assert said == sum(graph.values()) - graph["getitem"] - graph["edge.last_token"]


def test_what_a_plan_and_a_bundle_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["compile", "random:tiny", "-o", str(tmp_path / "b"), "--recipe", "rtn", "--verify", "never"]
    for command in ([*asked, "--dry-run"], asked, ["inspect", str(tmp_path / "b")]):
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert "edge." not in printed
        assert "getitem" not in printed
        for said in (
            "13 matrices and 1 embedding in int4",
            "3 attention blocks",
            "on disk",
            "memory to run",
            "256 tokens",
        ):
            assert said in printed
    assert main(["inspect", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["operators"]["getitem"] == 20


def test_a_verification_says_what_kl_is(capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in (("ort-mobile: KL decode, exact", True), ("weights equal, bit for bit", False)):
        verification(VerificationRecord(True, (CheckRecord(name, 0.0, 1e-6, True, "64 positions"),), None))
        assert ("KL: how far two predictions" in capsys.readouterr().out) is said
