"""Folders are stages: what setup.cfg publishes is what lies on disk, and imports run one way."""

from __future__ import annotations

import ast
import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "graph": {"graph"},
    "passes": {"graph", "passes"},
    "artifacts": {"graph", "artifacts"},
    "targets": {"graph", "passes", "artifacts", "targets"},
    "compiler": {"graph", "passes", "artifacts", "targets", "compiler"},
}


def options() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def folders() -> set[str]:
    """Every folder of a stage that holds Python files."""
    return {str(path.parent.relative_to(ROOT)) for stage in MAY_IMPORT for path in (ROOT / stage).rglob("*.py")}


def imported(path: Path) -> set[str]:
    """The stages that a file imports, at its top or anywhere inside; bare folder names count as wrong ones."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.split(".")[1] for name in names if name.startswith("pocketphi.")}
    return ours | {f"bare {name}" for name in names if name.split(".")[0] in MAY_IMPORT}


def test_published_packages_are_the_folders() -> None:
    listed = options()["options"]["packages"].split()
    assert len(listed) == len(set(listed))
    assert {name.removeprefix("pocketphi.").replace(".", "/") for name in listed} == folders()


def test_every_stage_is_mapped_and_typed() -> None:
    lines = options()["options"]["package_dir"].strip().splitlines()
    assert dict(line.split(" = ") for line in lines) == {f"pocketphi.{stage}": stage for stage in MAY_IMPORT}
    data = {name: files.split(", ") for name, files in options()["options.package_data"].items()}
    assert {name for name, files in data.items() if "py.typed" in files} == {f"pocketphi.{s}" for s in MAY_IMPORT}
    shipped = [
        (name.removeprefix("pocketphi.").replace(".", "/"), file) for name, files in data.items() for file in files
    ]
    assert [entry for entry in shipped if not any(path.is_file() for path in (ROOT / entry[0]).glob(entry[1]))] == []
    assert [stage for stage in MAY_IMPORT if not (ROOT / stage / "py.typed").is_file()] == []


def test_every_package_says_what_it_is() -> None:
    inits = [ROOT / folder / "__init__.py" for folder in sorted(folders())]
    assert [path for path in inits if not ast.get_docstring(ast.parse(path.read_text("utf-8")))] == []


@pytest.mark.parametrize("stage", MAY_IMPORT)
def test_imports_run_one_way(stage: str) -> None:
    files = sorted((ROOT / stage).rglob("*.py"))
    wrong = {str(path.relative_to(ROOT)): odd for path in files if (odd := imported(path) - MAY_IMPORT[stage])}
    assert files != []
    assert wrong == {}


def test_the_check_sees_imports(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import torch\ndef f():\n    from pocketphi.targets import base\nimport pocketphi.passes.base, graph.int4\n"
    )
    assert imported(path) == {"targets", "passes", "bare graph.int4"}


def test_no_library_is_loaded_before_it_is_needed() -> None:
    """Each file by its own imports: onnx and the runtimes in the target's folder only."""
    lazy = {"onnx", "onnxruntime", "onnxruntime_genai"}
    found = set()
    for stage in ("graph", "passes", "artifacts", "compiler"):
        for path in sorted((ROOT / stage).rglob("*.py")):
            for node in ast.parse(path.read_text("utf-8")).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                found |= {str(path.relative_to(ROOT)) for name in names if name.split(".")[0] in lazy}
    assert found == set()
