"""A target is declared in its folder and one line; an option in one place; nothing in compiler/ names a target."""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import Any

import pytest

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.build_key import SourceDigests, bundle_key
from pocketphi.compiler.cli import main, parser
from pocketphi.compiler.options import CompileOptions, compile_options
from pocketphi.compiler.options_page import page
from pocketphi.graph.errors import InputError
from pocketphi.graph.options import declared
from pocketphi.targets import TARGETS, all_targets

COMPILER = Path(__file__).parents[2] / "compiler"
NAMES = {name for target in all_targets() for name in (target.name, target.name.replace("-", "_"), target.title)}


def strings(path: Path) -> set[str]:
    """Every text and name of a file that means something to Python: what it imports, what it is compared with."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        found |= {alias.name for alias in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
        found |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
        found |= {node.id} if isinstance(node, ast.Name) else set()
    return found


def test_nothing_in_the_compiler_names_a_target() -> None:
    named = [
        (path.name, text) for path in COMPILER.glob("*.py") for text in strings(path) if any(n in text for n in NAMES)
    ]
    assert named == []


def test_the_check_sees_names(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("from pocketphi.targets.coreml import form\nif target == 'tvm-arm': pass\n")
    assert {"pocketphi.targets.coreml", "tvm-arm"} <= strings(tmp_path / "x.py")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(TARGETS, "toy", "toy_target")
    return "toy"


BUILD = """
[build]
cache = "cache"
[models]
tiny = "random:tiny"
[targets.toy]
greeting = "hi"
[recipes.rtn]
verify = "never"
"""


def lines(of: Path) -> int:
    return sum(1 for line in of.read_text("utf-8").splitlines() if line.strip())


def test_a_toy_target_is_one_file_and_one_line(toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import toy_target

    assert lines(Path(toy_target.__file__)) - 20 < 80  # its imports are 20
    out = tmp_path / "bundle"
    asked = ["compile", "random:tiny", "-o", str(out), "--target", toy, "--recipe", "rtn", "--toy-greeting", "salut"]
    assert main([*asked, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main([*asked, "--verify", "always", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["targets"][toy]["greeting"] == "salut"
    assert made["verification"]["ok"] is True
    assert {"KL prefill, exact", "weights equal, bit for bit"} <= {c["name"] for c in made["verification"]["checks"]}
    assert planned["artifact"] == pytest.approx((out / "model.toy").stat().st_size, abs=8192)  # its header
    for command in (["inspect", str(out)], ["verify", str(out)], ["bench", str(out), "--prompt-tokens", "8"]):
        assert main(command) == 0
    assert main(["devices", "random:tiny", "--target", toy, "--device", "pixel-8"]) == 0
    assert "toy" in capsys.readouterr().out


def test_a_damaged_toy_is_seen(toy: str, tmp_path: Path) -> None:
    from pocketphi.compiler.compile import compile_model
    from pocketphi.compiler.ui import Ui
    from pocketphi.compiler.verify import verify_folder

    made = compile_model(compile_options("random:tiny", tmp_path / "b", (toy,), recipe="rtn", verify="never"))
    data = bytearray((made.path / "model.toy").read_bytes())
    data[-5] ^= 1
    (made.path / "model.toy").write_bytes(data)
    assert not verify_folder(made.path, made.manifest, Ui()).ok


def test_a_build_of_the_toy(toy: str, tmp_path: Path) -> None:
    file = tmp_path / "pocketphi.toml"
    file.write_text(BUILD)
    assert main(["build", str(file)]) == 0
    bundle = Bundle.open(tmp_path / "bundles" / "tiny-toy-rtn")
    assert bundle.manifest.targets[toy].details == {"greeting": "hi"}
    keys = {bundle_key(compile_options("random:tiny", tmp_path, (toy,), greeting=g), SourceDigests()) for g in "ab"}
    assert len(keys) == 2


def test_the_page_of_options_is_up_to_date() -> None:
    assert (COMPILER.parent / "docs" / "options.md").read_text("utf-8") == page()


def test_each_target_is_planned_and_lowered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("coremltools")
    from pocketphi.compiler.compile import compile_model
    from pocketphi.targets.coreml import package as coreml
    from pocketphi.targets.ort_mobile import package as ort

    asked: list[str] = []

    def counted(module: Any, name: str) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: (asked.append(f"{module.__name__} {name}"), real(*args))[1])

    for module, name in ((ort, "lower"), (coreml, "lower"), (coreml, "plan_weights"), (coreml, "lint")):
        counted(module, name)
    compile_model(
        compile_options("random:tiny", tmp_path / "b", ("ort-mobile", "coreml"), recipe="rtn", verify="never")
    )
    assert len(asked) == len(set(asked)) == 4


def every_option() -> list[tuple[str, Any]]:
    found = [("compile", one) for one in declared(CompileOptions).values()]
    return found + [(target.name, one) for target in all_targets() for one in declared(target.options).values()]


def test_every_option_is_on_the_command_line_with_its_help() -> None:
    commands = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    actions = {action.dest: action for action in commands.choices["compile"]._actions}
    for where, one in every_option():
        assert f"--{one.flag}" in actions[one.name].option_strings, where
        assert actions[one.name].help, one.name


def test_names_and_flags_are_of_one_option_each() -> None:
    """But several targets may have one of the same name, each with values of its own."""
    by_flag: dict[str, set[tuple[bool, str]]] = {}
    for where, one in every_option():
        by_flag.setdefault(one.flag, set()).add((where == "compile", one.name))
    assert [flag for flag, names in by_flag.items() if len(names) > 1] == []
    assert len({one.flag for one in declared(CompileOptions).values()}) == len(declared(CompileOptions))


@pytest.mark.parametrize(
    ("targets", "given", "said"),
    [
        (
            ("ort-mobile",),
            {"cpu": "neon"},
            r"--cpu neon: ort-mobile has no such option; leave it out, or compile for tvm-arm",
        ),
        (("ort-mobile", "coreml"), {"os": "ios"}, r"--os ios: neither ort-mobile nor coreml has such an option"),
        (("coreml",), {"ort_file": True}, r"--ort-file True: coreml has no such option"),
        (("coreml",), {"chunk": "x"}, r"--prefill-chunk x: expected a whole number"),
        (("coreml",), {"chunk": True}, r"--prefill-chunk True: expected a whole number"),
        (("coreml",), {"strict": 1}, r"--strict 1: expected true or false"),
        (("coreml",), {"recip": "rtn"}, r"recip is no option of a compile; did you mean recipe\?"),
        (("coreml",), {"recipe": 5}, r"--recipe 5: expected a text"),
    ],
)
def test_what_an_option_cannot_be(targets: tuple[str, ...], given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compile_options("random:tiny", Path("x"), targets, **given)
