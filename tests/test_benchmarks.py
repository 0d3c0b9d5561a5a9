"""The benchmarks say what they lack and how it is installed, and ask for help works without it."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import preflight  # noqa: E402 - it lies in benchmarks/, as the next
import retrieval  # noqa: E402


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_every_script_with_a_section_of_its_own_is_known() -> None:
    titles = [
        line.split()[1].rstrip(":")
        for line in (FOLDER / "README.md").read_text("utf-8").splitlines()
        if line[:3] == "## "
    ]
    scripts = {title for title in titles if title.endswith(".py")}
    assert scripts == set(preflight.NEEDS)
    assert [script for script in scripts if not (FOLDER / script).is_file()] == []


SCRIPTS = [path for part in ("benchmarks", "examples") for path in sorted((FOLDER.parent / part).rglob("*.py"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(FOLDER.parent).as_posix())
def test_what_a_script_takes_of_the_product_is_there(script: Path) -> None:
    """Also where it is imported inside a function, or the script runs for hours."""
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pocketphi"):
            module = importlib.import_module(str(node.module))
            for name in (one.name for one in node.names):
                submodule = hasattr(module, "__path__") and importlib.util.find_spec(f"{node.module}.{name}")
                assert hasattr(module, name) or submodule, f"{node.module} has no {name}"


def test_what_is_missing_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    said = run(str(FOLDER / "preflight.py"), "busy_cpu.py", "arm_instructions.py", PATH=str(tmp_path))
    assert said.returncode == 2
    assert "program c++ is missing: apt-get install g++" in said.stdout
    assert "program qemu-aarch64 is missing: apt-get install qemu-user" in said.stdout
    assert "program cmake is missing: apt-get install cmake" in said.stdout


def test_a_script_ends_before_it_begins(tmp_path: Path) -> None:
    """Without a compiler on the path; and the package index is asked for nothing."""
    said = run(str(FOLDER / "tvm_kernels.py"), "--work", str(tmp_path / "work"), PATH=str(tmp_path))
    assert said.returncode == 2
    assert "program c++ is missing: apt-get install g++" in said.stderr
    assert not (tmp_path / "work").exists()


def test_packages_of_the_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx_ir" else found(name))
    (need,) = [need for need in preflight.missing("run_ort.py", ["builder"]) if "onnx_ir" in need.name]
    assert need.install == ".venv/bin/pip install -r benchmarks/requirements.txt"
    assert "onnx-ir" in (FOLDER / "requirements.txt").read_text("utf-8")
    assert "onnx_ir" not in str(preflight.missing("run_ort.py"))


def test_an_unknown_script() -> None:
    said = run(str(FOLDER / "preflight.py"), "nothing.py")
    assert said.returncode == 2
    assert "nothing.py: not one of compile_full.py" in said.stderr


def test_questions_about_the_pages_have_their_answers_there() -> None:
    asked = retrieval.questions()
    assert len(asked) == 100
    assert retrieval.not_in_docs(asked) == []
