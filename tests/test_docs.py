"""What README and docs say is so: commands, options, links and messages exist, and what is printed as runnable runs."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketphi.compiler.build_file import read_build_file
from pocketphi.compiler.cli import parser
from pocketphi.graph.published import PUBLISHED
from pocketphi.targets import TARGETS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
PRODUCT = ("graph", "passes", "artifacts", "targets", "compiler")
FOREIGN = {"--no-deps", "--nthreads", "--local-dir", "--seed", "--first", "--mutations"}
"""Options of other programs that stand alone in the text."""

WIDE = {"options.md", "architecture.md", "python-versions.md"}
"""Pages with longer lines: the first is made from the code."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str, section: str = "") -> list[str]:
    """The code blocks of a page, or of one section."""
    text = page.read_text("utf-8")
    if section:
        text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def spans(page: Path) -> list[str]:
    """What stands in `…` in the text around the blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> dict[str, argparse.ArgumentParser]:
    monkeypatch.setitem(TARGETS, "toy", "toy_target")
    made = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(made.choices)


def test_the_readme_can_be_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


@pages
def test_lines_are_of_one_width(page: Path) -> None:
    text = page.read_text("utf-8").replace("https://", "\n")
    if page.name not in WIDE:
        assert [line for line in text.splitlines() if len(line) > 132] == []


def test_every_page_is_listed() -> None:
    listed = (DOCS / "README.md").read_text("utf-8")
    assert [
        page.name for page in DOCS.glob("*.md") if f"({page.name})" not in listed and page.name != "README.md"
    ] == []


@pages
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|srcset)=\"([^\"]+)\"", text)
    local = [link.partition("#")[0] for link in found if "://" not in link and not link.startswith("#")]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pages
def test_commands_in_blocks_can_be_parsed(page: Path, commands: dict[str, argparse.ArgumentParser]) -> None:
    lines = [line for block in blocks(page, "") for line in block.splitlines()]
    told = [line.split("#")[0].removeprefix("$ ") for line in lines if re.match(r"(\$ )?pocketphi ", line)]
    for line in told:
        words = list(shlex.shlex(line, posix=True, punctuation_chars=True))
        if "…" in words:
            continue
        words = shlex.split(re.split(r" && | & ", line)[0])
        try:
            parser().parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"{line} is no command")


@pages
def test_commands_and_options_in_the_text_exist(page: Path, commands: dict[str, argparse.ArgumentParser]) -> None:
    every = {option for command in commands.values() for option in command._option_string_actions} | FOREIGN
    unknown = []
    for span in spans(page):
        words = span.split()
        own = words[0] == "pocketphi" and len(words) > 1 and words[1] in commands
        known = set(commands[words[1]]._option_string_actions) if own else every
        if words[0] == "pocketphi" and len(words) > 1 and words[1].isalpha() and not own:
            unknown.append(span)
        if own or words[0].startswith("--"):
            unknown += [span for word in words if re.fullmatch(r"--[a-z][a-z-]+", word) and word not in known]
    assert [span for span in unknown if page.name != "troubleshooting.md"] == []


def test_the_build_file_on_the_page_of_ci_can_be_read(tmp_path: Path) -> None:
    (file,) = blocks(DOCS / "ci.md", "toml")
    (tmp_path / "pocketphi.toml").write_text(file)
    cells = read_build_file(tmp_path / "pocketphi.toml").cells
    assert [cell.name for cell in cells] == ["chat-ort-mobile-rtn", "chat-coreml-rtn"]
    assert {(cell.gates.max_bytes, cell.gates.lowering) for cell in cells} == {(100_000_000, 0.01)}


def test_the_number_of_functions_in_c() -> None:
    header = (ROOT / "targets" / "tvm_arm" / "runtime" / "pocketphi_runtime.h").read_text("utf-8")
    words = {
        14: "fourteen",
        15: "fifteen",
        16: "sixteen",
        17: "seventeen",
        18: "eighteen",
        19: "nineteen",
        20: "twenty",
    }
    count = words[len(re.findall(r"^POCKETPHI_API .*\(", header, re.MULTILINE))]
    told = [
        found for page in PAGES for found in re.findall(r"C\sinterface\sof\s(\w+)\sfunctions", page.read_text("utf-8"))
    ]
    assert told == [count] * 3


def test_the_page_of_models_names_every_shape() -> None:
    named = set(spans(DOCS / "models.md"))
    assert [name for name in PUBLISHED if name not in named] == []


@pages
def test_make_has_these_targets(page: Path) -> None:
    known = set(re.findall(r"^([a-z/_0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = "\n".join([*spans(page), *blocks(page, "")])
    assert set(re.findall(r"^make ([a-z/_0-9-]+)", text, re.MULTILINE)) <= known


def run(command: list[str], folder: Path) -> str:
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")]),
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.sample
def test_the_four_commands_of_the_readme(tmp_path: Path) -> None:
    (lines,) = blocks(ROOT / "README.md", "", "Four commands")
    assert len(lines.splitlines()) == 4
    said = run(["bash", "-ec", lines], tmp_path)
    for words in ("fits", "121 matrices and 1 embedding in int4", "verified", "all as the manifest says", "Tokyo"):
        assert words in said


def test_the_six_lines_of_python(tmp_path: Path) -> None:
    (lines,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in lines.splitlines() if line]) <= 6
    tiny = lines.replace('"sample"', '"random:tiny"').replace("context=1024", "context=256")
    assert run([sys.executable, "-c", tiny], tmp_path).startswith("True ")


def test_the_steps_of_extending(tmp_path: Path) -> None:
    """All code of the page in one process, which costs one start: the last section first, as the command line lists recipes
    when it is imported. A Helium model lies there for its command."""
    steps = [
        "import torch; torch.set_num_threads(1)",
        "from pathlib import Path",
        "from decoder_folders import save_model",
        "save_model(Path('helium'), 'HeliumForCausalLM', head_dim=16)",
    ]
    for section in reversed((DOCS / "extending.md").read_text("utf-8").split("\n## ")):
        for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            runs = ["from pocketphi.compiler.cli import main"]
            runs += [f"assert main({shlex.split(line)[1:]}) == 0" for line in code.splitlines()]
            steps += [code] if language == "python" else runs
    said = run([sys.executable, "-c", "\n".join(steps)], tmp_path)
    assert "what the file's header says" in said
    assert "a mix of toy2 and int4 by 2 rules" in said
    assert {"toy", "mixed", "clipped"} <= {path.name for path in tmp_path.iterdir()}


def test_numbers_of_figures_are_on_the_pages_of_measurements() -> None:
    page = "".join((DOCS / name).read_text("utf-8") for name in ("measured.md", "quality.md")).replace(",", "")
    words = set(re.findall(r"[0-9]+(?:\.[0-9]+)?", page))
    said = {float(word) for word in words}
    for path in (DOCS / "figures").glob("*.json"):
        data = json.loads(path.read_text("utf-8"))
        panels = [value for panel in data.get("panels", ()) for value in panel["values"]]
        flat = [end for value in panels for end in (value if isinstance(value, list) else [value])]
        drawn = [*data.get("groups", ()), *data.get("lines", ())]
        flat += [point[key] for group in drawn for point in group["points"] for key in ("mb", "kl")]
        assert flat
        assert [number for number in flat if number not in said] == [], path.name


def test_figures_are_those_of_their_numbers(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    if f"matplotlib=={matplotlib.__version__}\n" not in (ROOT / "requirements.txt").read_text("utf-8"):
        pytest.skip("drawn by another matplotlib")
    script = f"import sys; sys.path.insert(0, {str(DOCS / 'figures')!r}); import draw; from pathlib import Path; "
    run([sys.executable, "-B", "-c", f"{script}draw.main(Path({str(tmp_path)!r}))"], tmp_path)
    drawn = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert drawn == sorted(path.name for path in (DOCS / "figures").glob("*.svg"))
    assert [name for name in drawn if lines_of(tmp_path / name) != lines_of(DOCS / "figures" / name)] == []


def lines_of(figure: Path) -> str:
    """Without the names of paths that clip: digests of numbers whose last bits are the CPU's."""
    return re.sub(r"(#|id=\")p[0-9a-f]{10}", r"\1p", figure.read_text("utf-8"))


def text_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def texts(path: Path) -> Iterator[str]:
    """Every text of a file, with … for what is put in when it runs."""
    inside = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(value) for value in node.values}
        if id(node) not in inside:
            yield from text_of(node)


QUOTED = re.compile(r"^- `(.+)`\\?$", re.MULTILINE)


def test_messages_of_troubleshooting_are_in_the_code() -> None:
    quoted = QUOTED.findall((DOCS / "troubleshooting.md").read_text("utf-8"))
    assert len(quoted) > 100
    assert len(quoted) == len(set(quoted))
    known = [text for folder in PRODUCT for path in (ROOT / folder).rglob("*.py") for text in texts(path)]
    assert [message for message in quoted if not any(message in text for text in known)] == []


@pytest.mark.parametrize("file", ["artifacts/bundle.py", "compiler/plan.py", "compiler/device_plan.py"])
def test_troubleshooting_has_every_message_of(file: str) -> None:
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    raised = [
        text
        for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8")))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
        for text in text_of(node.exc.args[0])
    ]
    assert raised
    assert [text for text in raised if f"- `{text}`" not in page] == []
