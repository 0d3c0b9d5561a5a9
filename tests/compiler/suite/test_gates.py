"""Gates on a suite in a build file: met and not met, kept, and what cannot be one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from safetensors.torch import save_file

from pocketphi.compiler.build_file import read_build_file
from pocketphi.compiler.build_result import Claim
from pocketphi.compiler.cli import main
from pocketphi.compiler.suite.found import Found, SuiteResult, figures_of
from pocketphi.compiler.suite.gates import SUITE_GATES, measured
from pocketphi.graph.errors import InputError
from pocketphi.graph.published import PUBLISHED
from pocketphi.graph.random_weights import RandomWeights
from tests.helpers.text_folders import add_tokenizer

FILE = """
[build]
out = "bundles"
cache = "cache"
[models]
tiny = "model"
[recipes]
rtn = {{ verify = "never" }}
[measure]
suite = ["own.jsonl"]
answer_tokens = 6
[gates]
{gates}
"""
LINES: list[dict[str, Any]] = [
    {"question": "the cat", "choices": ["in", "hello"], "answer": 0, "by": "text"},
    {"question": "in the", "choices": ["cat", "hello"], "answer": 1, "by": "text"},
    {"prompt": "hello"},
    {"prompt": "the cat in the", "language": "German"},
    {"prompt": "on the", "language": "French"},
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gates")
    (folder / "model").mkdir()
    config = replace(PUBLISHED["tiny"], vocab_size=384)
    source = RandomWeights("random:gates", config)
    save_file(
        {name: source.read(name, 0, info.rows).float() for name, info in source.tensors.items()},
        folder / "model/model.safetensors",
        {"format": "pt"},
    )
    (folder / "model" / "config.json").write_text(json.dumps(config.to_hf()))
    add_tokenizer(folder / "model")
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return folder


def build(work: Path, gates: str) -> list[str]:
    path = work / "pocketphi.toml"
    path.write_text(FILE.format(gates=gates))
    return ["build", str(path), "--junit", str(work / "r.xml"), "--results", str(work / "r.json")]


def test_gates_of_a_build(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model: int4 moves it by more than nothing, and no answer of six tokens is a loop."""
    code = main(build(work, "min_accuracy = 0\nanswer_kl = 0\nlanguage_kl = 0\nmax_new_loops = 0\n"))
    said = capsys.readouterr().err
    assert (code, "suite: " in said) == (1, True), said
    (result,) = json.loads((work / "r.json").read_text())
    claims = {claim["name"]: claim for claim in result["claims"]}
    assert [claims[f"gate {name}"]["ok"] for name in ("min_accuracy", "answer_kl", "language_kl", "max_new_loops")] == [
        True,
        False,
        False,
        True,
    ]
    assert claims["gate min_accuracy"]["least"]
    right = round(claims["gate min_accuracy"]["measured"] * 2)
    assert claims["gate min_accuracy"]["detail"].startswith(f"{right} of 2, 95 % interval ")
    assert claims["gate max_new_loops"]["detail"] == "of 3 answers"
    assert claims["gate language_kl"]["detail"].partition(":")[0] in ("German", "French")
    messages = [one.get("message", "") for one in ET.parse(work / "r.xml").getroot().iter("failure")]
    assert any(text.startswith("gate answer_kl: 0.") and " nats/token, 0." in text for text in messages)
    page = (work / "bundles" / f"{result['name']}.html").read_text("utf-8")
    assert "gate language_kl: " in page
    # what was measured is known: also for another bound, and another gate of the same suite
    assert main(build(work, "min_same_choices = 1\nlanguage_kl = 100\n")) == 1
    assert "suite: " not in capsys.readouterr().err


def test_the_numbers_of_gates() -> None:
    """By hand: the worst language, loops of both kinds of answers, a share."""
    lines = [
        Found("behaviour", "a", "x:1", {"same_stops": True, "new_loops": True}, {"kl": 0.5}),
        Found("behaviour", "a", "x:2", {"same_stops": False, "new_loops": False}, {"kl": 0.25}),
        Found("language", "German", "x:3", {"new_loops": True}, {"kl": 0.25}),
        Found("language", "French", "x:4", {"new_loops": False}, {"kl": 0.75}),
    ]
    result = SuiteResult("m", ("s",), "", "r", 8, figures_of(lines))
    assert measured(SUITE_GATES["min_same_stops"], result) == (0.5, "1 of 2, 95 % interval 0.09 to 0.91")
    assert measured(SUITE_GATES["max_new_loops"], result) == (2.0, "of 4 answers")
    assert measured(SUITE_GATES["answer_kl"], result)[0] == 0.375
    assert measured(SUITE_GATES["language_kl"], result) == (0.75, "French: 1 prompts, 95 % interval 0.75 to 0.75")


def test_a_claim_from_below() -> None:
    good = Claim("gate min_accuracy", 0.9, 0.8, least=True, detail="9 of 10")
    assert good.ok
    assert good.described() == "gate min_accuracy: 0.9, at least 0.8 (9 of 10)"
    bad = Claim("gate min_accuracy", 0.5, 0.75, least=True)
    assert not bad.ok
    assert bad.described() == "gate min_accuracy: 0.5, 0.25 under 0.75"
    assert not Claim("gate min_accuracy", float("nan"), 0.0, least=True).ok
    assert Claim("gate kl", 0.25, 0.5).described() == "gate kl: 0.25, at most 0.5"


BAD = {
    "min_acuracy = 0.5": "unknown key gates.min_acuracy; did you mean min_accuracy?",
    "min_accuracy = 90": "gates.min_accuracy is 90.0, expected a share from 0 to 1",
    "max_new_loops = -1": "gates.max_new_loops is -1.0, expected a number that is not negative",
    "min_exact = 0.5": "gates.min_exact is about lines of the kind exact; measure.suite has behaviour, choice, language",
}


@pytest.mark.parametrize("gates", BAD)
def test_what_cannot_be_a_gate(gates: str, work: Path) -> None:
    build(work, gates)
    with pytest.raises(InputError) as raised:
        read_build_file(work / "pocketphi.toml")
    assert str(raised.value).startswith(f"{work / 'pocketphi.toml'}: {BAD[gates]}")


MEASURE = {
    'suite = "behavior"': "measure.suite {folder}/behavior: no such file or folder; expected JSON Lines, or a name: behaviour",
    "suite = 3": "measure.suite is 3, expected a text",
    "suite = []": "measure.suite : holds no line",
    'suite = ""': "measure.suite is '', which cannot be a path",
    "answer_tokens = 0": "measure.answer_tokens is 0, expected 1 to 4096",
    "suits = 3": "unknown key measure.suits; did you mean suite?",
}


@pytest.mark.parametrize("line", MEASURE)
def test_what_cannot_be_measured(line: str, tmp_path: Path) -> None:
    path = tmp_path / "pocketphi.toml"
    path.write_text(f'[models]\ntiny = "random:tiny"\n[measure]\n{line}\n[gates]\nanswer_kl = 1\n')
    with pytest.raises(InputError) as raised:
        read_build_file(path)
    assert str(raised.value).startswith(f"{path}: {MEASURE[line].format(folder=tmp_path)}")


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the build file calls it, and not by the folder in the cache."""
    path = tmp_path / "pocketphi.toml"
    path.write_text(
        '[build]\ncache = "cache"\n[models]\ntiny = "random:tiny"\n[recipes.rtn]\nverify = "never"\n'
        "[gates]\nmin_same_stops = 0.5\n"
    )
    assert main(["build", str(path)]) == 2
    said = capsys.readouterr().err
    assert ": random:tiny has no tokenizer, so that a text means nothing to it, and no suite can be asked" in said
    assert "--suite" not in said
    assert "cache/bundles" not in said


def test_gates_of_one_target(tmp_path: Path) -> None:
    path = tmp_path / "pocketphi.toml"
    text = '[models]\ntiny = "random:tiny"\n[targets]\nort-mobile = {}\ncoreml = {}\n'
    path.write_text(text)
    assert read_build_file(path).measure.suite is None  # nothing is read that nothing asks for
    path.write_text(f'{text}[measure]\nsuite = "behaviour"\n[gates.coreml]\nmin_same_stops = 0.5\n')
    file = read_build_file(path)
    assert [dict(cell.gates.suite) for cell in file.cells] == [{}, {"min_same_stops": 0.5}]
    assert file.measure.suite is not None
