"""Folders are stages: what setup.cfg publishes is what lies on disk, and imports run one way."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest
from setuptools import find_packages

import pocketphi

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pocketphi"
MAY_IMPORT = {
    "graph": {"graph"},
    "passes": {"graph", "passes"},
    "artifacts": {"graph", "artifacts"},
    "targets": {"graph", "passes", "artifacts", "targets"},
    "compiler": {"graph", "passes", "artifacts", "targets", "compiler"},
}


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
    found = find_packages(str(ROOT), include=["pocketphi", "pocketphi.*"])
    assert len(found) == len(set(found))
    stages = set(found) - {"pocketphi"}
    assert {name.removeprefix("pocketphi.").replace(".", "/") for name in stages} == folders()
    assert {path.name: path.readlink() for path in PACKAGE.iterdir() if path.is_symlink()} == {
        stage: Path("..", stage) for stage in MAY_IMPORT
    }
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {"__init__.py", "py.typed"}


def test_every_file_is_published() -> None:
    """What is no Python is in `package_data`, and what that names is there."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    patterns = {name: files.split(", ") for name, files in parser["options.package_data"].items()}
    folders_of = {name: ROOT / name.replace(".", "/") for name in patterns}
    named = {(name, file): set(folders_of[name].glob(file)) for name, files in patterns.items() for file in files}
    assert [key for key, paths in named.items() if not paths] == []
    listed = subprocess.run(
        ["git", "ls-files", *MAY_IMPORT], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    data = {PACKAGE / path for path in listed if path and not path.endswith(".py")}
    assert data <= set().union(*named.values())


def test_the_package_is_light() -> None:
    """`import pocketphi` costs nothing: what is heavy is loaded by what needs it."""
    code = "import sys; before = set(sys.modules); import pocketphi; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} <= {"pocketphi", *sys.stdlib_module_names}
    assert pocketphi.__version__ == version("pocketphi")


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("from pocketphi.graph.program import Program\nProgram", "graph/program.py"),
        ("import pocketphi.targets.coreml.lower\npocketphi.targets.coreml.lower", "targets/coreml/lower.py"),
        ("from pocketphi.compiler import verify\nverify", "compiler/verify.py"),
        ("from pocketphi.passes.pattern import Op\nOp", "passes/pattern.py"),
        ("from pocketphi.artifacts.bundle import Bundle\nBundle", "artifacts/bundle.py"),
    ],
)
def test_tools_find_a_definition(text: str, file: str) -> None:
    """Jump to definition, as an editor on the clone asks for it: no hook of an installation has a part in it."""
    jedi = pytest.importorskip("jedi")
    project = jedi.Project(ROOT, sys_path=[])
    line, column = text.count("\n") + 1, len(text.split("\n")[-1])
    (found,) = jedi.Script(text, path=ROOT / "x.py", project=project).goto(line, column, follow_imports=True)
    assert found.module_path is not None
    assert found.module_path.resolve() == ROOT / file


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


def needs(tree: ast.AST, names: Iterable[str]) -> set[str]:
    """The modules of ours that code imports, also inside of functions; what only a type checker reads is left out."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found |= needs(node, names)
    return found & set(names)


def test_no_module_needs_itself_by_a_detour() -> None:
    paths = [path for stage in MAY_IMPORT for path in (ROOT / stage).rglob("*.py")]
    names = {".".join(("pocketphi", *path.relative_to(ROOT).with_suffix("").parts)): path for path in paths}
    graph = {name: needs(ast.parse(path.read_text("utf-8")), names) - {name} for name, path in names.items()}
    assert len(graph) > 200
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)  # a circle is a CycleError that names it


def test_the_check_sees_a_detour() -> None:
    code = {"a": "def f():\n    from b import x\n", "b": "import a\n"}
    with pytest.raises(CycleError):
        TopologicalSorter({name: needs(ast.parse(text), code) for name, text in code.items()}).prepare()
